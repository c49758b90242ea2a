//! Capture: the first stage, and the only thread that touches libpcap.
//!
//! Turns an interface's frames into batches of probes for the detector. It waits for nobody: not
//! for the detector, the journal or the firewall. What it cannot hand over it drops and counts. Per
//! packet it takes no lock, makes no system call, allocates nothing and logs nothing.

pub mod batch;
pub mod filter;
pub mod frame;
pub mod live;
pub mod saved;

use rustix::io::Errno;

use crate::types::ifname::IfName;

/// Why nothing can be captured, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The interface does not exist.
    #[error("there is no interface {interface} on this host; there are: {present}")]
    NoSuchInterface {
        /// The one asked for.
        interface: IfName,
        /// Those that exist.
        present: String,
    },
    /// The process may not open packet sockets.
    #[error(
        "capturing on {0} needs the capability CAP_NET_RAW; run it as root, or as the service: \
         systemctl start {unit}",
        unit = .0.unit(),
    )]
    NotPermitted(IfName),
    /// The interface exists and is down.
    #[error("{0} is down; bring it up: ip link set {0} up")]
    InterfaceDown(IfName),
    /// The interface went away while it was watched.
    #[error("interface {0} is gone; waiting for it to come back")]
    InterfaceGone(IfName),
    /// The interface carries something that is not understood.
    #[error("interface {interface} carries {name} frames, which tcptracker cannot read")]
    UnknownLinkLayer {
        /// The interface.
        interface: IfName,
        /// libpcap's name of the link type.
        name: String,
    },
    /// Something else libpcap has a text for.
    #[error("cannot capture on {interface}: {text}")]
    Failed {
        /// The interface.
        interface: IfName,
        /// libpcap's text.
        text: String,
    },
    /// Waiting for packets failed.
    #[error("cannot wait for packets on {interface}: {error}")]
    Wait {
        /// The interface.
        interface: IfName,
        /// The system's error.
        error: Errno,
    },
}

impl CaptureError {
    /// The situation behind one of libpcap's texts.
    fn explain(interface: &IfName, text: &str) -> Self {
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
    pub const fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::NoSuchInterface { .. } | Self::InterfaceDown(_) | Self::InterfaceGone(_)
        )
    }
}
