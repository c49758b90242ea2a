//! How detailed the log is, and the way of messages to it.
//!
//! Messages arise in threads that must not wait for a slow log: debug messages, warnings of libraries,
//! panics. They take the queue of the events, so that only the journal thread writes, in order with the
//! events; if the queue is full, they are lost and counted. Before the service has that thread, they are
//! written directly.

use std::fmt::{Debug, Write};
use std::sync::{Arc, OnceLock};

use tracing::field::{Field, Visit};
use tracing::{Metadata, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets, dynamic_filter_fn};
use tracing_subscriber::layer::{Context, Filter, Layer};
use tracing_subscriber::{Registry, reload};

use crate::config::LogLevel;
use crate::handles::{EventSink, Reader};
use crate::types::Event;

/// The target of what the journal thread writes.
pub const WRITTEN: &str = concat!(env!("CARGO_CRATE_NAME"), "::journal");

/// Changes how detailed the log is.
pub struct LogFilter {
    level: reload::Handle<Targets, Registry>,
    queue: LogQueue,
}

impl LogFilter {
    /// Makes a filter, with the layer that applies it and the layer that queues messages.
    pub fn new(level: LogLevel) -> (Self, reload::Layer<Targets, Registry>, LogQueue) {
        let (layer, handle) = reload::Layer::new(targets(level));
        let queue = LogQueue::default();
        (Self { level: handle, queue: queue.clone() }, layer, queue)
    }

    /// Applies another level.
    pub fn set_level(&self, level: LogLevel) {
        // Fails only without a subscriber, and then nothing is logged.
        let _ = self.level.reload(targets(level));
    }

    /// Queues messages from now on.
    pub fn start_queue(&self, events: EventSink) {
        // A process has one journal thread.
        let _ = self.queue.0.set(events);
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

/// The layer that queues messages, and counts what the log loses.
#[derive(Clone, Default)]
pub struct LogQueue(Arc<OnceLock<EventSink>>);

impl LogQueue {
    /// Returns the filter for layers that write: it excludes messages that are queued.
    pub fn excluded<S: Subscriber>(&self) -> impl Filter<S> + use<S> {
        let queue = self.clone();
        dynamic_filter_fn(move |metadata, _| !queue.takes(metadata))
    }

    /// Counts an entry that could not be written.
    pub fn count_lost(&self) {
        if let Some(events) = self.0.get() {
            events.count_lost(Reader::Journal);
        }
    }

    fn takes(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() != WRITTEN && self.0.get().is_some()
    }
}

impl<S: Subscriber> Layer<S> for LogQueue {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if !self.takes(event.metadata()) {
            return;
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        if let Some(events) = self.0.get() {
            events.emit(Event::Message { level: *event.metadata().level(), text: text.0 });
        }
    }
}

/// A message, and after it its fields.
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use tracing::Level;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::api::metrics::Metrics;

    #[test]
    fn messages_are_queued_at_their_level_and_not_even_formatted_above_it() {
        let (filter, layer, queue) = LogFilter::new(LogLevel::Info);
        let subscriber = tracing_subscriber::registry().with(layer).with(queue);
        let (journal, events) = sync_channel(8);
        filter.start_queue(EventSink::new(journal, None, Arc::new(Metrics::new().unwrap())));
        let messages = || {
            let mut formatted = 0;
            let mut evidence = || {
                formatted += 1;
                "4 ports"
            };
            tracing::debug!(attempts = 4, "verdict: {}", evidence());
            tracing::trace!("step: {}", evidence());
            formatted
        };
        let queued = || match &*events.try_recv().ok()? {
            Event::Message { level, text } => Some((*level, text.clone())),
            event => panic!("{event:?}"),
        };
        tracing::subscriber::with_default(subscriber, || {
            assert_eq!((messages(), queued()), (0, None));
            // A library's thread must not wait for the log, whatever it has to say.
            tracing::warn!(target: "zbus", "no reply");
            assert_eq!(queued(), Some((Level::WARN, "no reply".to_owned())));
            tracing::warn!(target: WRITTEN, "the journal thread writes this");
            assert_eq!(queued(), None);
            filter.set_level(LogLevel::Debug);
            assert_eq!(messages(), 1);
            assert_eq!(queued(), Some((Level::DEBUG, "verdict: 4 ports attempts=4".to_owned())));
            filter.set_level(LogLevel::Trace);
            assert_eq!(messages(), 2);
            assert!(queued().is_some());
            assert_eq!(queued(), Some((Level::TRACE, "step: 4 ports".to_owned())));
            filter.set_level(LogLevel::Warn);
            assert_eq!(messages(), 0);
        });
    }
}
