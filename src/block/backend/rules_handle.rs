//! The way to the rules thread, and what it publishes.
//!
//! The rules thread runs the programs of iptables, which may be slow or hang. The back end with one rule per
//! address has to wait for it, for at most the time that a program may run. Everything else here returns at
//! once.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use ipnet::IpNet;

use crate::block::backend::activity::{Activity, LIMIT};
use crate::block::backend::counter_totals::DropCounter;
use crate::block::backend::ipset::netlink::Element;
use crate::block::backend::program::RulesError;
use crate::block::backend::rulebook::RulePlan;
use crate::block::backend::{FirewallError, Refused};
use crate::types::{Family, Heartbeat, Moment};

/// Commands that may wait for the rules thread.
const QUEUE: usize = 64;

/// How often a thread that waits for an answer shows that it lives.
const BEAT: Duration = Duration::from_millis(200);

/// What the rules thread is asked. Each answer is taken, or its sender learns that nothing waits for it any
/// more: the channels of replies hold nothing.
pub enum RulesCommand {
    /// Compares the rules with what they should be, now.
    Look,
    /// The back end has one rule per address: takes over the rules that a crashed instance has left.
    Adopt(SyncSender<Result<Option<Vec<Element>>, FirewallError>>),
    /// Adds a rule for each of these networks, or deletes it.
    Add(Vec<IpNet>, SyncSender<Refused>),
    Delete(Vec<IpNet>, SyncSender<Refused>),
    /// Makes these networks have a rule, and no others.
    Replace(BTreeSet<IpNet>, SyncSender<Result<(), FirewallError>>),
    /// The packets that the rule for a network has matched.
    Matched(IpNet, SyncSender<Result<u64, FirewallError>>),
    /// Puts other rules in the place of the present ones; none: removes them. If there is a rule per network,
    /// these have one. The firewall thread gets the result as a command.
    Install {
        plan: Option<RulePlan>,
        networks: BTreeSet<IpNet>,
    },
    /// Removes the rules and ends the thread.
    Stop {
        reply: SyncSender<Result<(), FirewallError>>,
    },
}

/// The way to the rules thread.
#[derive(Clone)]
pub struct RulesHandle {
    commands: SyncSender<RulesCommand>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    activity: Arc<Activity>,
    /// How often a look was asked for, and how many of these requests the last look has answered.
    asked: AtomicU64,
    answered: AtomicU64,
    /// The heartbeat of the thread that waits for answers.
    heartbeat: OnceLock<Heartbeat>,
    /// The rules for single addresses in force, by family.
    held: [AtomicU32; 2],
    dropped: Mutex<Dropped>,
    /// Commands that remove rules of other programs that use a set of this instance.
    outside: Mutex<Vec<String>>,
    /// Commands that remove the rules of this instance.
    to_type: Mutex<Vec<String>>,
}

/// The packets that the rules have dropped.
#[derive(Default)]
struct Dropped {
    /// By rules that were replaced with those of another configuration.
    before: [u64; 2],
    counters: Vec<DropCounter>,
}

impl RulesHandle {
    /// Makes a way to a thread that will receive these commands.
    pub fn new() -> (Self, Receiver<RulesCommand>) {
        let (commands, received) = sync_channel(QUEUE);
        (Self { commands, shared: Arc::default() }, received)
    }

    pub fn activity(&self) -> &Arc<Activity> {
        &self.shared.activity
    }

    /// Sets the heartbeat of the thread that calls [`Self::ask`].
    pub fn set_heartbeat(&self, heartbeat: Heartbeat) {
        let _ = self.shared.heartbeat.set(heartbeat);
    }

    /// Asks for a look at the rules. Returns the number of the request.
    pub fn wake(&self) -> u64 {
        let number = self.shared.asked.fetch_add(1, Ordering::SeqCst) + 1;
        // If the queue is full, the thread is about to look.
        let _ = self.commands.try_send(RulesCommand::Look);
        number
    }

    /// How many looks were asked for.
    pub fn asked(&self) -> u64 {
        self.shared.asked.load(Ordering::SeqCst)
    }

    /// Notes that a look has answered so many requests.
    pub fn set_answered(&self, asked: u64) {
        self.shared.answered.store(asked, Ordering::SeqCst);
    }

    /// Whether a look has answered this request.
    pub fn is_answered(&self, number: u64) -> bool {
        self.shared.answered.load(Ordering::SeqCst) >= number
    }

    /// Asks the thread, and waits for the answer for at most the time that a program may run. Fails at once if
    /// the last program did not end in time.
    pub fn ask<T>(
        &self,
        command: impl FnOnce(SyncSender<T>) -> RulesCommand,
    ) -> Result<T, FirewallError> {
        let begun = Moment::now();
        let (reply, answer) = sync_channel(0);
        let command = command(reply);
        if let Some(hung) = self.activity().hung(begun) {
            return Err(RulesError::Hangs(hung).into());
        }
        let ended = || FirewallError::from(RulesError::Hangs("iptables".to_owned()));
        self.commands.try_send(command).map_err(|_| ended())?;
        loop {
            match answer.recv_timeout(BEAT) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Disconnected) => return Err(ended()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Some(heartbeat) = self.shared.heartbeat.get() {
                heartbeat.tick();
            }
            let now = Moment::now();
            if now.since(begun) > LIMIT || self.activity().remaining(now).is_zero() {
                let running = self.activity().running().unwrap_or_else(|| "iptables".to_owned());
                return Err(RulesError::Hangs(running).into());
            }
        }
    }

    /// Has the thread remove its rules and end, and waits as long as programs may run.
    pub fn stop(&self) -> Result<(), FirewallError> {
        /// The thread itself ends its attempts in time, unless it hangs.
        const MARGIN: Duration = Duration::from_millis(300);
        let (reply, answer) = sync_channel(0);
        let patience = self.activity().remaining(Moment::now());
        // A thread that has ended, because it could not start, has removed nothing, and made nothing.
        if self.commands.try_send(RulesCommand::Stop { reply }).is_err() {
            return Ok(());
        }
        answer.recv_timeout(patience.saturating_add(MARGIN)).unwrap_or_else(|_| {
            let running = self.activity().running().unwrap_or_else(|| "iptables".to_owned());
            let error = RulesError::Hangs(running).to_string();
            Err(FirewallError::RulesStay { error, commands: self.to_type().join("; ") })
        })
    }

    /// The commands that a person may type to remove the rules, as of the last check.
    fn to_type(&self) -> Vec<String> {
        self.shared.to_type.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_to_type(&self, commands: Vec<String>) {
        *self.shared.to_type.lock().unwrap_or_else(PoisonError::into_inner) = commands;
    }

    /// Asks the thread without waiting for the answer.
    pub fn send(&self, command: RulesCommand) -> Result<(), FirewallError> {
        let failed = || RulesError::Hangs("iptables".to_owned());
        self.commands.try_send(command).map_err(|_| failed().into())
    }

    /// The rules for single addresses of a family that are in force.
    pub fn held(&self, family: Family) -> u32 {
        self.shared.held[family as usize].load(Ordering::Relaxed)
    }

    pub fn set_held(&self, family: Family, count: u32) {
        self.shared.held[family as usize].store(count, Ordering::Relaxed);
    }

    /// Reads the counters of the rules, if that takes no program.
    pub fn update_dropped(&self) {
        // What cannot be read now is read later.
        let counters = self.dropped().counters.clone();
        for counter in &counters {
            let _ = counter.update();
        }
    }

    /// The packets of a family that the rules have dropped since the start, as of the last reading.
    pub fn dropped_packets(&self, family: Family) -> u64 {
        let dropped = self.dropped();
        let at = family as usize;
        dropped.before[at] + dropped.counters.get(at).map_or(0, DropCounter::total)
    }

    /// Puts other rules' counters in the place of the present ones, whose totals stay.
    pub fn set_counters(&self, counters: Vec<DropCounter>) {
        let before = Family::ALL.map(|family| self.dropped_packets(family));
        *self.dropped() = Dropped { before, counters };
    }

    /// The commands that remove rules of other programs that use a set of this instance.
    pub fn outside(&self) -> Vec<String> {
        self.shared.outside.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_outside(&self, commands: Vec<String>) {
        *self.shared.outside.lock().unwrap_or_else(PoisonError::into_inner) = commands;
    }

    fn dropped(&self) -> MutexGuard<'_, Dropped> {
        self.shared.dropped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
