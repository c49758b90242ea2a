//! The ledger, also compared with a simple model over random steps.

use super::*;
use crate::types::{Evidence, Rule, ScanKind};
use proptest::prelude::*;

const LONGEST: Duration = Duration::from_secs(1000);

fn at(seconds: u64) -> Moment {
    Moment::from_nanos(seconds * 1_000_000_000)
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

#[expect(clippy::unnecessary_wraps, reason = "as the ledger takes it")]
fn seconds(seconds: u64) -> Option<Duration> {
    Some(Duration::from_secs(seconds))
}

fn block(since: u64, duration: Option<Duration>) -> Block {
    let until = duration.map(|duration| at(since) + duration);
    Block { since: at(since), until, offences: 0, reason: BlockReason::Found }
}

#[test]
fn blocks_are_due_when_they_end() {
    let mut ledger = Ledger::new(LONGEST);
    ledger.insert(net("192.0.2.1/32"), at(0), block(0, seconds(60)));
    ledger.insert(net("192.0.2.2/32"), at(0), block(0, seconds(30)));
    assert_eq!(ledger.next_due(), Some(at(30)));
    assert_eq!(ledger.take_due(at(29)), None);
    assert_eq!(ledger.take_due(at(30)), Some((net("192.0.2.2/32"), Due::Expired)));
    assert_eq!(ledger.take_due(at(30)), None);
}

#[test]
fn block_longer_than_the_kernel_can_hold_is_prolonged() {
    let mut ledger = Ledger::new(LONGEST);
    ledger.insert(net("192.0.2.1/32"), at(0), block(0, None));
    ledger.insert(net("192.0.2.2/32"), at(0), block(0, seconds(700)));
    assert_eq!(ledger.kernel_time(None), LONGEST);
    assert_eq!(ledger.kernel_time(seconds(700)), LONGEST / 2);
    let (endless, long) = (net("192.0.2.1/32"), net("192.0.2.2/32"));
    assert_eq!(ledger.take_due(at(249)), None);
    assert_eq!(ledger.take_due(at(250)), Some((long, Due::Prolong(Duration::from_secs(450)))));
    assert_eq!(ledger.take_due(at(500)), Some((endless, Due::Prolong(LONGEST))));
    assert_eq!(ledger.take_due(at(699)), None);
    assert_eq!(ledger.take_due(at(700)), Some((long, Due::Expired)));
}

#[test]
fn deferred_block_is_due_again() {
    let mut ledger = Ledger::new(LONGEST);
    let network = net("192.0.2.1/32");
    ledger.insert(network, at(0), block(0, seconds(60)));
    assert_eq!(ledger.take_due(at(60)), Some((network, Due::Expired)));
    ledger.defer(network, at(61));
    assert_eq!(ledger.take_due(at(60)), None);
    assert_eq!(ledger.take_due(at(61)), Some((network, Due::Expired)));
}

#[test]
fn replaced_block_is_due_once() {
    let mut ledger = Ledger::new(LONGEST);
    ledger.insert(net("192.0.2.1/32"), at(0), block(0, seconds(10)));
    ledger.insert(net("192.0.2.1/32"), at(5), block(5, seconds(60)));
    assert_eq!(ledger.take_due(at(60)), None);
    assert_eq!(ledger.take_due(at(65)), Some((net("192.0.2.1/32"), Due::Expired)));
    assert_eq!(ledger.blocks().len(), 1);
}

#[test]
fn overlapping_finds_the_block_those_around_it_and_those_within_it() {
    let mut ledger = Ledger::new(LONGEST);
    for text in ["10.0.0.0/8", "10.1.0.0/16", "2001:db8::/64", "192.0.2.1/32", "192.0.2.2/32"] {
        ledger.insert(net(text), at(0), block(0, None));
    }
    assert_eq!(ledger.overlapping(&net("10.1.0.0/16")), [net("10.1.0.0/16"), net("10.0.0.0/8")]);
    assert_eq!(ledger.overlapping(&net("10.0.0.0/8")), [net("10.0.0.0/8"), net("10.1.0.0/16")]);
    assert_eq!(ledger.overlapping(&net("10.1.2.3/32")), [net("10.1.0.0/16"), net("10.0.0.0/8")]);
    assert_eq!(ledger.overlapping(&net("2001:db8::5/128")), [net("2001:db8::/64")]);
    assert_eq!(ledger.overlapping(&net("192.0.2.0/24")).len(), 2);
    assert_eq!(ledger.overlapping(&net("198.51.100.1/32")), []);
    assert!(ledger.covers(&net("10.9.9.9/32")));
    assert!(!ledger.covers(&net("192.0.2.0/24")));
}

#[test]
fn offence_counts_until_it_is_forgotten() {
    let mut ledger = Ledger::new(LONGEST);
    let source = net("192.0.2.1/32");
    let month = Duration::from_secs(100);
    assert_eq!(ledger.next_offence(&source, at(0), month), 1);
    ledger.add_offence(source, at(0), 1);
    assert_eq!(ledger.next_offence(&source, at(99), month), 2);
    assert_eq!(ledger.next_offence(&source, at(100), month), 1);
}

#[test]
fn grace_covers_what_lies_in_it_until_it_ends() {
    let mut ledger = Ledger::new(LONGEST);
    ledger.grant_grace(net("192.0.2.0/24"), at(10));
    assert_eq!(ledger.grace(&net("192.0.2.1/32"), at(4)), seconds(6));
    assert_eq!(ledger.grace(&net("192.0.2.1/32"), at(10)), None);
    // A user blocks one address: the grace period of the others stays.
    ledger.end_grace(&net("192.0.2.1/32"));
    assert_eq!(ledger.grace(&net("192.0.2.2/32"), at(4)), seconds(6));
    ledger.end_grace(&net("192.0.0.0/16"));
    assert_eq!(ledger.grace(&net("192.0.2.2/32"), at(4)), None);
}

#[test]
fn repeat_offenders_and_sources_with_many_probes_are_evicted_last() {
    let mut ledger = Ledger::new(LONGEST);
    let scan = |probes, offences, duration| {
        let evidence = Evidence {
            kind: ScanKind::Vertical,
            address: [192, 0, 2, 1].into(),
            destination: [192, 0, 2, 5].into(),
            attempts: Vec::new(),
            probes,
            rule: Rule::Ports,
            threshold: 3,
            span: Duration::from_secs(60),
            decoy: false,
        };
        let reason = BlockReason::Scan(Box::new(evidence));
        Block { offences, reason, ..block(0, duration) }
    };
    for (network, block) in [
        ("192.0.2.1/32", scan(4, 2, seconds(60))),
        ("192.0.2.2/32", scan(8, 1, seconds(60))),
        ("192.0.2.3/32", scan(4, 1, None)),
        ("192.0.2.4/32", scan(4, 1, seconds(90))),
        ("192.0.2.5/32", scan(4, 1, seconds(60))),
        ("192.0.2.6/32", scan(4, 1, seconds(30))),
        ("192.0.2.7/32", Block { reason: BlockReason::Manual(String::new()), ..block(0, None) }),
        ("192.0.2.8/32", block(0, seconds(60))),
        ("2001:db8::/64", scan(1, 1, seconds(60))),
    ] {
        ledger.insert(net(network), at(0), block);
    }
    ledger.note_probes(&net("192.0.2.6/32"), 1000);
    ledger.note_probes(&net("192.0.2.6/32"), 9);
    ledger.note_probes(&net("192.0.2.9/32"), 9);
    let mut evicted = Vec::new();
    while let Some(network) = ledger.first_to_evict(Family::V4) {
        ledger.remove(&network);
        evicted.push(network);
    }
    let order = [5, 4, 3, 2, 6, 1].map(|last| net(&format!("192.0.2.{last}/32")));
    assert_eq!(evicted, order);
    assert_eq!(ledger.first_to_evict(Family::V6), Some(net("2001:db8::/64")));
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u8, Option<u64>),
    Remove(u8),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..6u8, proptest::option::of(1..3000u64)).prop_map(|(n, d)| Step::Insert(n, d)),
        (0..6u8).prop_map(Step::Remove),
        (1..900u64).prop_map(Step::Pass),
    ]
}

proptest! {
    /// Compared with a map of end times: the blocks are the same at every step, and the kernel, which
    /// expires an element after the time that it was told, never does so early.
    #[test]
    fn equals_a_map_of_end_times(steps in proptest::collection::vec(step(), 1..60)) {
        let mut ledger = Ledger::new(LONGEST);
        let mut model: BTreeMap<IpNet, Option<u64>> = BTreeMap::new();
        let mut kernel: BTreeMap<IpNet, u64> = BTreeMap::new();
        let mut now = 0;
        let network = |n: u8| IpNet::from(std::net::IpAddr::from([192, 0, 2, n]));
        for step in steps {
            match step {
                Step::Insert(n, duration) => {
                    let duration = duration.map(Duration::from_secs);
                    kernel.insert(network(n), now + ledger.kernel_time(duration).as_secs());
                    ledger.insert(network(n), at(now), block(now, duration));
                    model.insert(network(n), duration.map(|d| now + d.as_secs()));
                }
                Step::Remove(n) => {
                    prop_assert_eq!(
                        ledger.remove(&network(n)).is_some(),
                        model.remove(&network(n)).is_some()
                    );
                }
                Step::Pass(time) => {
                    // The firewall thread wakes up whenever something is due.
                    let end = now + time;
                    while let Some(due) = ledger.next_due().filter(|due| *due <= at(end)) {
                        now = now.max(due.as_nanos() / 1_000_000_000);
                        while let Some((network, due)) = ledger.take_due(at(now)) {
                            match due {
                                Due::Expired => { ledger.remove(&network); }
                                Due::Prolong(more) => {
                                    prop_assert!(kernel[&network] >= now, "expired early");
                                    kernel.insert(network, now + more.as_secs());
                                }
                            }
                        }
                    }
                    now = end;
                    model.retain(|_, until| until.is_none_or(|until| until > now));
                }
            }
            let blocked: Vec<IpNet> = ledger.blocks().map(|(network, _)| *network).collect();
            prop_assert_eq!(&blocked, &model.keys().copied().collect::<Vec<_>>());
            prop_assert_eq!(ledger.count(Family::V4) as usize, blocked.len());
            for network in blocked {
                prop_assert!(kernel[&network] > now, "expired early");
            }
        }
    }
}
