//! The way to the detector thread.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use ipnet::IpNet;

use crate::config::{DetectionConfig, LogConfig};
use crate::handles::firewall::Reply;
use crate::types::{Host, Pending, PortSet};

/// Commands that may wait for the detector.
pub const QUEUE: usize = 1024;

/// What the detector thread is asked to do.
#[derive(Clone, Debug)]
pub enum DetectorCommand {
    /// Use another snapshot of the host.
    Host(Arc<Host>),
    /// Forget the past of these networks: they were unblocked.
    Forget(Vec<IpNet>),
    /// Use another set of ports on which the host listens.
    Listening(Arc<PortSet>),
    /// Explain how far a source is from a block.
    Explain(IpNet, Reply<Pending>),
    /// Apply another configuration. The answer is whether the tracked sources were kept.
    Reconfigure(DetectionConfig, LogConfig, SyncSender<bool>),
}
