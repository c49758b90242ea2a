//! The way to the detector's thread.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use ipnet::IpNet;

use crate::config::{DetectionConfig, LogConfig};
use crate::types::host::{Host, Listening};

/// What others ask of the detector.
#[derive(Clone, Debug)]
pub enum DetectorCommand {
    /// The host has other addresses.
    Host(Arc<Host>),
    /// These networks were let in again: their past is forgotten.
    Forget(Vec<IpNet>),
    /// The host listens on other ports.
    Listening(Arc<Listening>),
    /// Another configuration holds from now on. True comes back once it does, unless what was remembered
    /// of sources had to be given up.
    Reconfigure(DetectionConfig, LogConfig, SyncSender<bool>),
}
