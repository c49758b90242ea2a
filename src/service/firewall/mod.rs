//! The firewall thread: it receives scans and commands, asks the policy, and calls the blocklist.
//!
//! Owns the order of its work, and turns what the blocklist reports into events, health and commands to
//! the detector. It says that something is blocked only after the blocklist has. It never runs a program: the
//! rules thread does, and only a back end without sets waits for that one.

mod reconfigure;

#[cfg(test)]
mod enforcement_tests;

#[cfg(test)]
mod restart_tests;

#[cfg(test)]
pub mod test_bench;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender};
use std::time::Duration;

use ipnet::IpNet;
use tracing::debug;

use crate::api::metrics::Metrics;
use crate::block::backend::ipset::netlink::IpsetError;
use crate::block::backend::program::RulesError;
use crate::block::backend::rules_handle::RulesHandle;
use crate::block::backend::select::{Selected, select};
use crate::block::backend::{Backend, FirewallError, Refused};
use crate::block::blocklist::{Blocklist, Change, OnProgress, WhenFull};
use crate::block::exemptions::Exemptions;
use crate::block::policy::{AskConnected, Policy, Verdict};
use crate::block::reconcile::{Fault, list_of};
use crate::block::store::Store;
use crate::config::Config;
use crate::handles::{
    BlockExplanation, Command, Component, DetectorCommand, EventSink, Explanation, Health, Listed,
    Notification, RequestError,
};
use crate::service::Context;
use crate::service::firewall::reconfigure::Pending;
use crate::service::supervisor::Supervisor;
use crate::system::host::sockets::Sockets;
use crate::system::progress::Progress;
use crate::system::scheduling::Realtime;
use crate::system::service_manager;
use crate::types::{
    Block, BlockFailure, BlockReason, Event, Evidence, Family, Host, Moment, Request, Scan,
    SkipReason, SshSessions, UnblockCause, WallClock, Warning,
};

/// The longest time between two rounds of maintenance. It is short enough to repair the firewall within a
/// second.
pub const TICK: Duration = Duration::from_millis(500);

/// From so many blocks on, maintenance may take long, and is not worth real-time priority.
const MANY_BLOCKS: usize = 1000;

/// The shortest time between two checks that requests for an explanation cause: any user may send them.
const RECHECK: Duration = Duration::from_millis(50);

/// How long the rate limit must not have held back a block until the state is good again.
const CALM: Duration = Duration::from_secs(60);

/// How long the start may take until it fails, if what it needs may still come: iptables waits for its lock.
pub const START_PATIENCE: Duration = Duration::from_secs(60);

/// The pause between two attempts to start.
const START_PAUSE: Duration = Duration::from_millis(100);

/// The most networks in one command to the detector.
const FORGET_AT_ONCE: usize = 1024;

/// The back ends at the start.
#[derive(Default)]
pub struct Backends {
    /// None if this process may not change the firewall.
    pub used: Option<Box<dyn Backend + Send>>,
    /// Back ends that a crashed instance with another configuration may have used.
    pub others: Vec<Box<dyn Backend + Send>>,
}

/// Opens the back end for a configuration, and changes nothing yet.
pub type OpenBackend = Box<dyn FnMut(&Config) -> Result<Selected, FirewallError> + Send>;

/// The host and its SSH sessions, of which commands bring newer ones.
pub type Followed = (Arc<Host>, Arc<SshSessions>);

/// The ways of the firewall thread to other threads.
pub struct Neighbours {
    pub detector: SyncSender<DetectorCommand>,
    pub rules: RulesHandle,
    pub main: Sender<Notification>,
}

/// Starts the firewall thread, which installs the back end. While the service only observes, it removes what a
/// crashed instance has left in that back end.
pub fn spawn(
    threads: &mut Supervisor,
    context: &Context,
    config: Config,
    (backends, followed, store): (Backends, Followed, Store),
    (detector, rules): (SyncSender<DetectorCommand>, RulesHandle),
    commands: Receiver<Command>,
) -> std::io::Result<()> {
    let Context { interface, events, metrics, health, realtime } = context.clone();
    let mut sockets = Sockets::default();
    let opened = rules.clone();
    let mut thread = FirewallThread::new(
        Box::new(move |config: &Config| select(&interface, config, &opened)),
        config,
        (followed, Box::new(move || timed(|| sockets.connected_hosts()))),
        store,
        (events, metrics, health),
        Neighbours { detector, rules, main: threads.notifications() },
    );
    let Backends { used: backend, others } = backends;
    thread.left_over = others;
    threads.start("firewall", move |heartbeat| {
        thread.rules().set_heartbeat(heartbeat.clone());
        let mut progress = Progress::after(Duration::ZERO);
        let on_progress: OnProgress<'_> = &mut |done, all| {
            let status = format!("restoring blocks: {done} of {all}");
            service_manager::status(&status);
            progress.show(|| status);
            heartbeat.tick();
        };
        let scheduling = Realtime::new(realtime);
        thread.run(backend, &commands, on_progress, scheduling, || heartbeat.tick())
    })
}

pub struct FirewallThread {
    policy: Policy,
    blocklist: Blocklist,
    /// The configuration in force.
    config: Config,
    open_backend: OpenBackend,
    events: EventSink,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    neighbours: Neighbours,
    /// What a crashed instance may have left in back ends that are not in use.
    left_over: Vec<Box<dyn Backend + Send>>,
    /// A configuration that waits for its rules.
    pending: Option<Pending>,
    /// Sets were made again: the rules thread has to say whether its rules are still there.
    look_awaited: Option<u64>,
    /// When the rate limit last held back a block.
    throttled: Option<Moment>,
    /// When the kernel was last compared with the ledger.
    checked: Moment,
    /// The kernel refused something that has to be tried again.
    unfinished: bool,
    /// Something was to be blocked when the counters were last read.
    was_used: bool,
}

impl FirewallThread {
    /// Returns a thread that blocks nothing before [`Self::install`].
    pub fn new(
        open_backend: OpenBackend,
        config: Config,
        ((host, sessions), ask_connected): (Followed, AskConnected),
        store: Store,
        (events, metrics, health): (EventSink, Arc<Metrics>, Arc<Health>),
        neighbours: Neighbours,
    ) -> Self {
        let exemptions = Exemptions::new(&config, host, sessions);
        Self {
            policy: Policy::new(config.block.clone(), exemptions, ask_connected),
            blocklist: Blocklist::new(store),
            config,
            open_backend,
            events,
            metrics,
            health,
            neighbours,
            left_over: Vec::new(),
            pending: None,
            look_awaited: None,
            throttled: None,
            checked: Moment::default(),
            unfinished: false,
            was_used: true,
        }
    }

    /// Installs the back end and restores the blocks of the last run. Tries again as long as that may succeed.
    fn start(
        &mut self,
        backend: Option<Box<dyn Backend + Send>>,
        on_progress: OnProgress<'_>,
        tick: &impl Fn(),
    ) -> Result<(), FirewallError> {
        let begun = Moment::now();
        let mut backend = backend;
        loop {
            let clock = WallClock::read();
            let Err(error) = self.install(&mut backend, &clock, on_progress) else {
                return Ok(());
            };
            let error = self.with_rules_outside(error);
            let activity = self.rules().activity();
            if activity.is_stopping() {
                // The back end may have installed a part.
                self.left_over.extend(backend);
                return Ok(());
            }
            if !error.is_transient() || clock.now().since(begun) >= START_PATIENCE {
                let _ = self.remove_all(backend.as_mut(), Ok(()));
                return Err(error);
            }
            // The rules thread may still have to remove a rule.
            if clock.now().since(begun) >= TICK {
                self.kernel_failed(&error);
            }
            self.rules().wake();
            tick();
            std::thread::park_timeout(START_PAUSE);
        }
    }

    /// Installs the back end and restores the blocks of the last run. After an error the caller keeps the back
    /// end. While the service only observes, the back end is what a crashed instance may have left.
    pub fn install(
        &mut self,
        backend: &mut Option<Box<dyn Backend + Send>>,
        clock: &WallClock,
        on_progress: OnProgress<'_>,
    ) -> Result<(), FirewallError> {
        if self.config.block.enabled {
            self.restore(backend, clock, on_progress)?;
            // Main shows how many blocks are in force.
            self.report();
            self.started();
        } else {
            self.left_over.extend(backend.take());
            for left_over in &mut self.left_over {
                // Before the rules thread has removed the rules.
                left_over.clear()?;
            }
        }
        self.maintain(clock);
        Ok(())
    }

    /// The blocks are in the kernel, or none have to be.
    fn started(&self) {
        self.rules().wake();
        if self.health.set_in_force(Component::Firewall) {
            let _ = self.neighbours.main.send(Notification::InForce);
        }
    }

    /// Runs until the command to stop, then removes everything from the kernel.
    pub fn run(
        mut self,
        backend: Option<Box<dyn Backend + Send>>,
        commands: &Receiver<Command>,
        on_progress: OnProgress<'_>,
        mut scheduling: Realtime,
        tick: impl Fn(),
    ) -> Result<(), FirewallError> {
        self.start(backend, on_progress, &tick)?;
        let mut maintained = Moment::default();
        loop {
            tick();
            scheduling.update(Moment::now());
            let command = match commands.recv_timeout(self.pause(Moment::now(), maintained)) {
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => {
                    return self.stop(&WallClock::read());
                }
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
            };
            let clock = WallClock::read();
            if command.as_ref().is_some_and(|command| !matches!(command, Command::Scan { .. })) {
                // Only the block of a scanner is urgent.
                scheduling.step_aside(clock.now());
            }
            // First, because a command must not see an expired block, however late this thread comes to it.
            self.expire(&clock);
            if let Some(command) = command {
                self.handle(command, &clock);
            }
            if clock.now().since(maintained) >= TICK {
                maintained = clock.now();
                // With few blocks it is over before it could lose the processor, which would delay a scan.
                if self.blocklist.ledger().blocks().len() > MANY_BLOCKS {
                    scheduling.step_aside(clock.now());
                }
                self.maintain(&clock);
            }
        }
    }

    /// How long there is nothing to do without a command.
    fn pause(&self, now: Moment, maintained: Moment) -> Duration {
        // Commands do not postpone the next round.
        let next = maintained + TICK;
        self.blocklist.ledger().next_due().map_or(next, |due| due.min(next)).since(now)
    }

    fn stop(mut self, clock: &WallClock) -> Result<(), FirewallError> {
        let (backend, cleared) = self.blocklist.finish(clock);
        self.report();
        let mut backend = backend.or(self.left_over.pop());
        self.remove_all(backend.as_mut(), cleared)
    }

    /// Removes everything from the kernel: the blocks first, so that what cannot be removed drops nothing.
    fn remove_all(
        &self,
        backend: Option<&mut Box<dyn Backend + Send>>,
        cleared: Result<(), FirewallError>,
    ) -> Result<(), FirewallError> {
        let rules = self.rules();
        rules.activity().stop(Moment::now());
        let rules_removed = rules.stop();
        let removed = backend.map_or(Ok(()), |backend| backend.remove());
        // A rule that stays explains a set that stays.
        rules_removed.and(removed.map_err(|error| self.with_rules_outside(error))).and(cleared)
    }

    /// Adds what else uses a set that is in use.
    fn with_rules_outside(&self, error: FirewallError) -> FirewallError {
        match (error, self.rules().outside()) {
            (FirewallError::Set(IpsetError::InUse(name)), commands) if !commands.is_empty() => {
                FirewallError::SetInUse { name, commands }
            }
            (error, _) => error,
        }
    }

    fn rules(&self) -> &RulesHandle {
        &self.neighbours.rules
    }

    fn handle(&mut self, command: Command, clock: &WallClock) {
        // A caller that has gone away takes no reply; that is not an error.
        match command {
            Command::Scan { scan, listed } => {
                if let Some(accepted) = self.on_scan(&scan, listed, clock) {
                    self.metrics.observe_block_latency(accepted.since(scan.moment));
                }
            }
            Command::Block { network, duration, reason, uid, reply } => {
                let _ = reply.try_send(self.block_manually(network, duration, reason, uid, clock));
            }
            Command::Unblock { network, uid, reply } => {
                let _ = reply.try_send(self.unblock_manually(network, uid, clock));
            }
            Command::List { reply } => {
                let _ = reply.try_send(self.list(clock));
            }
            Command::Why { network, reply } => {
                let _ = reply.try_send(self.explain(network, clock));
            }
            Command::Pending { network, reply } => {
                // If there is no room, the caller learns that no answer comes.
                let question = DetectorCommand::Explain(network, reply);
                let _ = self.neighbours.detector.try_send(question);
            }
            Command::Reconfigure { config, reply } => self.reconfigure(*config, reply, clock),
            Command::RulesInstalled(result) => self.finish_reconfigure(result, clock),
            Command::Host(host) => {
                self.policy.exemptions_mut().set_host(host);
                self.exemptions_changed(clock);
            }
            Command::Sessions(sessions) => {
                if self.policy.exemptions_mut().set_sessions(sessions) {
                    self.exemptions_changed(clock);
                }
                self.report();
            }
            Command::Look => self.maintain(clock),
            // Ends the loop, which handles it.
            Command::Stop => {}
        }
    }

    /// Returns when the kernel accepted the block, if the scan leads to one.
    fn on_scan(&mut self, scan: &Arc<Scan>, listed: bool, clock: &WallClock) -> Option<Moment> {
        let now = clock.now();
        let verdict = self.policy.verdict(scan, self.blocklist.ledger(), now);
        debug!(
            source = %scan.source,
            kind = scan.kind.as_str(),
            ports = ?scan.ports(),
            probes = scan.probes,
            rule = ?scan.rule,
            ?verdict,
            "verdict on a scan"
        );
        let why = match verdict {
            Verdict::AlreadyBlocked => {
                self.blocklist.note_probes(&scan.source, scan.probes);
                if listed && !scan.continued {
                    self.events.emit(Event::AlreadyBlocked { source: scan.source });
                }
                return None;
            }
            Verdict::Skip(why) => why,
            Verdict::Block { duration, offence } => {
                let block = Block {
                    since: now,
                    until: duration.map(|duration| now + duration),
                    offences: offence,
                    reason: BlockReason::Scan(Box::new(Evidence::from(&**scan))),
                };
                match self.add(scan.source, &block, WhenFull::Evict, None, clock) {
                    Ok(accepted) => {
                        self.policy.count_block(now);
                        return Some(accepted);
                    }
                    Err(why) => SkipReason::Failed(why),
                }
            }
        };
        if let SkipReason::Throttled { .. } = why {
            // A state, which is reported once: a flood must not fill the journal.
            self.health.set_degraded(Component::BlockRate, why.to_string());
            self.throttled = Some(now);
        } else if listed && !scan.continued {
            self.events.emit(Event::NotBlocked { scan: Arc::clone(scan), why });
        }
        self.report();
        None
    }

    fn block_manually(
        &mut self,
        network: IpNet,
        duration: Option<Duration>,
        reason: String,
        uid: u32,
        clock: &WallClock,
    ) -> Result<(), RequestError> {
        let now = clock.now();
        let result = if let Some(why) = self.policy.exemptions().reason(&network) {
            Err(RequestError::Exempt { network, why })
        } else {
            let until = duration.map(|duration| now + duration);
            let reason = BlockReason::Manual(reason);
            let block = Block { since: now, until, offences: 0, reason };
            let added = self.add(network, &block, WhenFull::Fail, Some(uid), clock);
            added.map(drop).map_err(RequestError::Failed)
        };
        debug!(%network, uid, ?result, "a user blocks");
        self.report();
        result.inspect_err(|error| self.emit_refused(Request::Block(network), error, uid))
    }

    /// Adds a block. If the kernel fails, repairs what another program may have removed, and tries again.
    /// Returns when the kernel accepted it.
    fn add(
        &mut self,
        network: IpNet,
        block: &Block,
        when_full: WhenFull,
        uid: Option<u32>,
        clock: &WallClock,
    ) -> Result<Moment, BlockFailure> {
        let now = clock.now();
        let mut result = self.blocklist.add(network, block, when_full, now);
        if let Err(BlockFailure::Kernel(_)) = result {
            self.publish(None, clock);
            if let Err(error) = self.reconcile(clock) {
                self.kernel_failed(&error);
                return Err(BlockFailure::Kernel(error.to_string()));
            }
            result = self.blocklist.add(network, block, when_full, now);
        }
        match &result {
            Err(BlockFailure::Full(_)) => self.limit_reached(),
            Err(why @ BlockFailure::Kernel(_)) => {
                self.health.set_degraded(Component::Firewall, why.to_string());
            }
            _ => {}
        }
        self.publish(uid, clock);
        result
    }

    fn limit_reached(&self) {
        let reason = format!(
            "block limit reached ({} per address family); a new scanner's block evicts the one with the \
             fewest probes",
            self.blocklist.capacity()
        );
        self.health.set_degraded(Component::Capacity, reason);
    }

    fn unblock_manually(
        &mut self,
        network: IpNet,
        uid: u32,
        clock: &WallClock,
    ) -> Result<(), RequestError> {
        let now = clock.now();
        let grace_until = now + self.config.block.grace_after_unblock.get();
        let refused = self.blocklist.remove_manually(network, grace_until, now);
        self.publish(Some(uid), clock);
        let result = match refused.as_ref().map(|refused| refused.first()) {
            None => Err(RequestError::NotBlocked(network)),
            Some(None) => Ok(()),
            Some(Some((_, error))) => {
                self.kernel_failed(error);
                Err(RequestError::Failed(BlockFailure::Kernel(error.to_string())))
            }
        };
        debug!(%network, uid, ?result, "a user unblocks");
        result.inspect_err(|error| self.emit_refused(Request::Unblock(network), error, uid))
    }

    /// Unblocks what is exempt by now, and blocks the scanners that no longer are.
    fn exemptions_changed(&mut self, clock: &WallClock) {
        self.unblock_exempt(clock);
        for scan in self.policy.take_no_longer_exempt(clock.now()) {
            self.on_scan(&scan, false, clock);
        }
    }

    fn unblock_exempt(&mut self, clock: &WallClock) {
        let exempt = self.policy.exempt_blocks(self.blocklist.ledger());
        self.unblock(exempt, clock);
    }

    fn unblock(&mut self, exempt: Vec<IpNet>, clock: &WallClock) {
        let refused = self.blocklist.remove(exempt, UnblockCause::Exempt, clock.now());
        self.publish_refused(&refused, clock);
    }

    fn expire(&mut self, clock: &WallClock) {
        let refused = self.blocklist.expire(clock.now());
        self.publish_refused(&refused, clock);
    }

    /// Publishes what the blocklist has changed, and shows what the kernel has refused.
    fn publish_refused(&mut self, refused: &Refused, clock: &WallClock) {
        self.publish(None, clock);
        for (_, error) in refused {
            self.kernel_failed(error);
            self.unfinished = true;
        }
    }

    /// Turns changes into events, and has the detector forget sources that are no longer blocked.
    fn publish(&mut self, uid: Option<u32>, clock: &WallClock) {
        let changes = self.blocklist.take_changes();
        if changes.is_empty() {
            return;
        }
        // First, so that the state already says whether the changes are saved.
        self.report();
        let mut unblocked = Vec::new();
        for change in &changes {
            if let Change::Unblocked { network, cause } = change {
                unblocked.push(*network);
                if *cause == UnblockCause::Evicted {
                    self.limit_reached();
                }
            }
        }
        for some in unblocked.chunks(FORGET_AT_ONCE) {
            // The detector reads its commands before its next probe, and never waits for this thread, so
            // this thread may wait for it.
            let _ = self.neighbours.detector.send(DetectorCommand::Forget(some.to_vec()));
        }
        for change in changes {
            debug!(?change, "blocks changed");
            self.events.emit(match change {
                Change::Blocked { network, block } => blocked_event(network, &block, uid, clock),
                Change::Unblocked { network, cause } => Event::Unblocked { network, cause, uid },
            });
        }
    }

    fn list(&self, clock: &WallClock) -> Vec<Listed> {
        let listed = self.blocklist.ledger().blocks().map(|(network, block)| Listed {
            network: *network,
            since: clock.unix_seconds(block.since),
            until: block.until.map_or(0, |until| clock.unix_seconds(until)),
            offences: block.offences,
            reason: block.reason.to_string(),
        });
        listed.collect()
    }

    fn explain(&mut self, asked: IpNet, clock: &WallClock) -> Result<Explanation, RequestError> {
        let now = clock.now();
        let exempt = self.policy.exemptions().reason(&asked);
        self.report();
        let blocked = self.blocklist.ledger().block_around(&asked).map(|(network, _)| network);
        // `stats` shows the packets dropped as of the last check: not fewer than this answer.
        if blocked.is_some()
            && now.since(self.checked) >= RECHECK
            && let Err(error) = self.reconcile(clock)
        {
            self.kernel_failed(&error);
        }
        let dropped = blocked.and_then(|network| self.blocklist.dropped_from(network));
        let ledger = self.blocklist.ledger();
        let past = ledger.offences_around(&asked, now, self.config.block.forget_after.get());
        let grace = ledger.grace(&asked, now);
        let block = blocked.and_then(|network| ledger.get(&network));
        if block.is_none() && exempt.is_none() && grace.is_none() && past.is_none() {
            return Err(RequestError::Unknown(asked));
        }
        let past_count = past.map_or(0, |(_, past)| past.count);
        let offences = block.map_or(past_count, |block| block.offences.max(past_count));
        let block = block.map(|block| {
            let evidence = block.reason.evidence();
            let attempts = evidence.iter().flat_map(|evidence| &evidence.attempts);
            BlockExplanation {
                since: clock.unix_seconds(block.since),
                until: block.until.map_or(0, |until| clock.unix_seconds(until)),
                reason: block.reason.to_string(),
                times: attempts.map(|attempt| clock.unix_time(attempt.moment)).collect(),
                evidence: evidence.cloned(),
                dropped,
            }
        });
        Ok(Explanation {
            network: blocked.or(past.map(|(network, _)| network)).unwrap_or(asked),
            block,
            offences,
            exempt,
            grace_until: grace.map(|remaining| clock.unix_seconds(now + remaining)),
        })
    }

    fn restore(
        &mut self,
        backend: &mut Option<Box<dyn Backend + Send>>,
        clock: &WallClock,
        on_progress: OnProgress<'_>,
    ) -> Result<(), FirewallError> {
        let exemptions = self.policy.exemptions();
        let mut is_exempt = |network: &IpNet| exemptions.reason(network).is_some();
        let established = self.config.block.established;
        let restored =
            self.blocklist.restore(backend, established, clock, &mut is_exempt, on_progress)?;
        for (_, error) in restored.stale_failed.iter().chain(&restored.failed) {
            self.kernel_failed(error);
        }
        if restored.stale > 0 {
            let warning = Warning::StaleBlocksRemoved { count: restored.stale };
            self.events.emit(Event::Warning(warning));
        }
        self.publish(None, clock);
        let (blocks, expired) = (restored.blocks, restored.expired);
        if blocks + expired > 0 {
            self.events.emit(Event::Restored { blocks, expired });
        }
        if let Some((_, error)) = restored.failed.first() {
            let (count, error) = (restored.failed.len(), error.to_string());
            self.events.emit(Event::Warning(Warning::RestoreIncomplete { count, error }));
        }
        self.unblock_exempt(clock);
        self.expire(clock);
        Ok(())
    }

    /// Removes what a crashed instance has left, as soon as its rules are gone.
    fn remove_left_over(&mut self) {
        self.left_over.retain_mut(|left_over| left_over.remove().is_err());
        if self.left_over.is_empty() {
            self.started();
        }
    }

    /// One round of maintenance: the database and the kernel.
    fn maintain(&mut self, clock: &WallClock) {
        let now = clock.now();
        if self.throttled.is_some_and(|last| now.since(last) >= CALM) {
            self.throttled = None;
            self.health.clear(Component::BlockRate);
        }
        let was_unfinished = std::mem::take(&mut self.unfinished);
        if was_unfinished {
            self.unblock_exempt(clock);
        }
        self.blocklist.forget(now, self.config.block.forget_after.get());
        self.blocklist.maintain_store(clock);
        if !self.config.block.enabled || !self.left_over.is_empty() {
            self.remove_left_over();
        }
        self.report();
        let hanging = self.rules().activity().hanging(now);
        let hanging = hanging.map(|command| {
            format!("{}; the rules are not looked after until it ends", RulesError::Hangs(command))
        });
        self.show(Component::Program, hanging);
        let reconciled = self.reconcile(clock);
        let cut = self.blocklist.end_connections().map_err(FirewallError::from);
        let mut is_well = !was_unfinished;
        for error in [reconciled, cut].into_iter().filter_map(Result::err) {
            self.kernel_failed(&error);
            is_well = false;
        }
        if is_well {
            self.health.clear(Component::Firewall);
        }
    }

    /// Compares the kernel with the ledger, and repairs it. Fails if the kernel cannot be read.
    fn reconcile(&mut self, clock: &WallClock) -> Result<(), FirewallError> {
        if self.blocklist.has_room() {
            self.health.clear(Component::Capacity);
        }
        self.checked = clock.now();
        // Without blocks nothing is dropped, but the packets of the last block still have to be counted.
        let is_used = self.blocklist.ledger().blocks().len() > 0;
        if std::mem::replace(&mut self.was_used, is_used) || is_used {
            self.rules().update_dropped();
        }
        let faults = self.blocklist.check(clock.now())?;
        // Visible during the repair, which may take seconds.
        self.report_enforcement();
        if !faults.is_empty() {
            let found = list_of(&faults);
            debug!(found, "repairing the firewall");
            if self.blocklist.repair(&faults, clock.now()) {
                self.events.emit(Event::Repaired { found });
            }
            // A rule may wait for a set, or a set for a rule.
            let number = self.rules().wake();
            self.look_awaited = faults.iter().any(Fault::breaks_all).then_some(number);
        }
        self.report_enforcement();
        Ok(())
    }

    fn report_enforcement(&mut self) {
        for family in Family::ALL {
            let dropped = self.rules().dropped_packets(family) + self.blocklist.dropped(family);
            self.health.set_enforced(family, self.blocklist.held(family), dropped);
        }
        self.look_awaited.take_if(|number| self.neighbours.rules.is_answered(*number));
        let trouble = self.blocklist.trouble().map(str::to_owned);
        // A program that has removed a set may have removed its rule, too.
        if trouble.is_some() || self.look_awaited.is_none() {
            self.show(Component::Enforcement, trouble);
        }
    }

    /// Passes on to health how many networks are to be blocked, and whether the database and the kernel's
    /// list of sessions are available.
    fn report(&mut self) {
        for warning in self.blocklist.take_store_warnings() {
            self.events.emit(Event::Warning(warning));
        }
        let store_failure = self.blocklist.store_failure();
        let store_failure =
            store_failure.map(|why| format!("new blocks are not being saved: {why}"));
        self.show(Component::Store, store_failure);
        let sessions_error = self.policy.exemptions().sessions_error().map(|error| {
            format!(
                "cannot list SSH sessions: {error}; load the kernel module tcp_diag, or set \
                 exempt.automatic = false and add their addresses to exempt.networks"
            )
        });
        self.show(Component::SshSessions, sessions_error);
        for family in Family::ALL {
            self.health.set_blocked(family, self.blocklist.ledger().count(family));
        }
    }

    /// Shows that a component is degraded for a reason, or works.
    fn show(&self, component: Component, trouble: Option<String>) {
        match trouble {
            Some(reason) => self.health.set_degraded(component, reason),
            None => self.health.clear(component),
        }
    }

    fn kernel_failed(&self, error: &FirewallError) {
        // A full set and missing IPv6 have their own reports.
        if !error.is_full() && !matches!(error, FirewallError::NoIpv6) {
            self.health.set_degraded(Component::Firewall, error.to_string());
        }
    }

    fn emit_refused(&self, request: Request, error: &RequestError, uid: u32) {
        self.events.emit(Event::Refused { request, why: error.refusal(), uid });
    }
}

fn timed<T>(question: impl FnOnce() -> T) -> (T, Duration) {
    let asked = Moment::now();
    let answer = question();
    (answer, Moment::now().since(asked))
}

fn blocked_event(network: IpNet, block: &Block, uid: Option<u32>, clock: &WallClock) -> Event {
    Event::Blocked {
        network,
        until: block.until.map_or(0, |until| clock.unix_seconds(until)),
        duration: block.until.map(|until| until.since(clock.now())),
        reason: block.reason.to_string(),
        cause: block.reason.cause(),
        ports: block
            .reason
            .evidence()
            .map(|evidence| evidence.ports().collect())
            .unwrap_or_default(),
        offences: block.offences,
        uid,
    }
}
