//! The threads of the service: named, owned by main, supervised.
//!
//! Owns starting them, noticing that one makes no progress, and reporting to main that one has ended. A
//! panic is such an end: a service without one of its threads must not continue. (A panic in a thread that
//! a library has started ends that thread only.)

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::signal_name;

use crate::handles::Notification;
use crate::types::Heartbeat;

struct Thread {
    name: &'static str,
    heartbeat: Heartbeat,
    last_count: u64,
    was_stalled: bool,
    handle: JoinHandle<()>,
}

/// The names of threads that make no progress.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct StalledThreads {
    /// Those without a heartbeat since the last check.
    pub now: Vec<&'static str>,
    /// Those of them without a heartbeat since the check before that.
    pub twice: Vec<&'static str>,
}

/// The running threads.
pub struct Supervisor {
    notifications: Sender<Notification>,
    threads: Vec<Thread>,
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
        self.threads.push(Thread { name, heartbeat, last_count: 0, was_stalled: false, handle });
        Ok(())
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

    /// Returns the threads without a heartbeat since the last call.
    pub fn stalled(&mut self) -> StalledThreads {
        let mut stalled = StalledThreads::default();
        for thread in &mut self.threads {
            let count = thread.heartbeat.count();
            let is_stalled = std::mem::replace(&mut thread.last_count, count) == count;
            if is_stalled {
                stalled.now.push(thread.name);
            }
            if std::mem::replace(&mut thread.was_stalled, is_stalled) && is_stalled {
                stalled.twice.push(thread.name);
            }
        }
        stalled
    }

    /// Waits for the named thread to end. Ask it to stop first.
    pub fn join(&mut self, name: &str) {
        if let Some(at) = self.threads.iter().position(|thread| thread.name == name) {
            // A panic was already reported.
            let _ = self.threads.swap_remove(at).handle.join();
        }
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
        assert_eq!(supervisor.stalled(), StalledThreads::default());
        assert_eq!(supervisor.stalled(), StalledThreads { now: vec!["patient"], twice: vec![] });
        assert_eq!(
            supervisor.stalled(),
            StalledThreads { now: vec!["patient"], twice: vec!["patient"] }
        );
        go.send(()).unwrap();
        supervisor.join("patient");
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
