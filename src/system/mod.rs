//! The operating system: capture, netlink, locks, the host. Never decides what to block.

pub mod capture;
pub mod conntrack;
pub mod host;
pub mod lock;
pub mod netlink;
pub mod progress;
pub mod scheduling;
pub mod service_manager;
