//! Where events are emitted: to the journal, to the bus and to the counters.
//!
//! Emitting never waits: a full queue drops the event and counts it.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use crate::handles::bus::BusCommand;
use crate::types::event::Event;

/// A reader of events whose queue can be full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// The journal thread.
    Journal,
    /// The bus thread.
    Bus,
}

/// Counts events as they are emitted. The metrics do.
pub trait CountEvents: Send + Sync {
    /// Counts what an event stands for.
    fn count(&self, event: &Event);

    /// Counts an event for which this reader's queue had no room.
    fn count_lost(&self, reader: Reader);
}

/// Where events are emitted. Cheap to clone; every thread has one.
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

    /// Counts an event that its own limit keeps from a reader.
    pub fn count_lost(&self, reader: Reader) {
        self.counters.count_lost(reader);
    }

    /// Emits an event. Never waits.
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
