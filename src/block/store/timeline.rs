//! From one boot's timeline to the next.
//!
//! Pure. Moments are kept as they are, beside the boot they belong to and one comparison of its
//! timeline with the wall clock. Within the boot they need no wall clock; after it, it is all there is.

use crate::types::block::Remembered;
use crate::types::clock::{Moment, WallClock};

/// The timeline of one boot, and where the wall clock stood against it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeline {
    /// The kernel's name for the boot; none: unknown, and equal to no other.
    pub boot: Option<String>,
    /// A moment of this boot ...
    pub moment: Moment,
    /// ... and what the wall clock showed then, in nanoseconds since the Unix epoch.
    pub unix_nanos: i128,
}

impl Timeline {
    /// The timeline of a boot, by a reading of both clocks.
    pub fn new(boot: Option<String>, clock: &WallClock) -> Self {
        let moment = clock.now();
        Self { boot, moment, unix_nanos: clock.unix_nanos(moment) }
    }

    /// Whether the other is known to be another boot's.
    pub fn is_of_another_boot_than(&self, other: &Self) -> bool {
        self.boot.as_ref().zip(other.boot.as_ref()).is_some_and(|(one, other)| one != other)
    }

    /// Whether the other is the same boot's, and the wall clock has not been set between them by more
    /// than time passes unnoticed.
    pub fn agrees_with(&self, other: &Self) -> bool {
        const NOTICED: u128 = 1_000_000_000;
        let offset = |line: &Self| line.unix_nanos - i128::from(line.moment.as_nanos());
        self.boot == other.boot && offset(self).abs_diff(offset(other)) < NOTICED
    }

    /// Brings over what was kept on this timeline to the present one. True if it is the same.
    ///
    /// Between two boots as much time has passed as the wall clock says; none where it says that it ran
    /// backwards. So a clock that is far behind at the boot lets no block last longer than it was made
    /// for, counted from now. (One that is far ahead lets all end; there is nothing to know it by.)
    pub fn bring_over(&self, remembered: &mut Remembered, present: &Self) -> bool {
        let latest = remembered.latest().map_or(self.moment, |latest| latest.max(self.moment));
        if self.boot.is_some() && self.boot == present.boot && latest <= present.moment {
            return true;
        }
        let nanos = |moment: Moment| i128::from(moment.as_nanos());
        let unix_of_latest = self.unix_nanos + nanos(latest) - nanos(self.moment);
        let passed = (present.unix_nanos - unix_of_latest).max(0);
        let shift = nanos(present.moment) - passed - nanos(latest);
        remembered.for_each_moment(|moment| {
            let shifted = (nanos(*moment) + shift).max(0);
            *moment = Moment::from_nanos(u64::try_from(shifted).unwrap_or(u64::MAX));
        });
        false
    }
}

impl Remembered {
    /// The latest thing that has happened.
    fn latest(&self) -> Option<Moment> {
        let blocks = self.blocks.iter().map(|(_, block)| block.since);
        let offences = self.offences.iter().map(|(_, offences)| offences.latest);
        blocks.chain(offences).max()
    }

    fn for_each_moment(&mut self, mut change: impl FnMut(&mut Moment)) {
        for (_, block) in &mut self.blocks {
            change(&mut block.since);
            block.until.iter_mut().for_each(&mut change);
            if let Some(evidence) = &mut block.evidence {
                evidence.attempts.iter_mut().for_each(|attempt| change(&mut attempt.moment));
            }
        }
        self.offences.iter_mut().for_each(|(_, offences)| change(&mut offences.latest));
        self.graces.iter_mut().for_each(|(_, until)| change(until));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::types::block::{Block, Offences};

    const HOUR: u64 = 3600;
    /// When these boots take place, in Unix seconds and on the timeline.
    const EPOCH: u64 = 1_800_000_000;
    const BOOT: u64 = 1_000_000;

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    fn line(boot: &str, since_boot: u64, unix: u64) -> Timeline {
        Timeline::new(Some(boot.to_owned()), &WallClock::at(at(BOOT + since_boot), unix))
    }

    /// Blocked from `since` to `until`, in seconds since the boot.
    fn block(since: u64, until: Option<u64>) -> Block {
        let until = until.map(|until| at(BOOT + until));
        let (since, reason) = (at(BOOT + since), String::new());
        Block { since, until, offences: 1, reason, evidence: None }
    }

    fn remembered(blocks: &[Block]) -> Remembered {
        let network = "192.0.2.1/32".parse().unwrap();
        let blocks = blocks.iter().map(|block| (network, block.clone())).collect();
        Remembered { blocks, ..Remembered::default() }
    }

    #[test]
    fn within_a_boot_a_step_of_the_wall_clock_moves_nothing() {
        for unix in [EPOCH + 60, 0, EPOCH + 1_000_000] {
            let before = remembered(&[block(10, Some(HOUR)), block(20, None)]);
            let mut after = before.clone();
            let kept_on = line("one", 30, EPOCH);
            assert!(kept_on.bring_over(&mut after, &line("one", 90, unix)), "{unix}");
            assert_eq!(after, before);
        }
    }

    #[test]
    fn after_a_boot_as_much_time_has_passed_as_the_wall_clock_says() {
        // Kept half an hour after the block began; ten minutes later the next boot is 5 seconds old.
        let mut after = remembered(&[block(0, Some(HOUR)), block(0, None)]);
        let present = line("two", 5, EPOCH + 2400);
        assert!(!line("one", 1800, EPOCH + 1800).bring_over(&mut after, &present));
        let [(_, timed), (_, endless)] = &after.blocks[..] else { panic!("{after:?}") };
        assert_eq!(timed.until.unwrap().since(present.moment), Duration::from_secs(HOUR - 2400));
        assert_eq!(present.moment.since(timed.since), Duration::from_secs(2400));
        assert_eq!(endless.until, None);

        let mut after = remembered(&[block(0, Some(HOUR))]);
        line("one", 1800, EPOCH + 1800).bring_over(&mut after, &line("two", 5, EPOCH + HOUR));
        assert!(after.blocks[0].1.until.unwrap() <= present.moment, "over");
    }

    /// A host without a battery wakes up in 1970.
    #[test]
    fn a_clock_that_is_behind_prolongs_no_block_beyond_its_length() {
        let mut after = remembered(&[block(0, Some(HOUR)), block(600, Some(600 + HOUR))]);
        let kept_on = line("one", 300, EPOCH);
        let present = line("two", 5, 100);
        kept_on.bring_over(&mut after, &present);
        let left = |at: usize| after.blocks[at].1.until.unwrap().since(present.moment);
        // The second began after the note of the wall clock: no less time has passed.
        assert_eq!(left(0), Duration::from_secs(HOUR - 600));
        assert_eq!(left(1), Duration::from_secs(HOUR));
    }

    /// Within a container's time namespace the same boot may be another timeline.
    #[test]
    fn a_boot_that_seems_younger_than_what_happened_in_it_is_another() {
        let mut after = remembered(&[block(0, Some(HOUR))]);
        let kept_on = line("one", 1800, EPOCH + 1800);
        let present = line("one", 5, EPOCH + 2400);
        assert!(!kept_on.bring_over(&mut after, &present));
        let left = after.blocks[0].1.until.unwrap().since(present.moment);
        assert_eq!(left, Duration::from_secs(HOUR - 2400));
    }

    #[test]
    fn offences_and_graces_are_brought_over_as_well() {
        let network = "192.0.2.1/32".parse().unwrap();
        let mut after = Remembered {
            blocks: Vec::new(),
            offences: vec![(network, Offences { count: 2, latest: at(BOOT) })],
            graces: vec![(network, at(BOOT + HOUR))],
        };
        let present = line("two", 5, EPOCH + 60);
        line("one", 0, EPOCH).bring_over(&mut after, &present);
        assert_eq!(present.moment.since(after.offences[0].1.latest), Duration::from_secs(60));
        assert_eq!(after.graces[0].1.since(present.moment), Duration::from_secs(HOUR - 60));
    }

    #[test]
    fn a_set_clock_is_noticed_and_a_drifting_one_is_not() {
        let noted = line("one", 0, EPOCH);
        assert!(noted.agrees_with(&line("one", 1000, EPOCH + 1000)));
        assert!(!noted.agrees_with(&line("one", 1000, EPOCH + 1010)));
    }
}
