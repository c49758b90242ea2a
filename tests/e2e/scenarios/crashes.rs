//! After `kill -9` at any moment, the next start must restore exactly what replies have confirmed.
//! After a power failure, changes of the last second may be lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rusqlite::OpenFlags;

use crate::bus::Block;
use crate::bus_client::{BusClient, Reply};
use crate::disk::PowerCutDisk;
use crate::kernel::{Rules, members, wipe};
use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::service::Start;
use crate::tools::{Random, unix_now};

/// Per backend: number of kills, unless `TCPTRACKER_KILLS` sets it.
const KILLS: [(&str, u32); 2] = [("ipset", 40), ("iptables", 16)];

/// Minimum number of answered calls per kill, as otherwise the test proves little.
const LEAST_CALLS: u32 = 3;

/// In one of 4 rounds, the service is killed at most this many milliseconds after its start, which
/// takes about as long.
const LIFE: usize = 200;

/// In the other rounds, the service is killed after at most this many answered calls plus at most
/// this many milliseconds, so that the machine's speed does not matter.
const ANSWERED: usize = 60;
const AFTERWARDS: usize = 10;

/// Number of addresses. It is small, so that each one is blocked and unblocked often.
const ADDRESSES: usize = 12;

/// Allowed deviation in seconds: clocks are read at different moments, and times are rounded.
const SLACK: u64 = 2;

/// A block as its caller knows it: earliest and latest start, and length. Without a length, the
/// block ends only when it is unblocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    since: (u64, u64),
    length: Option<u64>,
}

impl Known {
    fn has_expired(&self, now: u64) -> bool {
        self.length.is_some_and(|length| now > self.since.1 + length + SLACK)
    }

    fn may_have_expired(&self, now: u64) -> bool {
        self.length.is_some_and(|length| now + SLACK >= self.since.0 + length)
    }

    fn matches(&self, (_, since, until, ..): &Block) -> bool {
        let (earliest, latest) = (self.since.0 - SLACK, self.since.1 + SLACK);
        let ends = |length| earliest + length..=latest + length;
        (earliest..=latest).contains(since)
            && self.length.map_or(*until == 0, |length| ends(length).contains(until))
    }
}

/// The possible states of each address: two states if the service was killed during a call for that
/// address, otherwise one.
struct Model(BTreeMap<String, Vec<Option<Known>>>);

impl Model {
    fn new() -> Self {
        // Single addresses and networks, of both families.
        let free = |number| {
            let name = match number % 4 {
                0 | 1 => format!("198.51.100.{number}"),
                2 => format!("198.51.{number}.0/24"),
                _ => format!("2001:db8:0:{number}::/64"),
            };
            (name, vec![None])
        };
        Self((0..ADDRESSES).map(free).collect())
    }

    /// Makes a random call and records the state that the reply implies. Returns false without a
    /// reply.
    fn change(&mut self, caller: &BusClient, random: &mut Random) -> bool {
        let at = random.below(ADDRESSES);
        let (address, states) = self.0.iter_mut().nth(at).unwrap();
        let before = unix_now();
        let (wanted, answer) = if random.below(5) < 2 {
            (None, caller.unblock(address))
        } else {
            let length = [0, 1, 2, 3600][random.below(4)];
            let answer = caller.block(address, length, "a test");
            (Some((length > 0).then_some(length)), answer)
        };
        let since = (before, unix_now());
        let state = wanted.map(|length| Known { since, length });
        match answer {
            Reply::Value(()) => {
                if state.is_none() {
                    assert!(states.iter().any(Option::is_some), "{address} was not blocked");
                }
                *states = vec![state];
            }
            Reply::Error(name) => {
                assert_eq!(
                    (state, name.rsplit('.').next()),
                    (None, Some("NotBlocked")),
                    "{address}"
                );
                let may_be_free = |state: &Option<Known>| {
                    state.is_none_or(|known| known.may_have_expired(since.1))
                };
                assert!(
                    states.iter().any(may_be_free),
                    "{address}: {states:?}, refused at {since:?}"
                );
                *states = vec![None];
            }
            Reply::Unknown => {
                states.push(state);
                return false;
            }
        }
        true
    }

    /// Asserts that a list matches a possible state of each address, and records the listed states.
    fn compare(&mut self, list: &[Block], backend: &str, now: u64) {
        for (address, states) in &mut self.0 {
            let listed = list.iter().find(|block| block.0 == *address);
            let fits = |state: &Option<Known>| match (state, listed) {
                (None, None) => true,
                (None, Some(_)) => false,
                (Some(known), None) => known.may_have_expired(now),
                (Some(known), Some(block)) => known.matches(block) && !known.has_expired(now),
            };
            let matching = states.iter().copied().find(fits);
            // An iptables rule has no timeout, so a rule without a saved block ends after 1 h.
            let recovered_from_rule = || {
                let may_be = backend == "iptables" && states.len() > 1;
                let (_, since, until, _, reason) = listed.filter(|_| may_be)?;
                let is_recovered =
                    reason.starts_with("found in the kernel") && until - since == 3600;
                is_recovered.then_some(Some(Known { since: (*since, *since), length: Some(3600) }))
            };
            let Some(state) = matching.or_else(recovered_from_rule) else {
                panic!("{address}: possible states {states:?}, listed {listed:?} at {now}");
            };
            *states = vec![state.filter(|_| listed.is_some())];
        }
        let unexpected = list.iter().find(|block| !self.0.contains_key(&block.0));
        assert_eq!(unexpected, None);
    }
}

#[test]
fn confirmed_changes_survive_any_crash() {
    let number = std::env::var("TCPTRACKER_KILLS").ok().map(|kills| kills.parse().unwrap());
    for (backend, kills) in KILLS {
        crash(backend, number.unwrap_or(kills));
    }
}

fn crash(backend: &str, kills: u32) {
    let seed = std::env::var("TCPTRACKER_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) ^ unix_now());
    println!("to repeat this run: TCPTRACKER_SEED={seed}");
    let mut random = Random::seeded(seed);
    let lab = Lab::new();
    lab.configure(&format!("firewall.backend = \"{backend}\"\n"));
    let caller = BusClient::on(&lab.bus);
    let mut model = Model::new();
    let (mut calls, mut unready) = (0, 0);
    for round in 0..kills {
        let mut service = Start::on("eth0").begin(&lab);
        let during_start = random.below(4) == 0;
        let answered = if during_start { 0 } else { 1 + random.below(ANSWERED) };
        let life = random.below(if during_start { LIFE } else { AFTERWARDS });
        let mut calls_random = Random::seeded(random.next());
        let (answer, answers) = channel();
        let (end, ended) = channel::<()>();
        std::thread::scope(|scope| {
            let (model, caller) = (&mut model, &caller);
            let calling = scope.spawn(move || {
                while !matches!(caller.list(), Reply::Value(_)) {
                    if ended.try_recv().is_ok() {
                        return None;
                    }
                }
                let mut made = 0;
                while model.change(caller, &mut calls_random) {
                    made += 1;
                    let _ = answer.send(());
                }
                Some(made)
            });
            assert_eq!(
                answers.iter().take(answered).count(),
                answered,
                "the service exited unexpectedly"
            );
            wait(Duration::from_millis(life.try_into().unwrap()));
            service.crash();
            // Fails if the client thread has started to make calls: then it no longer listens.
            let _ = end.send(());
            match calling.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
                Some(made) => calls += made,
                None => unready += 1,
            }
        });
        if round % 4 == 3 {
            // Simulate a reboot, which clears the kernel's rules and sets.
            wipe(&lab.victim);
        }
        if round % 2 == 0 {
            continue;
        }
        let mut service = lab.start();
        assert_all_agree(&lab, backend, &caller, &mut model);
        if round % 8 == 7 {
            assert_eq!(service.stop().code(), Some(0));
            lab.assert_untouched();
        } else {
            service.crash();
        }
    }
    println!(
        "{backend}: {kills} kills, {unready} before the service was ready; {calls} answered calls"
    );
    assert!(calls > LEAST_CALLS * kills, "only {calls} answered calls");
}

/// Returns the networks that the kernel drops.
fn dropped_by(victim: &Namespace, backend: &str) -> BTreeSet<String> {
    if backend == "ipset" {
        let sets = ["tcptracker-eth0-v4", "tcptracker-eth0-v6"];
        return sets.iter().flat_map(|set| members(victim, set)).collect();
    }
    let rules = Rules::of(victim);
    let sources = rules.chain("tcptracker").into_iter().flatten().map(|rule| {
        let source = rule.strip_prefix("-s ").and_then(|rest| rest.split(' ').next()).unwrap();
        source.trim_end_matches("/32").to_owned()
    });
    sources.collect()
}

/// Waits for a fixed time that is not tied to any event.
fn wait(span: Duration) {
    let (_sender, nothing) = channel::<()>();
    assert_eq!(nothing.recv_timeout(span), Err(RecvTimeoutError::Timeout));
}

/// Asserts that the kernel, the database, the list and the model agree.
fn assert_all_agree(lab: &Lab, backend: &str, caller: &BusClient, model: &mut Model) {
    let saved = || {
        let file = lab.state_directory("eth0").join("tcptracker.db");
        let file = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let mut statement = file.prepare("SELECT network FROM block").unwrap();
        let rows = statement.query_map((), |row| row.get::<_, String>(0)).unwrap();
        rows.map(|row| row.unwrap().trim_end_matches("/32").to_owned()).collect::<BTreeSet<_>>()
    };
    let dropped = || dropped_by(&lab.victim, backend);
    loop {
        let list = || match caller.list() {
            Reply::Value(list) => list,
            other => panic!("{other:?}"),
        };
        let before = list();
        let (saved, dropped, now) = (saved(), dropped(), unix_now());
        let after = list();
        if before != after {
            // A block expired in between, so read again.
            continue;
        }
        let listed: BTreeSet<String> = after.iter().map(|block| block.0.clone()).collect();
        assert_eq!(saved, listed, "saved blocks differ from listed blocks");
        assert_eq!(dropped, listed, "dropped networks differ from listed blocks");
        model.compare(&after, backend, now);
        return;
    }
}

/// Number of power cuts, and the minimum time between two cuts in milliseconds.
const POWER_CUTS: usize = 3;
const POWER: usize = 4000;

/// Minimum number of changes before a power cut.
const CHANGES: usize = 150;

/// Allowed age of a lost change. The service flushes every second, but may be late on a loaded
/// machine or a slow disk. Without a flush, the kernel would lose changes of 30 s.
const LOSS: Duration = Duration::from_secs(3);

#[test]
fn power_cut_loses_only_the_most_recent_changes() {
    let mut random = Random::seeded(u64::from(std::process::id()) ^ unix_now());
    let lab = Lab::new();
    let mut disk = PowerCutDisk::for_state(&lab);
    let caller = BusClient::on(&lab.bus);
    // Per address: whether it is blocked, and since when.
    let mut confirmed: BTreeMap<String, (bool, Instant)> = BTreeMap::new();
    for round in 0..POWER_CUTS {
        let mut service = lab.start();
        let life = Duration::from_millis((POWER + random.below(1000)).try_into().unwrap());
        let (begun, mut changes) = (Instant::now(), 0);
        while begun.elapsed() < life || changes < CHANGES {
            changes += 1;
            let address = format!("198.51.{round}.{}", random.below(256));
            let is_blocked = confirmed.get(&address).is_none_or(|(is_blocked, _)| !is_blocked);
            let answer = if is_blocked {
                caller.block(&address, 0, "before the power fails")
            } else {
                caller.unblock(&address)
            };
            assert_eq!(answer, Reply::Value(()), "{address}");
            confirmed.insert(address, (is_blocked, Instant::now()));
            // Limit the rate, so that SQLite does not checkpoint the write-ahead log, which would
            // flush it.
            wait(Duration::from_millis(random.below(60).try_into().unwrap()));
        }
        let cut = Instant::now();
        disk.cut_power();
        let max_age = LOSS + 3 * disk.flush_duration();
        service.crash();
        wipe(&lab.victim);
        disk.power_up();

        let mut service = lab.start();
        assert_eq!(lab.bus.property("State").1, "enforcing");
        let Reply::Value(blocks) = caller.list() else { panic!("no list") };
        let listed: BTreeSet<String> = blocks.into_iter().map(|block| block.0).collect();
        let (mut kept, mut lost) = (0, Vec::new());
        confirmed.retain(|address, (is_blocked, since)| {
            let is_kept = listed.contains(address) == *is_blocked;
            let age = cut.saturating_duration_since(*since);
            assert!(
                is_kept || age < max_age,
                "lost a change of {address}, age {age:?}, blocked: {is_blocked}"
            );
            if is_kept {
                kept += 1;
            } else {
                lost.push(age);
            }
            is_kept
        });
        println!("{kept} kept, {} lost, oldest lost change: {:?}", lost.len(), lost.iter().max());
        assert!(kept > 50, "only {kept} changes kept");
        let in_kernel: BTreeSet<String> =
            members(&lab.victim, "tcptracker-eth0-v4").into_iter().collect();
        assert_eq!(in_kernel, listed);
        assert_eq!(service.stop().code(), Some(0));
    }
    lab.assert_untouched();
}
