//! tcptracker: a port-scan sentinel for Linux hosts.
//!
//! By stage, in the order a packet travels: [`capture`] (frame to probe), [`detector`] (probe to
//! scan), [`firewall`] (scan to block), and those who are told: [`journal`], [`dbus`], [`metrics`].
//! [`daemon`] composes them; [`cli`] is what a user types. ARCHITECTURE.md tells the whole story.

pub mod capture;
pub mod cli;
pub mod clock;
pub mod config;
pub mod crew;
pub mod daemon;
pub mod dbus;
pub mod detector;
pub mod events;
pub mod firewall;
pub mod host;
pub mod interface;
pub mod journal;
pub mod lock;
pub mod memory;
pub mod metrics;
pub mod netlink;
pub mod network;
pub mod probe;
pub mod progress;
pub mod reload;
pub mod service_manager;
pub mod state;
