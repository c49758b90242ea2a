//! Reads a capture file for the detectors, in the order of time.
//!
//! Owns the order, and the reasons why packets show nothing.

use std::collections::BTreeMap;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use crate::cli::output::counted;
use crate::cli::time::short;
use crate::system::capture::frame::absence::{Absence, absence};
use crate::system::capture::frame::{probe_in, segment_in};
use crate::system::capture::saved::{SavedCapture, SavedError, SavedFrame, name_of_link_type};
use crate::system::progress::Progress;
use crate::types::{Moment, Segment, SegmentKind, printable};

/// Segments per batch, and batches that may wait for the detecting thread.
pub const BATCH: usize = 4096;
pub const BATCHES_AHEAD: usize = 4;

/// How many segments a segment may come too late in the file. Twice as many are held, about 30 MB.
const LATEST: usize = 1 << 18;

/// How far the clocks of several processors or interfaces may differ: files that run backwards by less are
/// ordinary.
const JITTER: Duration = Duration::from_millis(1);

/// Files that take longer than this show their progress.
const SHOW_PROGRESS_AFTER: Duration = Duration::from_millis(500);

/// Packets between two updates of the progress. Each takes at most a microsecond.
const UPDATE_INTERVAL: u64 = 4096;

/// Which segments the detectors need.
#[derive(Clone, Copy)]
pub struct Wanted {
    /// Also what tells the outcomes of probes.
    pub outcomes: bool,
    /// Also stealth probes.
    pub stealth: bool,
}

/// What was in a file apart from segments.
#[derive(Debug, Default)]
pub struct Contents {
    pub packets: u64,
    /// How many packets gave no probe, by reason.
    without_probe: BTreeMap<Reason, u64>,
    /// Packets without a time that the detectors can use.
    untimed: Numbers,
    /// Packets that are older than one before them, and by how much at most.
    late: Numbers,
    latest_by: Duration,
    /// Segments that were delivered too late.
    misplaced: u64,
}

/// How many packets, and the number of the first.
#[derive(Debug, Default)]
struct Numbers {
    count: u64,
    first: u64,
}

impl Numbers {
    fn add(&mut self, number: u64) {
        self.count += 1;
        if self.count == 1 {
            self.first = number;
        }
    }
}

/// Why a packet gave no probe.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reason {
    Absent(Absence),
    /// It ends too early, but the capture has not cut it.
    Malformed,
    LinkType(i32),
    Untimed,
}

impl Contents {
    /// Returns how many packets gave no probe, and why. Empty if all did.
    pub fn without_probe(&self) -> String {
        let total: u64 = self.without_probe.values().sum();
        let reasons = self.without_probe.iter().map(|(reason, count)| match reason {
            Reason::Absent(Absence::Cut) => format!("{count} cut before the TCP flags"),
            Reason::Absent(Absence::Tunnel(kind)) => format!("{count} inside a tunnel ({kind})"),
            Reason::Absent(Absence::LaterFragment) => counted(*count, "later fragment"),
            Reason::Absent(Absence::OtherFlags) => counted(*count, "other TCP segment"),
            Reason::Absent(Absence::NotTcp) => format!("{count} not TCP"),
            Reason::Malformed => format!("{count} malformed"),
            Reason::LinkType(number) => {
                format!("{count} of another link type ({})", name_of_link_type(*number))
            }
            Reason::Untimed => format!("{count} without a usable time"),
        });
        let reasons: Vec<String> = reasons.collect();
        if total == 0 {
            return String::new();
        }
        format!("no probe in {}: {}", counted(total, "packet"), reasons.join(", "))
    }

    /// Returns what a reader of the verdicts must know.
    pub fn warnings(&self, file: &str) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.late.count > 0 {
            let (packets, are) = match self.late.count {
                1 => ("1 packet".to_owned(), "is"),
                count => (format!("{count} packets"), "are"),
            };
            warnings.push(format!(
                "{file} runs backwards: {packets} {are} older than one before, the first is packet {} \
                 and the largest step {}; packets were judged in the order of their times",
                self.late.first,
                short(self.latest_by)
            ));
        }
        if self.misplaced > 0 {
            warnings.push(format!(
                "{file}: {} came more than {LATEST} segments too late to be judged at the right time; \
                 sort the file first: reordercap {file} SORTED",
                counted(self.misplaced, "segment")
            ));
        }
        if self.untimed.count > 0 {
            let number = self.untimed.first;
            let which = match self.untimed.count - 1 {
                0 => format!("packet {number} has"),
                others => format!("packet {number} and {others} more have"),
            };
            warnings
                .push(format!("{file}: {which} no time between 1970 and 2262 and did not count"));
        }
        warnings
    }
}

/// Runs on the reading thread: sends the segments that are wanted, in batches.
pub fn read(
    mut capture: SavedCapture,
    name: &str,
    wanted: Wanted,
    batches: &SyncSender<Vec<Segment>>,
) -> (Contents, Result<(), SavedError>) {
    let mut progress = Progress::after(SHOW_PROGRESS_AFTER);
    let mut contents = Contents::default();
    let mut order = Order::new(batches);
    let mut newest = 0;
    let result = loop {
        if contents.packets.is_multiple_of(UPDATE_INTERVAL) {
            progress.show(|| progress_text(name, contents.packets, &capture));
        }
        let frame = match capture.next_frame() {
            Ok(Some(frame)) => frame,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        contents.packets += 1;
        if let Some(time) = frame.unix_nanos {
            let late_by = Duration::from_nanos(u64::saturating_sub(newest, time));
            if late_by > JITTER {
                contents.late.add(contents.packets);
                contents.latest_by = contents.latest_by.max(late_by);
            }
            newest = newest.max(time);
        } else {
            contents.untimed.add(contents.packets);
        }
        match segment_of(&frame, wanted) {
            Ok(segment) => {
                if !segment.kind.is_probe() {
                    let is_tcp = segment.kind != SegmentKind::Unreachable;
                    let absent = if is_tcp { Absence::OtherFlags } else { Absence::NotTcp };
                    *contents.without_probe.entry(Reason::Absent(absent)).or_default() += 1;
                }
                order.push(segment);
            }
            Err(reason) => *contents.without_probe.entry(reason).or_default() += 1,
        }
    };
    contents.misplaced = order.finish();
    (contents, result)
}

fn segment_of(frame: &SavedFrame<'_>, wanted: Wanted) -> Result<Segment, Reason> {
    let link = frame.link.map_err(Reason::LinkType)?;
    let moment = Moment::from_nanos(frame.unix_nanos.ok_or(Reason::Untimed)?);
    let parse = if wanted.outcomes { segment_in } else { probe_in };
    parse(link, frame.bytes, moment)
        .filter(|segment| segment.kind.is_ordinary() || wanted.stealth)
        .ok_or_else(|| match absence(link, frame.bytes) {
            Absence::Cut if !frame.is_cut => Reason::Malformed,
            absence => Reason::Absent(absence),
        })
}

/// Delivers segments in the order of their times.
struct Order<'a> {
    waiting: Vec<Segment>,
    is_sorted: bool,
    /// The times of the last segment that came, and of the last one that was delivered.
    newest: Moment,
    delivered: Moment,
    misplaced: u64,
    batches: &'a SyncSender<Vec<Segment>>,
}

impl<'a> Order<'a> {
    fn new(batches: &'a SyncSender<Vec<Segment>>) -> Self {
        let start = Moment::default();
        Self {
            waiting: Vec::new(),
            is_sorted: true,
            newest: start,
            delivered: start,
            misplaced: 0,
            batches,
        }
    }

    fn push(&mut self, segment: Segment) {
        self.is_sorted &= self.newest <= segment.moment;
        self.newest = segment.moment;
        self.misplaced += u64::from(segment.moment < self.delivered);
        self.waiting.push(segment);
        if self.waiting.len() == 2 * LATEST {
            self.deliver(LATEST);
        }
    }

    fn deliver(&mut self, count: usize) {
        if !self.is_sorted {
            // Stable, and fast for runs in order.
            self.waiting.sort_by_key(|segment| segment.moment);
        }
        self.is_sorted = true;
        self.newest = self.waiting.last().map_or(self.newest, |segment| segment.moment);
        for batch in self.waiting[..count].chunks(BATCH) {
            // The detecting thread waits for this one, so it receives the batch.
            let _ = self.batches.send(batch.to_vec());
        }
        self.delivered = self.waiting[..count].last().map_or(self.delivered, |last| last.moment);
        self.waiting.drain(..count);
    }

    /// Delivers the rest. Returns how many segments were delivered too late.
    fn finish(mut self) -> u64 {
        self.deliver(self.waiting.len());
        self.misplaced
    }
}

fn progress_text(name: &str, packets: u64, capture: &SavedCapture) -> String {
    let name = printable(name);
    match capture.share_read() {
        Some(share) => format!("{name}: {:.0}% read, {packets} packets", share * 100.0),
        None => format!("{name}: {packets} packets read"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;
    use crate::types::Port;

    fn segment(nanos: u64) -> Segment {
        Segment {
            moment: Moment::from_nanos(nanos),
            source: [192, 0, 2, 1].into(),
            destination: [198, 51, 100, 2].into(),
            source_port: Port(40_000),
            port: Port(80),
            kind: SegmentKind::Syn,
            sequence: 0,
            acknowledged: 0,
            crafted: false,
            sender: 0,
        }
    }

    /// Returns the times in the order of delivery, and how many were too late.
    fn delivered(nanos: impl Iterator<Item = u64>) -> (Vec<u64>, u64) {
        let (batches, received) = sync_channel(1 << 10);
        let mut order = Order::new(&batches);
        nanos.for_each(|nanos| order.push(segment(nanos)));
        let misplaced = order.finish();
        drop(batches);
        let times = received.iter().flatten().map(|segment| segment.moment.as_nanos());
        (times.collect(), misplaced)
    }

    #[test]
    fn segments_are_delivered_in_the_order_of_their_times() {
        let (late, early) = (1_000_000..1_000_000 + LATEST as u64, 0..LATEST as u64);
        // Two files in the wrong order, and a third one after them.
        let (times, misplaced) = delivered(late.chain(early).chain(2_000_000..2_300_000));
        assert_eq!((times.len(), misplaced), (2 * LATEST + 300_000, 0));
        assert!(times.is_sorted());
    }

    #[test]
    fn segments_that_come_too_late_are_counted() {
        let in_order = 10..10 + 2 * LATEST as u64;
        let (times, misplaced) = delivered(in_order.chain([5, 6, u64::from(u32::MAX), 7]));
        assert_eq!((times.len(), misplaced), (2 * LATEST + 4, 3));
    }
}
