//! How detailed the log is (`log.level`).
//!
//! Owns the level. Events reach the log through the journal thread. Debug and trace messages are written by
//! the thread that makes them, so these levels are for the search for a fault: a slow log slows that thread.

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::{Registry, reload};

use crate::config::LogLevel;

/// Changes how detailed the log is.
pub struct LogFilter(reload::Handle<Targets, Registry>);

impl LogFilter {
    /// Makes a filter, with the layer that applies it.
    pub fn new(level: LogLevel) -> (Self, reload::Layer<Targets, Registry>) {
        let (layer, handle) = reload::Layer::new(targets(level));
        (Self(handle), layer)
    }

    /// Applies another level.
    pub fn set_level(&self, level: LogLevel) {
        // Fails only without a subscriber, and then nothing is logged.
        let _ = self.0.reload(targets(level));
    }
}

/// Libraries have nothing to say below a warning that helps an administrator.
fn targets(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    Targets::new().with_default(LevelFilter::WARN).with_target(env!("CARGO_CRATE_NAME"), level)
}
