//! Runs attacks in random order, and reports what each did to the service.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::arena::{Arena, Options};
use crate::observer::{Demands, Findings, Observer, anonymous_bytes};
use crate::tools::Random;

/// After so many attacks the service starts again, with other options.
const ATTACKS_PER_START: usize = 10;

/// Rules that an attack removed must be back within this time after it.
const REPAIR: Duration = Duration::from_secs(10);

/// Memory must be back at its earlier size within this time.
const RELEASE: Duration = Duration::from_secs(60);

/// The suite ends early after so many failures, unless the attacks were chosen.
const MOST_FAILURES: usize = 12;

/// An attack. `run` carries it out and undoes it; an error is a promise that the service broke.
pub struct Attack {
    pub name: &'static str,
    pub run: fn(&mut Arena, &mut Random) -> Result<(), String>,
    /// Changes the options to those that the attack needs.
    needs: fn(&mut Options),
    demands: Demands,
    /// The service must start again after it.
    spoils: bool,
}

impl Attack {
    pub const fn new(
        name: &'static str,
        run: fn(&mut Arena, &mut Random) -> Result<(), String>,
    ) -> Self {
        Self { name, run, needs: |_| {}, demands: Demands::All, spoils: false }
    }

    pub const fn needing(mut self, needs: fn(&mut Options)) -> Self {
        self.needs = needs;
        self
    }

    pub const fn demanding(mut self, demands: Demands) -> Self {
        self.demands = demands;
        self
    }

    pub const fn spoiling(mut self) -> Self {
        self.spoils = true;
        self
    }
}

/// One of the three tests.
pub struct Suite {
    pub name: &'static str,
    pub attacks: &'static [Attack],
    /// Draws the options of a start.
    pub options: fn(&mut Random) -> Options,
    /// The most memory that an attack may add, in bytes.
    pub growth: Option<u64>,
    /// The most memory of the whole process, in bytes.
    pub most: Option<fn(&Options) -> u64>,
    /// The most memory that may remain of all attacks after [`RELEASE`].
    pub remains: Option<u64>,
}

/// Sums of one attack for the report.
#[derive(Default)]
struct Sum {
    times: u32,
    failures: u32,
    scans: u32,
    worst_scan: Duration,
    worst_call: Duration,
    growth: u64,
}

pub fn run(suite: &Suite) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let seed = seed();
    let seconds =
        std::env::var("TCPTRACKER_ABUSE_SECONDS").map_or(60, |text| text.parse().unwrap());
    println!("{}: TCPTRACKER_SEED={seed}, {seconds} s", suite.name);
    let only = std::env::var("TCPTRACKER_ATTACK").ok();
    let chosen: Vec<&Attack> = suite
        .attacks
        .iter()
        .filter(|attack| match &only {
            Some(names) => names.split(',').any(|name| name == attack.name),
            None => true,
        })
        .collect();
    if chosen.is_empty() {
        println!("{}: no attack to run", suite.name);
        return;
    }
    let mut course = Course {
        suite,
        random: Random::seeded(seed),
        arena: None,
        sums: BTreeMap::new(),
        failures: Vec::new(),
        begun: Instant::now(),
    };
    let mut deck: Vec<&Attack> = Vec::new();
    while course.begun.elapsed() < Duration::from_secs(seconds)
        && (only.is_some() || course.failures.len() < MOST_FAILURES)
    {
        if deck.is_empty() {
            deck.extend(&chosen);
        }
        let next = deck.swap_remove(course.random.below(deck.len()));
        course.step(next);
    }
    course.retire();
    course.report();
    assert!(
        course.failures.is_empty(),
        "{} with TCPTRACKER_SEED={seed} broke:\n{}",
        suite.name,
        course.failures.join("\n")
    );
}

fn seed() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    std::env::var("TCPTRACKER_SEED").map_or_else(
        |_| u64::try_from(since_1970.as_nanos() & u128::from(u32::MAX)).unwrap(),
        |seed| seed.parse().unwrap(),
    )
}

/// A run of a suite.
struct Course<'a> {
    suite: &'a Suite,
    random: Random,
    arena: Option<Arena>,
    sums: BTreeMap<&'static str, Sum>,
    failures: Vec<String>,
    begun: Instant,
}

impl Course<'_> {
    /// Carries out one attack on a service that is in order.
    fn step(&mut self, attack: &Attack) {
        let mut wanted = match &self.arena {
            Some(arena) if arena.attacks < ATTACKS_PER_START => arena.options.clone(),
            _ => {
                self.retire();
                (self.suite.options)(&mut self.random)
            }
        };
        (attack.needs)(&mut wanted);
        if self.arena.as_ref().is_none_or(|arena| arena.options != wanted) {
            self.retire();
            match catch_unwind(AssertUnwindSafe(|| Arena::new(&wanted))) {
                Ok(arena) => self.arena = Some(arena),
                Err(panic) => {
                    let text = text_of(&*panic);
                    self.fail(attack, &[format!("the service did not start: {text}")]);
                    return;
                }
            }
        }
        let Some(arena) = self.arena.as_mut() else { return };
        arena.attacks += 1;
        let pid = arena.process.as_ref().map(crate::process::Process::pid).unwrap();
        let before = anonymous_bytes(pid).unwrap_or_default();
        let begun = self.begun.elapsed();
        arena.observer.as_ref().unwrap().begin(attack.demands);
        let random = &mut self.random;
        let result = catch_unwind(AssertUnwindSafe(|| (attack.run)(arena, random)));
        let mut broken = Vec::new();
        match result {
            Ok(Ok(())) => {}
            Ok(Err(text)) => broken.push(text),
            Err(panic) => broken.push(text_of(&*panic)),
        }
        // An attack that stops the service for good leaves none.
        let findings = arena.observer.as_ref().map_or_else(Findings::default, Observer::finish);
        broken.extend(findings.broken.iter().cloned());
        if let Some(process) = &mut arena.process {
            if process.is_alive() {
                broken.extend(arena.await_hooks(REPAIR).err());
            } else if broken.is_empty() {
                broken.push("the process ended".to_owned());
            }
        }
        let growth = findings.peak.saturating_sub(before);
        if let Some(limit) = self.suite.growth.filter(|limit| growth > *limit) {
            broken.push(format!("memory grew by {} of at most {} MiB", growth >> 20, limit >> 20));
        }
        if let Some(limit) =
            self.suite.most.map(|most| most(&wanted)).filter(|most| findings.peak > *most)
        {
            broken.push(format!(
                "memory grew to {} of at most {} MiB",
                findings.peak >> 20,
                limit >> 20
            ));
        }
        let sum = self.sums.entry(attack.name).or_default();
        sum.times += 1;
        sum.failures += u32::from(!broken.is_empty());
        sum.scans += findings.scans;
        sum.worst_scan = sum.worst_scan.max(findings.worst_scan);
        sum.worst_call = sum.worst_call.max(findings.worst_call);
        sum.growth = sum.growth.max(growth);
        println!(
            "{:5.1}s {:<44} {:4} scans ({} lost), worst {:.2?}, root {:.2?}, +{} MiB: {}",
            begun.as_secs_f32(),
            attack.name,
            findings.scans,
            findings.lost,
            findings.worst_scan,
            findings.worst_call,
            growth >> 20,
            if broken.is_empty() { "ok" } else { "BROKEN" }
        );
        if !broken.is_empty() {
            self.fail(attack, &broken);
            self.arena = None;
        } else if attack.spoils {
            self.retire();
        }
    }

    fn fail(&mut self, attack: &Attack, broken: &[String]) {
        let options = self.arena.as_ref().map(|arena| format!("{:?}", arena.options));
        let log = self.arena.as_ref().map(|arena| arena.log.tail()).unwrap_or_default();
        let text = format!(
            "{}: {}\n  with {}; the log ends with:\n{log}",
            attack.name,
            broken.join("; "),
            options.unwrap_or_default()
        );
        println!("{text}");
        self.failures.push(text);
    }

    /// Stops the service, whose memory must be what it was.
    fn retire(&mut self) {
        let Some(mut arena) = self.arena.take() else { return };
        if let (Some(limit), Some(process)) = (self.suite.remains, &arena.process) {
            let pid = process.pid();
            let begun = Instant::now();
            let grown = || anonymous_bytes(pid).unwrap_or_default().saturating_sub(arena.memory);
            while grown() > limit && begun.elapsed() < RELEASE {
                std::thread::sleep(Duration::from_millis(100));
            }
            let (left, took) = (grown(), begun.elapsed());
            if left > limit {
                let text = format!(
                    "{} attacks left {} MiB more than before, at most {} are allowed",
                    arena.attacks,
                    left >> 20,
                    limit >> 20
                );
                println!("{text}");
                self.failures.push(text);
            } else {
                println!(
                    "       memory after {} attacks: +{} KiB ({took:.1?})",
                    arena.attacks,
                    left >> 10
                );
            }
        }
        if arena.process.is_some()
            && let Err(text) = arena.stop(Duration::from_secs(10))
        {
            println!("{text}");
            self.failures.push(format!("{text}; the log ends with:\n{}", arena.log.tail()));
        }
    }

    fn report(&self) {
        println!("\n{:<46} times broken scans worst scan  worst root  memory", self.suite.name);
        for (name, sum) in &self.sums {
            println!(
                "{name:<46} {:5} {:6} {:5} {:>10.1?} {:>11.1?} {:>4} MiB",
                sum.times,
                sum.failures,
                sum.scans,
                sum.worst_scan,
                sum.worst_call,
                sum.growth >> 20
            );
        }
    }
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "panicked".to_owned())
}
