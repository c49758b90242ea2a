//! The interface `org.tcptracker.Tracker1`.
//!
//! Owns the names and types of its members, and checks their arguments. A change is a command to the
//! firewall thread or to main, never made here, and each one carries its caller's uid.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_lock::Semaphore;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, fdo, interface};
use zruntime::SharedRuntime;

use crate::api::dbus::authority::Authority;
use crate::api::dbus::callers::Callers;
use crate::api::dbus::error::Error;
use crate::api::dbus::explanation::{Answer, answer, answer_pending};
use crate::api::dbus::list::{Blocks, is_long};
use crate::api::dbus::turns::{Turn, Turns, UntilSent};
use crate::api::metrics::Metrics;
use crate::handles::{
    Command, CountEvents, EventSink, FirewallHandle, Health, Reader, Reloader, Reply,
};
use crate::types::{
    IfName, LONGEST_BLOCK, LONGEST_REASON, Moment, Request, WallClock, is_unprintable,
    parse_network,
};

/// How long a flood of calls takes to be seen.
const LOOK: Duration = Duration::from_millis(50);

const STOPPING: &str = "the service is stopping";

/// One instance of the service, as one connection to the bus sees it.
pub struct Tracker {
    instance: Arc<Instance>,
    callers: Arc<Callers>,
}

/// What outlives a connection.
struct Instance {
    interface: IfName,
    authority: Authority,
    reloader: Reloader,
    firewall: FirewallHandle,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    /// Any user may ask for a list, and with many blocks a list is large: one is made at a time. The turns of
    /// root and the group are their own.
    turns: Turns,
    privileged_turns: Turns,
    reloads: Semaphore,
}

impl Tracker {
    /// The instance that watches this network interface.
    pub fn new(
        interface: IfName,
        reloader: Reloader,
        firewall: FirewallHandle,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
        events: EventSink,
    ) -> Self {
        let authority = Authority::new(events);
        let callers = Arc::new(Callers::new(authority.group()));
        let instance = Instance {
            interface,
            authority,
            reloader,
            firewall,
            health,
            metrics,
            turns: Turns::with_rest(),
            privileged_turns: Turns::without_rest(),
            reloads: Semaphore::new(1),
        };
        Self { instance: Arc::new(instance), callers }
    }

    /// The same instance for another connection, which names its callers as it likes.
    pub fn for_new_connection(&self) -> Self {
        let callers = Arc::new(Callers::new(self.instance.authority.group()));
        Self { instance: Arc::clone(&self.instance), callers }
    }

    pub const fn callers(&self) -> &Arc<Callers> {
        &self.callers
    }

    pub fn interface_name(&self) -> &IfName {
        &self.instance.interface
    }

    pub fn health(&self) -> &Health {
        &self.instance.health
    }

    /// Counts a signal that no listener gets.
    pub fn count_lost_signal(&self) {
        self.instance.metrics.count_lost(Reader::Bus);
    }

    /// The properties that change: state, back end, and number of blocks.
    pub fn changing_properties(&self) -> (&'static str, &'static str, u32) {
        let status = self.health().status();
        (status.state.as_str(), status.backend, status.blocked())
    }

    /// Waits until the caller may have a large answer. A caller that has left meanwhile gets none.
    async fn await_turn(&self, header: &Header<'_>) -> Result<Turn, Error> {
        let caller = || header.sender().and_then(|sender| self.callers.identity(sender));
        let is_privileged = caller().is_some_and(|caller| self.callers.is_privileged(&caller));
        let Instance { turns, privileged_turns, .. } = &*self.instance;
        let turn = if is_privileged { privileged_turns } else { turns }.next().await;
        caller().map(|_| turn).ok_or_else(|| Error::unavailable("the caller has left"))
    }

    /// Waits long enough to see whether there is a flood of calls, and refuses an answer that would then delay
    /// those to root.
    async fn await_calm(&self) -> Result<(), Error> {
        if let Ok(runtime) = SharedRuntime::current() {
            runtime.sleep(LOOK).await;
        }
        if self.callers.is_flooded(Moment::now()) {
            let why = "too many calls at once to answer a long one; try again in a moment";
            return Err(fdo::Error::LimitsExceeded(why.to_owned()).into());
        }
        Ok(())
    }

    /// Sends a command to the firewall thread and awaits the answer.
    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Error> {
        let (reply, answer) = async_channel::bounded(1);
        if self.instance.firewall.try_send(command(reply)).is_err() {
            return Err(Error::unavailable("too many requests at once; try again in a moment"));
        }
        answer.recv().await.map_err(|_| Error::unavailable(STOPPING))
    }

    async fn authorize(
        &self,
        connection: &Connection,
        header: &Header<'_>,
        request: Request,
    ) -> Result<u32, Error> {
        self.instance.authority.authorize(&self.callers, connection, header, request).await
    }
}

/// Watches one network interface for TCP port scans and blocks their sources.
///
/// An address is a text: an IPv4 or IPv6 address, or a network in CIDR notation. Times are Unix seconds.
#[interface(name = "org.tcptracker.Tracker1")]
impl Tracker {
    /// Blocks an address or network for a number of seconds, or until unblocked if that is 0. The reason is
    /// one line of at most 200 characters. Returns when the kernel blocks the address. The error `Exempt`
    /// means that the address must not be blocked. Requires authorization
    /// (`org.tcptracker.Tracker1.manage`).
    async fn block(
        &self,
        address: &str,
        seconds: u64,
        reason: &str,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(), Error> {
        let network = parse_network(address)?;
        let reason = checked_reason(reason)?;
        let duration = checked_duration(seconds)?;
        let uid = self.authorize(connection, &header, Request::Block(network)).await?;
        let command = |reply| Command::Block { network, duration, reason, uid, reply };
        Ok(self.ask(command).await??)
    }

    /// Unblocks an address or network, and all blocked networks that contain it or are part of it. The
    /// address is exempt from automatic blocking for `block.grace_after_unblock`. Returns when the kernel
    /// no longer blocks it. Requires authorization (`org.tcptracker.Tracker1.manage`).
    async fn unblock(
        &self,
        address: &str,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(), Error> {
        let network = parse_network(address)?;
        let uid = self.authorize(connection, &header, Request::Unblock(network)).await?;
        Ok(self.ask(|reply| Command::Unblock { network, uid, reply }).await??)
    }

    /// All blocks. Each has an address or network, the time when it began, the time when it expires (0:
    /// when unblocked), the number of the offence (0 for a manual block), and the reason. The error
    /// `org.freedesktop.DBus.Error.LimitsExceeded` means that one message cannot hold all blocks (about
    /// 250,000).
    #[zbus(out_args("blocks"))]
    async fn list(&self, #[zbus(header)] header: Header<'_>) -> Result<UntilSent<Blocks>, Error> {
        let turn = self.await_turn(&header).await?;
        if !turn.is_privileged() && is_long(self.health().status().blocked()) {
            self.await_calm().await?;
        }
        let blocks = self.ask(|reply| Command::List { reply }).await?;
        let count = blocks.len();
        Blocks::new(blocks).map(|listed| UntilSent::new(listed, turn)).ok_or_else(|| {
            let why = format!(
                "too many blocks ({count}) on {} for one D-Bus reply; use `tcptracker why ADDRESS` or \
                 `ipset save`",
                self.interface_name(),
            );
            fdo::Error::LimitsExceeded(why).into()
        })
    }

    /// Explains why an address or network is blocked, or why it is not. Times are Unix seconds. A key that
    /// does not apply is absent.
    ///
    /// - `address` s: the address, or the blocked network that contains it.
    /// - `blocked` b, `since` t, `until` t (0: until unblocked), `reason` s.
    /// - `offences` u: the offences that still count, including the current one.
    /// - `kind` s, `rule` s, `threshold` u (ports), `window` t (seconds): of the scan.
    /// - `ports` aq, `times` ad, `outcomes` as: of the probes that matched the rule, in order.
    /// - `dropped` t: packets that the kernel has dropped.
    /// - `exempt` s: why the address is exempt.
    /// - `grace_until` t: a user unblocked the address; it is not blocked automatically until then.
    /// - `decoy` b: the address may be forged.
    ///
    /// The error `NotBlocked` means that nothing is known about the address.
    #[zbus(out_args("account"))]
    async fn why(
        &self,
        address: &str,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<Answer, Error> {
        let network = parse_network(address)?;
        // Reading the kernel's packet counters takes as long as a list.
        let _turn = self.await_turn(&header).await?;
        Ok(answer(self.ask(|reply| Command::Why { network, reply }).await??))
    }

    /// Explains how far a source that is not blocked is from a block: which of its failures count, and which do
    /// not. Times are Unix seconds. Everything is empty if the detector knows nothing about the source. Answers
    /// within a second.
    ///
    /// - `rules` as: the rules that the source has come closer to.
    /// - `counts` au, `thresholds` au, `windows` at: for each rule, how many ports count now, how many are
    ///   allowed, and within how many seconds.
    /// - `rule_hosts` as: for each rule, the host whose ports count (empty: this host, or all hosts).
    /// - `hosts` as, `ports` aq, `times` ad, `outcomes` as, `decisions` as: its latest failures, at most 64, the
    ///   oldest first. A decision begins with `counts`, `no longer counts` or `excused`.
    #[zbus(out_args("account"))]
    async fn pending(&self, address: &str) -> Result<Answer, Error> {
        let network = parse_network(address)?;
        let pending = self.ask(|reply| Command::Pending { network, reply }).await?;
        Ok(answer_pending(&pending, &WallClock::read()))
    }

    /// Reloads the configuration. No packet and no block is lost. Returns when the configuration is in
    /// force. The error `InvalidConfiguration` names file, line and mistake, and nothing is changed.
    /// Requires authorization (`org.tcptracker.Tracker1.manage`).
    async fn reload(
        &self,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(), Error> {
        let uid = self.authorize(connection, &header, Request::Reload).await?;
        self.instance.authority.look_up_group();
        let _permit = self.instance.reloads.acquire().await;
        Ok(self
            .instance
            .reloader
            .reload(uid)
            .await
            .ok_or_else(|| Error::unavailable(STOPPING))??)
    }

    /// The counters since the start by name, and the current values of `blocked`, `enforced` and `sources`.
    /// tcptracker(1) explains each name.
    #[zbus(out_args("counters"))]
    fn stats(&self) -> HashMap<&'static str, u64> {
        self.instance.metrics.summary(&self.health().status()).into_iter().collect()
    }

    /// The network interface that the instance watches.
    #[zbus(property(emits_changed_signal = "const"))]
    fn interface(&self) -> String {
        self.interface_name().to_string()
    }

    /// The version of the service.
    #[zbus(property(emits_changed_signal = "const"))]
    #[expect(clippy::unused_self, reason = "a property is asked of an object")]
    fn version(&self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }

    /// What holds the blocks in the kernel: `ipset`, `iptables`, or `none` in observe mode.
    #[zbus(property)]
    fn backend(&self) -> &'static str {
        self.health().status().backend
    }

    /// `starting`: blocks are not in force yet. `enforcing`: scanners are blocked. `observing`: scanners are only
    /// reported, as configured. `degraded`: something does not work; the journal says what.
    #[zbus(property)]
    fn state(&self) -> &'static str {
        self.health().status().state.as_str()
    }

    /// The number of blocked addresses and networks. Changes are emitted at most 10 times a second.
    #[zbus(property, name = "Blocked")]
    fn blocked_count(&self) -> u32 {
        self.health().status().blocked()
    }

    /// A source (an address, or for IPv6 a network) has scanned ports. The ports are those that matched the
    /// rule, in order. The kind is `vertical`, `stealth`, `sweep`, `distributed` or `trap`. At most 100 signals a
    /// second are sent, counting `ScanDetected`, `Blocked` and `Unblocked`; `Stats` counts the rest
    /// (`events_lost_bus`). A scan above `log.rate` has no signal.
    #[zbus(signal)]
    pub async fn scan_detected(
        emitter: &SignalEmitter<'_>,
        source: &str,
        ports: &[u16],
        kind: &str,
    ) -> zbus::Result<()>;

    /// The kernel blocks an address or network from now on, until the given time (0: until unblocked).
    #[zbus(signal)]
    pub async fn blocked(
        emitter: &SignalEmitter<'_>,
        address: &str,
        until: u64,
        reason: &str,
    ) -> zbus::Result<()>;

    /// The kernel no longer blocks an address or network. The cause is `expired`, `manual` (a user unblocked
    /// it), `exempt` (it has become exempt) or `displaced` (it was evicted to make room for a newer block).
    #[zbus(signal)]
    pub async fn unblocked(
        emitter: &SignalEmitter<'_>,
        address: &str,
        cause: &str,
    ) -> zbus::Result<()>;

    /// The property `State` has changed to this value.
    #[zbus(signal, name = "StateChanged")]
    pub async fn state_signal(emitter: &SignalEmitter<'_>, state: &str) -> zbus::Result<()>;
}

/// Returns no duration for 0, which means until unblocked.
pub fn checked_duration(seconds: u64) -> Result<Option<Duration>, Error> {
    let longest = LONGEST_BLOCK.as_secs();
    if seconds > longest {
        let why = format!("block is too long: at most {longest} seconds; 0 is until unblocked");
        return Err(fdo::Error::InvalidArgs(why).into());
    }
    Ok((seconds > 0).then(|| Duration::from_secs(seconds)))
}

pub fn checked_reason(reason: &str) -> Result<String, Error> {
    let refuse = |why: String| Err(fdo::Error::InvalidArgs(why).into());
    if reason.chars().count() > LONGEST_REASON {
        return refuse(format!("reason is too long: at most {LONGEST_REASON} characters"));
    }
    if reason.chars().any(is_unprintable) {
        return refuse("a reason must be one line of plain text".to_owned());
    }
    Ok(reason.to_owned())
}
