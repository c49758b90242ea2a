//! Capture: the first stage, and the only thread that touches libpcap.
//!
//! Turns an interface's frames into batches of probes for the detector. It waits for nobody: not
//! for the detector, the journal or the firewall. What it cannot hand over it drops and counts. Per
//! packet it takes no lock, makes no system call, allocates nothing and logs nothing.

pub mod filter;
pub mod frame;
mod hand_over;
mod live;
mod saved;
mod seam;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use frame::LinkLayer;
pub use hand_over::{Batch, Batches, HandOver, channel};
use live::Frame;
pub use live::{CaptureCounters, LiveCapture};
pub use saved::{SavedCapture, SavedError, name_of};
use seam::Seam;

use crate::clock::{Moment, WallClock};
use crate::crew::{Pulse, StopFlag};
use crate::interface::InterfaceName;
use crate::metrics::CaptureMetrics;
use crate::state::{Part, StateBoard};

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

/// Why nothing can be captured, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The interface does not exist.
    #[error("there is no interface {interface} on this host; there are: {present}")]
    NoSuchInterface {
        /// The one asked for.
        interface: InterfaceName,
        /// Those that exist.
        present: String,
    },
    /// The process may not open packet sockets.
    #[error(
        "capturing on {0} needs the capability CAP_NET_RAW; run it as root, or as the service: \
         systemctl start {unit}",
        unit = .0.unit(),
    )]
    NotPermitted(InterfaceName),
    /// The interface exists and is down.
    #[error("{0} is down; bring it up: ip link set {0} up")]
    InterfaceDown(InterfaceName),
    /// The interface went away while it was watched.
    #[error("interface {0} is gone; waiting for it to come back")]
    InterfaceGone(InterfaceName),
    /// The interface carries something that is not understood.
    #[error("interface {interface} carries {name} frames, which tcptracker cannot read")]
    UnknownLinkLayer {
        /// The interface.
        interface: InterfaceName,
        /// libpcap's name of the link type.
        name: String,
    },
    /// Something else libpcap has a text for.
    #[error("cannot capture on {interface}: {text}")]
    Failed {
        /// The interface.
        interface: InterfaceName,
        /// libpcap's text.
        text: String,
    },
    /// Waiting for packets failed.
    #[error("cannot wait for packets on {interface}: {error}")]
    Wait {
        /// The interface.
        interface: InterfaceName,
        /// The system's error.
        error: Errno,
    },
}

impl CaptureError {
    /// The situation behind one of libpcap's texts.
    fn explain(interface: &InterfaceName, text: &str) -> Self {
        let interface = interface.clone();
        let says = |part: &str| text.to_ascii_lowercase().contains(part);
        if says("no such device") {
            Self::NoSuchInterface { interface, present: live::interfaces_here() }
        } else if says("permission") || says("not permitted") {
            Self::NotPermitted(interface)
        } else if says("not up") || says("network is down") {
            Self::InterfaceDown(interface)
        } else if says("disappeared") {
            Self::InterfaceGone(interface)
        } else {
            Self::Failed { interface, text: text.trim().to_owned() }
        }
    }

    /// Whether it may be over when the interface is up, or there, again.
    const fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::NoSuchInterface { .. } | Self::InterfaceDown(_) | Self::InterfaceGone(_)
        )
    }
}

/// What the capture thread works with, whatever becomes of the interface.
pub struct Watch {
    /// The interface.
    pub interface: InterfaceName,
    /// Where probes go.
    pub out: HandOver,
    /// Where packets are counted.
    pub metrics: CaptureMetrics,
    /// Where it is said that the interface is gone.
    pub board: Arc<StateBoard>,
    /// Whether what tells of probes' outcomes is wanted as well.
    pub outcomes: Arc<AtomicBool>,
    /// Raised to end the thread.
    pub stop: Arc<StopFlag>,
}

impl Watch {
    /// The capture thread: reads until asked to stop. It waits for an interface that cannot be opened yet,
    /// and when it disappears for it to come back.
    pub fn run(mut self, opened: Option<LiveCapture>, pulse: &Pulse) -> Result<(), CaptureError> {
        let mut opened = opened;
        loop {
            let capture = match opened.take() {
                Some(capture) => capture,
                None => match self.reopen(pulse)? {
                    Some(capture) => capture,
                    None => return Ok(()),
                },
            };
            self.board.clear(Part::Interface);
            match self.read(capture, pulse) {
                Err(gone @ CaptureError::InterfaceGone(_)) => {
                    self.board.raise(Part::Interface, gone.to_string());
                }
                result => return result,
            }
        }
    }

    /// Reads until asked to stop, or until the interface is gone.
    fn read(&mut self, mut capture: LiveCapture, pulse: &Pulse) -> Result<(), CaptureError> {
        let mut published = (Moment::default(), CaptureCounters::default());
        loop {
            pulse.beat();
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
    fn reopen(&mut self, pulse: &Pulse) -> Result<Option<LiveCapture>, CaptureError> {
        loop {
            pulse.beat();
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
