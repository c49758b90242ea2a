//! Notifications to the service manager: ready, status, reload, watchdog.
//!
//! Without a service manager (no `NOTIFY_SOCKET`) they do nothing.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::types::printable;

/// The service is ready.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(&printable(status))]);
}

/// Sets the line that `systemctl status` shows.
pub fn status(status: &str) {
    notify(&[NotifyState::Status(&printable(status))]);
}

/// A reload begins. Call [`ready`] at its end, whether or not it succeeds.
pub fn reloading() {
    // Identifies the reload (sd_notify(3)).
    let now = NotifyState::monotonic_usec_now().ok();
    let states = [NotifyState::Reloading, NotifyState::Status("reloading the configuration")];
    notify(&states.into_iter().chain(now).collect::<Vec<_>>());
}

/// The service is stopping.
pub fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("removing the firewall rules")]);
}

/// Feeds the watchdog.
pub fn feed_watchdog() {
    notify(&[NotifyState::Watchdog]);
}

/// Returns how often the service manager expects the watchdog to be fed, at least.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

fn notify(state: &[NotifyState<'_>]) {
    // A service manager that cannot be reached has its own timeouts.
    let _ = sd_notify::notify(state);
}
