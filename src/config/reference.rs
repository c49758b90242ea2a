//! The default of each key, and in words what it takes and means.
//!
//! Error messages, tcptracker.toml(5), the shipped configuration and README.md are made from this
//! table. [`super::Config`] has the same keys: it takes its defaults from here.

/// A key of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The section and the name: `detection.ports`.
    pub name: &'static str,
    /// The value, as in a file.
    pub default: &'static str,
    /// Completes "expected ..." and "Takes ...".
    pub expected: &'static str,
    /// Sentences, with values and keys between backticks.
    pub meaning: &'static str,
}

/// Every section with its subject.
pub const SECTIONS: [(&str, &str); 7] = [
    ("detection", "What counts as a scan."),
    ("exempt", "Addresses that are never blocked."),
    ("block", "Whether and how long scanners are blocked."),
    ("firewall", "How blocks are enforced."),
    ("log", "What is written to the journal."),
    ("metrics", "The HTTP endpoint for Prometheus."),
    ("bus", "The D-Bus interface."),
];

/// Every key, in reading order.
pub const KEYS: [Key; 25] = [
    Key {
        name: "detection.preset",
        default: r#""classic""#,
        expected: r#""classic" or "balanced""#,
        meaning: r#"`"classic"` counts all distinct ports, by the next three keys. `"balanced"` counts only connections that failed, with fixed thresholds."#,
    },
    Key {
        name: "detection.ports",
        default: "3",
        expected: "a whole number from 1 to 64",
        meaning: "A source that tries more than this many distinct ports within `window` is a scanner.",
    },
    Key {
        name: "detection.window",
        default: r#""60s""#,
        expected: r#"a length of time from "1s" to "1d", such as "60s""#,
        meaning: "The sliding window for `ports`. A probe that is exactly this old no longer counts.",
    },
    Key {
        name: "detection.per",
        default: r#""source""#,
        expected: r#""source" or "pair""#,
        meaning: r#"`"source"` counts all ports that a source tries. `"pair"` counts the ports of each destination separately."#,
    },
    Key {
        name: "detection.stealth",
        default: "true",
        expected: "true or false",
        meaning: "`true` also counts probes without SYN, ACK and RST (FIN, NULL, Xmas and every other mix of flags) and tiny fragments. `false` counts SYN only.",
    },
    Key {
        name: "detection.trap_ports",
        default: "[]",
        expected: "a list of whole numbers from 0 to 65535, such as [23, 2323]",
        meaning: "A single probe of one of these ports is a scan (kind `trap`). List only ports that no honest host tries. A source can be forged, so that a forger has any host blocked with a single packet; list indispensable hosts in `exempt.networks`.",
    },
    Key {
        name: "detection.max_sources",
        default: "131072",
        expected: "a whole number from 1024 to 16777216",
        meaning: "The number of tracked sources with several ports. Three times as many with one port are tracked too. The oldest is evicted first.",
    },
    Key {
        name: "detection.ipv6_prefix",
        default: "64",
        expected: "a whole number from 16 to 128",
        meaning: "IPv6 sources are counted and blocked as networks of this prefix length.",
    },
    Key {
        name: "exempt.networks",
        default: "[]",
        expected: r#"a list of addresses and networks, such as ["192.0.2.7", "10.0.0.0/8"]"#,
        meaning: "Addresses and networks that are never blocked. Host names are not supported.",
    },
    Key {
        name: "exempt.automatic",
        default: "true",
        expected: "true or false",
        meaning: "Also exempt loopback, link-local, gateways, name servers (including systemd-resolved upstreams) and hosts from which users are logged in over SSH. Updated automatically. This host's own addresses are always exempt.",
    },
    Key {
        name: "block.enabled",
        default: "true",
        expected: "true or false",
        meaning: "`false` is observe mode: scans are reported, and nothing is blocked.",
    },
    Key {
        name: "block.durations",
        default: r#"["1h", "4h", "1d", "1w"]"#,
        expected: r#"a list of lengths of time from "1s" to "100y", or "forever", such as ["1h", "1d", "forever"]"#,
        meaning: r#"The length of a block for the first, second, ... offence. The last one repeats. `"forever"` lasts until you unblock the source."#,
    },
    Key {
        name: "block.forget_after",
        default: r#""30d""#,
        expected: r#"a length of time, such as "30d""#,
        meaning: "An offence older than this no longer counts.",
    },
    Key {
        name: "block.grace_after_unblock",
        default: r#""1h""#,
        expected: r#"a length of time, such as "1h""#,
        meaning: "An address that you unblock is exempt from automatic blocking for this long.",
    },
    Key {
        name: "block.max_per_minute",
        default: "600",
        expected: "a whole number from 1 to 100000",
        meaning: "At most this many scanners are blocked per minute: a quarter of it at once, another quarter after 16 ports, and three eighths after 32 ports. The last eighth is for sources that have connected to this host. Others are only reported, and the state is `degraded`.",
    },
    Key {
        name: "block.established",
        default: r#""keep""#,
        expected: r#""keep" or "cut""#,
        meaning: r#"`"keep"` drops only new TCP connections of a blocked source. `"cut"` drops every packet from it, and removes its connections from the connection tracking table."#,
    },
    Key {
        name: "firewall.backend",
        default: r#""auto""#,
        expected: r#""auto", "ipset", "nftables" or "iptables""#,
        meaning: r#"`"ipset"` uses one rule and one kernel set per address family. `"nftables"` uses a table of its own, `inet tcptracker`, and needs no program. `"iptables"` uses one rule per address, at most 1,000 per family. `"auto"` uses `"nftables"` if `nftables.service` loads your rules at boot or iptables is not installed, else `"ipset"`, as far as the kernel supports them."#,
    },
    Key {
        name: "firewall.hooks",
        default: r#"["INPUT", "FORWARD"]"#,
        expected: r#"a list of "INPUT" and "FORWARD""#,
        meaning: "The built-in chains that jump to chain `tcptracker`. `FORWARD` protects containers and routed networks.",
    },
    Key {
        name: "firewall.target",
        default: r#""DROP""#,
        expected: r#""DROP" or "REJECT""#,
        meaning: r#"`"DROP"`, or `"REJECT"` to answer with a TCP reset (ICMP port-unreachable if `block.established = "cut"`)."#,
    },
    Key {
        name: "log.connections",
        default: "true",
        expected: "true or false",
        meaning: "Write an entry for each new connection.",
    },
    Key {
        name: "log.rate",
        default: "100",
        expected: "a whole number from 1 to 100000",
        meaning: "At most this many entries for connections, and as many for scans, are written per second. The rest are counted and summarized.",
    },
    Key {
        name: "log.format",
        default: r#""text""#,
        expected: r#""text" or "json""#,
        meaning: r#"The format of entries on stderr, if the service does not log to the journal: `"text"`, or `"json"` with one object per line that has the fields of the journal."#,
    },
    Key {
        name: "log.level",
        default: r#""info""#,
        expected: r#""warn", "info", "debug" or "trace""#,
        meaning: r#"The least important entries to write. `"debug"` adds the evidence of each verdict, and `"trace"` each step that leads to it."#,
    },
    Key {
        name: "metrics.listen",
        // Loopback, because there is no authentication.
        default: r#""127.0.0.1:8081""#,
        expected: r#""off", or an address and port, such as "127.0.0.1:8081""#,
        meaning: r#"Address and port, or `"off"`. If the port is in use, the service runs without metrics. If the address does not exist yet, the service waits for it."#,
    },
    Key {
        name: "bus.enabled",
        default: "true",
        expected: "true or false",
        meaning: "Set this to `false` if there is no system bus. Then `list`, `stats`, `block`, `unblock` and all other commands that contact the service do not work.",
    },
];

/// Returns what a key takes, or none if there is no such key.
pub fn expected(name: &str) -> Option<&'static str> {
    KEYS.iter().find(|key| key.name == name).map(|key| key.expected)
}
