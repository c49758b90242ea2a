//! Every number of the balanced rules, once, with its reason.

use std::time::Duration;

/// A rule's threshold, "more than so many", and the span it holds for.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub more_than: usize,
    pub within: Duration,
}

const fn limit(more_than: usize, seconds: u64) -> Limit {
    Limit { more_than, within: Duration::from_secs(seconds) }
}

/// How long a host may take to answer. Networks answer within a third of a second, and a client tries
/// again after one (RFC 6298, 2.1): who has not answered until then does not.
pub const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// The same where this host itself would answer, and nothing listens on the port: its own kernel
/// answers within microseconds, also for a service that has begun to listen just now, or for a container
/// the port is redirected to.
pub const ANSWERS_ITSELF_WITHIN: Duration = Duration::from_millis(5);

/// After so long an answered connection of which nothing bad was seen is taken to be an honest one. A
/// host repeats its answer after a second if the client says no more (RFC 6298, 2.1).
pub const SETTLED_AFTER: Duration = Duration::from_secs(3);

/// An answer that comes again this long after the first was not heard, unless its client has asked again;
/// copies of one packet, as on a bridge, come within milliseconds.
pub const REPEATED_AFTER: Duration = Duration::from_millis(900);

/// Connections followed at a time: at 20,000 new ones a second, all that are not settled. 64 bytes each.
pub const FOLLOWED: usize = 1 << 16;

/// Failed ports remembered of a source on a host: as many as the longest rule asks for.
pub const PORTS_KEPT: usize = 8;

/// A fourth failed port within a minute: nobody mistypes that often, and an honest program's two or three
/// dead ports (a stopped service, an old bookmark) are tried again, which counts once. The classic
/// threshold, so that a fast scan is recognised at the same probe.
pub const A_MINUTE: Limit = limit(3, 60);

/// A fifth within an hour: `nmap -T1` (a port in 15 s, 30 s if nothing answers) and `-T0` (5 minutes).
pub const AN_HOUR: Limit = limit(4, 3600);

/// An eighth within a day: slower than any tool by default.
pub const A_DAY: Limit = limit(7, 86_400);

/// A connect scan of a host with open ports: it drops each connection at once, nothing said and nothing
/// heard, and some fail. An honest client has something to say on the ports it connects to.
pub const SOUNDED: Limit = limit(3, 60);
/// Load balancers that look whether services are up do the same, one of which may be down. But they look
/// again and again, each two to thirty seconds: who has looked again at a port that is open is none.
pub const SOUNDED_AFTER: Duration = Duration::from_secs(35);
/// How long it may take in all until a probe is judged.
pub const WAITS_AT_MOST: Duration =
    Duration::from_secs(ANSWERS_WITHIN.as_secs() + SOUNDED_AFTER.as_secs());
/// Those that are waited for at a time; more are not.
pub const SOUNDINGS: usize = 1 << 10;

/// Segments of no connection (ACK, FIN and ACK) that a host refuses. After a restart it refuses those of
/// the connections it has forgotten: as many ports as one client uses services. A mail client uses
/// six.
pub const STRAY: Limit = limit(7, 60);
/// Above are the ports of a host's own connections, whose other end sends to as many of them as there
/// are connections: FreeBSD's begin here, all others' above. Busy proxies and address translation use all from
/// [`SYSTEM_PORTS_BELOW`] on: there, whoever sends from a port below this one may be the server.
pub const STRAY_PORTS_BELOW: u16 = 10_000;

/// Failed hosts on one port. A mail server or a file-sharing program finds a dozen dead in that time.
pub const SWEEP: Limit = limit(29, 300);
/// The same with SYNs no operating system makes: nobody honest sends those to so many who do not answer,
/// however slowly (`nmap -T1`: 15 s; `-T0`: 5 minutes). A firewall may take the options off honest ones: who
/// has [`CONNECTIONS_FOR_A_HOST`] for each of them in that time does not sweep.
pub const SLOW_SWEEP: Limit = limit(SWEEP.more_than, 86_400);
/// A connect scan finds open ports as well, and drops them unused: of the hosts of a [`SWEEP`] so many at
/// least have failed. A load balancer that looks after thirty hosts has fewer dead ones among them.
pub const SWEEP_FAILED: usize = 10;
/// A failed host is forgiven for so many connections on the same port that came about: sweeps fail
/// mostly.
pub const CONNECTIONS_FOR_A_HOST: u16 = 2;
/// So many at the most in [`SWEEP`]'s span: a busy mail server finds one dead a second. Whoever makes connections
/// to be forgiven has to make two for each probe, and finds no more.
pub const HOSTS_FORGIVEN: u16 = 300;
/// More than those, for so many connections each: a crawler finds one in twenty dead, however fast it is, and
/// nobody gets five in six right by guessing.
pub const CONNECTIONS_FOR_ANOTHER_HOST: u16 = 5;

/// A failure is forgiven for so many connections of the same source that came about: three times as many as
/// the three in a hundred of a large network's users who err. With twice as many, one such network in fifty
/// would by chance be blocked within its first 4,000 connections; with three times, one in 3,000.
pub const CONNECTIONS_FOR_A_FAILURE: u16 = 10;
/// So many connections are remembered, good for 32 failures.
pub const CONNECTIONS_KEPT: u16 = 320;
/// For so long without another.
pub const CONNECTIONS_KEPT_FOR: Duration = Duration::from_secs(3600);
/// So many failures at the most in a minute: three in a hundred of 70 connections a second. A scanner that
/// makes connections to be forgiven, or hides among others behind one address, gets no further ...
pub const FORGIVEN_A_MINUTE: u16 = 128;
/// ... and so many in an hour: for these it has made 5,120 connections, and is caught with the next four.
pub const FORGIVEN_AN_HOUR: u16 = 512;
/// Sources and hosts whose connections are counted: 24 bytes each.
pub const CREDITS: usize = 1 << 16;

/// A port that has answered anybody within this time is no secret: that it does not answer now is the
/// service's fault, and after its restart all its clients try it in vain.
pub const KNOWN_OPEN_FOR: Duration = Duration::from_secs(3600);
/// Open ports, and forgiven failures, remembered: 16 bytes each.
pub const OPEN_PORTS: usize = 1 << 13;

/// So many ports of one host by one source, whatever came of it: a host that answers on all its ports (a
/// tarpit, a front end with SYN cookies) hides what fails. What is transferred by FTP takes a port each, too,
/// but none below 1024, and each is used.
pub const MANY_PORTS: Limit = limit(100, 60);
/// Ports no program is given by chance begin above.
pub const SYSTEM_PORTS_BELOW: u16 = 1024;

/// Failed ports of one host, each source below the other thresholds.
pub const MANY_SOURCES: Limit = limit(40, 600);
/// By so many sources at least.
pub const MANY_SOURCES_AT_LEAST: u32 = 10;

/// A service that has stopped within this time is known as one, though nobody has asked it: what
/// [`KNOWN_OPEN_FOR`] is for, of this host itself.
pub const LISTENED_WITHIN: Duration = KNOWN_OPEN_FOR;

/// Probes in a row that nobody was seen to answer make a capture one-sided ...
pub const UNANSWERED_IN_A_ROW: u32 = 128;
/// ... if so many sources sent them: a single scanner of a silent network makes none.
pub const UNANSWERED_SOURCES: u32 = 16;
/// So many whom nobody answers any more, while nobody else is answered either, are a line that is down, not a
/// sweep. A scanner would need two helpers, and hosts that are silent all of them.
pub const CUT_OFF_SOURCES: u32 = 3;
/// Connections that went on though they seemed unanswered, of so many sources in an hour, show the same
/// of a part of the traffic (an asymmetric route). One source alone could feign them; where no answer has
/// ever been seen, one will do.
pub const UNSEEN_SOURCES: u32 = 8;
/// How long that holds without being shown again.
pub const UNSEEN_FOR: Duration = Duration::from_secs(3600);
