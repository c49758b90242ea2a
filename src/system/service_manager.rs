//! The service manager: told that the service is ready, how it is doing, that it is alive.
//!
//! Without a service manager (no `NOTIFY_SOCKET`) all of this does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// Everything is up.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// A line for `systemctl status`.
pub fn status(status: &str) {
    notify(&[NotifyState::Status(status)]);
}

/// The configuration is being read again. Followed by [`ready`], whatever comes of it.
pub fn reloading() {
    // Which reload it is that this belongs to (sd_notify(3)).
    let now = NotifyState::monotonic_usec_now().ok();
    let told = [NotifyState::Reloading, NotifyState::Status("reading the configuration again")];
    notify(&told.into_iter().chain(now).collect::<Vec<_>>());
}

/// The service has begun to stop.
pub fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("taking the firewall rules down")]);
}

/// Every thread makes progress.
pub fn feed_watchdog() {
    notify(&[NotifyState::Watchdog]);
}

/// How often at least the service manager wants to hear that the service is alive.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

fn notify(state: &[NotifyState<'_>]) {
    // A service manager that does not listen will find out by its own means.
    let _ = sd_notify::notify(state);
}
