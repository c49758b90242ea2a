//! The interface `org.tcptracker.Tracker1`.
//!
//! Owns its members' names and types, and the errors callers get. Every change names its caller.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, DBusError, interface};

use crate::firewall::{Firewall, Listed, Order, Refusal, Reply};
use crate::interface::InterfaceName;
use crate::metrics::Metrics;
use crate::network::{parse_network, show_network};
use crate::state::StateBoard;

/// The longest reason, in characters: it is kept as long as the block.
const LONGEST_REASON: usize = 200;

/// The longest block with an end, in seconds: a hundred years.
const LONGEST_BLOCK: u64 = 3_155_760_000;

/// What callers are told when it did not work.
#[derive(Debug, DBusError)]
#[zbus(prefix = "org.tcptracker.Tracker1.Error")]
pub enum Error {
    /// Anything the bus itself has a name for.
    #[zbus(error)]
    Bus(zbus::Error),
    /// The text is no address or network.
    InvalidAddress(String),
    /// The address is never blocked.
    Exempt(String),
    /// The address is not blocked.
    NotBlocked(String),
    /// The kernel did not accept it.
    FirewallFailed(String),
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::Exempt { .. } => Self::Exempt(text),
            Refusal::NotBlocked(_) => Self::NotBlocked(text),
            Refusal::Kernel(_) => Self::FirewallFailed(text),
        }
    }
}

/// One instance of the service, as the bus sees it.
pub struct Tracker {
    /// The network interface it watches.
    pub interface: InterfaceName,
    /// The firewall backend's name.
    pub backend: &'static str,
    /// Where changes go.
    pub firewall: Firewall,
    /// The service's state.
    pub board: Arc<StateBoard>,
    /// The service's counters.
    pub metrics: Arc<Metrics>,
    /// Lets one list at a time be made: anybody may ask for one, and with many blocks it is large.
    pub one_list: OneAtATime,
}

/// Lets one caller pass at a time; the others wait their turn.
pub struct OneAtATime {
    leave: async_channel::Sender<()>,
    enter: async_channel::Receiver<()>,
}

impl Default for OneAtATime {
    fn default() -> Self {
        let (leave, enter) = async_channel::bounded(1);
        // There is room for exactly this.
        let _ = leave.try_send(());
        Self { leave, enter }
    }
}

/// Held by the one whose turn it is, also if he goes away in between.
struct Turn<'a>(&'a OneAtATime);

impl OneAtATime {
    async fn turn(&self) -> Turn<'_> {
        // Both ends live here: it cannot be closed.
        let _ = self.enter.recv().await;
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let _ = self.0.leave.try_send(());
    }
}

impl Tracker {
    /// Orders something of the firewall's thread and awaits its answer.
    async fn ask<T>(&self, order: impl FnOnce(Reply<T>) -> Order) -> Result<T, Error> {
        let (reply, answer) = async_channel::bounded(1);
        if !self.firewall.try_order(order(reply)) {
            let text = "too many requests at once; try again in a moment";
            return Err(Error::FirewallFailed(text.to_owned()));
        }
        answer.recv().await.map_err(|_| Error::FirewallFailed("the service is stopping".to_owned()))
    }
}

/// Watches one network interface for TCP port scans and keeps their sources out.
///
/// Addresses are texts: an IPv4 or IPv6 address, or a network in CIDR notation. Times are Unix
/// seconds.
#[interface(name = "org.tcptracker.Tracker1")]
impl Tracker {
    /// Drops new connections from an address or network for so many seconds; 0: until unblocked. The
    /// reason is shown wherever the block is. Returns once the kernel drops them.
    async fn block(
        &self,
        address: &str,
        seconds: u64,
        reason: &str,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(), Error> {
        let network = parse_network(address).map_err(|e| Error::InvalidAddress(e.to_string()))?;
        let reason = checked_reason(reason)?;
        let uid = caller(connection, &header).await?;
        let duration = checked_duration(seconds)?;
        let order = |reply| Order::Block { network, duration, reason, uid, reply };
        Ok(self.ask(order).await??)
    }

    /// Lets an address or network in again, and leaves it alone for a while (configuration key
    /// `block.grace_after_unblock`). Returns once the kernel lets it in.
    async fn unblock(
        &self,
        address: &str,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(), Error> {
        let network = parse_network(address).map_err(|e| Error::InvalidAddress(e.to_string()))?;
        let uid = caller(connection, &header).await?;
        Ok(self.ask(|reply| Order::Unblock { network, uid, reply }).await??)
    }

    /// Everything that is blocked: address, blocked since, until (0: until unblocked), which offence
    /// it is (0: none), reason.
    #[zbus(out_args("blocks"))]
    async fn list(&self) -> Result<Vec<(String, u64, u64, u32, String)>, Error> {
        let _turn = self.one_list.turn().await;
        let blocks = self.ask(|reply| Order::List { reply }).await?;
        let shown = |block: Listed| {
            (show_network(&block.network), block.since, block.until, block.offences, block.reason)
        };
        Ok(blocks.into_iter().map(shown).collect())
    }

    /// What was counted since the start, by name.
    #[zbus(out_args("counters"))]
    fn stats(&self) -> HashMap<&'static str, u64> {
        self.metrics.summary().into_iter().collect()
    }

    /// The network interface that is watched.
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

    /// How the kernel holds the blocked: `ipset`.
    #[zbus(property(emits_changed_signal = "const"))]
    fn backend(&self) -> &'static str {
        self.backend
    }

    /// `enforcing`, `observing` or `degraded`. Changes are told by the signal `StateChanged`.
    #[zbus(property(emits_changed_signal = "false"))]
    fn state(&self) -> &'static str {
        self.board.current().0.as_str()
    }

    /// How many addresses and networks are blocked. Changes are told by the signals `Blocked` and
    /// `Unblocked`.
    #[zbus(property(emits_changed_signal = "false"), name = "Blocked")]
    fn blocked_count(&self) -> u32 {
        self.metrics.blocked()
    }

    /// A source tried more ports than the rule allows. The kind is `vertical` or `stealth`.
    #[zbus(signal)]
    pub async fn scan_detected(
        emitter: &SignalEmitter<'_>,
        source: &str,
        ports: &[u16],
        kind: &str,
    ) -> zbus::Result<()>;

    /// The kernel drops new connections from this address from now on; until 0: until unblocked.
    #[zbus(signal)]
    pub async fn blocked(
        emitter: &SignalEmitter<'_>,
        address: &str,
        until: u64,
        reason: &str,
    ) -> zbus::Result<()>;

    /// The kernel lets this address in again. The cause is `expired`, `manual` or `exempt`.
    #[zbus(signal)]
    pub async fn unblocked(
        emitter: &SignalEmitter<'_>,
        address: &str,
        cause: &str,
    ) -> zbus::Result<()>;

    /// The property `State` has another value.
    #[zbus(signal)]
    pub async fn state_changed(emitter: &SignalEmitter<'_>, state: &str) -> zbus::Result<()>;
}

/// The user who sent a message, as the bus knows him.
async fn caller(connection: &Connection, header: &Header<'_>) -> Result<u32, Error> {
    let sender = header.sender().ok_or(zbus::Error::MissingField)?;
    let bus = "org.freedesktop.DBus";
    let reply = connection
        .call_method(Some(bus), "/org/freedesktop/DBus", Some(bus), "GetConnectionUnixUser", sender)
        .await?;
    Ok(reply.body().deserialize()?)
}

/// Zero is until unblocked.
fn checked_duration(seconds: u64) -> Result<Option<Duration>, Error> {
    if seconds > LONGEST_BLOCK {
        let why = format!("a block may last {LONGEST_BLOCK} seconds at most; 0: until unblocked");
        return Err(Error::Bus(zbus::fdo::Error::InvalidArgs(why).into()));
    }
    Ok((seconds > 0).then(|| Duration::from_secs(seconds)))
}

fn checked_reason(reason: &str) -> Result<String, Error> {
    let refuse = |why: String| Err(Error::Bus(zbus::fdo::Error::InvalidArgs(why).into()));
    if reason.chars().count() > LONGEST_REASON {
        return refuse(format!("a reason may have {LONGEST_REASON} characters at most"));
    }
    if reason.chars().any(char::is_control) {
        return refuse("a reason must be one line of plain text".to_owned());
    }
    Ok(reason.to_owned())
}
