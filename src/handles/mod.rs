//! The ways to running threads: what each can be asked, and where events and health are reported.

pub mod bus;
pub mod capture;
pub mod detector;
pub mod events;
pub mod firewall;
pub mod health;
pub mod notification;
pub mod reload;
pub mod stop_flag;
