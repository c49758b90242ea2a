//! The evidence for one address: the reply of `Why`, and the JSON output.

use std::collections::HashMap;

use ipnet::IpNet;
use serde::Serialize;
use zbus::OwnedVariant;

use crate::types::{IfName, show_network};

/// The evidence of one instance. Its keys are stable; times are Unix seconds.
#[derive(Serialize)]
pub struct Evidence {
    pub interface: IfName,
    /// The blocked address, or the blocked network that contains the requested one.
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
    pub probes: Vec<Probe>,
    /// Packets that the kernel has dropped since.
    pub dropped: Option<u64>,
    /// The reason why it is never blocked.
    pub exempt: Option<String>,
    pub grace_until: Option<u64>,
    pub decoy: bool,
}

/// A probe that counted.
#[derive(Serialize)]
pub struct Probe {
    pub port: u16,
    pub time: f64,
    pub outcome: Option<String>,
}

impl Evidence {
    pub fn from_bus(
        interface: &IfName,
        asked: IpNet,
        reply: HashMap<String, OwnedVariant>,
    ) -> Self {
        let mut reply = Reply(reply);
        let ports: Vec<u16> = reply.take("ports").unwrap_or_default();
        let times: Vec<f64> = reply.take("times").unwrap_or_default();
        let outcomes: Vec<String> = reply.take("outcomes").unwrap_or_default();
        let probes = ports.into_iter().zip(times).enumerate().map(|(at, (port, time))| {
            let outcome = outcomes.get(at).filter(|outcome| *outcome != "unknown").cloned();
            Probe { port, time, outcome }
        });
        Self {
            interface: interface.clone(),
            probes: probes.collect(),
            address: reply.take("address").unwrap_or_else(|| show_network(&asked)),
            blocked: reply.take("blocked").unwrap_or_default(),
            since: reply.take("since"),
            until: reply.take("until").filter(|until| *until > 0),
            offences: reply.take("offences").unwrap_or_default(),
            reason: reply.take("reason"),
            kind: reply.take("kind"),
            rule: reply.take("rule"),
            threshold: reply.take("threshold"),
            window: reply.take("window"),
            dropped: reply.take("dropped"),
            exempt: reply.take("exempt"),
            grace_until: reply.take("grace_until"),
            decoy: reply.take("decoy").unwrap_or_default(),
        }
    }
}

/// A reply, from which values are taken.
pub struct Reply(pub HashMap<String, OwnedVariant>);

impl Reply {
    /// Returns None if the value is missing or has another type.
    pub fn take<T: TryFrom<OwnedVariant>>(&mut self, key: &str) -> Option<T> {
        self.0.remove(key).and_then(|value| T::try_from(value).ok())
    }
}
