//! The operating system: capture, netlink, locks, the host. Never decides what to block.

pub mod capture;
pub mod cgroup;
pub mod conntrack;
pub mod host;
pub mod lock;
pub mod netlink;
pub mod process;
pub mod progress;
pub mod reserve;
pub mod scheduling;
pub mod service_manager;
