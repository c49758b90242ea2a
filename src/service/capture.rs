//! The capture thread: frames in, batches of segments out.
//!
//! Owns the capture of the interface: opens it, waits for an interface that is down or gone, and opens it
//! with another filter when the preset changes. (libpcap cannot exchange the filter of an open capture
//! without loss either: pcap-linux.c, `set_kernel_filter`.) It waits for no other thread.
//! Per packet it allocates nothing, logs nothing, and takes no lock or system call.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::api::metrics::CaptureMetrics;
use crate::config::Config;
use crate::handles::{
    CaptureCommand, CaptureCommands, CaptureHandle, Component, EventSink, Health,
    channel_to_capture,
};
use crate::service::supervisor::Supervisor;
use crate::service::{Context, uses_outcomes};
use crate::system::capture::CaptureError;
use crate::system::capture::batch::BatchSender;
use crate::system::capture::live::LiveCapture;
use crate::system::scheduling::{Realtime, use_precise_timers};
use crate::types::{CaptureCounters, Event, Heartbeat, IfName, Moment, WallClock};

/// The longest sleep on a quiet interface.
const TICK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// How often the kernel's counters are read: that costs a system call.
const PUBLISH_EVERY: Duration = Duration::from_millis(500);

/// Frames read before the thread looks for commands again.
const FRAMES_PER_ROUND: usize = 4096;

/// From so many frames in a round on, the thread pauses before it reads again: a wake-up costs as much as
/// several packets.
const MANY: usize = 8;

/// The pause. The ring has room for many times as long.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000 };

/// From so many frames in a round on, only a flood explains them, and the pause is longer.
const FLOOD: usize = 24;
const FLOOD_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 300_000 };

/// How the thread waits for the next round.
#[derive(Clone, Copy)]
enum Pace {
    /// Until a frame arrives.
    Wait,
    /// For a moment: there are more frames, or segments that the detector had no time for.
    Pause(Timespec),
}

/// Starts the capture thread. Without an open capture it opens one as soon as the interface is up.
pub fn spawn(
    threads: &mut Supervisor,
    context: &Context,
    config: &Config,
    opened: Option<LiveCapture>,
    out: BatchSender,
) -> std::io::Result<CaptureHandle> {
    let (handle, commands) = channel_to_capture()?;
    let mut thread = CaptureThread {
        interface: context.interface.clone(),
        outcomes: uses_outcomes(config),
        out,
        metrics: context.metrics.capture(),
        health: Arc::clone(&context.health),
        events: context.events.clone(),
        commands,
        reopened: None,
        is_degraded: false,
        is_stopping: false,
        scheduling: Realtime::new(Arc::clone(&context.realtime)),
    };
    if opened.is_none() {
        // Before the service reports that it is ready.
        thread.set_degraded(&CaptureError::InterfaceDown(context.interface.clone()));
    }
    threads.start("capture", move |heartbeat| thread.run(opened, heartbeat))?;
    Ok(handle)
}

struct CaptureThread {
    interface: IfName,
    /// Whether to capture what tells the outcomes of probes.
    outcomes: bool,
    out: BatchSender,
    metrics: CaptureMetrics,
    health: Arc<Health>,
    events: EventSink,
    commands: CaptureCommands,
    /// Gets the answer once the capture is open with the other filter.
    reopened: Option<SyncSender<()>>,
    is_degraded: bool,
    is_stopping: bool,
    scheduling: Realtime,
}

impl CaptureThread {
    /// Captures until asked to stop.
    fn run(
        mut self,
        mut opened: Option<LiveCapture>,
        heartbeat: &Heartbeat,
    ) -> Result<(), CaptureError> {
        use_precise_timers();
        let mut closed_at = Moment::now();
        loop {
            let after_gap = opened.is_none();
            let mut capture = match opened.take() {
                Some(capture) => capture,
                None => match self.reopen(closed_at, heartbeat)? {
                    Some(capture) => capture,
                    None => return Ok(()),
                },
            };
            tracing::debug!(
                "capturing, link {:?}, outcomes {}",
                capture.link(),
                capture.outcomes()
            );
            self.out.begin_capture(capture.outcomes(), after_gap);
            self.out.flush();
            match self.read(&mut capture, heartbeat) {
                Ok(()) if self.is_stopping => return Ok(()),
                Ok(()) => {}
                Err(gone @ CaptureError::InterfaceGone(_)) => self.set_degraded(&gone),
                Err(error) => return Err(error),
            }
            closed_at = Moment::now();
        }
    }

    /// Reads until asked to stop, until the filter has to change, or until the interface is gone.
    fn read(
        &mut self,
        capture: &mut LiveCapture,
        heartbeat: &Heartbeat,
    ) -> Result<(), CaptureError> {
        let mut published = (Moment::default(), CaptureCounters::default());
        let mut pace = Pace::Wait;
        loop {
            heartbeat.tick();
            self.wait(Some(capture), pace)?;
            let clock = WallClock::read();
            self.scheduling.update(clock.now());
            let out = &mut self.out;
            let frames = capture.read(&self.interface, &clock, FRAMES_PER_ROUND, |segment| {
                out.push(segment);
            })?;
            let is_over = self.is_stopping || self.outcomes != capture.outcomes();
            if is_over || clock.now().is_past(published.0, PUBLISH_EVERY) {
                published = (clock.now(), self.publish(capture, published.1));
            }
            let is_holding = self.out.flush();
            if is_over {
                return Ok(());
            }
            pace = match frames {
                FLOOD.. => Pace::Pause(FLOOD_PAUSE),
                MANY.. => Pace::Pause(PAUSE),
                _ if is_holding => Pace::Pause(PAUSE),
                _ => Pace::Wait,
            };
        }
    }

    /// Publishes the kernel's counters, and tells the detector of losses. Returns the counters.
    fn publish(&mut self, capture: &mut LiveCapture, before: CaptureCounters) -> CaptureCounters {
        let Some(counters) = capture.counters() else { return before };
        let new = counters.since(before);
        let lost = new.lost();
        if lost > 0 {
            tracing::debug!("{lost} packets lost before capture: {counters:?}, before: {before:?}");
        }
        self.out.note_lost(lost);
        self.metrics.publish(new, self.out.take_dropped());
        counters
    }

    /// Opens the interface, as soon as that is possible. Returns nothing if asked to stop meanwhile.
    fn reopen(
        &mut self,
        closed_at: Moment,
        heartbeat: &Heartbeat,
    ) -> Result<Option<LiveCapture>, CaptureError> {
        let mut counted_until = closed_at;
        loop {
            heartbeat.tick();
            let opened = LiveCapture::open(&self.interface, self.outcomes);
            let now = Moment::now();
            self.metrics.add_gap(now.since(counted_until));
            counted_until = now;
            let reopened = self.reopened.take();
            let result = match opened {
                Ok(capture) => {
                    self.events.emit(Event::CaptureReopened { gap: now.since(closed_at) });
                    self.health.clear(Component::Interface);
                    self.is_degraded = false;
                    Some(capture)
                }
                Err(error) if error.is_passing() => {
                    self.set_degraded(&error);
                    None
                }
                Err(error) => return Err(error),
            };
            // Answered in any case: a reload does not wait for an interface that is down.
            if let Some(reopened) = reopened {
                let _ = reopened.try_send(());
            }
            if result.is_some() {
                return Ok(result);
            }
            self.wait(None, Pace::Wait)?;
            if self.is_stopping {
                return Ok(None);
            }
        }
    }

    /// Shows why nothing is captured. The first reason stays: those that follow only repeat it.
    fn set_degraded(&mut self, error: &CaptureError) {
        if !std::mem::replace(&mut self.is_degraded, true) {
            self.health.set_degraded(Component::Interface, error.to_string());
        }
    }

    /// Sleeps until there is something to read or a command, at most a tick, and takes the commands.
    fn wait(&mut self, capture: Option<&LiveCapture>, pace: Pace) -> Result<(), CaptureError> {
        let commands = self.commands.as_fd();
        let [main, deep] = capture.map_or([commands; 2], LiveCapture::fds);
        let mut fds = [commands, main, deep].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        let (fds, timeout) = match pace {
            Pace::Wait => (&mut fds[..], TICK),
            Pace::Pause(time) => (&mut fds[..1], time),
        };
        match poll(fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                return Err(CaptureError::Wait { interface: self.interface.clone(), error });
            }
        }
        if !fds[0].revents().contains(PollFlags::IN) {
            return Ok(());
        }
        while let Some(command) = self.commands.next() {
            match command {
                CaptureCommand::SetOutcomes { outcomes, done } => {
                    self.outcomes = outcomes;
                    if capture.is_some_and(|capture| capture.outcomes() != outcomes) {
                        self.reopened = Some(done);
                    } else {
                        let _ = done.try_send(());
                    }
                }
                CaptureCommand::Stop => self.is_stopping = true,
            }
        }
        Ok(())
    }
}
