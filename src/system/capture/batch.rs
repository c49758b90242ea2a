//! The channel from capture to detector: batches of segments, bounded, and reused.
//!
//! Owns the batches. Capture never waits here. While the channel is full, capture fills the batch in hand;
//! when that is full too, segments are dropped and counted. A batch takes one lock, and nothing is
//! allocated after the start.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use crate::types::Segment;

/// Segments in a full batch.
const BATCH: usize = 4096;

/// Batches that may wait for the detector.
const DEPTH: usize = 16;

/// Batches that may wait before more segments are collected in the batch in hand. Capture reads a flood in
/// small portions, which would fill the channel with small batches.
const COLLECT_FROM: usize = 2;

/// Segments in the order of their capture.
pub struct Batch {
    segments: Vec<Segment>,
    /// Packets were lost before these segments, or no capture was open for a while.
    follows_loss: bool,
    /// The capture filter let through what tells the outcomes of probes.
    outcomes: bool,
}

impl Batch {
    fn empty() -> Self {
        Self { segments: Vec::with_capacity(BATCH), follows_loss: false, outcomes: false }
    }

    /// The segments.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Removes all segments but the probes.
    pub fn retain_probes(&mut self) {
        self.segments.retain(|segment| segment.kind.is_probe());
    }

    /// Returns whether packets were lost before this batch, after the one before it.
    pub fn follows_loss(&self) -> bool {
        self.follows_loss
    }

    /// Returns whether the capture filter let through what tells the outcomes of probes.
    pub fn has_outcomes(&self) -> bool {
        self.outcomes
    }
}

/// Capture's end.
pub struct BatchSender {
    full: SyncSender<Batch>,
    empty: Receiver<Batch>,
    current: Batch,
    /// How many batches wait for the detector.
    waiting: Arc<AtomicUsize>,
    /// What the batches to come are marked with.
    outcomes: bool,
    /// Segments were dropped since the batch in hand is full.
    has_dropped: bool,
    /// Segments dropped since the last call of [`BatchSender::take_dropped`].
    dropped: u64,
}

/// The detector's end.
pub struct BatchReceiver {
    full: Receiver<Batch>,
    empty: SyncSender<Batch>,
    waiting: Arc<AtomicUsize>,
}

/// Makes a channel and its pool of batches.
pub fn channel() -> (BatchSender, BatchReceiver) {
    // Room for every batch: an empty pool, not a full channel, shows that the detector is too slow.
    let (full_in, full_out) = sync_channel(DEPTH + 2);
    // One more than may wait, which the detector works on. Capture holds another.
    let (empty_in, empty_out) = sync_channel(DEPTH + 1);
    let waiting = Arc::new(AtomicUsize::new(0));
    for _ in 0..=DEPTH {
        // The channel has room for exactly these.
        let _ = empty_in.try_send(Batch::empty());
    }
    (
        BatchSender {
            full: full_in,
            empty: empty_out,
            current: Batch::empty(),
            waiting: Arc::clone(&waiting),
            outcomes: false,
            has_dropped: false,
            dropped: 0,
        },
        BatchReceiver { full: full_out, empty: empty_in, waiting },
    )
}

impl BatchSender {
    /// Adds a segment to the batch in hand, or drops it if there is no room.
    pub fn push(&mut self, segment: Segment) {
        if self.current.segments.len() == BATCH {
            self.send();
        }
        if self.current.segments.len() < BATCH {
            self.current.segments.push(segment);
        } else {
            self.has_dropped = true;
            self.dropped += 1;
        }
    }

    /// Notes packets that the kernel or the interface lost. They count as lost before the batch in hand,
    /// because the kernel does not say between which packets it lost them.
    pub fn note_lost(&mut self, packets: u64) {
        self.current.follows_loss |= packets > 0;
    }

    /// Begins the segments of another capture.
    pub fn begin_capture(&mut self, outcomes: bool, after_gap: bool) {
        self.send();
        self.outcomes = outcomes;
        // If the detector is so slow that the last segments are still in hand, the batch keeps its mark. The
        // detector then ignores outcomes or expects none, and neither leads to a wrong verdict.
        if self.current.segments.is_empty() {
            self.current.outcomes = outcomes;
        }
        self.current.follows_loss |= after_gap;
    }

    /// Sends the batch in hand, unless batches wait already. Returns whether it still holds segments.
    pub fn flush(&mut self) -> bool {
        if self.waiting.load(Ordering::Relaxed) < COLLECT_FROM {
            self.send();
        }
        !self.current.segments.is_empty()
    }

    /// Sends the batch in hand if there is room, and keeps it otherwise.
    fn send(&mut self) {
        if self.current.segments.is_empty() && !self.current.follows_loss {
            return;
        }
        // An empty pool means that as many batches wait for the detector as may.
        let Ok(mut next) = self.empty.try_recv() else { return };
        next.follows_loss = std::mem::take(&mut self.has_dropped);
        next.outcomes = self.outcomes;
        let full = std::mem::replace(&mut self.current, next);
        let count = full.segments.len() as u64;
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if self.full.try_send(full).is_err() {
            // The detector has ended, and the process is about to. (There is room for every batch.)
            self.dropped += count;
        }
    }

    /// Returns how many segments were dropped since the last call.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }
}

impl BatchReceiver {
    /// Waits for the next batch, at most `timeout`.
    pub fn next(&self, timeout: Duration) -> Result<Batch, RecvTimeoutError> {
        let batch = self.full.recv_timeout(timeout)?;
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        Ok(batch)
    }

    /// Returns a batch to the pool.
    pub fn give_back(&self, mut batch: Batch) {
        batch.segments.clear();
        // The pool has room for every batch that there is.
        let _ = self.empty.try_send(Batch { follows_loss: false, ..batch });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Moment, Port, SegmentKind};

    fn probe(number: u64) -> Segment {
        Segment {
            moment: Moment::from_nanos(number),
            source: [192, 0, 2, 1].into(),
            destination: [192, 0, 2, 2].into(),
            source_port: Port(1),
            port: Port(2),
            kind: SegmentKind::Syn,
            sequence: 0,
            acknowledged: 0,
            crafted: false,
            sender: 0,
        }
    }

    /// Returns for each batch that waits its numbers and whether it follows a loss.
    fn receive(batches: &BatchReceiver) -> Vec<(Vec<u64>, bool)> {
        let mut received = Vec::new();
        while let Ok(batch) = batches.next(Duration::ZERO) {
            let numbers = batch.segments().iter().map(|probe| probe.moment.as_nanos()).collect();
            received.push((numbers, batch.follows_loss()));
            batches.give_back(batch);
        }
        received
    }

    #[test]
    fn slow_detector_costs_segments_and_never_capture_time() {
        let (mut out, batches) = channel();
        let sent = (BATCH * (DEPTH + 4)) as u64;
        for number in 0..sent {
            out.push(probe(number));
        }
        out.flush();
        let dropped = out.take_dropped();
        let mut received = receive(&batches);
        out.flush();
        received.extend(receive(&batches));
        assert!(dropped > 0, "there was room for all");
        let arrived: usize = received.iter().map(|(numbers, _)| numbers.len()).sum();
        assert_eq!(arrived as u64 + dropped, sent, "each segment arrives or is counted");
        assert_eq!(out.take_dropped(), 0);
        assert!(received.iter().all(|(_, follows_loss)| !follows_loss), "the loss is after them");
        out.push(probe(sent));
        out.flush();
        assert_eq!(receive(&batches), [(vec![sent], true)]);
    }

    #[test]
    fn order_is_kept_across_batches() {
        let (mut out, batches) = channel();
        for number in 0..10 {
            out.push(probe(number));
            out.send();
        }
        let received = receive(&batches).into_iter().flat_map(|(numbers, _)| numbers);
        assert_eq!(received.collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn segments_are_collected_while_batches_wait() {
        let (mut out, batches) = channel();
        let held: Vec<bool> = (0..5)
            .map(|number| {
                out.push(probe(number));
                out.flush()
            })
            .collect();
        assert_eq!(held, [false, false, true, true, true], "the caller looks again soon");
        let waiting = batches.next(Duration::ZERO).unwrap();
        batches.give_back(waiting);
        assert!(!out.flush());
        assert_eq!(receive(&batches), [(vec![1], false), (vec![2, 3, 4], false)]);
    }

    #[test]
    fn losses_are_noted_in_order_and_once() {
        let (mut out, batches) = channel();
        out.push(probe(0));
        out.send();
        out.push(probe(1));
        out.note_lost(7);
        out.send();
        out.push(probe(2));
        out.send();
        // Also if nothing arrives after the loss.
        out.begin_capture(false, true);
        out.send();
        out.send();
        let expected = [(vec![0], false), (vec![1], true), (vec![2], false), (Vec::new(), true)];
        assert_eq!(receive(&batches), expected);
        out.push(probe(3));
        out.send();
        assert_eq!(receive(&batches), [(vec![3], false)], "a reused batch notes no old loss");
    }

    #[test]
    fn batches_tell_whether_their_capture_had_outcomes() {
        let (mut out, batches) = channel();
        for (number, outcomes) in [(0, false), (1, true), (2, true), (3, false)] {
            out.begin_capture(outcomes, false);
            out.push(probe(number));
        }
        out.send();
        let next = || batches.next(Duration::ZERO).map(|batch| batch.has_outcomes());
        assert_eq!([next(), next(), next(), next()], [Ok(false), Ok(true), Ok(true), Ok(false)]);
    }
}
