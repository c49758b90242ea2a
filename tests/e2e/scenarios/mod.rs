//! What is asserted, by subject.

mod capture;
mod command_line;
mod control;
mod floods;
mod instances;
mod log;
mod no_bus;
mod observe;
mod own_captures;
mod restart;
mod scan;
mod service_manager;
mod start_errors;
mod stop;
mod web;
mod wrappings;
