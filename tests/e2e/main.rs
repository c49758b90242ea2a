//! End-to-end tests: real scans against the real binary.
//!
//! Every test creates a lab of network namespaces with its own bus, starts the service in it, and
//! observes the service from outside: connections, D-Bus, log, metrics, kernel rules and sets. A
//! test changes nothing outside its lab.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test panics on unexpected errors, starts processes and threads, and bounds every wait"
)]

mod bus;
mod bus_client;
mod clients;
mod disk;
mod fake_logind;
mod fake_service;
mod fake_systemd;
mod files;
mod flood;
mod frames;
mod journal;
mod kernel;
mod lab;
mod namespace;
mod oracle;
mod prometheus;
mod recorder;
mod saved_blocks;
mod scenarios;
mod service;
mod tools;
mod unresponsive_polkit;
mod users;
mod wrapped;
