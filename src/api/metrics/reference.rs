//! What each counter of `Stats` means: the table in tcptracker(1).

/// Names and meanings, in the order of the table.
pub const COUNTERS: [(&str, &str); 19] = [
    ("connections", "new connections seen, in all directions"),
    ("connections_inbound", "new connections to an address of this host"),
    ("connections_outbound", "new connections from an address of this host"),
    ("connections_forwarded", "new connections through this host"),
    ("scans", "scans detected"),
    ("blocks", "blocks added, after a scan or manually"),
    ("unblocks", "blocks ended, for any cause"),
    ("blocked", "addresses and networks to be blocked now"),
    ("enforced", "addresses and networks that the kernel blocks now; 0 while a rule is missing"),
    ("dropped_packets", "packets of blocked sources that the kernel has dropped"),
    ("sources", "sources remembered now"),
    ("sources_evicted", "sources evicted to make room for others (`detection.max_sources`)"),
    ("capture_packets", "packets that passed the capture filter"),
    ("capture_dropped_kernel", "packets lost because capture was too slow"),
    ("capture_dropped_interface", "packets lost by the interface or its driver"),
    ("capture_dropped_queue", "packets lost because the detector was too slow"),
    ("scans_lost", "scans for which the firewall queue had no room"),
    ("events_lost_journal", "journal entries suppressed because there were too many"),
    ("events_lost_bus", "D-Bus signals suppressed because there were too many, or no bus"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::api::metrics::Metrics;
    use crate::types::Status;

    #[test]
    fn every_counter_is_explained() {
        let summary = Metrics::new().unwrap().summary(&Status::default());
        let counters: BTreeSet<&str> = summary.iter().map(|(name, _)| *name).collect();
        assert_eq!(BTreeSet::from(COUNTERS.map(|(name, _)| name)), counters);
    }
}
