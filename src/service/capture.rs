//! The capture thread.

use crate::api::metrics::CaptureMetrics;
use crate::handles::health::Component;
use crate::handles::health::Health;
use crate::handles::stop_flag::StopFlag;
use crate::system::capture::CaptureError;
use crate::system::capture::batch::BatchSender;
use crate::system::capture::frame;
use crate::system::capture::frame::LinkLayer;
use crate::system::capture::handover::Seam;
use crate::system::capture::live::Frame;
use crate::system::capture::live::LiveCapture;
use crate::types::capture::CaptureCounters;
use crate::types::clock::Moment;
use crate::types::clock::WallClock;
use crate::types::heartbeat::Heartbeat;
use crate::types::ifname::IfName;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::event::poll;
use rustix::io::Errno;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
/// How long the thread sleeps at most on a quiet interface before it shows that it is alive and
/// publishes the kernel's counters.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };

/// How often the kernel's counters are read.
const PUBLISH_EVERY: Duration = Duration::from_millis(500);

/// Frames read before the thread looks at its stop flag again.
const FRAMES_PER_ROUND: usize = 4096;

/// How long one capture goes on beside the other that takes its place: as long as the kernel may hold
/// packets back, many times over, and less than what it has room for.
const OVERLAP: Duration = Duration::from_millis(30);

/// How long each packet of the other is looked at in all, if so few come that none is clearly its own.
const LOOKED_AT: Duration = Duration::from_millis(60);

/// How long it is waited for packets meanwhile.
const MOMENT: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

/// What the capture thread works with, whatever becomes of the interface.
pub struct Watch {
    /// The interface.
    pub interface: IfName,
    /// Where probes go.
    pub out: BatchSender,
    /// Where packets are counted.
    pub metrics: CaptureMetrics,
    /// Where it is said that the interface is gone.
    pub health: Arc<Health>,
    /// Whether what tells of probes' outcomes is wanted as well.
    pub outcomes: Arc<AtomicBool>,
    /// Raised to end the thread.
    pub stop: Arc<StopFlag>,
}

impl Watch {
    /// The capture thread: reads until asked to stop. It waits for an interface that cannot be opened yet,
    /// and when it disappears for it to come back.
    pub fn run(
        mut self,
        opened: Option<LiveCapture>,
        heartbeat: &Heartbeat,
    ) -> Result<(), CaptureError> {
        let mut opened = opened;
        loop {
            let capture = match opened.take() {
                Some(capture) => capture,
                None => match self.reopen(heartbeat)? {
                    Some(capture) => capture,
                    None => return Ok(()),
                },
            };
            self.health.clear(Component::Interface);
            match self.read(capture, heartbeat) {
                Err(gone @ CaptureError::InterfaceGone(_)) => {
                    self.health.set_degraded(Component::Interface, gone.to_string());
                }
                result => return result,
            }
        }
    }

    /// Reads until asked to stop, or until the interface is gone.
    fn read(
        &mut self,
        mut capture: LiveCapture,
        heartbeat: &Heartbeat,
    ) -> Result<(), CaptureError> {
        let mut published = (Moment::default(), CaptureCounters::default());
        loop {
            heartbeat.tick();
            if self.wait(Some(&capture))? == Woken::ToStop {
                return Ok(());
            }
            let clock = WallClock::read();
            let outcomes = self.outcomes.load(Ordering::Relaxed);
            if outcomes != capture.outcomes() {
                match LiveCapture::open(&self.interface, outcomes) {
                    Ok(other) => {
                        let old = std::mem::replace(&mut capture, other);
                        self.change_over(old, &mut capture, &published.1)?;
                        published = (clock.now(), CaptureCounters::default());
                    }
                    // Then there are no packets either.
                    Err(error) if error.is_passing() => {}
                    Err(error) => return Err(error),
                }
            }
            let (link, outcomes) = (capture.link(), capture.outcomes());
            for _ in 0..FRAMES_PER_ROUND {
                let Some(frame) = capture.next_frame(&self.interface)? else { break };
                self.take(&frame, link, outcomes, &clock);
            }
            self.out.flush();
            // The kernel's counters cost a system call: not for every packet.
            if clock.now().since(published.0) >= PUBLISH_EVERY
                && let Some(counters) = capture.counters()
            {
                self.metrics.publish(&published.1, &counters, self.out.take_lost());
                published = (clock.now(), counters);
            }
        }
    }

    #[inline]
    fn take(&mut self, frame: &Frame<'_>, link: LinkLayer, outcomes: bool, clock: &WallClock) {
        let moment = clock.moment_of(frame.unix_nanos);
        let probe = if outcomes {
            frame::segment_in(link, frame.bytes, moment)
        } else {
            frame::probe_in(link, frame.bytes, moment)
        };
        if let Some(probe) = probe {
            self.out.push(probe);
        }
    }

    /// Goes on with another capture. (To change the filter of one, libpcap lets nothing through for a moment:
    /// pcap-linux.c, `set_kernel_filter`.)
    fn change_over(
        &mut self,
        mut old: LiveCapture,
        new: &mut LiveCapture,
        published: &CaptureCounters,
    ) -> Result<(), CaptureError> {
        let clock = WallClock::read();
        let begun = clock.now();
        // Before 1970 nobody is, for long.
        let mut seam = Seam::at(u64::try_from(clock.unix_nanos(begun)).unwrap_or(0));
        while Moment::now().since(begun) < OVERLAP {
            await_moment(&old);
            let (link, outcomes) = (old.link(), old.outcomes());
            while let Some(frame) = old.next_frame(&self.interface)? {
                if seam.takes_old(&frame) {
                    self.take(&frame, link, outcomes, &clock);
                }
            }
            self.out.flush();
        }
        if let Some(counters) = old.counters() {
            self.metrics.publish(published, &counters, self.out.take_lost());
        }
        let (link, outcomes) = (new.link(), new.outcomes());
        while Moment::now().since(begun) < LOOKED_AT {
            await_moment(new);
            while let Some(frame) = new.next_frame(&self.interface)? {
                if seam.takes_new(&frame) {
                    self.take(&frame, link, outcomes, &clock);
                }
                if seam.is_behind(&frame) {
                    return Ok(());
                }
            }
            self.out.flush();
        }
        Ok(())
    }

    /// Waits until the interface can be opened again; nothing if asked to stop meanwhile.
    fn reopen(&mut self, heartbeat: &Heartbeat) -> Result<Option<LiveCapture>, CaptureError> {
        loop {
            heartbeat.tick();
            match LiveCapture::open(&self.interface, self.outcomes.load(Ordering::Relaxed)) {
                Ok(capture) => return Ok(Some(capture)),
                Err(error) if error.is_passing() => {}
                Err(error) => return Err(error),
            }
            if self.wait(None)? == Woken::ToStop {
                return Ok(None);
            }
        }
    }

    /// Sleeps until there is something to read or the thread has to stop; a tick at the most.
    fn wait(&self, capture: Option<&LiveCapture>) -> Result<Woken, CaptureError> {
        let stop = PollFd::from_borrowed_fd(self.stop.as_fd(), PollFlags::IN);
        let (mut alone, mut both);
        let fds = match capture {
            None => {
                alone = [stop];
                &mut alone[..]
            }
            Some(capture) => {
                both = [stop, PollFd::from_borrowed_fd(capture.as_fd(), PollFlags::IN)];
                &mut both[..]
            }
        };
        match poll(fds, Some(&TICK)) {
            Ok(_) if fds[0].revents().contains(PollFlags::IN) => Ok(Woken::ToStop),
            Ok(_) | Err(Errno::INTR) => Ok(Woken::ToRead),
            Err(error) => Err(CaptureError::Wait { interface: self.interface.clone(), error }),
        }
    }
}

/// Waits for packets. Whatever comes of it, it is looked then what there is.
fn await_moment(capture: &LiveCapture) {
    let _ = poll(&mut [PollFd::from_borrowed_fd(capture.as_fd(), PollFlags::IN)], Some(&MOMENT));
}

#[derive(PartialEq, Eq)]
enum Woken {
    ToRead,
    ToStop,
}
