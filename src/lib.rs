//! tcptracker: a port-scan sentinel for Linux hosts.
//!
//! Strata, each of which imports only what lies below it (ARCHITECTURE.md; `make lint` checks it):
//! `types`, `config`, `detect` (probe to scan), `system` (capture, netlink, the host), `block` (scan
//! to block), `handles` (the ways to running threads), `api` (journal, D-Bus, metrics), `service`
//! (the threads) and `cli` (what a user types).

mod api;
mod block;
pub mod cli;
mod config;
mod detect;
mod handles;
mod service;
mod system;
mod types;

/// What the benchmarks, the fuzz targets and the tests of this repository use. Not an interface for
/// other programs.
#[doc(hidden)]
pub mod internals {
    pub use crate::api::dbus::frame::{lengths, text_field};
    pub use crate::api::dbus::tracker::{checked_duration, checked_reason};
    pub use crate::api::metrics::reference::COUNTERS;
    pub use crate::block::backend::Backend;
    pub use crate::block::backend::ipset::IpsetBackend;
    pub use crate::block::backend::ruleset::Ruleset;
    pub use crate::block::store::{database::Database, timeline::Timeline};
    pub use crate::config::reference::{KEYS, Key, SECTIONS};
    pub use crate::config::{DetectionConfig, Effective, Established, Origin, Preset, Sources};
    pub use crate::detect::memory::most_bytes as most_detector_bytes;
    pub use crate::detect::{Detector, Observer, new as new_detector};
    pub use crate::service::memory::most_bytes;
    pub use crate::system::capture::filter::{Filters, MAIN_SNAPSHOT};
    pub use crate::system::capture::frame::{LinkLayer, probe_in, segment_in};
    pub use crate::system::capture::saved::SavedCapture;
    pub use crate::types::{
        Host, Moment, Port, Scan, Segment, SegmentKind, WallClock, parse_network, show_network,
    };

    /// Gives each message of a netlink datagram to every parser of replies, for the fuzz targets.
    pub fn parse_netlink(datagram: &[u8]) {
        use crate::block::backend::{ipset, nftables};
        use crate::system::host::{rtnetlink, ssh};
        use crate::system::{conntrack, lock, netlink};
        use crate::types::Family;
        for body in netlink::bodies(datagram) {
            let _ = netlink::acknowledgement(body);
            let _ = (rtnetlink::name_if_down(body), rtnetlink::address_in(body));
            let _ = rtnetlink::broadcasts_in(body);
            rtnetlink::gateways_in(body, &mut Vec::new());
            let _ = lock::holder_in(body, "tcptracker@eth0");
            let _ = (ssh::connection_in(body), conntrack::source_of(body));
            let _ = (nftables::read_rule(body), nftables::read_counter(body));
            for family in Family::ALL {
                let _ = ipset::netlink::read_header(body, family);
            }
            let _ = ipset::netlink::read_element(body);
        }
    }
}
