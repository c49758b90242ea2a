//! `kill -9` at any moment: what callers were told is so at the next start, and nothing else. The same when
//! the power fails, but for the last second.

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

/// How often the service is killed, and how many calls it has to have answered by then, by backend.
const KILLS: [(&str, u32, u32); 2] = [("ipset", 40, 300), ("iptables", 16, 60)];

/// How long it lives at the most, in milliseconds from its start, which takes about as long: in one of four
/// rounds.
const LIFE: usize = 200;

/// In the others so many calls are answered at the most, and then so many milliseconds pass: how fast the
/// machine is makes no difference.
const ANSWERED: usize = 60;
const AFTERWARDS: usize = 10;

/// Few enough to be blocked, unblocked and blocked again all the time.
const ADDRESSES: usize = 12;

/// Clocks are read at other moments, times rounded to seconds.
const SLACK: u64 = 2;

/// A block, by what its caller knows: when it began and ends, as earliest and latest; no end: until
/// unblocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    since: (u64, u64),
    length: Option<u64>,
}

impl Known {
    fn is_over(&self, now: u64) -> bool {
        self.length.is_some_and(|length| now > self.since.1 + length + SLACK)
    }

    fn may_be_over(&self, now: u64) -> bool {
        self.length.is_some_and(|length| now + SLACK >= self.since.0 + length)
    }

    fn is(&self, (_, since, until, ..): &Block) -> bool {
        let (earliest, latest) = (self.since.0 - SLACK, self.since.1 + SLACK);
        let ends = |length| earliest + length..=latest + length;
        (earliest..=latest).contains(since)
            && self.length.map_or(*until == 0, |length| ends(length).contains(until))
    }
}

/// What may be true of each address: one thing, or two for whom the service was killed over.
struct World(BTreeMap<String, Vec<Option<Known>>>);

impl World {
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

    /// Makes a random call, and remembers what follows from its answer. False if there was none.
    fn change(&mut self, caller: &BusClient, random: &mut Random) -> bool {
        let at = random.below(ADDRESSES);
        let (address, fates) = self.0.iter_mut().nth(at).unwrap();
        let before = unix_now();
        let (wanted, answer) = if random.below(5) < 2 {
            (None, caller.unblock(address))
        } else {
            let length = [0, 1, 2, 3600][random.below(4)];
            let answer = caller.block(address, length, "a test");
            (Some((length > 0).then_some(length)), answer)
        };
        let since = (before, unix_now());
        let fate = wanted.map(|length| Known { since, length });
        match answer {
            Reply::Value(()) => {
                if fate.is_none() {
                    assert!(fates.iter().any(Option::is_some), "{address} was not blocked");
                }
                *fates = vec![fate];
            }
            Reply::Error(name) => {
                assert_eq!(
                    (fate, name.rsplit('.').next()),
                    (None, Some("NotBlocked")),
                    "{address}"
                );
                let may_be_free =
                    |fate: &Option<Known>| fate.is_none_or(|known| known.may_be_over(since.1));
                assert!(
                    fates.iter().any(may_be_free),
                    "{address}: {fates:?}, refused at {since:?}"
                );
                *fates = vec![None];
            }
            Reply::Unknown => {
                fates.push(fate);
                return false;
            }
        }
        true
    }

    /// Holds a list against what may be true; from then on that is what is true.
    fn compare(&mut self, list: &[Block], backend: &str, now: u64) {
        for (address, fates) in &mut self.0 {
            let listed = list.iter().find(|block| block.0 == *address);
            let fits = |fate: &Option<Known>| match (fate, listed) {
                (None, None) => true,
                (None, Some(_)) => false,
                (Some(known), None) => known.may_be_over(now),
                (Some(known), Some(block)) => known.is(block) && !known.is_over(now),
            };
            let true_one = fates.iter().copied().find(fits);
            // A rule of whom nobody was told knows no time: then it is an hour.
            let of_unknown_length = || {
                let may_be = backend == "iptables" && fates.len() > 1;
                let (_, since, until, _, reason) = listed.filter(|_| may_be)?;
                let is_found = reason.starts_with("left in the kernel") && until - since == 3600;
                is_found.then_some(Some(Known { since: (*since, *since), length: Some(3600) }))
            };
            let Some(fate) = true_one.or_else(of_unknown_length) else {
                panic!("{address}: callers know {fates:?}, listed is {listed:?} at {now}");
            };
            *fates = vec![fate.filter(|_| listed.is_some())];
        }
        let strangers = list.iter().find(|block| !self.0.contains_key(&block.0));
        assert_eq!(strangers, None);
    }
}

#[test]
fn what_callers_were_told_is_so_after_any_crash() {
    for (backend, kills, least_calls) in KILLS {
        crash(backend, kills, least_calls);
    }
}

fn crash(backend: &str, kills: u32, least_calls: u32) {
    let seed = std::env::var("TCPTRACKER_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) ^ unix_now());
    println!("to see the same again: TCPTRACKER_SEED={seed}");
    let mut random = Random::seeded(seed);
    let lab = Lab::new();
    lab.configure(&format!("firewall.backend = \"{backend}\"\n"));
    let caller = BusClient::on(&lab.bus);
    let mut world = World::new();
    let (mut calls, mut unready) = (0, 0);
    for round in 0..kills {
        let mut service = Start::on("eth0").begin(&lab);
        let in_the_start = random.below(4) == 0;
        let answered = if in_the_start { 0 } else { 1 + random.below(ANSWERED) };
        let life = random.below(if in_the_start { LIFE } else { AFTERWARDS });
        let mut calls_random = Random::seeded(random.next());
        let (answer, answers) = channel();
        let (end, ended) = channel::<()>();
        std::thread::scope(|scope| {
            let (world, caller) = (&mut world, &caller);
            let calling = scope.spawn(move || {
                while !matches!(caller.list(), Reply::Value(_)) {
                    if ended.try_recv().is_ok() {
                        return None;
                    }
                }
                let mut made = 0;
                while world.change(caller, &mut calls_random) {
                    made += 1;
                    let _ = answer.send(());
                }
                Some(made)
            });
            assert_eq!(answers.iter().take(answered).count(), answered, "it has ended by itself");
            pass(Duration::from_millis(life.try_into().unwrap()));
            service.crash();
            // Nobody listens who has begun.
            let _ = end.send(());
            match calling.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
                Some(made) => calls += made,
                None => unready += 1,
            }
        });
        if round % 4 == 3 {
            // The machine went down with it: the kernel remembers nothing.
            wipe(&lab.victim);
        }
        if round % 2 == 0 {
            continue;
        }
        let mut service = lab.start();
        assert_all_agree(&lab, backend, &caller, &mut world);
        if round % 8 == 7 {
            assert_eq!(service.stop().code(), Some(0));
            lab.assert_untouched();
        } else {
            service.crash();
        }
    }
    println!(
        "{backend}: {kills} kills, {unready} before it was ready; {calls} calls were answered"
    );
    assert!(calls > least_calls, "{calls} calls only");
}

/// Whom the kernel drops.
fn held_by(victim: &Namespace, backend: &str) -> BTreeSet<String> {
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

/// Lets time pass, to a moment of the test's own choice, which does not come after anything.
fn pass(span: Duration) {
    let (_silent, nothing) = channel::<()>();
    assert_eq!(nothing.recv_timeout(span), Err(RecvTimeoutError::Timeout));
}

/// Kernel, database, and what callers were told.
fn assert_all_agree(lab: &Lab, backend: &str, caller: &BusClient, world: &mut World) {
    let kept = || {
        let file = lab.state_directory("eth0").join("tcptracker.db");
        let file = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let mut statement = file.prepare("SELECT network FROM block").unwrap();
        let rows = statement.query_map((), |row| row.get::<_, String>(0)).unwrap();
        rows.map(|row| row.unwrap().trim_end_matches("/32").to_owned()).collect::<BTreeSet<_>>()
    };
    let held = || held_by(&lab.victim, backend);
    loop {
        let list = || match caller.list() {
            Reply::Value(list) => list,
            other => panic!("{other:?}"),
        };
        let before = list();
        let (kept, held, now) = (kept(), held(), unix_now());
        let after = list();
        if before != after {
            // Something was over just now.
            continue;
        }
        let listed: BTreeSet<String> = after.iter().map(|block| block.0.clone()).collect();
        assert_eq!(kept, listed, "in the database, and listed");
        assert_eq!(held, listed, "in the kernel, and listed");
        world.compare(&after, backend, now);
        return;
    }
}

/// How often the power fails, and for how many milliseconds at the least there is some.
const POWER_CUTS: usize = 3;
const POWER: usize = 4000;

/// And at least so many changes.
const CHANGES: usize = 150;

/// What may be lost is a second's changes; a machine under load may be late, and later where its disk is slow.
/// What nobody flushes would be lost for half a minute.
const LOSS: Duration = Duration::from_secs(3);

#[test]
fn a_power_cut_costs_what_is_youngest_and_nothing_else() {
    let mut random = Random::seeded(u64::from(std::process::id()) ^ unix_now());
    let lab = Lab::new();
    let mut disk = PowerCutDisk::for_state(&lab);
    let caller = BusClient::on(&lab.bus);
    // Who was blocked and who was let in, from some moment on.
    let mut told: BTreeMap<String, (bool, Instant)> = BTreeMap::new();
    for round in 0..POWER_CUTS {
        let mut service = lab.start();
        let life = Duration::from_millis((POWER + random.below(1000)).try_into().unwrap());
        let (begun, mut changes) = (Instant::now(), 0);
        while begun.elapsed() < life || changes < CHANGES {
            changes += 1;
            let address = format!("198.51.{round}.{}", random.below(256));
            let is_blocked = told.get(&address).is_none_or(|(is_blocked, _)| !is_blocked);
            let answer = if is_blocked {
                caller.block(&address, 0, "before the power fails")
            } else {
                caller.unblock(&address)
            };
            assert_eq!(answer, Reply::Value(()), "{address}");
            told.insert(address, (is_blocked, Instant::now()));
            // So few that the log does not grow so large that it is moved, and flushed on the way.
            pass(Duration::from_millis(random.below(60).try_into().unwrap()));
        }
        let cut = Instant::now();
        disk.cut_power();
        let at_the_most = LOSS + 3 * disk.flush_duration();
        service.crash();
        wipe(&lab.victim);
        disk.power_up();

        let mut service = lab.start();
        assert_eq!(lab.bus.property("State").1, "enforcing");
        let Reply::Value(blocks) = caller.list() else { panic!("no list") };
        let listed: BTreeSet<String> = blocks.into_iter().map(|block| block.0).collect();
        let (mut kept, mut lost) = (0, Vec::new());
        told.retain(|address, (is_blocked, since)| {
            let is_so = listed.contains(address) == *is_blocked;
            let age = cut.saturating_duration_since(*since);
            assert!(is_so || age < at_the_most, "{address}, {is_blocked} {age:?} before, was lost");
            if is_so {
                kept += 1;
            } else {
                lost.push(age);
            }
            is_so
        });
        println!("{kept} kept, {} lost, the oldest {:?} old", lost.len(), lost.iter().max());
        assert!(kept > 50, "{kept} only");
        let in_kernel: BTreeSet<String> =
            members(&lab.victim, "tcptracker-eth0-v4").into_iter().collect();
        assert_eq!(in_kernel, listed);
        assert_eq!(service.stop().code(), Some(0));
    }
    lab.assert_untouched();
}
