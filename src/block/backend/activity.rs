//! What the rules thread is doing: the program that it runs, for how long, and until when it may.
//!
//! Owns the deadlines of programs. The rules thread writes here, and the firewall thread reads: the rules
//! thread itself cannot say that it hangs. No lock is held while a program runs.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::types::{Heartbeat, Moment};

/// How long a program may run. iptables itself waits up to 5 s for the lock of its rules.
pub const LIMIT: Duration = Duration::from_secs(6);

/// How long a stop tries to remove the rules.
pub const STOP_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub struct Activity {
    inner: Mutex<Inner>,
    /// The heartbeat of the thread that runs the programs.
    heartbeat: OnceLock<Heartbeat>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The program that runs, and since when.
    running: Option<(String, Moment)>,
    /// The last program, if it did not end in time.
    timed_out: Option<String>,
    /// No program may run after this moment: the service stops.
    stop_by: Option<Moment>,
}

/// A program that runs.
pub struct Running<'a> {
    activity: &'a Activity,
    begun: Moment,
}

impl Activity {
    /// Sets the heartbeat of the thread that runs the programs. It ticks while a program may run.
    pub fn set_heartbeat(&self, heartbeat: Heartbeat) {
        let _ = self.heartbeat.set(heartbeat);
    }

    /// Notes that a program starts.
    pub fn begin(&self, command: &str) -> Running<'_> {
        let begun = Moment::now();
        self.inner().running = Some((command.to_owned(), begun));
        Running { activity: self, begun }
    }

    /// Returns the command that does not end.
    pub fn hanging(&self, now: Moment) -> Option<String> {
        let inner = self.inner();
        let running = inner.running.as_ref();
        // A program that is killed needs a moment to end.
        let is_late = |begun: Moment| now.since(begun) > LIMIT + Duration::from_millis(500);
        running.filter(|(_, begun)| is_late(*begun)).map(|(command, _)| command.clone())
    }

    /// Returns the command that does not end, or was the last and did not end in time.
    pub fn hung(&self, now: Moment) -> Option<String> {
        self.hanging(now).or_else(|| self.inner().timed_out.clone())
    }

    /// Whether the service stops.
    pub fn is_stopping(&self) -> bool {
        self.inner().stop_by.is_some()
    }

    /// Returns the command that runs.
    pub fn running(&self) -> Option<String> {
        self.inner().running.as_ref().map(|(command, _)| command.clone())
    }

    /// Notes that the service stops: soon no program may run any more.
    pub fn stop(&self, now: Moment) {
        self.inner().stop_by.get_or_insert(now + STOP_PATIENCE);
    }

    /// How long there is time for work until the service has to end: forever if it need not.
    pub fn remaining(&self, now: Moment) -> Duration {
        self.inner().stop_by.map_or(Duration::MAX, |stop_by| stop_by.since(now))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running<'_> {
    /// When the program has to be killed. Asked for again and again while it runs.
    pub fn deadline(&self) -> Moment {
        if let Some(heartbeat) = self.activity.heartbeat.get() {
            heartbeat.tick();
        }
        let end = self.begun + LIMIT;
        self.activity.inner().stop_by.map_or(end, |stop_by| stop_by.min(end))
    }

    /// Notes that the program has ended, or was killed because it had not.
    pub fn end(self, timed_out: bool) {
        let mut inner = self.activity.inner();
        let command = inner.running.take().map(|(command, _)| command);
        inner.timed_out = command.filter(|_| timed_out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_that_does_not_end_in_time_is_named_until_one_ends() {
        let activity = Activity::default();
        let now = Moment::now();
        let running = activity.begin("iptables -S");
        assert_eq!(activity.hung(now + LIMIT), None);
        assert_eq!(activity.hung(now + 2 * LIMIT).as_deref(), Some("iptables -S"));
        running.end(true);
        assert_eq!(activity.hung(now).as_deref(), Some("iptables -S"));
        activity.begin("iptables -S").end(false);
        assert_eq!(activity.hung(now + 2 * LIMIT), None);
    }

    #[test]
    fn stop_shortens_the_time_of_a_running_program() {
        let activity = Activity::default();
        let running = activity.begin("iptables -S");
        let now = Moment::now();
        assert!(running.deadline() > now + STOP_PATIENCE);
        activity.stop(now);
        assert_eq!(running.deadline(), now + STOP_PATIENCE);
        activity.stop(now + LIMIT);
        assert_eq!(activity.remaining(now), STOP_PATIENCE, "a second call grants no more time");
    }
}
