//! Capture: frames of an interface or a file, and the segments in them.
//!
//! Owns all use of libpcap, and turns its errors into situations that an administrator can act on. Never
//! judges a segment.

pub mod batch;
pub mod filter;
pub mod frame;
pub mod live;
pub mod saved;

use rustix::io::Errno;

use crate::types::IfName;

/// Why nothing can be captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error("there is no interface {interface} on this host; there are: {present}")]
    NoSuchInterface {
        interface: IfName,
        /// The names of all interfaces.
        present: String,
    },
    #[error(
        "capturing on {0} needs the capability CAP_NET_RAW; run it as root, or as the service: \
         systemctl start {unit}",
        unit = .0.unit(),
    )]
    NotPermitted(IfName),
    #[error("{0} is down; bring it up: ip link set {0} up")]
    InterfaceDown(IfName),
    #[error("interface {0} is gone; waiting for it to come back")]
    InterfaceGone(IfName),
    #[error("interface {interface} carries {name} frames, which tcptracker cannot read")]
    UnknownLinkLayer {
        interface: IfName,
        /// libpcap's name of the link type.
        name: String,
    },
    /// Any other error of libpcap.
    #[error("cannot capture on {interface}: {text}")]
    Failed {
        interface: IfName,
        /// libpcap's text.
        text: String,
    },
    #[error("cannot wait for packets on {interface}: {error}")]
    Wait { interface: IfName, error: Errno },
}

impl CaptureError {
    /// Returns the situation behind a text of libpcap.
    fn explain(interface: &IfName, text: &str) -> Self {
        let interface = interface.clone();
        let says = |part: &str| text.to_ascii_lowercase().contains(part);
        if says("no such device") {
            Self::NoSuchInterface { interface, present: live::present_interfaces() }
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

    /// Returns whether the error may end by itself: the interface comes up or appears.
    pub const fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::NoSuchInterface { .. } | Self::InterfaceDown(_) | Self::InterfaceGone(_)
        )
    }
}
