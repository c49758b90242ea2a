//! What users and other programs see of the service: the journal, D-Bus and metrics.

pub mod dbus;
pub mod journal;
pub mod log_filter;
pub mod logind;
pub mod metrics;
mod users;
