//! The interface `org.tcptracker.Tracker1`.
//!
//! Owns its members' names and types. Every change names its caller.

use crate::types::event::Request;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, fdo, interface};

use crate::api::dbus::authority::Authority;
use crate::api::dbus::error::Error;
use crate::api::dbus::explanation;
use crate::api::dbus::explanation::Answer;
use crate::api::dbus::semaphore::{Semaphore, WithPermit};
use crate::api::metrics::Metrics;
use crate::handles::firewall::{Command, FirewallHandle, Listed, Reply};
use crate::handles::health::Health;
use crate::handles::reload::Reloader;
use crate::types::ifname::IfName;
use crate::types::network::{parse_network, show_network};

/// The longest reason, in characters: it is kept as long as the block.
const LONGEST_REASON: usize = 200;

/// The longest block with an end, in seconds: a hundred years.
const LONGEST_BLOCK: u64 = 3_155_760_000;

/// The longest list, in bytes. Whoever sends a message above 32 MiB is thrown off the bus (dbus-daemon(1),
/// `max_message_size`).
const LONGEST_LIST: usize = 24 << 20;

/// One instance of the service, as the bus sees it.
pub struct Tracker {
    /// The network interface it watches.
    pub interface: IfName,
    /// Who may change something.
    pub authority: Authority,
    /// The way to main, which reloads.
    pub reloader: Reloader,
    /// Where changes go.
    pub firewall: FirewallHandle,
    /// The service's state.
    pub health: Arc<Health>,
    /// The service's counters.
    pub metrics: Arc<Metrics>,
    /// Lets one list at a time be made: anybody may ask for one, and with many blocks it is large.
    pub one_list: Semaphore,
    /// Likewise for reloads.
    pub one_reload: Semaphore,
}

impl Tracker {
    /// Orders something of the firewall's thread and awaits its answer.
    async fn ask<T>(&self, order: impl FnOnce(Reply<T>) -> Command) -> Result<T, Error> {
        let (reply, answer) = async_channel::bounded(1);
        if !self.firewall.try_send(order(reply)) {
            let text = "too many requests at once; try again in a moment";
            return Err(Error::FirewallFailed(text.to_owned()));
        }
        answer.recv().await.map_err(|_| Error::FirewallFailed("the service is stopping".to_owned()))
    }
}

impl Tracker {
    /// The properties that change: state, backend, and how many are blocked.
    pub fn changing(&self) -> (&'static str, &'static str, u32) {
        let status = self.health.status();
        (status.state.as_str(), status.backend, status.blocked())
    }
}

/// Watches one network interface for TCP port scans and keeps their sources out.
///
/// Addresses are texts: an IPv4 or IPv6 address, or a network in CIDR notation. Times are Unix
/// seconds.
#[interface(name = "org.tcptracker.Tracker1")]
impl Tracker {
    /// Drops new connections from an address or network for so many seconds; 0: until unblocked. The
    /// reason, one line of at most 200 characters, is shown wherever the block is. Returns once the kernel
    /// drops them. An exempt address is refused (`Exempt`). Needs authorisation
    /// (`org.tcptracker.Tracker1.manage`).
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
        let duration = checked_duration(seconds)?;
        let request = Request::Block(network);
        let uid = self.authority.authorise(connection, &header, request).await?;
        let order = |reply| Command::Block { network, duration, reason, uid, reply };
        Ok(self.ask(order).await??)
    }

    /// Lets an address or network in again, with all that holds it or lies in it, and leaves it alone for a
    /// while (configuration key `block.grace_after_unblock`). Returns once the kernel lets it in. Needs
    /// authorisation (`org.tcptracker.Tracker1.manage`).
    async fn unblock(
        &self,
        address: &str,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(), Error> {
        let network = parse_network(address).map_err(|e| Error::InvalidAddress(e.to_string()))?;
        let request = Request::Unblock(network);
        let uid = self.authority.authorise(connection, &header, request).await?;
        Ok(self.ask(|reply| Command::Unblock { network, uid, reply }).await??)
    }

    /// Everything that is blocked: address or network; since when and until when, in Unix seconds (until 0:
    /// until unblocked); which offence it is (0: none, blocked by hand); reason. Where they are more than a
    /// message of the bus can hold, some 250,000, the error is `org.freedesktop.DBus.Error.LimitsExceeded`.
    #[zbus(out_args("blocks"))]
    async fn list(&self) -> Result<WithPermit<Vec<(String, u64, u64, u32, String)>>, Error> {
        let permit = self.one_list.permit().await;
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
        listed.map(|listed| permit.until_sent(listed)).ok_or_else(|| {
            let interface = &self.interface;
            let why = format!(
                "the {count} blocks on {interface} are more than a message of the bus can hold; ask for one \
                 of them (tcptracker why ADDRESS), or the kernel (ipset save)"
            );
            fdo::Error::LimitsExceeded(why).into()
        })
    }

    /// What is known of an address or network: whether, why, since and until when it is blocked, by which
    /// probes, how many packets the kernel has dropped since, and what keeps it from being blocked.
    /// Times are Unix seconds. A key that does not apply is absent.
    ///
    /// - `address` s: as blocked, which may be the network that holds it.
    /// - `blocked` b, `since` t, `until` t (0: until unblocked), `reason` s.
    /// - `offences` u: scans it was blocked for that still count, the present one included.
    /// - `kind` s, `rule` s, `threshold` u (ports), `window` t (seconds): of the scan it is blocked for.
    /// - `ports` aq, `times` ad, `outcomes` as: of the probes that made it one, in order.
    /// - `dropped` t: packets.
    /// - `exempt` s: why it is never blocked.
    /// - `grace_until` t: it was let in by hand and is left alone until then.
    /// - `decoy` b: its address may be forged.
    ///
    /// Where nothing is known the answer is the error `NotBlocked`.
    #[zbus(out_args("account"))]
    async fn why(&self, address: &str) -> Result<Answer, Error> {
        let network = parse_network(address).map_err(|e| Error::InvalidAddress(e.to_string()))?;
        // To ask the kernel what it has dropped takes as long as to list.
        let _turn = self.one_list.permit().await;
        Ok(explanation::answer(self.ask(|reply| Command::Why { network, reply }).await??))
    }

    /// Reads the configuration again and goes on with it, without losing a packet or a block. Returns once
    /// it holds. A wrong one changes nothing: the error `InvalidConfiguration` says file, line and what
    /// was expected. Needs authorisation (`org.tcptracker.Tracker1.manage`).
    async fn reload(
        &self,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(), Error> {
        let request = Request::Reload;
        let uid = self.authority.authorise(connection, &header, request).await?;
        self.authority.look_up_group();
        let _turn = self.one_reload.permit().await;
        let stopping = || Error::FirewallFailed("the service is stopping".to_owned());
        Ok(self.reloader.reload(uid).await.ok_or_else(stopping)??)
    }

    /// What was counted since the start, by name: connections, scans, blocks, packets and so on; and how many
    /// of a thing there are now (`blocked`, `enforced`, `sources`). tcptracker(1) explains each.
    #[zbus(out_args("counters"))]
    fn stats(&self) -> HashMap<&'static str, u64> {
        self.metrics.summary(&self.health.status()).into_iter().collect()
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

    /// How the kernel holds the blocked: `ipset`, `iptables`, or `none` where nobody is blocked.
    #[zbus(property)]
    fn backend(&self) -> &'static str {
        self.health.status().backend
    }

    /// `enforcing`: scanners are blocked; `observing`: they are reported only, as configured; `degraded`:
    /// something does not work as it should, and the journal says what.
    #[zbus(property)]
    fn state(&self) -> &'static str {
        self.health.status().state.as_str()
    }

    /// How many addresses and networks are blocked. Changes are told ten times a second at most.
    #[zbus(property, name = "Blocked")]
    fn blocked_count(&self) -> u32 {
        self.health.status().blocked()
    }

    /// A source (an address, or for IPv6 a network) tried more ports than the rule allows. The ports are
    /// those that make it a scan, in order; the kind is `vertical`, `stealth`, `sweep` or `distributed`. Of
    /// this signal, `Blocked` and `Unblocked` at most 100 a second are sent; `Stats` counts the others
    /// (`events_lost_bus`). A scan that is above `log.rate`, and only counted, is not told here either.
    #[zbus(signal)]
    pub async fn scan_detected(
        emitter: &SignalEmitter<'_>,
        source: &str,
        ports: &[u16],
        kind: &str,
    ) -> zbus::Result<()>;

    /// The kernel drops new connections from this address or network from now on, until then in Unix seconds;
    /// 0: until unblocked.
    #[zbus(signal)]
    pub async fn blocked(
        emitter: &SignalEmitter<'_>,
        address: &str,
        until: u64,
        reason: &str,
    ) -> zbus::Result<()>;

    /// The kernel lets this address or network in again: its time was up (`expired`), somebody asked for it
    /// (`manual`), it may no longer be blocked (`exempt`), or it had to make way for another (`displaced`).
    #[zbus(signal)]
    pub async fn unblocked(
        emitter: &SignalEmitter<'_>,
        address: &str,
        cause: &str,
    ) -> zbus::Result<()>;

    /// The property `State` has this value now.
    #[zbus(signal, name = "StateChanged")]
    pub async fn state_is_another(emitter: &SignalEmitter<'_>, state: &str) -> zbus::Result<()>;
}

/// What an entry of the list takes at most: two texts with their lengths and an end each, two numbers of
/// eight bytes and one of four, and what aligns them.
const fn size_on_the_bus(address: &str, reason: &str) -> usize {
    address.len() + reason.len() + 2 * 5 + 2 * 8 + 4 + 3 * 7
}

/// Zero is until unblocked.
pub fn checked_duration(seconds: u64) -> Result<Option<Duration>, Error> {
    if seconds > LONGEST_BLOCK {
        let why = format!("a block may last {LONGEST_BLOCK} seconds at most; 0: until unblocked");
        return Err(fdo::Error::InvalidArgs(why).into());
    }
    Ok((seconds > 0).then(|| Duration::from_secs(seconds)))
}

pub fn checked_reason(reason: &str) -> Result<String, Error> {
    let refuse = |why: String| Err(fdo::Error::InvalidArgs(why).into());
    if reason.chars().count() > LONGEST_REASON {
        return refuse(format!("a reason may have {LONGEST_REASON} characters at most"));
    }
    if reason.chars().any(char::is_control) {
        return refuse("a reason must be one line of plain text".to_owned());
    }
    Ok(reason.to_owned())
}
