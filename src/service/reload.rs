//! A reload of the configuration: read as a whole or not at all, then applied part by part.
//!
//! Owns the order: what can fail comes first, so that a reload that fails has changed nothing.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};

use crate::config::{Config, Effective};
use crate::handles::{Command, DetectorCommand, ReloadError};
use crate::service::{Service, http, memory, uses_outcomes};
use crate::system::service_manager;
use crate::types::{BackendNote, Event, ReloadNote};

/// Reads all sources again and applies what has changed. Emits the result.
pub fn reload(service: &mut Service, uid: Option<u32>) -> Result<(), ReloadError> {
    service_manager::reloading();
    let result = load_and_apply(service, uid);
    if let Err(error) = &result {
        service.context.events.emit(Event::ReloadFailed { error: error.to_string(), uid });
    }
    service_manager::ready(&service.status());
    result
}

fn load_and_apply(service: &mut Service, uid: Option<u32>) -> Result<(), ReloadError> {
    let effective = Effective::load(&service.settings.sources)?;
    let (new, old) = (effective.config().clone(), service.settings.effective.config().clone());
    let mut notes = Vec::new();
    let blocks = service.context.health.status().blocked().into();
    memory::check(&service.context.interface, &new, blocks)
        .map_err(|error| ReloadError::Memory(error.to_string()))?;

    if (&new.block, &new.exempt, &new.firewall) != (&old.block, &old.exempt, &old.firewall) {
        let note = apply_to_firewall(service, &new).map_err(ReloadError::Firewall)?;
        notes.extend(note.map(ReloadNote::Backend));
        service.context.health.set_observing(!new.block.enabled);
    }
    if (&new.detection, &new.log) != (&old.detection, &old.log) && !apply_to_detector(service, &new)
    {
        notes.push(ReloadNote::SourcesReset);
    }
    if uses_outcomes(&new) != uses_outcomes(&old) {
        service.wants_ports.store(uses_outcomes(&new), Ordering::Relaxed);
        let reopened = service.capture.set_outcomes(uses_outcomes(&new));
        await_answer(service, &reopened);
    }
    // The program that used the port may have ended.
    let is_missing = service.stop_metrics.is_none() && new.metrics.listen.is_some();
    if new.metrics != old.metrics || is_missing {
        apply_to_metrics(service, &new, &old);
    }
    service.settings.log_filter.set_level(new.log.level);
    if new.bus != old.bus {
        notes.push(ReloadNote::AtNextStart("bus.enabled"));
    }
    if new.log.format != old.log.format {
        notes.push(ReloadNote::AtNextStart("log.format"));
    }
    let changes = effective.changes_since(&service.settings.effective);
    service.settings.effective = effective;
    service.context.events.emit(Event::Reloaded { changes, notes, uid });
    Ok(())
}

/// The firewall thread owns the back end, and decides whether the change needs another one.
fn apply_to_firewall(service: &mut Service, new: &Config) -> Result<Option<BackendNote>, String> {
    let (reply, answer) = sync_channel(1);
    let config = Box::new(new.clone());
    // Without an answer the thread has ended, and so will the service.
    let _ = service.firewall.send(Command::Reconfigure { config, reply });
    await_answer(service, &answer).unwrap_or(Ok(None))
}

/// Returns whether the tracked sources were kept.
fn apply_to_detector(service: &mut Service, new: &Config) -> bool {
    let (reply, answer) = sync_channel(1);
    let (detection, log) = (new.detection.clone(), new.log.clone());
    // If the detector has ended, so will the service.
    let _ = service.detector.send(DetectorCommand::Reconfigure(detection, log, reply));
    await_answer(service, &answer).unwrap_or(true)
}

fn apply_to_metrics(service: &mut Service, new: &Config, old: &Config) {
    if let Some(stop) = service.stop_metrics.take() {
        stop.raise();
        // A thread that hangs keeps its port.
        service.leave(&["metrics"]);
    }
    let (new, old) = (new.metrics.listen, old.metrics.listen);
    let mut spawn =
        |listen| http::spawn(&mut service.threads, &service.context, listen).ok().flatten();
    service.stop_metrics = spawn(new);
    // If the new address is not available, the old one is better than none.
    if service.stop_metrics.is_none() && new.is_some() && new != old {
        service.stop_metrics = spawn(old);
    }
}

/// Waits for a thread's answer, and keeps the watchdog fed. Returns nothing if the thread has ended.
fn await_answer<T>(service: &mut Service, answer: &Receiver<T>) -> Option<T> {
    loop {
        match answer.recv_timeout(Service::round()) {
            Ok(answer) => return Some(answer),
            Err(RecvTimeoutError::Timeout) => service.check_watchdog(),
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
}
