//! What each counter means that `Stats` tells.
//!
//! The one table tcptracker(1) is made from. Complete: a test holds it against the counters.

/// A name and what it counts, in an order in which people read them.
pub const COUNTERS: [(&str, &str); 19] = [
    ("connections", "new connections seen, in all directions"),
    ("connections_inbound", "of these, to one of this host's addresses"),
    ("connections_outbound", "from one of them"),
    ("connections_forwarded", "through this host"),
    ("scans", "scans recognised"),
    ("blocks", "blocks begun, for a scan or by hand"),
    ("unblocks", "blocks ended, whatever ended them"),
    ("blocked", "addresses and networks that are to be blocked now"),
    (
        "enforced",
        "those of them that are in the kernel, as it was last looked, less than a second ago; 0 while a rule \
         is missing",
    ),
    (
        "dropped_packets",
        "packets of the blocked that the kernel has dropped, as it was last looked",
    ),
    ("sources", "sources remembered now"),
    ("sources_evicted", "sources forgotten for want of room (`detection.max_sources`)"),
    ("capture_packets", "packets the capture filter has let through"),
    ("capture_dropped_kernel", "packets lost because capture was too slow"),
    ("capture_dropped_interface", "packets lost by the interface or its driver"),
    ("capture_dropped_queue", "packets lost because the detector was too slow"),
    ("scans_lost", "scans the firewall had no room for"),
    ("events_lost_journal", "entries of the journal dropped, too many at a time"),
    ("events_lost_bus", "signals dropped, too many at a time"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::api::metrics::Metrics;
    use crate::handles::health::Status;

    #[test]
    fn every_counter_is_explained() {
        let explained: BTreeSet<&str> = COUNTERS.iter().map(|(name, _)| *name).collect();
        let summary = Metrics::new().unwrap().summary(&Status::default());
        assert_eq!(explained, summary.iter().map(|(name, _)| *name).collect());
        assert_eq!(explained.len(), COUNTERS.len());
    }
}
