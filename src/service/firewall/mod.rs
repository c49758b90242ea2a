//! The firewall's thread: one owner of the ledger and of the kernel's side of it.
//!
//! Takes orders one after the other. The kernel comes first: ledger, replies, events and metrics
//! follow its acknowledgement.

pub mod enforce;
pub mod explain;
pub mod persister;
pub mod reconfigure;
pub mod restore;
pub mod unblock;

#[cfg(test)]
mod enforcement_tests;

#[cfg(test)]
mod restart_tests;

#[cfg(test)]
pub mod test_bench;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

use ipnet::IpNet;

use crate::api::metrics::Metrics;
use crate::block::backend::{Backend, FirewallError};
use crate::block::exemptions::{AskSessions, Exemptions};
use crate::block::ledger::Ledger;
use crate::block::policy::{Verdict, verdict};
use crate::block::rate_limit::BlockRateLimit;
use crate::block::reconcile::Reconciler;
use crate::block::store::StorePath;
use crate::config::{BlockConfig, Config, FirewallConfig};
use crate::handles::detector::DetectorCommand;
use crate::handles::events::EventSink;
use crate::handles::firewall::{Command, Listed, RequestError};
use crate::handles::health::{Component, Health};
use crate::service::firewall::enforce::WhenFull;
use crate::service::firewall::persister::Persister;
use crate::system::conntrack::Conntrack;
use crate::types::block::{Block, Evidence};
use crate::types::block::{BlockCause, ExemptReason, SkipReason};
use crate::types::clock::{Moment, WallClock};
use crate::types::event::{BackendNote, Event, Request};
use crate::types::host::Host;
use crate::types::network::Family;
use crate::types::scan::{Scan, ScanKind};

/// How often at least the thread looks round: shows that it is alive, and whether all is in the kernel
/// that ought to be, often enough to mend within a second what is not.
pub const TICK: Duration = Duration::from_millis(400);

/// How long the spoofing guard must not have held anything back until all is well again.
const GUARD_RESTS: Duration = Duration::from_secs(60);

/// Ports named in a reason; the rest is counted.
const PORTS_IN_REASON: usize = 8;

/// Opens the back end that a configuration asks for, without changing anything yet; with what an operator
/// should know of the choice.
pub type OpenBackend = Box<
    dyn FnMut(&Config) -> Result<(Box<dyn Backend + Send>, Option<BackendNote>), FirewallError>
        + Send,
>;

/// The firewall's thread.
pub struct FirewallThread {
    pub backend: Box<dyn Backend + Send>,
    pub open_backend: OpenBackend,
    pub config: BlockConfig,
    pub firewall: FirewallConfig,
    pub exemptions: Exemptions,
    pub ledger: Ledger,
    pub persister: Persister,
    pub rate_limit: BlockRateLimit,
    pub reconciler: Reconciler,
    pub conntrack: Conntrack,
    pub events: EventSink,
    pub metrics: Arc<Metrics>,
    pub health: Arc<Health>,
    pub detector: SyncSender<DetectorCommand>,
    /// When the guard last held a block back.
    throttled: Option<Moment>,
    /// Something asked of the kernel has to be asked again.
    pub unfinished: bool,
}

impl FirewallThread {
    /// An actor for a backend that is not installed yet.
    pub fn new(
        (backend, open_backend): (Box<dyn Backend + Send>, OpenBackend),
        config: Config,
        (host, ask_sessions): (Arc<Host>, AskSessions),
        store_path: Option<StorePath>,
        (events, metrics, health): (EventSink, Arc<Metrics>, Arc<Health>),
        detector: SyncSender<DetectorCommand>,
    ) -> Self {
        Self {
            ledger: Ledger::new(backend.longest()),
            persister: Persister::new(store_path, events.clone(), Arc::clone(&health)),
            rate_limit: BlockRateLimit::new(config.block.max_per_minute.0),
            reconciler: Reconciler::default(),
            conntrack: Conntrack::default(),
            exemptions: Exemptions::new(config.exempt, host, ask_sessions),
            config: config.block,
            firewall: config.firewall,
            backend,
            open_backend,
            events,
            metrics,
            health,
            detector,
            throttled: None,
            unfinished: false,
        }
    }

    /// Works until told to stop; then takes everything down.
    pub fn run(mut self, orders: &Receiver<Command>, beat: impl Fn()) -> Result<(), FirewallError> {
        let mut looked_round = Moment::default();
        loop {
            beat();
            let order = match orders.recv_timeout(self.pause(Moment::now(), looked_round)) {
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => {
                    self.persister.finish(&mut self.ledger, &WallClock::read());
                    return self.backend.remove();
                }
                Ok(order) => Some(order),
                Err(RecvTimeoutError::Timeout) => None,
            };
            let clock = WallClock::read();
            // First, as whose time is up is no more to be listed, however late this thread comes to it.
            self.follow_time(&clock);
            if let Some(order) = order {
                self.handle(order, &clock);
            }
            if clock.now().since(looked_round) >= TICK {
                looked_round = clock.now();
                self.look_round(&clock);
            }
        }
    }

    /// How long nothing has to be done unless somebody asks for it.
    pub fn pause(&self, now: Moment, looked_round: Moment) -> Duration {
        // Counted from the last look, whatever has been asked for since.
        let next = looked_round + TICK;
        self.ledger.next_due().map_or(next, |due| due.min(next)).since(now)
    }

    pub fn handle(&mut self, order: Command, clock: &WallClock) {
        // Whoever asked may have gone: a reply nobody takes is no error.
        match order {
            Command::Scan { scan, listed } => self.on_scan(&scan, listed, clock),
            Command::Block { network, duration, reason, uid, reply } => {
                let result = self.block_by_hand(network, duration, reason, uid, clock);
                let _ = reply.try_send(result);
            }
            Command::Unblock { network, uid, reply } => {
                let result = self.unblock_by_hand(network, uid, clock);
                let _ = reply.try_send(result);
            }
            Command::List { reply } => {
                let _ = reply.try_send(self.list(clock));
            }
            Command::Why { network, reply } => {
                let _ = reply.try_send(self.explain(network, clock));
            }
            Command::Reconfigure { config, reply } => {
                let changed = self.reconfigure(*config, clock);
                let _ = reply.try_send(changed.map_err(|error| error.to_string()));
            }
            Command::Host(host) => {
                self.exemptions.follow(host);
                self.unblock_exempt(clock);
            }
            // Handled by the loop, which ends with it.
            Command::Stop => {}
        }
    }

    fn on_scan(&mut self, scan: &Arc<Scan>, listed: bool, clock: &WallClock) {
        let (network, now) = (scan.source, clock.now());
        let why = match self.verdict(scan, now) {
            Verdict::AlreadyBlocked => {
                if listed && !scan.continued {
                    self.events.emit(Event::AlreadyBlocked { source: network });
                }
                return;
            }
            Verdict::Spare(why) => why,
            Verdict::Block { duration, offence } => {
                match self.enforce(network, duration, WhenFull::Evict, clock) {
                    Ok(()) => {
                        let latency = Moment::now().since(scan.moment);
                        self.metrics.observe_block_latency(latency);
                        self.rate_limit.count(now);
                        let block = Block {
                            since: now,
                            until: duration.map(|duration| now + duration),
                            offences: offence,
                            reason: reason_of(scan),
                            evidence: Some(Box::new(Evidence::from(&**scan))),
                        };
                        // What an innocent decoy is blocked for is no offence of his.
                        if !scan.may_be_decoy() {
                            self.ledger.remember_offence(network, now, offence);
                        }
                        self.enter(network, clock, block, BlockCause::Scan, None);
                        return;
                    }
                    Err(error) => SkipReason::Failed(self.kernel_failed(&error)),
                }
            }
        };
        if let SkipReason::Throttled { .. } = why {
            // Said once, as a state: a flood must not fill the journal.
            self.health.set_degraded(Component::BlockRate, why.to_string());
            self.throttled = Some(now);
        } else if listed && !scan.continued {
            self.events.emit(Event::NotBlocked { scan: Arc::clone(scan), why });
        }
    }

    fn verdict(&mut self, scan: &Scan, now: Moment) -> Verdict {
        let (network, may_be_decoy) = (&scan.source, scan.may_be_decoy());
        let (config, exemptions, ledger) = (&self.config, &self.exemptions, &self.ledger);
        let rate_limit = &mut self.rate_limit;
        match verdict(network, may_be_decoy, now, config, exemptions, ledger, rate_limit) {
            // Asked only for who would be blocked: a flood of forged scans must not become a flood
            // of questions.
            block @ Verdict::Block { .. } => self
                .forbid_for_session(network, now)
                .map_or(block, |why| Verdict::Spare(SkipReason::Exempt(why))),
            verdict => verdict,
        }
    }

    /// Why a network must not be blocked: somebody in it has an SSH session open, at this moment.
    pub fn forbid_for_session(&mut self, network: &IpNet, now: Moment) -> Option<ExemptReason> {
        self.ask_for_sessions(now);
        self.exemptions.forbid_for_session(network)
    }

    pub fn ask_for_sessions(&mut self, now: Moment) {
        match self.exemptions.ask_for_sessions(now) {
            Ok(()) => self.health.clear(Component::SshSessions),
            Err(error) => self.health.set_degraded(
                Component::SshSessions,
                format!(
                    "cannot see who has an SSH session open: {error}; load the kernel module \
                     tcp_diag, or set exempt.automatic = false and list them in exempt.networks"
                ),
            ),
        }
    }

    fn block_by_hand(
        &mut self,
        network: IpNet,
        duration: Option<Duration>,
        reason: String,
        uid: u32,
        clock: &WallClock,
    ) -> Result<(), RequestError> {
        let why = self
            .exemptions
            .forbid(&network)
            .or_else(|| self.forbid_for_session(&network, clock.now()));
        let result = match why {
            Some(why) => Err(RequestError::Exempt { network, why }),
            None => self
                .enforce(network, duration, WhenFull::Fail, clock)
                .map_err(|error| RequestError::Kernel(self.kernel_failed(&error))),
        };
        if let Err(error) = result {
            self.emit_refused(Request::Block(network), &error, uid);
            return Err(error);
        }
        self.ledger.end_grace(&network);
        let since = clock.now();
        let until = duration.map(|duration| since + duration);
        let block = Block { since, until, offences: 0, reason, evidence: None };
        self.enter(network, clock, block, BlockCause::Manual, Some(uid));
        Ok(())
    }

    /// Enters a block the kernel has accepted; keeps it, and then tells it.
    fn enter(
        &mut self,
        network: IpNet,
        clock: &WallClock,
        block: Block,
        cause: BlockCause,
        uid: Option<u32>,
    ) {
        self.ledger.insert(network, clock.now(), block);
        self.persister.save_changes(&mut self.ledger, clock.now());
        self.count();
        self.emit_blocked(network, clock, cause, uid);
    }

    fn list(&self, clock: &WallClock) -> Vec<Listed> {
        let listed = self.ledger.blocks().map(|(network, block)| Listed {
            network: *network,
            since: clock.unix_seconds(block.since),
            until: block.until.map_or(0, |until| clock.unix_seconds(until)),
            offences: block.offences,
            reason: block.reason.clone(),
        });
        listed.collect()
    }

    pub fn look_round(&mut self, clock: &WallClock) {
        if self.throttled.is_some_and(|last| clock.now().since(last) >= GUARD_RESTS) {
            self.throttled = None;
            self.health.clear(Component::BlockRate);
        }
        let unfinished = std::mem::take(&mut self.unfinished);
        if unfinished {
            self.unblock_exempt(clock);
        }
        self.unblock_peers(clock);
        self.ledger.forget(clock.now(), self.config.forget_after.get());
        self.persister.save_changes(&mut self.ledger, clock.now());
        self.persister.look_round(&mut self.ledger, clock);
        self.count();
        let looked = self.reconcile(clock);
        let cut = self.cut_connections();
        let well = [looked, cut].into_iter().all(|result| match result {
            Ok(()) => true,
            Err(error) => {
                self.kernel_failed(&error);
                false
            }
        });
        if well && !unfinished {
            self.health.clear(Component::Firewall);
        }
    }

    /// Shows how many are to be blocked.
    pub fn count(&self) {
        for family in Family::ALL {
            self.health.set_blocked(family, self.ledger.count(family));
        }
    }

    pub fn kernel_failed(&self, error: &FirewallError) -> String {
        let text = error.to_string();
        // Not to block is what an observer is for, what is not spoken needs no blocking, and want of room
        // is told as such.
        let is_told =
            matches!(error, FirewallError::Observing | FirewallError::NoIpv6) || error.is_full();
        if !is_told {
            self.health.set_degraded(Component::Firewall, text.clone());
        }
        text
    }

    /// Tells a block that is in the ledger.
    pub fn emit_blocked(
        &self,
        network: IpNet,
        clock: &WallClock,
        cause: BlockCause,
        uid: Option<u32>,
    ) {
        let Some(block) = self.ledger.get(&network) else { return };
        let attempts = block.evidence.iter().flat_map(|evidence| &evidence.attempts);
        self.events.emit(Event::Blocked {
            network,
            until: block.until.map_or(0, |until| clock.unix_seconds(until)),
            duration: block.until.map(|until| until.since(clock.now())),
            reason: block.reason.clone(),
            cause,
            ports: attempts.map(|attempt| attempt.port).collect(),
            offences: block.offences,
            uid,
        });
    }

    pub fn emit_refused(&self, request: Request, error: &RequestError, uid: u32) {
        self.events.emit(Event::Refused { request, why: error.refusal(), uid });
    }
}

/// The evidence in a few words.
fn reason_of(scan: &Scan) -> String {
    let ports = scan.ports();
    let named: Vec<String> = ports.iter().take(PORTS_IN_REASON).map(ToString::to_string).collect();
    let more = match ports.len().saturating_sub(PORTS_IN_REASON) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let decoy = if scan.may_be_decoy() { ", as others did at the same time (decoys?)" } else { "" };
    let named = named.join(", ");
    match scan.kind {
        ScanKind::Sweep => format!("sweep: port {named} of more than {} hosts", scan.threshold),
        kind => format!("{} scan: ports {named}{more}{decoy}", kind.as_str()),
    }
}
