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

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

pub use hand_over::{Batch, Batches, HandOver, channel};
pub use live::{CaptureCounters, LiveCapture};
pub use saved::{SavedCapture, SavedError};

use crate::clock::WallClock;
use crate::crew::{Pulse, StopFlag};
use crate::interface::InterfaceName;
use crate::metrics::CaptureMetrics;

/// How long the thread sleeps at most on a quiet interface before it shows that it is alive and
/// publishes the kernel's counters.
const TICK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Frames read before the thread looks at its stop flag again.
const FRAMES_PER_ROUND: usize = 4096;

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
         systemctl start tcptracker@{0}"
    )]
    NotPermitted(InterfaceName),
    /// The interface exists and is down.
    #[error("interface {0} is down; bring it up first: ip link set {0} up")]
    InterfaceDown(InterfaceName),
    /// The interface went away while it was watched.
    #[error("interface {0} disappeared while it was watched")]
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
}

/// The capture thread: reads until asked to stop or until the interface is gone.
pub fn run(
    mut capture: LiveCapture,
    interface: &InterfaceName,
    mut out: HandOver,
    metrics: &CaptureMetrics,
    stop: &Arc<StopFlag>,
    pulse: &Pulse,
) -> Result<(), CaptureError> {
    let link = capture.link();
    let mut published = CaptureCounters::default();
    loop {
        pulse.beat();
        if wait(&capture, interface, stop)? == Woken::ToStop {
            return Ok(());
        }
        let clock = WallClock::read();
        for _ in 0..FRAMES_PER_ROUND {
            let Some(frame) = capture.next_frame(interface)? else { break };
            let moment = clock.moment_of(frame.unix_nanos);
            if let Some(probe) = frame::probe_in(link, frame.bytes, moment) {
                out.push(probe);
            }
        }
        out.flush();
        if let Some(counters) = capture.counters() {
            metrics.publish(&published, &counters, out.take_lost());
            published = counters;
        }
    }
}

#[derive(PartialEq, Eq)]
enum Woken {
    ToRead,
    ToStop,
}

fn wait(
    capture: &LiveCapture,
    interface: &InterfaceName,
    stop: &StopFlag,
) -> Result<Woken, CaptureError> {
    let capture_fd = capture.as_fd();
    let mut fds = [
        PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(capture_fd, PollFlags::IN),
    ];
    match poll(&mut fds, Some(&TICK)) {
        Ok(_) if fds[0].revents().contains(PollFlags::IN) => Ok(Woken::ToStop),
        Ok(_) | Err(Errno::INTR) => Ok(Woken::ToRead),
        Err(error) => Err(CaptureError::Wait { interface: interface.clone(), error }),
    }
}
