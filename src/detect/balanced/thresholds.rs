//! Every number of the balanced rules, once, with its reason.
//!
//! Pure. Owns constants only; the code that applies them is elsewhere.

use std::time::Duration;

/// A threshold ("more than so many") and the span within which it holds.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub more_than: usize,
    pub within: Duration,
}

const fn limit(more_than: usize, seconds: u64) -> Limit {
    Limit { more_than, within: Duration::from_secs(seconds) }
}

/// How long a host may take to reply. Networks deliver a reply within a third of a second, and a client
/// retries after one second (RFC 6298, 2.1). A host that has not replied by then does not reply.
pub const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// How long this host may take to reply if no service listens on the port. Its own kernel replies within
/// microseconds, also for a service that has just begun to listen, or for a container to which the port is
/// redirected.
pub const ANSWERS_ITSELF_WITHIN: Duration = Duration::from_millis(5);

/// When an answered connection without bad signs counts as successful. A host repeats its reply after one
/// second if the client stays silent (RFC 6298, 2.1).
pub const SETTLED_AFTER: Duration = Duration::from_secs(3);

/// A segment that repeats another one so much later is no copy of it, as on a bridge: the sender repeats it.
/// A reply so late finds a client that has given up.
pub const REPEATED_AFTER: Duration = Duration::from_millis(900);

/// How many connections are followed at a time: all that are not settled at 20,000 new connections a second.
/// 64 bytes each.
pub const FOLLOWED: usize = 1 << 16;

/// A fourth failed port within a minute. Typing errors are less frequent. The two or three dead ports of an
/// honest program (a stopped service, an old bookmark) are retried, which counts once. Equals the classic
/// threshold, so that a fast scan is detected at the same probe.
pub const A_MINUTE: Limit = limit(3, 60);

/// A fifth failed port within an hour: `nmap -T1` (one port in 15 s, or in 30 s without a reply) and `-T0` (one
/// port in 5 minutes).
pub const AN_HOUR: Limit = limit(4, 3600);

/// An eighth failed port within a day: slower than the default of any tool. No honest client fails on so many,
/// so these are judged at once, whatever the SYNs look like: a set-up wizard guesses seven ports of mail.
pub const A_DAY: Limit = limit(7, 86_400);

/// When up to [`A_DAY`]'s number of ports are judged if an operating system has made the SYNs, and connections
/// without data always. Until then an honest client may show what it is. A wizard uses the ports that it found,
/// a program that waits for its services retries them, a load balancer repeats its checks, which are a minute
/// apart at most.
pub const JUDGED_AFTER: Duration = Duration::from_secs(90);
/// The longest time between a probe and the verdict about it.
pub const LONGEST_DELAY: Duration =
    Duration::from_secs(ANSWERS_WITHIN.as_secs() + JUDGED_AFTER.as_secs());
/// How many sources wait for that at a time. Further ones are judged at once.
pub const CHECKS: usize = 1 << 10;

/// How many separate tries of a port make it one that a program waits for. Scanners repeat a port once.
pub const HABIT: u8 = 3;

/// Refused segments that belong to no connection (ACK, FIN-ACK). After a restart, a host refuses the segments
/// of the connections that it has forgotten: as many ports as one client uses services. A mail client uses
/// six.
pub const OUT_OF_STATE: Limit = limit(A_DAY.more_than, AN_HOUR.within.as_secs());
/// Ports from here on are the local ports of outgoing connections (FreeBSD begins here, other systems above).
/// Their peers send to as many of these ports as there are connections. Busy proxies and address translation
/// use all ports from [`SYSTEM_PORTS_BELOW`] on; there, the sender may be the server if its own port is below
/// this one.
pub const SERVICE_PORTS_BELOW: u16 = 10_000;

/// Failed hosts on one port. A mail server or a file-sharing program finds a dozen dead hosts in that time.
pub const SWEEP: Limit = limit(29, 300);
/// The same if no host was reached at all: a worm that guesses addresses.
pub const FRUITLESS_SWEEP: Limit = limit(SWEEP.more_than, AN_HOUR.within.as_secs());
/// Failed ports of any hosts with crafted SYNs. No honest program sends those without a reply, however slowly
/// (`nmap -T1`: 15 s; `-T0`: 5 minutes).
pub const SLOW_SWEEP: Limit = limit(SWEEP.more_than, A_DAY.within.as_secs());
/// How many hosts of a [`SWEEP`] must have failed. A connect scan also finds open ports and connects to them
/// without data. A load balancer with thirty hosts has fewer dead ones among them.
pub const SWEEP_FAILED: usize = 10;
/// How many successful connections on the same port offset one failed host. Most probes of a sweep fail.
pub const CONNECTIONS_PER_HOST: u16 = 2;

/// How many successful connections of the same source offset one failure: three times as many as needed for a
/// large network in which three in a hundred connections fail. With twice as many, one network in fifty would
/// be blocked by chance within its first 4,000 connections; with three times as many, one in 3,000.
pub const CONNECTIONS_PER_FAILURE: u16 = 10;
/// How many connections are remembered for an hour after the last one: enough for 32 failures.
pub const CONNECTIONS_KEPT: u16 = 320;
/// How many failures are excused per hour. A scanner needs 5,120 connections for these, and is detected with
/// the next four failures.
pub const EXCUSED_PER_HOUR: u16 = 512;

/// How long a port that was used counts as known to all sources. If it refuses now, its service is at fault: after a
/// restart of the service, all its clients fail. The same holds for a service of this host that has stopped.
pub const KNOWN_OPEN_FOR: Duration = AN_HOUR.within;
/// How long a source may be refused on a port that it has used, from its last use or try on. Outages end within
/// a day, and computers are switched on once a day.
pub const USED_FOR: Duration = A_DAY.within;

/// Ports of one host by one source, whatever the outcome. A host that replies on all its ports (a tarpit, a
/// front end with SYN cookies) hides failures. FTP transfers take a port each, but none below 1024, and each of
/// them transfers data.
pub const MANY_PORTS: Limit = limit(100, 60);
/// Ports from here on are assigned at random as local ports.
pub const SYSTEM_PORTS_BELOW: u16 = 1024;

/// Failed ports of one host if each source is below the other thresholds.
pub const MANY_SOURCES: Limit = limit(40, 600);
/// How many sources must have failed.
pub const MANY_SOURCES_AT_LEAST: u32 = 10;

/// How many sources without replies are an outage instead of a sweep, if no other source receives replies
/// either. A scanner would need two helpers, and a network in which all hosts are silent.
pub const CUT_OFF_SOURCES: u32 = 3;
