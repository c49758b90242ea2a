//! The operating system: capture, netlink, locks, the host. Decides nothing.

pub mod capture;
pub mod conntrack;
pub mod host;
pub mod lock;
pub mod netlink;
pub mod progress;
pub mod service_manager;
