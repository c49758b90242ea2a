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
    pub use crate::api::metrics::reference::COUNTERS;
    pub use crate::block::backend::Backend;
    pub use crate::block::backend::ipset::IpsetBackend;
    pub use crate::config::reference::{KEYS, Key, SECTIONS};
    pub use crate::config::{DetectionConfig, Effective, Established, Origin, Preset, Sources};
    pub use crate::detect::{Detector, Observer, new as new_detector};
    pub use crate::system::capture::frame::{LinkLayer, probe_in, segment_in};
    pub use crate::types::{Host, Moment, Port, Scan, Segment, SegmentKind};
}
