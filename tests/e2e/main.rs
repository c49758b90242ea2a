//! End to end: what a user gets, shown with real scans against the real binary.
//!
//! Every test makes a laboratory of network namespaces with a bus of its own, starts the service in
//! it and looks at it from outside: by connecting, over D-Bus, in the log, in the metrics, in the
//! kernel's rules and sets. Nothing outside the laboratory is touched.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that cannot go on fails; it starts processes and threads, and limits its waits"
)]

mod bus;
mod bus_client;
mod clients;
mod disk;
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
