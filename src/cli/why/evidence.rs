//! What `Why` answers, as a program reads it.

use std::collections::HashMap;

use ipnet::IpNet;
use serde::Serialize;
use zbus::OwnedVariant;

use crate::types::ifname::IfName;
use crate::types::network::show_network;

/// The evidence one instance has. The keys stay as they are; times are Unix seconds.
#[derive(Serialize)]
pub struct Evidence {
    pub interface: IfName,
    /// As blocked: it may be the network that holds what was asked for.
    pub address: String,
    pub blocked: bool,
    pub since: Option<u64>,
    /// Null: until unblocked, or not blocked.
    pub until: Option<u64>,
    pub offences: u32,
    pub reason: Option<String>,
    pub kind: Option<String>,
    pub rule: Option<String>,
    pub threshold: Option<u32>,
    pub window: Option<u64>,
    pub probes: Vec<Segment>,
    /// Packets the kernel has dropped from it since.
    pub dropped: Option<u64>,
    /// Why it is never blocked.
    pub exempt: Option<String>,
    pub grace_until: Option<u64>,
    pub decoy: bool,
}

/// A probe that counted.
#[derive(Serialize)]
pub struct Segment {
    pub port: u16,
    pub time: f64,
    pub outcome: Option<String>,
}

impl Evidence {
    pub fn from_bus(interface: &IfName, asked: IpNet, told: HashMap<String, OwnedVariant>) -> Self {
        let mut told = Told(told);
        let ports: Vec<u16> = told.take("ports").unwrap_or_default();
        let times: Vec<f64> = told.take("times").unwrap_or_default();
        let outcomes: Vec<String> = told.take("outcomes").unwrap_or_default();
        let probes = ports.into_iter().zip(times).enumerate().map(|(at, (port, time))| {
            let outcome = outcomes.get(at).filter(|outcome| *outcome != "unknown").cloned();
            Segment { port, time, outcome }
        });
        Self {
            interface: interface.clone(),
            probes: probes.collect(),
            address: told.take("address").unwrap_or_else(|| show_network(&asked)),
            blocked: told.take("blocked").unwrap_or_default(),
            since: told.take("since"),
            until: told.take("until").filter(|until| *until > 0),
            offences: told.take("offences").unwrap_or_default(),
            reason: told.take("reason"),
            kind: told.take("kind"),
            rule: told.take("rule"),
            threshold: told.take("threshold"),
            window: told.take("window"),
            dropped: told.take("dropped"),
            exempt: told.take("exempt"),
            grace_until: told.take("grace_until"),
            decoy: told.take("decoy").unwrap_or_default(),
        }
    }
}

struct Told(HashMap<String, OwnedVariant>);

impl Told {
    /// Nothing where it is not there, or is something else than agreed.
    fn take<T: TryFrom<OwnedVariant>>(&mut self, key: &str) -> Option<T> {
        self.0.remove(key).and_then(|value| T::try_from(value).ok())
    }
}
