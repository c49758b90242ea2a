//! A reference implementation of the classic rule, to compare a replay with. It is slow and evicts
//! nothing.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::recorder::{RecordedFrame, frames_in};

/// The detection settings of a replay.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    pub ports: usize,
    pub window: &'static str,
    pub pair: bool,
    pub stealth: bool,
    pub ipv6_prefix: u8,
}

impl Rule {
    /// The defaults of the classic preset.
    pub const CLASSIC: Self =
        Self { ports: 3, window: "60s", pair: false, stealth: true, ipv6_prefix: 64 };
}

#[derive(Clone, Copy)]
struct Probe {
    unix_nanos: u64,
    source: IpAddr,
    destination: IpAddr,
    port: u16,
    /// Any flags without SYN, ACK and RST.
    stealthy: bool,
}

/// Returns the expected output of `replay --json` for a file: one object per scan. A source is
/// reported again only after it was silent for a whole window.
pub fn scans_in(file: &Path, rule: &Rule) -> Vec<Value> {
    scans(&frames_in(file), rule, &file.display().to_string())
}

pub fn scans(frames: &[RecordedFrame], rule: &Rule, name: &str) -> Vec<Value> {
    let window: Duration = humantime::parse_duration(rule.window).unwrap();
    let window = u64::try_from(window.as_nanos()).unwrap();
    let mut histories: HashMap<_, Vec<(u64, Probe)>> = HashMap::new();
    let mut sent: HashMap<IpNet, u64> = HashMap::new();
    // The index in each unit's history at which it was last reported.
    let mut reported = HashMap::new();
    let mut scans = Vec::new();
    let mut probes: Vec<Probe> = frames.iter().filter_map(probe_in).collect();
    // Probes are judged in the order of their times, and in the order of the file at the same time.
    probes.sort_by_key(|probe| probe.unix_nanos);
    for probe in probes.into_iter().filter(|probe| rule.stealth || !probe.stealthy) {
        let now = probe.unix_nanos;
        let length = if probe.source.is_ipv6() { rule.ipv6_prefix } else { 32 };
        let source = IpNet::new(probe.source, length).unwrap().trunc();
        let unit = (source, rule.pair.then_some(probe.destination));
        let number = sent.entry(source).or_default();
        *number += 1;
        let history = histories.entry(unit).or_default();
        history.push((now, probe));

        // The first probe after the last silent window.
        let pauses = history.windows(2).rposition(|pair| pair[1].0 - pair[0].0 >= window);
        let start = pauses.map_or(0, |before| before + 1);
        let mut ports: Vec<u16> = Vec::new();
        for (_, recent) in history.iter().filter(|(moment, _)| now - moment < window) {
            ports.retain(|port| *port != recent.port);
            ports.push(recent.port);
        }
        if ports.len() <= rule.ports || reported.get(&unit).is_some_and(|at| *at >= start) {
            continue;
        }
        reported.insert(unit, history.len() - 1);
        let stealthy = history[start..].iter().any(|(_, probe)| probe.stealthy);
        let single = source.prefix_len() == source.max_prefix_len();
        scans.push(json!({
            "file": name,
            "time_ns": probe.unix_nanos,
            "source": if single { source.addr().to_string() } else { source.to_string() },
            "kind": if stealthy { "stealth" } else { "vertical" },
            "ports": ports,
            "probe": number,
        }));
    }
    scans
}

fn probe_in(RecordedFrame { unix_nanos, frame }: &RecordedFrame) -> Option<Probe> {
    let packet = LaxSlicedPacket::from_ethernet(frame).ok()?;
    let (source, destination): (IpAddr, IpAddr) = match packet.net? {
        LaxNetSlice::Ipv4(ip) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        LaxNetSlice::Ipv6(ip) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        LaxNetSlice::Arp(_) => return None,
    };
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else { return None };
    let opens = tcp.syn() && !tcp.ack();
    let stealthy = !(tcp.syn() || tcp.ack() || tcp.rst());
    (opens || stealthy).then_some(Probe {
        unix_nanos: *unix_nanos,
        source,
        destination,
        port: tcp.destination_port(),
        stealthy,
    })
}
