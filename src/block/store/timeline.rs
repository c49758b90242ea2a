//! Conversion of moments from the timeline of one boot to that of the next.
//!
//! Pure. The database holds moments as they are, with the boot to which they belong and one comparison of
//! its timeline with the wall clock. Within that boot they need no wall clock; afterwards it is the only
//! link.

use std::time::Duration;

use crate::block::store::records::Remembered;
use crate::types::{Moment, WallClock};

/// How far the wall clock of a boot may be behind that of the boot before: without a clock battery it starts
/// with a time that was noted hours ago.
const BEHIND: Duration = Duration::from_secs(86_400);

/// The timeline of one boot, compared once with the wall clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeline {
    /// The kernel's name for the boot; none: unknown, and not equal to any other.
    pub boot: Option<String>,
    /// A moment of this boot ...
    pub moment: Moment,
    /// ... and the wall clock at that moment, in nanoseconds since the Unix epoch.
    pub unix_nanos: i128,
}

impl Timeline {
    /// Returns the timeline of a boot from a reading of both clocks.
    pub fn new(boot: Option<String>, clock: &WallClock) -> Self {
        let moment = clock.now();
        Self { boot, moment, unix_nanos: clock.unix_nanos(moment) }
    }

    /// Whether both boots are known and differ.
    pub fn is_of_another_boot_than(&self, other: &Self) -> bool {
        self.boot.as_ref().zip(other.boot.as_ref()).is_some_and(|(one, other)| one != other)
    }

    /// Whether the other timeline is of the same boot and the wall clock was not set in between. A drift of
    /// less than a second does not count.
    pub fn agrees_with(&self, other: &Self) -> bool {
        const NOTICED: u128 = 1_000_000_000;
        let offset = |line: &Self| line.unix_nanos - i128::from(line.moment.as_nanos());
        self.boot == other.boot && offset(self).abs_diff(offset(other)) < NOTICED
    }

    /// Returns the latest moment of this timeline that has passed by the present one. A record that is later is
    /// wrong, and would move all others when they are converted.
    pub fn latest_until(&self, present: &Self) -> Moment {
        let is_same_boot = self.boot.is_some() && self.boot == present.boot;
        if is_same_boot && self.moment <= present.moment {
            return present.moment;
        }
        match u64::try_from(present.unix_nanos - self.unix_nanos) {
            Ok(passed) => self.moment + Duration::from_nanos(passed) + BEHIND,
            // The wall clock is behind and does not tell.
            Err(_) => Moment::LAST,
        }
    }

    /// Converts moments of this timeline to the present one. True if the timelines are the same.
    ///
    /// Between two boots as much time has passed as the wall clock says, and none if it says that time
    /// ran backwards. So with a clock that is far behind at the boot no block lasts longer than its whole
    /// length, counted from now. A clock that is far ahead ends all blocks; nothing reveals it.
    pub fn convert(&self, remembered: &mut Remembered, present: &Self) -> bool {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::block::store::records::Offences;
    use crate::types::{Block, BlockReason};

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
        Block { since: at(BOOT + since), until, offences: 1, reason: BlockReason::Found }
    }

    fn remembered(blocks: &[Block]) -> Remembered {
        let network = "192.0.2.1/32".parse().unwrap();
        let blocks = blocks.iter().map(|block| (network, block.clone())).collect();
        Remembered { blocks, ..Remembered::default() }
    }

    #[test]
    fn step_of_the_wall_clock_changes_nothing_within_a_boot() {
        for unix in [EPOCH + 60, 0, EPOCH + 1_000_000] {
            let before = remembered(&[block(10, Some(HOUR)), block(20, None)]);
            let mut after = before.clone();
            let written_on = line("one", 30, EPOCH);
            assert!(written_on.convert(&mut after, &line("one", 90, unix)), "{unix}");
            assert_eq!(after, before);
        }
    }

    #[test]
    fn wall_clock_tells_how_much_time_passed_between_boots() {
        // Written half an hour after the block began; ten minutes later the next boot is 5 s old.
        let mut after = remembered(&[block(0, Some(HOUR)), block(0, None)]);
        let present = line("two", 5, EPOCH + 2400);
        assert!(!line("one", 1800, EPOCH + 1800).convert(&mut after, &present));
        let [(_, timed), (_, endless)] = &after.blocks[..] else { panic!("{after:?}") };
        assert_eq!(timed.until.unwrap().since(present.moment), Duration::from_secs(HOUR - 2400));
        assert_eq!(present.moment.since(timed.since), Duration::from_secs(2400));
        assert_eq!(endless.until, None);

        let mut after = remembered(&[block(0, Some(HOUR))]);
        line("one", 1800, EPOCH + 1800).convert(&mut after, &line("two", 5, EPOCH + HOUR));
        assert!(after.blocks[0].1.until.unwrap() <= present.moment, "expired");
    }

    /// A host without a clock battery boots in 1970.
    #[test]
    fn clock_that_is_behind_prolongs_no_block_beyond_its_length() {
        let mut after = remembered(&[block(0, Some(HOUR)), block(600, Some(600 + HOUR))]);
        let written_on = line("one", 300, EPOCH);
        let present = line("two", 5, 100);
        written_on.convert(&mut after, &present);
        let left = |at: usize| after.blocks[at].1.until.unwrap().since(present.moment);
        // The second block began after the note of the wall clock, so at least that much time passed.
        assert_eq!(left(0), Duration::from_secs(HOUR - 600));
        assert_eq!(left(1), Duration::from_secs(HOUR));
    }

    /// In a time namespace of a container the same boot may have another timeline.
    #[test]
    fn boot_younger_than_its_own_records_counts_as_another() {
        let mut after = remembered(&[block(0, Some(HOUR))]);
        let written_on = line("one", 1800, EPOCH + 1800);
        let present = line("one", 5, EPOCH + 2400);
        assert!(!written_on.convert(&mut after, &present));
        let left = after.blocks[0].1.until.unwrap().since(present.moment);
        assert_eq!(left, Duration::from_secs(HOUR - 2400));
    }

    #[test]
    fn records_cannot_be_later_than_the_present() {
        let noted = line("one", 0, EPOCH);
        for (present, latest) in [
            (line("one", 60, 0), at(BOOT + 60)),
            (line("two", 5, EPOCH + HOUR), at(BOOT + HOUR) + BEHIND),
            // The boot of another time namespace.
            (Timeline { moment: at(5), ..line("one", 0, EPOCH + HOUR) }, at(BOOT + HOUR) + BEHIND),
            (line("two", 5, EPOCH - 1), Moment::LAST),
        ] {
            assert_eq!(noted.latest_until(&present), latest, "{present:?}");
        }
    }

    #[test]
    fn offences_and_grace_periods_are_converted() {
        let network = "192.0.2.1/32".parse().unwrap();
        let mut after = Remembered {
            blocks: Vec::new(),
            offences: vec![(network, Offences { count: 2, latest: at(BOOT) })],
            graces: vec![(network, at(BOOT + HOUR))],
        };
        let present = line("two", 5, EPOCH + 60);
        line("one", 0, EPOCH).convert(&mut after, &present);
        assert_eq!(present.moment.since(after.offences[0].1.latest), Duration::from_secs(60));
        assert_eq!(after.graces[0].1.since(present.moment), Duration::from_secs(HOUR - 60));
    }

    #[test]
    fn set_clock_is_noticed_and_a_drifting_one_is_not() {
        let noted = line("one", 0, EPOCH);
        assert!(noted.agrees_with(&line("one", 1000, EPOCH + 1000)));
        assert!(!noted.agrees_with(&line("one", 1000, EPOCH + 1010)));
    }
}
