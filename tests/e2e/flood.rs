//! More frames than any scanner sends, and still none of them lost by accident.

use std::net::Ipv4Addr;
use std::time::Instant;

use crate::frames::{BROADCAST, SynTemplate, Wire, syn};
use crate::lab::{ATTACKER_V6, Lab, VICTIM_V6};
use crate::tools::TIMEOUT;

/// Frames sent before the service has to have caught up: a third of what the kernel holds for it, so
/// that how fast the machine is decides only how long it takes.
const AHEAD: u32 = 8_000;

/// Counts what looks as if the victim itself had sent it. Nothing else here does.
const CAUGHT_UP: &str = r#"tcptracker_connections_total{direction="outbound",family="ipv6"}"#;

/// A sender on the attacker's wire. The service has to have its metrics where the contract says.
pub struct Flood<'a> {
    lab: &'a Lab,
    wire: Wire,
    /// For the victim's `eth0`.
    template: SynTemplate,
    ahead: u32,
}

impl<'a> Flood<'a> {
    pub fn on(lab: &'a Lab) -> Self {
        let template = SynTemplate::new(lab.victim.hardware_address("eth0"));
        Self { lab, wire: Wire::of(&lab.attacker), template, ahead: 0 }
    }

    /// Sends a SYN to the victim's hardware address.
    pub fn syn(&mut self, from: Ipv4Addr, to: Ipv4Addr, port: u16) {
        self.wire.send(self.template.syn(from, to, port));
        self.count();
    }

    /// Sends any frame; false if the kernel does not take it.
    pub fn frame(&mut self, frame: &[u8]) -> bool {
        let taken = self.wire.try_send(frame);
        self.count();
        taken
    }

    fn count(&mut self) {
        self.ahead += 1;
        if self.ahead >= AHEAD {
            self.settle();
        }
    }

    /// Waits until the service has considered all that was sent. It shows by answering for its metrics:
    /// that is asked of it under whatever flood.
    pub fn settle(&mut self) {
        let own = syn(BROADCAST, VICTIM_V6, ATTACKER_V6, 1);
        let before = self.lab.metric(CAUGHT_UP);
        let deadline = Instant::now() + TIMEOUT;
        // Again and again, as this one may be lost, too; the last is counted before the next is sent.
        while self.lab.metric(CAUGHT_UP) == before {
            assert!(Instant::now() < deadline, "the service does not catch up");
            self.wire.send(&own);
        }
        self.ahead = 0;
    }
}

impl Lab {
    /// These metrics have reached this number together, but for packets that are counted as lost on their way to the
    /// detector: nothing is lost without being counted.
    #[track_caller]
    pub fn assert_counted(&self, metrics: &[&str], sent: u64) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let counted = metrics.iter().map(|metric| self.metric(metric)).sum::<u64>();
            assert!(counted <= sent, "{metrics:?} are {counted}, and not {sent}");
            // Losses are told of only twice a second.
            let lost = self.lost();
            if counted + lost >= sent {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{metrics:?}: {counted}, and {lost} lost, of {sent}"
            );
        }
    }

    /// Packets lost anywhere between the wire and the detector.
    pub fn lost(&self) -> u64 {
        let lost = ["kernel", "interface", "queue"].map(|place| {
            self.metric(&format!("tcptracker_capture_dropped_total{{where=\"{place}\"}}"))
        });
        lost.iter().sum()
    }
}
