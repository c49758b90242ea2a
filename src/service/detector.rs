//! The detector thread: segments in, scans out.
//!
//! Owns the detector, and the order in which it learns of segments, losses, commands and time. It waits
//! for nothing but capture.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use crate::api::metrics::Metrics;
use crate::config::{Config, DetectionConfig, LogConfig, Preset};
use crate::detect::{self, Detector};
use crate::handles::detector::QUEUE;
use crate::handles::{DetectorCommand, EventSink, FirewallHandle};
use crate::service::Context;
use crate::service::report::Reporter;
use crate::service::supervisor::Supervisor;
use crate::system::capture::batch::{Batch, BatchReceiver};
use crate::system::scheduling::{self, Realtime};
use crate::types::{Event, Heartbeat, Host, Moment, PortSet, Warning};

/// The longest sleep.
const TICK: Duration = Duration::from_secs(1);

/// The longest sleep while connections wait for their outcome.
const SHORT_TICK: Duration = Duration::from_millis(50);

/// How far behind the clock capture may be on an idle interface: it may have to wait for a processor.
const CAPTURE_LAG: Duration = Duration::from_millis(100);

/// Commands handled between two batches: segments must not wait long.
const COMMANDS_AT_ONCE: usize = 1024;

/// After one command thousands may follow, and their sender waits once the queue is full.
const MORE_MAY_COME: Duration = Duration::from_millis(1);

/// Starts the detector thread.
pub fn spawn(
    threads: &mut Supervisor,
    context: &Context,
    config: &Config,
    host: &Arc<Host>,
    firewall: &FirewallHandle,
    batches: BatchReceiver,
) -> std::io::Result<SyncSender<DetectorCommand>> {
    let (commands_in, commands) = sync_channel(QUEUE);
    let detector = detect::new(config.detection.clone());
    let (events, metrics) = (context.events.clone(), Arc::clone(&context.metrics));
    let thread = DetectorThread {
        has_outcomes: detector.preset() == Preset::Balanced,
        is_one_sided: false,
        detector,
        host: Arc::clone(host),
        listening: None,
        log: config.log.clone(),
        commands,
        reporter: Reporter::new(
            &config.log,
            events.clone(),
            Arc::clone(&metrics),
            firewall.clone(),
            Arc::clone(host),
        ),
        events,
        metrics,
        summed_up: Moment::now(),
        scheduling: Realtime::new(Arc::clone(&context.realtime)),
    };
    threads.start("detector", move |heartbeat| thread.run(&batches, heartbeat))?;
    Ok(commands_in)
}

struct DetectorThread {
    detector: Box<dyn Detector>,
    host: Arc<Host>,
    /// The ports on which the host listens, once they are known.
    listening: Option<Arc<PortSet>>,
    log: LogConfig,
    commands: Receiver<DetectorCommand>,
    reporter: Reporter,
    events: EventSink,
    metrics: Arc<Metrics>,
    /// When ended scans were last summed up.
    summed_up: Moment,
    /// Whether capture lets through what tells the outcomes of probes.
    has_outcomes: bool,
    /// Replies are missing from the capture.
    is_one_sided: bool,
    scheduling: Realtime,
}

impl DetectorThread {
    /// Works until capture ends.
    fn run(
        mut self,
        batches: &BatchReceiver,
        heartbeat: &Heartbeat,
    ) -> Result<(), std::convert::Infallible> {
        let mut handled = 0;
        loop {
            heartbeat.tick();
            let batch = match batches.next(self.patience(handled)) {
                Ok(batch) => Some(batch),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => {
                    self.sum_up(Moment::now());
                    self.reporter.finish(Moment::now());
                    return Ok(());
                }
            };
            // Before the segments: an unblocked source must not be judged by its past.
            handled = self.handle_commands();
            let now = Moment::now();
            self.scheduling.update(now);
            self.reporter.begin(now);
            self.sum_up(now);
            self.check_visibility(batch.as_ref());
            if let Some(mut batch) = batch {
                self.consider(&mut batch);
                batches.give_back(batch);
            } else if self.detector.is_waiting() {
                self.pass_time(now.before(CAPTURE_LAG));
            }
        }
    }

    /// Returns how long to wait for a batch, after this many commands.
    fn patience(&self, handled: usize) -> Duration {
        match handled {
            COMMANDS_AT_ONCE.. => Duration::ZERO,
            1.. => MORE_MAY_COME,
            0 if self.detector.is_waiting() => SHORT_TICK,
            0 => TICK,
        }
    }

    /// Handles the commands that wait. Returns how many, with a weight for those that take long.
    fn handle_commands(&mut self) -> usize {
        let mut handled = 0;
        while handled < COMMANDS_AT_ONCE
            && let Ok(command) = self.commands.try_recv()
        {
            handled += 1;
            match command {
                DetectorCommand::Host(host) => {
                    self.reporter.set_host(Arc::clone(&host));
                    self.host = host;
                }
                DetectorCommand::Forget(networks) => {
                    handled += networks.len();
                    for network in networks {
                        self.detector.forget(network);
                    }
                }
                DetectorCommand::Explain(source, reply) => {
                    let pending = self.detector.explain(source, Moment::now(), &self.host);
                    let _ = reply.try_send(pending);
                }
                DetectorCommand::Listening(ports) => {
                    self.detector.set_listening(&ports);
                    self.listening = Some(ports);
                }
                DetectorCommand::Reconfigure(detection, log, reply) => {
                    scheduling::step_aside();
                    // If nobody waits for the answer, main has ended.
                    let _ = reply.try_send(self.reconfigure(detection, log));
                }
            }
        }
        handled
    }

    /// Returns whether the tracked sources were kept.
    fn reconfigure(&mut self, detection: DetectionConfig, log: LogConfig) -> bool {
        let wanted = self.wants_outcomes();
        let are_kept = detect::reconfigure(&mut self.detector, detection);
        if wanted != self.wants_outcomes() {
            self.is_one_sided = false;
            if let Some(ports) = &self.listening {
                self.detector.set_listening(ports);
            }
        }
        if log != self.log {
            self.reporter.reconfigure(&log);
            self.log = log;
        }
        are_kept
    }

    /// Logs the totals of scans that have ended.
    fn sum_up(&mut self, now: Moment) {
        if now.since(self.summed_up) >= TICK {
            self.summed_up = now;
            let (summaries, more) = self.detector.sum_up(now);
            self.reporter.summaries(summaries, more);
        }
    }

    /// Tells the detector when a missing reply means nothing, and logs when replies are missing in general.
    fn check_visibility(&mut self, batch: Option<&Batch>) {
        self.has_outcomes = batch.map_or(self.has_outcomes, Batch::has_outcomes);
        if !self.wants_outcomes() {
            return;
        }
        // After a change of the preset, capture lets outcomes through only once it has reopened.
        if !self.has_outcomes || batch.is_some_and(Batch::follows_loss) {
            self.detector.packets_lost();
        }
        let is_one_sided = self.detector.is_one_sided();
        if std::mem::replace(&mut self.is_one_sided, is_one_sided) != is_one_sided {
            let warning =
                if is_one_sided { Warning::RepliesMissing } else { Warning::RepliesVisible };
            self.events.emit(Event::Warning(warning));
        }
    }

    fn consider(&mut self, batch: &mut Batch) {
        if batch.has_outcomes() && !self.wants_outcomes() {
            batch.retain_probes();
        }
        self.detector.observe(batch.segments(), &self.host, &mut self.reporter);
        self.metrics.set_sources(self.detector.sources(), self.detector.evicted());
    }

    /// Lets the detector decide about connections that were waiting until now.
    fn pass_time(&mut self, captured_until: Moment) {
        self.detector.pass_time(captured_until, &self.host, &mut self.reporter);
    }

    fn wants_outcomes(&self) -> bool {
        self.detector.preset() == Preset::Balanced
    }
}
