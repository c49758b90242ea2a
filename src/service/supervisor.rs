//! The threads of the service: named, owned by main, supervised.
//!
//! Owns starting them, noticing that one makes no progress, and reporting to main that one has ended. A
//! panic is such an end: a service without one of its threads must not continue. (A panic in a thread that
//! a library has started ends that thread only.) Must never wait without a limit for a thread that writes to
//! other programs.

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::signal_name;

use crate::handles::Notification;
use crate::types::{Heartbeat, Moment};

/// The threads without which nothing is blocked, or remembered. Only they feed the watchdog: a restart does
/// not help against a journal or a bus that does not read.
const PROTECTING: [&str; 4] = ["capture", "detector", "firewall", "store"];

/// A thread that has ended with an error.
pub type Failure = (&'static str, Box<dyn Error + Send + Sync>);

struct Thread {
    name: &'static str,
    heartbeat: Heartbeat,
    last_count: u64,
    /// The checks in a row that found no heartbeat.
    stalled_for: u32,
    handle: JoinHandle<()>,
}

/// The running threads.
pub struct Supervisor {
    notifications: Sender<Notification>,
    threads: Vec<Thread>,
}

/// Whether a thread's lack of progress must starve the watchdog.
pub fn protects(thread: &str) -> bool {
    PROTECTING.contains(&thread)
}

impl Supervisor {
    /// Makes a supervisor that reports the end of each thread to `notifications`.
    pub fn new(notifications: Sender<Notification>) -> Self {
        Self { notifications, threads: Vec::new() }
    }

    /// Starts a thread. `work` must tick the heartbeat at least once a second.
    pub fn start<E>(
        &mut self,
        name: &'static str,
        work: impl FnOnce(&Heartbeat) -> Result<(), E> + Send + 'static,
    ) -> std::io::Result<()>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let heartbeat = Heartbeat::default();
        let (notifications, own_heartbeat) = (self.notifications.clone(), heartbeat.clone());
        let handle = thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Nothing that the thread worked with is used after a panic.
            let result = catch_unwind(AssertUnwindSafe(|| work(&own_heartbeat)));
            let result = result.map_or_else(
                |_| Err("it panicked; its message says where".into()),
                |result| result.map_err(Into::into),
            );
            // If main has ended, so has the process.
            let _ = notifications.send(Notification::Ended { thread: name, result });
        })?;
        self.threads.push(Thread { name, heartbeat, last_count: 0, stalled_for: 0, handle });
        Ok(())
    }

    /// Returns the way to main.
    pub fn notifications(&self) -> Sender<Notification> {
        self.notifications.clone()
    }

    /// Turns the signals that stop or reload a service into notifications. The thread that waits for them
    /// ends with the process.
    pub fn forward_signals(&self) -> std::io::Result<()> {
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
        let notifications = self.notifications.clone();
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for signal in signals.forever() {
                // If main no longer listens, the process is already stopping.
                let _ = notifications
                    .send(Notification::Signal(signal_name(signal).unwrap_or("a signal")));
            }
        })?;
        Ok(())
    }

    /// Returns the threads without a heartbeat since the last call, and for how many calls in a row.
    pub fn stalled(&mut self) -> Vec<(&'static str, u32)> {
        for thread in &mut self.threads {
            let count = thread.heartbeat.count();
            let is_stalled = std::mem::replace(&mut thread.last_count, count) == count;
            thread.stalled_for = if is_stalled { thread.stalled_for.saturating_add(1) } else { 0 };
        }
        let stalled = self.threads.iter().filter(|thread| thread.stalled_for > 0);
        stalled.map(|thread| (thread.name, thread.stalled_for)).collect()
    }

    /// Waits for the named thread to end. Ask it to stop first.
    pub fn join(&mut self, name: &str) {
        if let Some(at) = self.threads.iter().position(|thread| thread.name == name) {
            // A panic was already reported.
            let _ = self.threads.swap_remove(at).handle.join();
        }
    }

    /// Waits for these threads to end, at most this long. Ask them to stop first. A thread that goes on is
    /// left: it ends with the process. Returns what has failed, also in other threads.
    pub fn leave(
        &mut self,
        names: &[&str],
        patience: Duration,
        notifications: &Receiver<Notification>,
    ) -> Vec<Failure> {
        let mut left = Vec::new();
        for at in (0..self.threads.len()).rev() {
            if names.contains(&self.threads[at].name) {
                left.push(self.threads.swap_remove(at));
            }
        }
        let deadline = Moment::now() + patience;
        let mut failures = Vec::new();
        while left.iter().any(|thread| !thread.handle.is_finished()) {
            // Each thread sends its end just before it finishes.
            match notifications.recv_timeout(deadline.since(Moment::now())) {
                Ok(Notification::Ended { thread, result }) => {
                    left.retain(|other| other.name != thread);
                    failures.extend(result.err().map(|error| (thread, error)));
                }
                // Nothing else is of interest to a service that stops.
                Ok(_) => {}
                Err(_) => break,
            }
        }
        failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn stalled_thread_is_named() {
        let (notifications, _inbox) = channel();
        let (go, wait) = channel::<()>();
        let (started_in, started) = channel();
        let mut supervisor = Supervisor::new(notifications);
        supervisor
            .start("patient", move |heartbeat| {
                heartbeat.tick();
                started_in.send(()).unwrap();
                wait.recv().map_err(|e| e.to_string())
            })
            .unwrap();
        started.recv().unwrap();
        assert_eq!(supervisor.stalled(), []);
        assert_eq!(supervisor.stalled(), [("patient", 1)]);
        assert_eq!(supervisor.stalled(), [("patient", 2)]);
        go.send(()).unwrap();
        supervisor.join("patient");
    }

    #[test]
    fn thread_that_does_not_end_is_left() {
        let (notifications, inbox) = channel();
        let (_never, wait) = channel::<()>();
        let mut supervisor = Supervisor::new(notifications);
        supervisor.start("bus", move |_| wait.recv().map_err(|e| e.to_string())).unwrap();
        supervisor.start("metrics", |_| Err("no such port")).unwrap();
        let patience = Duration::from_millis(50);
        let failures = supervisor.leave(&["metrics", "bus", "journal"], patience, &inbox);
        let failures: Vec<String> = failures.iter().map(|(n, e)| format!("{n}: {e}")).collect();
        assert_eq!(failures, ["metrics: no such port"]);
        assert_eq!(supervisor.stalled(), [], "a thread that was left is of no interest");
    }

    #[test]
    fn panic_is_reported_as_the_end_of_its_thread() {
        let (notifications, inbox) = channel();
        let mut supervisor = Supervisor::new(notifications);
        supervisor.start("detector", |_| -> Result<(), String> { panic!("no such port") }).unwrap();
        let Notification::Ended { thread: "detector", result: Err(error) } = inbox.recv().unwrap()
        else {
            panic!()
        };
        assert!(error.to_string().contains("panicked"));
    }

    #[test]
    fn end_of_a_thread_is_reported_with_name_and_reason() {
        let (notifications, inbox) = channel();
        let mut supervisor = Supervisor::new(notifications);
        supervisor.start("capture", |_| Err("the cable was cut")).unwrap();
        match inbox.recv().unwrap() {
            Notification::Ended { thread: "capture", result: Err(error) } => {
                assert_eq!(error.to_string(), "the cable was cut");
            }
            other => panic!("{other:?}"),
        }
    }
}
