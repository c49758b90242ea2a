//! The vocabulary of all parts. Pure data: no I/O, no threads.

pub mod block;
pub mod capture;
pub mod clock;
pub mod event;
pub mod heartbeat;
pub mod host;
pub mod ifname;
pub mod network;
pub mod rate_limit;
pub mod rule;
pub mod scan;
pub mod segment;
pub mod state;
pub mod text;
