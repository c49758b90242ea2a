//! A reload of the configuration: read as a whole or not at all, then applied part by part.
//!
//! Owns the order: what can fail comes first, so that a reload that fails has changed nothing.

use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};

use crate::config::{Config, Effective, Listen};
use crate::handles::detector::DetectorCommand;
use crate::handles::firewall::Command;
use crate::handles::notification::ReloadError;
use crate::service::{Service, http, uses_outcomes};
use crate::system::service_manager;
use crate::types::event::{BackendNote, Event, ReloadNote};

impl Service {
    /// Reads all sources again and applies what has changed. Emits the result.
    pub fn reload(&mut self, uid: Option<u32>) -> Result<(), ReloadError> {
        service_manager::reloading();
        let result = self.load_and_apply(uid);
        if let Err(error) = &result {
            self.context.events.emit(Event::ReloadFailed { error: error.to_string(), uid });
        }
        service_manager::ready(&self.status());
        result
    }

    fn load_and_apply(&mut self, uid: Option<u32>) -> Result<(), ReloadError> {
        let effective = Effective::load(&self.settings.sources)?;
        let (new, old) = (effective.config.clone(), self.settings.effective.config.clone());
        let mut notes = Vec::new();

        if (&new.block, &new.exempt, &new.firewall) != (&old.block, &old.exempt, &old.firewall) {
            let note = self.apply_to_firewall(&new).map_err(ReloadError::Firewall)?;
            notes.extend(note.map(ReloadNote::Backend));
            self.context.health.set_observing(!new.block.enabled);
        }
        if (&new.detection, &new.log) != (&old.detection, &old.log) && !self.apply_to_detector(&new)
        {
            notes.push(ReloadNote::SourcesReset);
        }
        if uses_outcomes(&new) != uses_outcomes(&old) {
            let reopened = self.capture.set_outcomes(uses_outcomes(&new));
            self.await_answer(&reopened);
        }
        // The program that used the port may have ended.
        let is_missing = self.stop_metrics.is_none() && new.metrics.listen != Listen::Off;
        if new.metrics != old.metrics || is_missing {
            self.apply_to_metrics(&new, &old);
        }
        self.settings.log_filter.set_level(new.log.level);
        if new.bus != old.bus {
            notes.push(ReloadNote::AtNextStart("bus.enabled"));
        }
        if new.log.format != old.log.format {
            notes.push(ReloadNote::AtNextStart("log.format"));
        }
        let changes = effective.changes_since(&self.settings.effective);
        self.settings.effective = effective;
        self.context.events.emit(Event::Reloaded { changes, notes, uid });
        Ok(())
    }

    /// The firewall thread owns the back end, and decides whether the change needs another one.
    fn apply_to_firewall(&mut self, new: &Config) -> Result<Option<BackendNote>, String> {
        let (reply, answer) = sync_channel(1);
        self.firewall.send(Command::Reconfigure { config: Box::new(new.clone()), reply });
        // Without an answer the thread has ended, and so will the service.
        self.await_answer(&answer).unwrap_or(Ok(None))
    }

    /// Returns whether the tracked sources were kept.
    fn apply_to_detector(&mut self, new: &Config) -> bool {
        let (reply, answer) = sync_channel(1);
        let (detection, log) = (new.detection.clone(), new.log.clone());
        self.detector.send(DetectorCommand::Reconfigure(detection, log, reply));
        self.await_answer(&answer).unwrap_or(true)
    }

    fn apply_to_metrics(&mut self, new: &Config, old: &Config) {
        if let Some(stop) = self.stop_metrics.take() {
            stop.raise();
            self.threads.join("metrics");
            self.dismissed.push("metrics");
        }
        let (new, old) = (new.metrics.listen, old.metrics.listen);
        let mut spawn =
            |listen| http::spawn(&mut self.threads, &self.context, listen).ok().flatten();
        self.stop_metrics = spawn(new);
        // If the new address is not available, the old one is better than none.
        if self.stop_metrics.is_none() && new != Listen::Off && new != old {
            self.stop_metrics = spawn(old);
        }
    }

    /// Waits for a thread's answer, and keeps the watchdog fed. Returns nothing if the thread has ended.
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
