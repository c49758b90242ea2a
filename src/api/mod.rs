//! How others look at the service: the journal, D-Bus and metrics.

pub mod dbus;
pub mod journal;
pub mod metrics;
