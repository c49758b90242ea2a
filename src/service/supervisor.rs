//! The threads of the service: named, owned by main, watched.
//!
//! Owns starting them, knowing that each still makes progress, and hearing that one has ended, by a
//! panic as well: a daemon with a dead thread must not go on as a ghost. (A panic of a thread that a library
//! has started for itself ends that thread only.)

use crate::handles::notification::Notification;
use crate::types::heartbeat::Heartbeat;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::signal_name;

struct Thread {
    name: &'static str,
    heartbeat: Heartbeat,
    last_seen: u64,
    was_stalled: bool,
    handle: JoinHandle<()>,
}

/// The names of threads that show no sign of life.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct StalledThreads {
    /// Those that have shown none since they were last looked at.
    pub now: Vec<&'static str>,
    /// Those of which that was so the last time, too.
    pub twice: Vec<&'static str>,
}

/// The running threads.
pub struct Supervisor {
    notifications: Sender<Notification>,
    members: Vec<Thread>,
}

impl Supervisor {
    /// A crew whose members' ends are told to `notices`.
    pub fn new(notifications: Sender<Notification>) -> Self {
        Self { notifications, members: Vec::new() }
    }

    /// Starts a thread. `work` must beat the pulse at least once a second.
    pub fn start<E>(
        &mut self,
        name: &'static str,
        work: impl FnOnce(&Heartbeat) -> Result<(), E> + Send + 'static,
    ) -> std::io::Result<()>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let heartbeat = Heartbeat::default();
        let (notifications, own_pulse) = (self.notifications.clone(), heartbeat.clone());
        let handle = thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Nothing of what the thread worked with is used after it.
            let result = catch_unwind(AssertUnwindSafe(|| work(&own_pulse)));
            let result = result.map_or_else(
                |_| Err("it panicked; its message says where".into()),
                |result| result.map_err(Into::into),
            );
            // Main is gone only when the process is.
            let _ = notifications.send(Notification::Ended { thread: name, result });
        })?;
        self.members.push(Thread { name, heartbeat, last_seen: 0, was_stalled: false, handle });
        Ok(())
    }

    /// Turns the signals that ask a service to end, or to reload, into notices. The thread that waits for them ends
    /// with the process.
    pub fn forward_signals(&self) -> std::io::Result<()> {
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
        let notifications = self.notifications.clone();
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for signal in signals.forever() {
                // Main has stopped listening: the process is ending as asked.
                let _ = notifications
                    .send(Notification::Signal(signal_name(signal).unwrap_or("a signal")));
            }
        })?;
        Ok(())
    }

    /// The threads that have shown no sign of life since the last call.
    pub fn stalled(&mut self) -> StalledThreads {
        let mut stalled = StalledThreads::default();
        for member in &mut self.members {
            let seen = member.heartbeat.count();
            let is_stalled = std::mem::replace(&mut member.last_seen, seen) == seen;
            if is_stalled {
                stalled.now.push(member.name);
            }
            if std::mem::replace(&mut member.was_stalled, is_stalled) && is_stalled {
                stalled.twice.push(member.name);
            }
        }
        stalled
    }

    /// Waits for the named thread to end. Ask it to stop first.
    pub fn join(&mut self, name: &str) {
        if let Some(at) = self.members.iter().position(|member| member.name == name) {
            // A panic was caught and told.
            let _ = self.members.swap_remove(at).handle.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_thread_that_stops_beating_is_named() {
        let (notifications, _inbox) = channel();
        let (go, wait) = channel::<()>();
        let (tell, told) = channel();
        let mut supervisor = Supervisor::new(notifications);
        supervisor
            .start("patient", move |heartbeat| {
                heartbeat.tick();
                tell.send(()).unwrap();
                wait.recv().map_err(|e| e.to_string())
            })
            .unwrap();
        told.recv().unwrap();
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
    fn a_panic_is_told_like_any_other_end() {
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
    fn the_end_of_a_thread_is_told_with_its_name_and_reason() {
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
