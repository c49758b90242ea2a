//! What each key takes and means.
//!
//! The one table that error messages, tcptracker.toml(5), the commented default configuration and
//! README.md are made from or held against. Complete: a test holds it against [`super::Config`].

/// A key of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Section and name: `detection.ports`.
    pub name: &'static str,
    /// What it takes, as in "expected ...".
    pub expected: &'static str,
    /// What it is for. Values and keys stand between backticks.
    pub meaning: &'static str,
}

/// Every section, and what it is about.
pub const SECTIONS: [(&str, &str); 7] = [
    ("detection", "What counts as a scan."),
    ("exempt", "Who is never blocked."),
    ("block", "Whether and how long scanners are blocked."),
    ("firewall", "How the kernel is told."),
    ("log", "What is written to the journal."),
    ("metrics", "Where Prometheus asks."),
    ("bus", "The D-Bus interface."),
];

/// Every key, in the order in which people read them.
pub const KEYS: [Key; 24] = [
    Key {
        name: "detection.preset",
        expected: r#""classic" or "balanced""#,
        meaning: r#"`"classic"`: the rule of the next three keys; `"balanced"`: only probes that failed count, by rules with fixed numbers"#,
    },
    Key {
        name: "detection.ports",
        expected: "a whole number from 1 to 64",
        meaning: "more than this many distinct ports (1 to 64) ...",
    },
    Key {
        name: "detection.window",
        expected: r#"a length of time from "1s" to "1d", such as "60s""#,
        meaning: r#"... within this sliding window (`"1s"` to `"1d"`); a probe exactly this old no longer counts"#,
    },
    Key {
        name: "detection.per",
        expected: r#""source" or "pair""#,
        meaning: r#"whose ports are counted together: all of a source's, or with `"pair"` those on one destination"#,
    },
    Key {
        name: "detection.stealth",
        expected: "true or false",
        meaning: "FIN, NULL, XMAS and tiny-fragment probes count; `false`: SYN only",
    },
    Key {
        name: "detection.max_sources",
        expected: "a whole number from 1024 to 16777216",
        meaning: "sources remembered (1024 to 16777216) that have tried several ports, and three times as many that have tried one; the oldest goes first",
    },
    Key {
        name: "detection.ipv6_prefix",
        expected: "a whole number from 16 to 128",
        meaning: "IPv6 sources are counted and blocked as networks of this length (16 to 128)",
    },
    Key {
        name: "exempt.networks",
        expected: r#"a list of addresses and networks, such as ["192.0.2.7", "10.0.0.0/8"]"#,
        meaning: "never blocked: addresses and networks",
    },
    Key {
        name: "exempt.automatic",
        expected: "true or false",
        meaning: "never blocked either: loopback, link-local, gateways of all routes, name servers (also those behind systemd-resolved), peers of live SSH sessions; kept current. This host's own addresses are never blocked, also with `false`",
    },
    Key {
        name: "block.enabled",
        expected: "true or false",
        meaning: "`false` observes: scans are reported, nothing is blocked",
    },
    Key {
        name: "block.durations",
        expected: r#"a list of lengths of time of at least "1s", or "forever", such as ["1h", "1d", "forever"]"#,
        meaning: r#"first, second, ... offence; the last repeats. `"forever"`: until unblocked"#,
    },
    Key {
        name: "block.forget_after",
        expected: r#"a length of time, such as "30d""#,
        meaning: "an offence older than this no longer counts",
    },
    Key {
        name: "block.grace_after_unblock",
        expected: r#"a length of time, such as "1h""#,
        meaning: "an address unblocked by hand is not blocked again for this long, except by hand",
    },
    Key {
        name: "block.max_per_minute",
        expected: "a whole number from 1 to 100000",
        meaning: "scanners blocked in any minute (1 to 100000); further ones are reported only, and the state is `degraded`",
    },
    Key {
        name: "block.established",
        expected: r#""keep" or "cut""#,
        meaning: r#"drops new TCP connections only; `"cut"` drops every packet of a blocked source, and removes its connections from the kernel's connection table"#,
    },
    Key {
        name: "firewall.backend",
        expected: r#""auto", "ipset" or "iptables""#,
        meaning: r#"`"ipset"`: one rule and a kernel set per address family; `"iptables"`: a rule per address, 1,000 of each family at most; `"auto"`: sets where the kernel has them"#,
    },
    Key {
        name: "firewall.hooks",
        expected: r#"a list of "INPUT" and "FORWARD""#,
        meaning: "built-in chains that jump to `tcptracker`; `FORWARD` covers containers and routed networks",
    },
    Key {
        name: "firewall.target",
        expected: r#""DROP" or "REJECT""#,
        meaning: r#"or `"REJECT"`: answer as a closed port does, by a TCP reset; with `block.established = "cut"` by ICMP "port unreachable", whatever it was"#,
    },
    Key {
        name: "log.connections",
        expected: "true or false",
        meaning: "an entry for each new connection",
    },
    Key {
        name: "log.rate",
        expected: "a whole number from 1 to 100000",
        meaning: "at most this many a second (1 to 100000), likewise of scans; the rest is counted and summed up",
    },
    Key {
        name: "log.format",
        expected: r#""text" or "json""#,
        meaning: r#"how entries look on stderr, where they do not go to the journal: `"text"`, or `"json"`, an object a line with the journal's fields"#,
    },
    Key {
        name: "log.level",
        expected: r#""warn", "info", "debug" or "trace""#,
        meaning: r#"the least important messages to log; `"debug"` adds the evidence of each verdict, `"trace"` each step that leads to it"#,
    },
    Key {
        name: "metrics.listen",
        expected: r#""off", or an address and port, such as "127.0.0.1:8081""#,
        meaning: r#"address and port, or `"off"`; where it is taken by another instance the service runs on without, and an address this host does not have yet is waited for"#,
    },
    Key {
        name: "bus.enabled",
        expected: "true or false",
        meaning: "`false` where there is no system bus; then there is no `list`, `stats`, `block`, `unblock`",
    },
];

/// What a key takes; nothing if there is no such key.
pub fn expected(name: &str) -> Option<&'static str> {
    KEYS.iter().find(|key| key.name == name).map(|key| key.expected)
}
