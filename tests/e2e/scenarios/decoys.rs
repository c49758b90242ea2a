//! Scans with decoys forged by nmap.

use std::collections::BTreeSet;

use serde_json::json;

use crate::journal::Journal;
use crate::lab::{ATTACKER, ATTACKER_V6, Lab, OPEN_PORT, VICTIM, VICTIM_V6};
use crate::service::Start;

const SCAN: &str = "5d0741d35f104cf2bc625c85c40f2775";
const BLOCKED: &str = "b39b4bac17384f029bb82ffb3b2b31d1";

/// All sources are blocked, including the real scanner. Each report names the other sources, also
/// the report of the source that was detected first.
#[test]
fn decoys_are_marked_at_any_position_of_the_real_source() {
    for (decoys, attacker, victim) in [
        ("10.77.0.91,10.77.0.92,ME,10.77.0.93", ATTACKER, VICTIM),
        ("ME,198.51.100.7", ATTACKER, VICTIM),
        ("fd77::91,ME,fd77::92", ATTACKER_V6, VICTIM_V6),
    ] {
        let lab = Lab::new();
        let journal = Journal::new(&lab);
        let mut service = Start::on("eth0").through(journal.wrapper()).begin(&lab).await_ready();
        let signals = lab.bus.listen();
        lab.attacker.nmap(&format!("-sS -p 1-10 -D {decoys}"), victim);

        let all = decoys.replace("ME", &attacker.to_string());
        let all: BTreeSet<String> = all.split(',').map(str::to_owned).collect();
        let mut reported = BTreeSet::new();
        let [scans, blocks] = journal.next_of_kinds([SCAN, BLOCKED], all.len());
        for scan in scans {
            let source = scan["TCPTRACKER_SOURCE"].clone();
            assert_eq!(scan["TCPTRACKER_KIND"], "vertical", "{scan:?}");
            let others = scan["TCPTRACKER_DECOYS"].split(',').map(str::to_owned);
            let mut group: BTreeSet<String> = others.collect();
            assert!(group.insert(source.clone()), "{scan:?}");
            assert_eq!(group, all, "{scan:?}");
            let words =
                format!("; at the same time by {}", scan["TCPTRACKER_DECOYS"].replace(',', ", "));
            assert!(scan["MESSAGE"].contains(&words), "{scan:?}");
            assert!(reported.insert(source), "{scan:?}");
            let (types, data) = signals.next_named("ScanDetected");
            assert_eq!((types.as_str(), &data[2]), ("saqs", &json!("vertical")));
        }
        for blocked in blocks {
            let reason = "as others did at the same time (decoys?)";
            assert!(blocked["TCPTRACKER_REASON"].contains(reason), "{blocked:?}");
        }
        assert_eq!(reported, all);
        assert_eq!(
            lab.bus.list().iter().map(|block| block.0.clone()).collect::<BTreeSet<_>>(),
            all
        );
        lab.attacker.assert_cannot_reach(victim, OPEN_PORT);
        lab.bystander.assert_reaches(victim, OPEN_PORT);
        assert_eq!(service.stop().code(), Some(0));
        lab.assert_untouched();
    }
}

/// nmap invents the addresses, and some may belong to innocent hosts.
#[test]
fn random_decoys_are_blocked_for_the_shortest_time() {
    let lab = Lab::new();
    let mut service = lab.start();
    lab.attacker.nmap("-sS -p 1-10 -D RND:7", VICTIM);
    service.await_lines("WARN blocked ", 8);
    let marked = service.lines_with(": all but one may be decoys");
    assert_eq!(marked.len(), 8, "{marked:?}");
    for (_, since, until, offences, reason) in lab.bus.list() {
        assert_eq!((until - since, offences), (3600, 1));
        assert!(reason.ends_with(", as others did at the same time (decoys?)"), "{reason}");
    }
    assert_eq!(lab.bus.list().len(), 8);
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);

    // A single scanner is not marked as a possible decoy.
    lab.bystander.nmap("-sS -p 11-20", VICTIM);
    let alone = service.await_line("port scan by 10.77.0.3 on");
    assert!(alone.ends_with("more than 3 within 60s"), "{alone}");
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}
