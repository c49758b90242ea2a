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

/// When a repeated reply shows that the first one had no effect, unless the client has repeated its SYN.
/// Copies of one packet, as on a bridge, arrive within milliseconds.
pub const REPEATED_AFTER: Duration = Duration::from_millis(900);

/// How many connections are followed at a time: all that are not settled at 20,000 new connections a second.
/// 64 bytes each.
pub const FOLLOWED: usize = 1 << 16;

/// How many failed ports of a source on a host are remembered: as many as the longest rule needs.
pub const PORTS_KEPT: usize = 8;

/// A fourth failed port within a minute. Typing errors are less frequent. The two or three dead ports of an
/// honest program (a stopped service, an old bookmark) are retried, which counts once. Equals the classic
/// threshold, so that a fast scan is detected at the same probe.
pub const A_MINUTE: Limit = limit(3, 60);

/// A fifth failed port within an hour: `nmap -T1` (one port in 15 s, or in 30 s without a reply) and `-T0` (one
/// port in 5 minutes).
pub const AN_HOUR: Limit = limit(4, 3600);

/// An eighth failed port within a day: slower than the default of any tool.
pub const A_DAY: Limit = limit(7, 86_400);

/// A connect scan of a host with open ports. It drops each connection at once, without data in either
/// direction, and some connections fail. An honest client sends data on the ports that it connects to.
pub const CONNECT_SCAN: Limit = limit(3, 60);
/// The delay before a suspected connect scan is reported. Health checks of load balancers look the same if one
/// service is down. But they repeat every 2 to 30 s, so a source that repeats a connection to an open port
/// is no scanner.
pub const CONNECT_SCAN_DELAY: Duration = Duration::from_secs(35);
/// The longest time between a probe and the verdict about it.
pub const LONGEST_DELAY: Duration =
    Duration::from_secs(ANSWERS_WITHIN.as_secs() + CONNECT_SCAN_DELAY.as_secs());
/// How many suspected connect scans wait at a time. Further ones are reported without delay.
pub const CONNECT_SCAN_CHECKS: usize = 1 << 10;

/// Refused segments that belong to no connection (ACK, FIN-ACK). After a restart, a host refuses the segments
/// of the connections that it has forgotten: as many ports as one client uses services. A mail client uses
/// six.
pub const OUT_OF_STATE: Limit = limit(7, 60);
/// Ports from here on are the local ports of outgoing connections (FreeBSD begins here, other systems above).
/// Their peers send to as many of these ports as there are connections. Busy proxies and address translation
/// use all ports from [`SYSTEM_PORTS_BELOW`] on; there, the sender may be the server if its own port is below
/// this one.
pub const SERVICE_PORTS_BELOW: u16 = 10_000;

/// Failed hosts on one port. A mail server or a file-sharing program finds a dozen dead hosts in that time.
pub const SWEEP: Limit = limit(29, 300);
/// Failed hosts on one port with crafted SYNs. No honest program sends those to so many hosts without a reply,
/// however slowly (`nmap -T1`: 15 s; `-T0`: 5 minutes). A firewall may strip the options of honest SYNs, so a
/// source with [`CONNECTIONS_PER_HOST`] for each host within that time does not sweep.
pub const SLOW_SWEEP: Limit = limit(SWEEP.more_than, 86_400);
/// How many hosts of a [`SWEEP`] must have failed. A connect scan also finds open ports and connects to them
/// without data. A load balancer with thirty hosts has fewer dead ones among them.
pub const SWEEP_FAILED: usize = 10;
/// How many successful connections on the same port offset one failed host. Most probes of a sweep fail.
pub const CONNECTIONS_PER_HOST: u16 = 2;
/// How many failed hosts are excused at that rate within [`SWEEP`]'s span: a busy mail server finds one dead
/// host a second. A scanner that connects in order to be excused needs two connections per probe.
pub const HOSTS_EXCUSED: u16 = 300;
/// How many connections offset each further host. A crawler finds one dead host in twenty, however fast it is,
/// and no scanner guesses five in six hosts right.
pub const CONNECTIONS_PER_EXTRA_HOST: u16 = 5;

/// How many successful connections of the same source offset one failure: three times as many as needed for a
/// large network in which three in a hundred connections fail. With twice as many, one network in fifty would
/// be blocked by chance within its first 4,000 connections; with three times as many, one in 3,000.
pub const CONNECTIONS_PER_FAILURE: u16 = 10;
/// How many connections are remembered: enough for 32 failures ...
pub const CONNECTIONS_KEPT: u16 = 320;
/// ... until this long after the last one.
pub const CONNECTIONS_KEPT_FOR: Duration = Duration::from_secs(3600);
/// How many failures are excused per minute: three in a hundred of 70 connections a second. This limits a
/// scanner that connects in order to be excused, or that hides among other hosts behind one address.
pub const EXCUSED_PER_MINUTE: u16 = 128;
/// How many failures are excused per hour. A scanner needs 5,120 connections for these, and is detected with
/// the next four failures.
pub const EXCUSED_PER_HOUR: u16 = 512;
/// For how many pairs of source and host connections are counted. 24 bytes each.
pub const CREDITS: usize = 1 << 16;

/// How long a port that has replied counts as known. If it does not reply now, its service is at fault: after
/// a restart of the service, all its clients fail.
pub const KNOWN_OPEN_FOR: Duration = Duration::from_secs(3600);
/// How many open ports, and how many excused failures, are remembered. 16 bytes each.
pub const OPEN_PORTS: usize = 1 << 13;

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

/// How long a service of this host that has stopped counts as known, although no client has connected to it.
/// The same reason as for [`KNOWN_OPEN_FOR`].
pub const LISTENED_WITHIN: Duration = KNOWN_OPEN_FOR;

/// How many consecutive probes without a reply make a capture one-sided ...
pub const UNANSWERED_IN_A_ROW: u32 = 128;
/// ... if so many sources have sent them. A single scanner of a silent network must not.
pub const UNANSWERED_SOURCES: u32 = 16;
/// How many sources without replies are an outage instead of a sweep, if no other source receives replies
/// either. A scanner would need two helpers, and a network in which all hosts are silent.
pub const CUT_OFF_SOURCES: u32 = 3;
/// How many sources within an hour must have connections that continue although no reply was seen. They show
/// that some replies are not visible (an asymmetric route). A single source could feign that. If no reply was
/// ever seen, one source is enough.
pub const UNSEEN_SOURCES: u32 = 8;
/// How long that evidence holds.
pub const UNSEEN_FOR: Duration = Duration::from_secs(3600);
