//! The event sink, with which threads emit events to the journal, the bus and the counters.
//!
//! Must never wait: a full queue drops the event and counts it.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use crate::handles::BusCommand;
use crate::types::Event;

/// A reader of events whose queue can be full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    Journal,
    Bus,
}

/// Counts events as they are emitted. The metrics implement this.
pub trait CountEvents: Send + Sync {
    /// Counts an event.
    fn count(&self, event: &Event);

    /// Counts an event that a reader does not get.
    fn count_lost(&self, reader: Reader);
}

/// The event sink. Cheap to clone; every thread has one.
#[derive(Clone)]
pub struct EventSink {
    journal: SyncSender<Arc<Event>>,
    bus: Option<async_channel::Sender<BusCommand>>,
    counters: Arc<dyn CountEvents>,
}

impl EventSink {
    /// Emits to the journal, to the bus if there is one, and to the counters.
    pub fn new(
        journal: SyncSender<Arc<Event>>,
        bus: Option<async_channel::Sender<BusCommand>>,
        counters: Arc<dyn CountEvents>,
    ) -> Self {
        Self { journal, bus, counters }
    }

    /// Counts an event that a rate limit keeps from a reader.
    pub fn count_lost(&self, reader: Reader) {
        self.counters.count_lost(reader);
    }

    /// Emits an event without waiting.
    pub fn emit(&self, event: Event) {
        self.counters.count(&event);
        let event = Arc::new(event);
        if let Some(bus) = self.bus.as_ref().filter(|_| event.is_signal())
            && bus.try_send(BusCommand::Emit(Arc::clone(&event))).is_err()
        {
            self.counters.count_lost(Reader::Bus);
        }
        if self.journal.try_send(event).is_err() {
            self.counters.count_lost(Reader::Journal);
        }
    }
}
