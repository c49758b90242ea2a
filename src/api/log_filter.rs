//! How detailed the log is, and the way of debug messages to it.
//!
//! Debug messages arise in threads that must not wait for a slow log. They take the queue of the events, so
//! that the journal thread writes them, in order with the events; if the queue is full, they are lost and
//! counted. Before the service has that thread, and after it, they are written directly.

use std::fmt::{Debug, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets, dynamic_filter_fn};
use tracing_subscriber::layer::{Context, Filter, Layer};
use tracing_subscriber::{Registry, reload};

use crate::config::LogLevel;
use crate::handles::EventSink;
use crate::types::Event;

/// The target of debug messages that the journal thread writes.
pub const QUEUED: &str = concat!(env!("CARGO_CRATE_NAME"), "::queued");

/// Changes how detailed the log is.
pub struct LogFilter {
    level: reload::Handle<Targets, Registry>,
    queue: DebugQueue,
}

impl LogFilter {
    /// Makes a filter, with the layer that applies it and the layer that queues debug messages.
    pub fn new(level: LogLevel) -> (Self, reload::Layer<Targets, Registry>, DebugQueue) {
        let (layer, handle) = reload::Layer::new(targets(level));
        let queue = DebugQueue::default();
        (Self { level: handle, queue: queue.clone() }, layer, queue)
    }

    /// Applies another level.
    pub fn set_level(&self, level: LogLevel) {
        // Fails only without a subscriber, and then nothing is logged.
        let _ = self.level.reload(targets(level));
    }

    /// Queues debug messages from now on.
    pub fn start_queue(&self, events: EventSink) {
        *self.queue.events() = Some(events);
    }

    /// Writes debug messages directly from now on: the journal thread ends.
    pub fn stop_queue(&self) {
        *self.queue.events() = None;
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

/// The layer that queues debug messages.
#[derive(Clone, Default)]
pub struct DebugQueue(Arc<Mutex<Option<EventSink>>>);

impl DebugQueue {
    /// Returns the filter for layers that write: it excludes messages that are queued.
    pub fn excluded<S: Subscriber>(&self) -> impl Filter<S> + use<S> {
        let queue = self.clone();
        dynamic_filter_fn(move |metadata, _| !queue.takes(metadata))
    }

    fn takes(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() > Level::INFO && metadata.target() != QUEUED && self.events().is_some()
    }

    fn events(&self) -> MutexGuard<'_, Option<EventSink>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Subscriber> Layer<S> for DebugQueue {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if !self.takes(event.metadata()) {
            return;
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        let is_trace = *event.metadata().level() == Level::TRACE;
        if let Some(events) = &*self.events() {
            events.emit(Event::Debug { is_trace, text: text.0 });
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

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::api::metrics::Metrics;

    #[test]
    fn debug_messages_are_queued_at_their_level_and_not_even_formatted_above_it() {
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
            Event::Debug { is_trace, text } => Some((*is_trace, text.clone())),
            event => panic!("{event:?}"),
        };
        tracing::subscriber::with_default(subscriber, || {
            assert_eq!((messages(), queued()), (0, None));
            filter.set_level(LogLevel::Debug);
            assert_eq!(messages(), 1);
            assert_eq!(queued(), Some((false, "verdict: 4 ports attempts=4".to_owned())));
            filter.set_level(LogLevel::Trace);
            assert_eq!(messages(), 2);
            assert!(queued().is_some());
            assert_eq!(queued(), Some((true, "step: 4 ports".to_owned())));
            filter.stop_queue();
            messages();
            assert_eq!(queued(), None);
            filter.set_level(LogLevel::Warn);
            assert_eq!(messages(), 0);
        });
    }
}
