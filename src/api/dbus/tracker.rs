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

use crate::api::dbus::authority::Authority;
use crate::api::dbus::error::Error;
use crate::api::dbus::explanation::{Answer, answer, answer_pending};
use crate::api::dbus::until_sent::UntilSent;
use crate::api::metrics::Metrics;
use crate::handles::{Command, EventSink, FirewallHandle, Health, Listed, Reloader, Reply};
use crate::types::{IfName, Request, WallClock, parse_network, show_network};

/// The longest reason, in characters. It is kept as long as the block.
const LONGEST_REASON: usize = 200;

/// The longest block that expires, in seconds: 100 years.
const LONGEST_BLOCK: u64 = 3_155_760_000;

/// The longest list, in bytes. The bus disconnects the sender of a message above 32 MiB (dbus-daemon(1),
/// `max_message_size`).
const LONGEST_LIST: usize = 24 << 20;

const STOPPING: &str = "the service is stopping";

/// One instance of the service, as the bus sees it.
pub struct Tracker {
    interface: IfName,
    authority: Authority,
    reloader: Reloader,
    firewall: FirewallHandle,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    /// Any user may ask for a list, and with many blocks a list is large: one is made at a time.
    lists: Arc<Semaphore>,
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
        Self {
            interface,
            authority: Authority::new(events),
            reloader,
            firewall,
            health,
            metrics,
            lists: Arc::new(Semaphore::new(1)),
            reloads: Semaphore::new(1),
        }
    }

    /// The properties that change: state, back end, and number of blocks.
    pub fn changing_properties(&self) -> (&'static str, &'static str, u32) {
        let status = self.health.status();
        (status.state.as_str(), status.backend, status.blocked())
    }

    /// Sends a command to the firewall thread and awaits the answer.
    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Error> {
        let (reply, answer) = async_channel::bounded(1);
        if self.firewall.try_send(command(reply)).is_err() {
            return Err(Error::unavailable("too many requests at once; try again in a moment"));
        }
        answer.recv().await.map_err(|_| Error::unavailable(STOPPING))
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
        let uid = self.authority.authorize(connection, &header, Request::Block(network)).await?;
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
        let uid = self.authority.authorize(connection, &header, Request::Unblock(network)).await?;
        Ok(self.ask(|reply| Command::Unblock { network, uid, reply }).await??)
    }

    /// All blocks. Each has an address or network, the time when it began, the time when it expires (0:
    /// when unblocked), the number of the offence (0 for a manual block), and the reason. The error
    /// `org.freedesktop.DBus.Error.LimitsExceeded` means that one message cannot hold all blocks (about
    /// 250,000).
    #[zbus(out_args("blocks"))]
    async fn list(&self) -> Result<UntilSent<Vec<(String, u64, u64, u32, String)>>, Error> {
        let permit = self.lists.acquire_arc().await;
        let blocks = self.ask(|reply| Command::List { reply }).await?;
        let count = blocks.len();
        let mut bytes = 0;
        let shown = |block: Listed| {
            let address = show_network(&block.network);
            bytes += size_on_the_bus(&address, &block.reason);
            let fits = bytes <= LONGEST_LIST;
            fits.then_some((address, block.since, block.until, block.offences, block.reason))
        };
        let listed: Option<Vec<_>> = blocks.into_iter().map(shown).collect();
        listed.map(|listed| UntilSent::new(listed, permit)).ok_or_else(|| {
            let why = format!(
                "too many blocks ({count}) on {} for one D-Bus reply; use `tcptracker why ADDRESS` or \
                 `ipset save`",
                self.interface,
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
    async fn why(&self, address: &str) -> Result<Answer, Error> {
        let network = parse_network(address)?;
        // Reading the kernel's packet counters takes as long as a list.
        let _permit = self.lists.acquire().await;
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
        let uid = self.authority.authorize(connection, &header, Request::Reload).await?;
        self.authority.look_up_group();
        let _permit = self.reloads.acquire().await;
        Ok(self.reloader.reload(uid).await.ok_or_else(|| Error::unavailable(STOPPING))??)
    }

    /// The counters since the start by name, and the current values of `blocked`, `enforced` and `sources`.
    /// tcptracker(1) explains each name.
    #[zbus(out_args("counters"))]
    fn stats(&self) -> HashMap<&'static str, u64> {
        self.metrics.summary(&self.health.status()).into_iter().collect()
    }

    /// The network interface that the instance watches.
    #[zbus(property(emits_changed_signal = "const"))]
    fn interface(&self) -> String {
        self.interface.to_string()
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
        self.health.status().backend
    }

    /// `enforcing`: scanners are blocked. `observing`: scanners are only reported, as configured. `degraded`:
    /// something does not work; the journal says what.
    #[zbus(property)]
    fn state(&self) -> &'static str {
        self.health.status().state.as_str()
    }

    /// The number of blocked addresses and networks. Changes are emitted at most 10 times a second.
    #[zbus(property, name = "Blocked")]
    fn blocked_count(&self) -> u32 {
        self.health.status().blocked()
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

/// The most bytes that an entry of a list can need: two texts, each with a length and a final zero, two
/// numbers of 8 bytes, one of 4, and their alignment.
const fn size_on_the_bus(address: &str, reason: &str) -> usize {
    address.len() + reason.len() + 2 * 5 + 2 * 8 + 4 + 3 * 7
}

/// Returns no duration for 0, which means until unblocked.
pub fn checked_duration(seconds: u64) -> Result<Option<Duration>, Error> {
    if seconds > LONGEST_BLOCK {
        let why =
            format!("block is too long: at most {LONGEST_BLOCK} seconds; 0 is until unblocked");
        return Err(fdo::Error::InvalidArgs(why).into());
    }
    Ok((seconds > 0).then(|| Duration::from_secs(seconds)))
}

pub fn checked_reason(reason: &str) -> Result<String, Error> {
    let refuse = |why: String| Err(fdo::Error::InvalidArgs(why).into());
    if reason.chars().count() > LONGEST_REASON {
        return refuse(format!("reason is too long: at most {LONGEST_REASON} characters"));
    }
    if reason.chars().any(char::is_control) {
        return refuse("a reason must be one line of plain text".to_owned());
    }
    Ok(reason.to_owned())
}
