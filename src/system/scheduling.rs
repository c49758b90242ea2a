//! Real-time scheduling of the threads between a probe and its block.
//!
//! Owns the policy of these threads, and the limit on the processor time that they use together under it. A
//! thread changes only its own policy. If the kernel refuses, it runs as a normal thread. Must never hold a
//! lock: a real-time thread would wait for a normal one.

use std::cell::Cell;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use preempt_rt::sched::{Pid, Scheduler, SchedulerParams, set_scheduler};
use rustix::thread::set_current_timer_slack;

use crate::types::{Moment, thread_time};

/// The lowest priority: above every normal thread, below every other real-time thread.
const PRIORITY: i32 = 1;

/// The processor time within any second from which on the threads run as normal ones: 20 % of a core, less
/// what three threads may use between two readings.
const LIMIT: Duration = Duration::from_millis(185);

/// The processor time of a second after which they are real-time threads again.
const RESUME: Duration = Duration::from_millis(100);

/// How often a thread reads its processor time at most: that is a system call.
const READ_EVERY: Duration = Duration::from_millis(1);

/// The parts into which a second is divided.
const PARTS: u64 = 10;
const PART: u64 = 1_000_000_000 / PARTS;

/// Places for parts, more than a second has: they are used in turn.
const PLACES: usize = 16;

thread_local! {
    /// Whether this thread has real-time priority.
    static IS_REALTIME: Cell<bool> = const { Cell::new(false) };
}

/// What the real-time threads have used together.
#[derive(Debug, Default)]
pub struct Budget {
    /// The number of a part in the upper half, and the microseconds used in it in the lower half.
    parts: [AtomicU64; PLACES],
    is_exhausted: AtomicBool,
}

impl Budget {
    fn add(&self, now: Moment, used: Duration) {
        let number = now.as_nanos() / PART;
        let micros = u64::try_from(used.as_micros()).map_or(u64::from(u32::MAX), |micros| micros);
        let micros = micros.min(u64::from(u32::MAX));
        // The function always returns a value, so this cannot fail.
        let _ = self.place(number).fetch_update(Ordering::Relaxed, Ordering::Relaxed, |part| {
            let before = used_in(part, number);
            Some(number << 32 | (before + micros).min(u64::from(u32::MAX)))
        });
    }

    /// Returns the time used in the second before `now`, and in the begun part before that.
    fn used(&self, now: Moment) -> Duration {
        let number = now.as_nanos() / PART;
        let parts = (0..=PARTS).map(|back| {
            let number = number.saturating_sub(back);
            used_in(self.place(number).load(Ordering::Relaxed), number)
        });
        Duration::from_micros(parts.sum())
    }

    /// Returns whether the threads may have real-time priority.
    fn permits(&self, now: Moment) -> bool {
        let was_exhausted = self.is_exhausted.load(Ordering::Relaxed);
        let limit = if was_exhausted { RESUME } else { LIMIT };
        let is_exhausted = self.used(now) >= limit;
        if is_exhausted != was_exhausted {
            self.is_exhausted.store(is_exhausted, Ordering::Relaxed);
        }
        !is_exhausted
    }

    #[expect(clippy::cast_possible_truncation, reason = "the remainder is below PLACES")]
    fn place(&self, number: u64) -> &AtomicU64 {
        &self.parts[(number % PLACES as u64) as usize]
    }
}

/// Returns the microseconds in a place, if it holds the part of this number.
const fn used_in(part: u64, number: u64) -> u64 {
    if part >> 32 == number & u32::MAX as u64 { part & u32::MAX as u64 } else { 0 }
}

/// The scheduling of the thread that owns it.
#[derive(Debug)]
pub struct Realtime {
    budget: Arc<Budget>,
    /// The thread's processor time at the last reading.
    used: Duration,
    /// The last reading.
    read: Moment,
    /// The kernel has not refused.
    is_permitted: bool,
}

impl Realtime {
    /// The thread starts as a normal one.
    pub fn new(budget: Arc<Budget>) -> Self {
        Self { budget, used: Duration::ZERO, read: Moment::default(), is_permitted: true }
    }

    /// Accounts for the time that the thread has used, and gives it the policy that is due. The thread calls
    /// it each time it has waited.
    pub fn update(&mut self, now: Moment) {
        let is_realtime = IS_REALTIME.get();
        if is_realtime && !now.is_past(self.read, READ_EVERY) {
            return;
        }
        let used = thread_time();
        // A thread that has stepped aside does not use up the budget of the others.
        if is_realtime || self.budget.is_exhausted.load(Ordering::Relaxed) {
            self.budget.add(now, used.saturating_sub(self.used));
        }
        (self.used, self.read) = (used, now);
        let is_due = self.is_permitted && self.budget.permits(now);
        if is_due != is_realtime {
            self.is_permitted &= set(is_due);
        }
    }

    /// Makes the thread a normal one until the next update: for work that no block waits for.
    pub fn step_aside(&mut self, now: Moment) {
        if IS_REALTIME.get() {
            let used = thread_time();
            self.budget.add(now, used.saturating_sub(self.used));
            self.used = used;
            step_aside();
        }
    }
}

/// Makes the calling thread a normal one until its next update. A program that it starts inherits its policy,
/// and must not be a real-time one.
pub fn step_aside() {
    if IS_REALTIME.get() {
        set(false);
    }
}

/// Returns whether the kernel permits the calling thread real-time priority, and leaves it a normal thread.
pub fn is_permitted() -> bool {
    let permitted = set(true);
    step_aside();
    permitted
}

/// Sets the policy of the calling thread. Returns whether the kernel permits it.
fn set(realtime: bool) -> bool {
    let (policy, priority) =
        if realtime { (Scheduler::SCHED_RR, PRIORITY) } else { (Scheduler::SCHED_NORMAL, 0) };
    let result = set_scheduler(Pid::current_thread(), policy, SchedulerParams { priority });
    if result.is_ok() {
        IS_REALTIME.set(realtime);
    }
    result.is_ok()
}

/// Lets the timers of the calling thread fire within 1 µs instead of 50 µs.
pub fn use_precise_timers() {
    // Without it the thread pauses longer, which costs latency and nothing else.
    let _ = set_current_timer_slack(NonZeroU64::new(1000));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn busy_threads_are_normal_until_a_second_is_quiet() {
        let budget = Budget::default();
        // Two threads of 10 % each.
        for now in (10_000..10_900).step_by(10) {
            budget.add(at(now), millis(1));
            budget.add(at(now), millis(1));
            assert!(budget.permits(at(now)), "{now}");
        }
        budget.add(at(10_900), millis(5));
        assert!(!budget.permits(at(10_900)));
        // Still above 10 %.
        for now in (10_900..13_000).step_by(10) {
            budget.add(at(now), Duration::from_micros(1300));
            assert!(!budget.permits(at(now)), "{now}");
        }
        for now in (13_000..15_000).step_by(10) {
            budget.add(at(now), Duration::from_micros(800));
            let permits = budget.permits(at(now));
            assert!(if now < 13_500 { !permits } else { permits || now < 13_800 }, "{now}");
        }
    }

    #[test]
    fn old_use_is_forgotten() {
        let budget = Budget::default();
        budget.add(at(50_000), millis(900));
        assert!(!budget.permits(at(50_000)) && !budget.permits(at(51_000)));
        assert!(budget.permits(at(51_200)));
        assert_eq!(budget.used(at(51_600)), Duration::ZERO, "its place is used again");
    }

    proptest! {
        /// Threads report what they use in steps of at most 2 ms, and stop when they are not permitted.
        #[test]
        fn no_second_has_more_than_20_percent_under_real_time_priority(
            uses in proptest::collection::vec((0u64..400, 0u64..2000), 1..3000),
        ) {
            let budget = Budget::default();
            let mut now = 77_000_000u64;
            let mut realtime: Vec<(u64, u64)> = Vec::new();
            let mut is_realtime = true;
            for (idle, used) in uses {
                now += idle * 10 + used;
                let moment = Moment::from_nanos(now * 1000);
                if is_realtime {
                    realtime.push((now, used));
                }
                budget.add(moment, Duration::from_micros(used));
                is_realtime = budget.permits(moment);
            }
            for (begin, _) in &realtime {
                let within = realtime.iter().filter(|(end, _)| (*begin..begin + 1_000_000).contains(end));
                let used: u64 = within.map(|(_, used)| used).sum();
                prop_assert!(used <= 200_000, "{used} µs");
            }
        }
    }

    #[test]
    fn thread_that_steps_aside_starts_no_real_time_programs() {
        let mut thread = Realtime::new(Arc::default());
        thread.update(Moment::now());
        let policy = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            // Field 41 of proc_pid_stat(5); the second one may contain spaces.
            stat.rsplit(')').next().unwrap().split_whitespace().nth(38).unwrap().to_owned()
        };
        if policy() != "2" {
            assert!(!is_permitted(), "permitted, but not set");
            return;
        }
        step_aside();
        assert_eq!(policy(), "0");
        thread.update(Moment::now());
        assert_eq!(policy(), "2");
        thread.step_aside(Moment::now());
        assert_eq!(policy(), "0");
    }
}
