//! Another configuration while running: read as a whole or not at all, then put in force part by part.
//!
//! Owns the order: what can fail comes first, so that a reload that fails has changed nothing.

use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};

use crate::config::{Config, Effective, Listen};
use crate::handles::detector::DetectorCommand;
use crate::handles::firewall::Command;
use crate::handles::notification::ReloadError;
use crate::service::Service;
use crate::service::threads::start_metrics;
use crate::system::service_manager;
use crate::types::event::{BackendNote, Event, ReloadNote};

impl Service {
    /// Reads all sources again and goes on with what they say. Tells what has come of it.
    pub fn reload(&mut self, uid: Option<u32>) -> Result<(), ReloadError> {
        service_manager::reloading();
        let result = self.load_and_apply(uid);
        if let Err(error) = &result {
            self.events.emit(Event::ReloadFailed { error: error.to_string(), uid });
        }
        service_manager::ready(&self.status());
        result
    }

    fn load_and_apply(&mut self, uid: Option<u32>) -> Result<(), ReloadError> {
        let effective = Effective::load(&self.sources)?;
        let (new, old) = (effective.config.clone(), self.effective.config.clone());
        let mut notes = Vec::new();

        if (&new.block, &new.exempt, &new.firewall) != (&old.block, &old.exempt, &old.firewall) {
            let note = self.apply_to_firewall(&new).map_err(ReloadError::Firewall)?;
            notes.extend(note.map(ReloadNote::Backend));
            self.health.set_observing(!new.block.enabled);
        }
        if (&new.detection, &new.log) != (&old.detection, &old.log) && !self.apply_to_detector(&new)
        {
            notes.push(ReloadNote::SourcesReset);
        }
        // Whoever has had the port may have left.
        let are_missing = self.stop_metrics.is_none() && new.metrics.listen != Listen::Off;
        if new.metrics != old.metrics || are_missing {
            self.apply_to_metrics(&new, &old);
        }
        if new.bus != old.bus {
            notes.push(ReloadNote::AtNextStart("bus.enabled"));
        }
        if new.log.format != old.log.format {
            notes.push(ReloadNote::AtNextStart("log.format"));
        }
        let changes = effective.changes_since(&self.effective);
        self.effective = effective;
        self.events.emit(Event::Reloaded { changes, notes, uid });
        Ok(())
    }

    /// The firewall thread owns the back end, and decides whether the change needs another one.
    fn apply_to_firewall(&mut self, new: &Config) -> Result<Option<BackendNote>, String> {
        let (reply, answer) = sync_channel(1);
        self.firewall.send(Command::Reconfigure { config: Box::new(new.clone()), reply });
        // Without an answer the thread has ended, and so will the service.
        self.await_answer(&answer).unwrap_or(Ok(None))
    }

    /// False if what was remembered had to be given up.
    fn apply_to_detector(&mut self, new: &Config) -> bool {
        let (reply, answer) = sync_channel(1);
        let (detection, log) = (new.detection.clone(), new.log.clone());
        let _ = self.detector.send(DetectorCommand::Reconfigure(detection, log, reply));
        self.await_answer(&answer).unwrap_or(true)
    }

    fn apply_to_metrics(&mut self, new: &Config, old: &Config) {
        self.stop_metrics();
        let (events, metrics, health) = (&self.events, &self.metrics, &self.health);
        let started =
            start_metrics(&mut self.supervisor, new.metrics.listen, events, metrics, health);
        // Where the new address cannot be had, the old one is better than none.
        self.stop_metrics = match started {
            Ok(None) if ![Listen::Off, old.metrics.listen].contains(&new.metrics.listen) => {
                start_metrics(&mut self.supervisor, old.metrics.listen, events, metrics, health)
                    .ok()
                    .flatten()
            }
            started => started.ok().flatten(),
        };
    }

    fn stop_metrics(&mut self) {
        if let Some(stop) = self.stop_metrics.take() {
            stop.raise();
            self.supervisor.join("metrics");
            self.dismissed.push("metrics");
        }
    }

    /// Waits for a thread's answer; none if the thread has ended. The service is alive meanwhile.
    fn await_answer<T>(&mut self, answer: &Receiver<T>) -> Option<T> {
        loop {
            match answer.recv_timeout(Self::round()) {
                Ok(answer) => return Some(answer),
                Err(RecvTimeoutError::Timeout) => self.check_watchdog(),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }
}
