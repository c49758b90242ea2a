//! How far a source has gone on since it was reported, which decides when it is returned again.
//!
//! Pure. A forger pays a packet for each port that a source tries, so the limit on blocks
//! (`block.max_per_minute`) allows more to a source that has tried more. The source is returned at 8, 16, 32
//! ports, and so on.

/// The distinct ports or hosts that a reported source has tried.
#[derive(Clone, Copy, Debug, Default)]
pub struct Effort {
    tried: u16,
    /// How many ports return the source again.
    next: u16,
    /// The source may be a decoy, as was seen when it was reported.
    decoy: bool,
}

impl Effort {
    /// The source is reported for this many ports.
    pub fn begin(&mut self, first: usize, decoy: bool) {
        let tried = u16::try_from(first).unwrap_or(u16::MAX);
        *self = Self { tried, next: 0, decoy };
        self.next = self.next_power();
    }

    /// Adds another port. Returns whether the source has to be returned for it.
    pub fn add(&mut self) -> bool {
        self.tried = self.tried.saturating_add(1);
        let is_due = self.tried == self.next;
        if is_due {
            self.next = self.next_power();
        }
        is_due
    }

    /// The source was returned, but did not arrive: its next port returns it again.
    pub fn retry(&mut self) {
        self.next = self.tried.saturating_add(1);
    }

    pub fn tried(self) -> u32 {
        self.tried.into()
    }

    pub fn is_decoy(self) -> bool {
        self.decoy
    }

    /// The next power of two, or zero, which is never reached, after the last one.
    fn next_power(self) -> u16 {
        self.tried.saturating_add(1).checked_next_power_of_two().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_is_returned_at_each_power_of_two() {
        for (first, at) in
            [(2, [4, 8, 16]), (4, [8, 16, 32]), (5, [8, 16, 32]), (30, [32, 64, 128])]
        {
            let mut effort = Effort::default();
            effort.begin(first, false);
            let mut returned = Vec::new();
            for _ in 0..100_000 {
                if effort.add() {
                    returned.push(effort.tried());
                }
            }
            assert_eq!(returned[..3], at, "{first}");
            assert_eq!(returned.last(), Some(&32_768));
        }
        let mut effort = Effort::default();
        effort.begin(7, false);
        assert!(effort.add());
        effort.retry();
        assert!(effort.add() && !effort.add(), "the lost return is repeated once");
    }
}
