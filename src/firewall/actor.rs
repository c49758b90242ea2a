//! The firewall's thread: one owner of the ledger and of the kernel's side of it.
//!
//! Takes orders one after the other. The kernel comes first: ledger, replies, events and metrics
//! follow its acknowledgement.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

use ipnet::IpNet;

use super::guard::Guard;
use super::ledger::{Due, Ledger};
use super::verdict::{Exemptions, Verdict, judge};
use super::{Backend, Family, FirewallError, Listed, Order, Refusal};
use crate::clock::{Moment, WallClock};
use crate::config::{BlockConfig, ExemptConfig};
use crate::detector::{Control, Scan};
use crate::events::{BlockCause, Event, Reporter, Spared, UnblockCause};
use crate::host::Host;
use crate::network::show_network;
use crate::state::{Part, StateBoard};

/// How often at least the thread looks round: shows that it is alive, counts what is enforced.
const TICK: Duration = Duration::from_millis(500);

/// How long the spoofing guard must not have held anything back until all is well again.
const GUARD_RESTS: Duration = Duration::from_secs(60);

/// Ports named in a reason; the rest is counted.
const PORTS_IN_REASON: usize = 8;

/// The part of the configuration that says who is blocked and for how long.
pub struct Blocking {
    /// Whether and how long.
    pub block: BlockConfig,
    /// Who never.
    pub exempt: ExemptConfig,
    /// The host at the start.
    pub host: Arc<Host>,
}

/// The firewall's thread.
pub struct Actor {
    backend: Box<dyn Backend + Send>,
    config: BlockConfig,
    exemptions: Exemptions,
    ledger: Ledger,
    guard: Guard,
    reporter: Reporter,
    board: Arc<StateBoard>,
    detector: SyncSender<Control>,
    /// When the guard last held a block back.
    throttled: Option<Moment>,
    /// Something asked of the kernel has to be asked again.
    unfinished: bool,
}

impl Actor {
    /// An actor for a backend that is not installed yet.
    pub fn new(
        backend: Box<dyn Backend + Send>,
        blocking: Blocking,
        reporter: Reporter,
        board: Arc<StateBoard>,
        detector: SyncSender<Control>,
    ) -> Self {
        Self {
            ledger: Ledger::new(backend.longest()),
            guard: Guard::new(blocking.block.max_per_minute.0),
            exemptions: Exemptions::new(blocking.exempt, blocking.host),
            config: blocking.block,
            backend,
            reporter,
            board,
            detector,
            throttled: None,
            unfinished: false,
        }
    }

    /// Puts everything up, and takes over what an instance that was killed has left in the kernel.
    /// If that fails, nothing is left half-done.
    pub fn install(&mut self, clock: &WallClock) -> Result<(), FirewallError> {
        let found = self.backend.install().inspect_err(|_| {
            // The first error is the one to tell.
            let _ = self.backend.remove();
        })?;
        for element in found {
            let reason = "left in the kernel by an instance that did not stop in order".to_owned();
            let endless = self.ledger.is_endless(element.remaining);
            let duration = (!endless).then_some(element.remaining);
            let (network, cause) = (element.network, BlockCause::Found);
            self.ledger.enter(network, clock.now(), duration, 0, reason.clone());
            self.tell_blocked(network, clock, duration, reason, cause, None);
        }
        self.release_exempt();
        self.look_round(clock);
        Ok(())
    }

    /// Works until told to stop; then takes everything down.
    pub fn run(mut self, orders: &Receiver<Order>, beat: impl Fn()) -> Result<(), FirewallError> {
        let mut looked_round = Moment::default();
        loop {
            beat();
            let now = Moment::now();
            let pause = self.ledger.next_due().map_or(TICK, |due| due.since(now).min(TICK));
            let order = match orders.recv_timeout(pause) {
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => {
                    return self.backend.remove();
                }
                Ok(order) => Some(order),
                Err(RecvTimeoutError::Timeout) => None,
            };
            let clock = WallClock::read();
            if let Some(order) = order {
                self.carry_out(order, &clock);
            }
            self.follow_time(&clock);
            if clock.now().since(looked_round) >= TICK {
                looked_round = clock.now();
                self.look_round(&clock);
            }
        }
    }

    pub(super) fn carry_out(&mut self, order: Order, clock: &WallClock) {
        // Whoever asked may have gone: a reply nobody takes is no error.
        match order {
            Order::Scan { scan, listed } => self.on_scan(&scan, listed, clock),
            Order::Block { network, duration, reason, uid, reply } => {
                let result = self.block_by_hand(network, duration, reason, uid, clock);
                let _ = reply.try_send(result);
            }
            Order::Unblock { network, uid, reply } => {
                let result = self.unblock_by_hand(network, uid, clock);
                let _ = reply.try_send(result);
            }
            Order::List { reply } => {
                let _ = reply.try_send(self.list(clock));
            }
            Order::Host(host) => {
                self.exemptions.follow(host);
                self.release_exempt();
            }
            // Handled by the loop, which ends with it.
            Order::Stop => {}
        }
    }

    fn on_scan(&mut self, scan: &Arc<Scan>, listed: bool, clock: &WallClock) {
        let (network, now) = (scan.source, clock.now());
        let verdict =
            judge(&network, now, &self.config, &self.exemptions, &self.ledger, &mut self.guard);
        let why = match verdict {
            Verdict::AlreadyBlocked => return,
            Verdict::Spare(why) => why,
            Verdict::Block { duration, offence } => {
                match self.backend.block(network, self.ledger.kernel_time(duration)) {
                    Ok(()) => {
                        let latency = Moment::now().since(scan.moment);
                        self.reporter.metrics().block_latency.observe(latency.as_secs_f64());
                        self.guard.count(now);
                        self.ledger.enter(network, now, duration, offence, reason_of(scan));
                        self.ledger.remember_offence(network, now, offence);
                        self.count();
                        let cause = BlockCause::Scan;
                        self.tell_blocked(network, clock, duration, reason_of(scan), cause, None);
                        return;
                    }
                    Err(error) => Spared::Failed(self.kernel_failed(&error)),
                }
            }
        };
        if let Spared::Throttled { .. } = why {
            // Said once, as a state: a flood must not fill the journal.
            self.board.raise(Part::SpoofingGuard, why.to_string());
            self.throttled = Some(now);
        } else if listed && !scan.continued {
            self.reporter.tell(Event::Spared { scan: Arc::clone(scan), why });
        }
    }

    fn block_by_hand(
        &mut self,
        network: IpNet,
        duration: Option<Duration>,
        reason: String,
        uid: u32,
        clock: &WallClock,
    ) -> Result<(), Refusal> {
        let result = match self.exemptions.forbid(&network) {
            Some(why) => Err(Refusal::Exempt { network: show_network(&network), why }),
            None => self
                .backend
                .block(network, self.ledger.kernel_time(duration))
                .map_err(|error| Refusal::Kernel(self.kernel_failed(&error))),
        };
        if let Err(refusal) = result {
            self.tell_refused(format!("block {}", show_network(&network)), &refusal, uid);
            return Err(refusal);
        }
        self.ledger.end_grace(&network);
        self.ledger.enter(network, clock.now(), duration, 0, reason.clone());
        self.count();
        self.tell_blocked(network, clock, duration, reason, BlockCause::Manual, Some(uid));
        Ok(())
    }

    fn unblock_by_hand(
        &mut self,
        network: IpNet,
        uid: u32,
        clock: &WallClock,
    ) -> Result<(), Refusal> {
        let meant = self.ledger.meant_by(&network);
        let result = if meant.is_empty() {
            Err(Refusal::NotBlocked(show_network(&network)))
        } else {
            meant
                .iter()
                .try_for_each(|blocked| self.release(*blocked, UnblockCause::Manual, Some(uid)))
                .map_err(|error| Refusal::Kernel(self.kernel_failed(&error)))
        };
        if let Err(refusal) = result {
            self.tell_refused(format!("unblock {}", show_network(&network)), &refusal, uid);
            return Err(refusal);
        }
        // What was asked for, and what it was counted as: an IPv6 address scans as its network.
        let until = clock.now() + self.config.grace_after_unblock.get();
        for graced in meant.into_iter().chain([network]) {
            self.ledger.grant_grace(graced, until);
        }
        Ok(())
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

    /// Lets a network in: first the kernel, then the ledger; and the detector forgets it.
    fn release(
        &mut self,
        network: IpNet,
        cause: UnblockCause,
        uid: Option<u32>,
    ) -> Result<(), FirewallError> {
        self.backend.unblock(network)?;
        self.ledger.remove(&network);
        // The detector drains this before it looks at another probe; it cannot wait for us, so we may
        // wait for it.
        let _ = self.detector.send(Control::Forget(network));
        self.count();
        self.reporter.tell(Event::Unblocked { network, cause, uid });
        Ok(())
    }

    fn release_exempt(&mut self) {
        let exempt: Vec<IpNet> = self
            .ledger
            .blocks()
            .map(|(network, _)| *network)
            .filter(|network| self.exemptions.forbid(network).is_some())
            .collect();
        for network in exempt {
            if let Err(error) = self.release(network, UnblockCause::Exempt, None) {
                self.kernel_failed(&error);
                self.unfinished = true;
            }
        }
    }

    /// Ends what is over, and prolongs what the kernel cannot hold long enough at once. What the kernel
    /// refuses is tried again a tick later.
    pub(super) fn follow_time(&mut self, clock: &WallClock) {
        while let Some((network, due)) = self.ledger.take_due(clock.now()) {
            let result = match due {
                // The kernel rounds up to whole seconds: it may need to be told.
                Due::Expired => self.release(network, UnblockCause::Expired, None),
                Due::Prolong(more) => self.backend.block(network, more),
            };
            if let Err(error) = result {
                self.kernel_failed(&error);
                self.ledger.put_off(network, clock.now() + TICK);
                self.unfinished = true;
            }
        }
    }

    pub(super) fn look_round(&mut self, clock: &WallClock) {
        if self.throttled.is_some_and(|last| clock.now().since(last) >= GUARD_RESTS) {
            self.throttled = None;
            self.board.clear(Part::SpoofingGuard);
        }
        let unfinished = std::mem::take(&mut self.unfinished);
        if unfinished {
            self.release_exempt();
        }
        self.count();
        let mut well = true;
        for family in Family::ALL {
            match self.backend.enforced(family) {
                Ok(enforced) => self.reporter.metrics().set_enforced(family, enforced),
                Err(error) => {
                    self.kernel_failed(&error);
                    well = false;
                }
            }
        }
        if well && !unfinished {
            self.board.clear(Part::Firewall);
        }
    }

    /// Shows how many are blocked. What the kernel says of it is asked once a tick only: with many
    /// elements the answer takes milliseconds.
    fn count(&self) {
        for family in Family::ALL {
            self.reporter.metrics().set_blocked(family, self.ledger.count(family));
        }
    }

    fn kernel_failed(&self, error: &FirewallError) -> String {
        let text = error.to_string();
        // Not to block is what an observer is for, and what is not spoken needs no blocking.
        if !matches!(error, FirewallError::Observing | FirewallError::NoIpv6) {
            self.board.raise(Part::Firewall, text.clone());
        }
        text
    }

    fn tell_blocked(
        &self,
        network: IpNet,
        clock: &WallClock,
        duration: Option<Duration>,
        reason: String,
        cause: BlockCause,
        uid: Option<u32>,
    ) {
        let until = duration.map_or(0, |duration| clock.unix_seconds(clock.now() + duration));
        let offences = self.ledger.get(&network).map_or(0, |block| block.offences);
        self.reporter.tell(Event::Blocked {
            network,
            until,
            duration,
            reason,
            cause,
            offences,
            uid,
        });
    }

    fn tell_refused(&self, request: String, refusal: &Refusal, uid: u32) {
        self.reporter.tell(Event::Refused { request, why: refusal.to_string(), uid });
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
    format!("{} scan: ports {}{more}", scan.kind.as_str(), named.join(", "))
}
