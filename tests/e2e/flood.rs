//! Floods of frames that do not overrun the capture buffer.

use std::net::Ipv4Addr;
use std::time::Instant;

use crate::frames::{BROADCAST, SynTemplate, Wire, syn};
use crate::lab::{ATTACKER_V6, Lab, VICTIM_V6};
use crate::tools::TIMEOUT;

/// Number of frames to send before waiting for the service: a third of the kernel's capture buffer,
/// so that the result does not depend on the machine's speed.
const AHEAD: u32 = 8_000;

/// Counts frames with the victim's source address. Only [`Flood::settle`] sends them.
const CAUGHT_UP: &str = r#"tcptracker_connections_total{direction="outbound",family="ipv6"}"#;

/// A sender on the attacker's `eth0`. The service must serve metrics on the default port.
pub struct Flood<'a> {
    lab: &'a Lab,
    wire: Wire,
    /// A SYN to the hardware address of the victim's `eth0`.
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

    /// Sends any frame and returns whether the kernel accepted it.
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

    /// Waits until the service has processed all frames sent so far. It polls the metrics, which
    /// the service must serve during any flood.
    pub fn settle(&mut self) {
        let own = syn(BROADCAST, VICTIM_V6, ATTACKER_V6, 1);
        let before = self.lab.metric(CAUGHT_UP);
        let deadline = Instant::now() + TIMEOUT;
        // The marker frame may be lost too, so repeat it.
        while self.lab.metric(CAUGHT_UP) == before {
            assert!(Instant::now() < deadline, "the service has not processed the flood");
            self.wire.send(&own);
        }
        self.ahead = 0;
    }
}

impl Lab {
    /// Waits until the sum of these metrics and of the counted losses reaches `sent`. Every packet
    /// must be counted, either as processed or as lost.
    #[track_caller]
    pub fn assert_counted(&self, metrics: &[&str], sent: u64) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let counted = metrics.iter().map(|metric| self.metric(metric)).sum::<u64>();
            assert!(counted <= sent, "{metrics:?} sum to {counted}, more than {sent}");
            // The loss counters are updated twice a second.
            let lost = self.lost();
            if counted + lost >= sent {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{metrics:?}: {counted} counted and {lost} lost of {sent}"
            );
        }
    }

    /// Returns the number of packets lost between the wire and the detector.
    pub fn lost(&self) -> u64 {
        let lost = ["kernel", "interface", "queue"].map(|place| {
            self.metric(&format!("tcptracker_capture_dropped_total{{where=\"{place}\"}}"))
        });
        lost.iter().sum()
    }
}
