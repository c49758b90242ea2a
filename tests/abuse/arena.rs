//! The arena: a lab with a running service that attacks may disturb, and its observer.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::disk::Disk;
use crate::frames::Wire;
use crate::kernel::Rules;
use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::observer::{Observer, WATCHDOG, anonymous_bytes};
use crate::process::{AbsentJournal, LogReader, Process};
use crate::saved_blocks::save_blocks;
use crate::service::Start;
use crate::tools::{install_script, run};

/// The programs that the shim can slow down.
const PROGRAMS: [&str; 10] = [
    "iptables",
    "ip6tables",
    "iptables-save",
    "ip6tables-save",
    "iptables-restore",
    "ip6tables-restore",
    "iptables-nft-save",
    "ip6tables-nft-save",
    "iptables-nft-restore",
    "ip6tables-nft-restore",
];

/// How the service of an arena is started. Attacks name what they need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
pub struct Options {
    /// The preset `balanced` instead of `classic`.
    pub balanced: bool,
    /// Blocks that exist from the start.
    pub blocks: u32,
    /// iptables-legacy, which has a lock.
    pub legacy: bool,
    /// A journal takes the log; otherwise standard error does.
    pub journal: bool,
    /// Standard error is full.
    pub full_stderr: bool,
    /// A wall clock of its own.
    pub clock: bool,
    /// A state directory on a small disk of its own.
    pub disk: bool,
    /// The number of file descriptors.
    pub descriptors: Option<u32>,
    /// A host behind the victim.
    pub forwarding: bool,
}

/// How a program of iptables behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Helper {
    Works,
    Hangs,
    Slow,
    /// Only the programs that show rules are slow.
    SlowToShow,
    FailsOnce,
    FailsTwoOfThree,
}

pub struct Arena {
    // Drop order: the observer before the service, the service before the lab.
    pub observer: Option<Observer>,
    pub process: Option<Process>,
    pub journal: Option<AbsentJournal>,
    pub disk: Option<Disk>,
    pub behind: Option<Namespace>,
    pub log: Arc<LogReader>,
    pub options: Options,
    /// Memory of the service soon after its start.
    pub memory: u64,
    /// Attacks that this arena has seen.
    pub attacks: usize,
    pub lab: Lab,
}

impl Arena {
    pub fn new(options: &Options) -> Self {
        let lab = Lab::new();
        // Replies to forged sources leave the victim, as on a host with a default route.
        lab.victim.ip("route add default via 10.77.0.3");
        lab.victim.ip("-6 route add default via fd77::3");
        let behind = options.forwarding.then(|| {
            let behind = lab.add_forwarded_host();
            run(lab.victim.command("iptables").args(["-P", "FORWARD", "ACCEPT"])).ok();
            behind
        });
        let disk = options.disk.then(|| Disk::for_state(&lab, 4096));
        if options.blocks > 0 {
            save_blocks(&lab, options.blocks, "one of many");
        }
        let log = Arc::default();
        let mut arena = Self {
            observer: None,
            process: None,
            journal: options.journal.then(|| AbsentJournal::new(&lab)),
            disk,
            behind,
            log,
            options: options.clone(),
            memory: 0,
            attacks: 0,
            lab,
        };
        arena.install_shim();
        arena.set_clock(0);
        arena.start();
        arena
    }

    /// Starts the service, waits until it is ready, and observes it.
    pub fn start(&mut self) {
        let process = self.begin().await_ready();
        self.adopt(process);
    }

    /// Observes a service that is ready.
    pub fn adopt(&mut self, process: Process) {
        // The first look at the rules allocates, too.
        std::thread::sleep(Duration::from_millis(500));
        self.memory = anonymous_bytes(process.pid()).unwrap_or_default();
        self.observer = Some(Observer::of(&self.lab, &process));
        self.process = Some(process);
    }

    /// Starts the service without waiting for it.
    pub fn begin(&mut self) -> Process {
        self.log = Arc::default();
        if let Some(journal) = &self.journal {
            journal.listen(&self.log);
        }
        Process::begin(&self.lab, &self.service(), &self.log)
    }

    /// The command of the service, as the options want it.
    pub fn service(&self) -> Start {
        let mut path = std::env::var("PATH").unwrap();
        if self.options.legacy {
            path = format!("{}:{path}", self.lab.path("legacy").display());
        }
        let lock = self.lab.path("xtables.lock");
        let mut start = Start::on("eth0")
            .env("PATH", &format!("{}:{path}", self.shim().display()))
            .env("XTABLES_LOCKFILE", lock.to_str().unwrap())
            .env("WATCHDOG_USEC", &WATCHDOG.as_micros().to_string())
            .env(
                "TCPTRACKER_DETECTION__PRESET",
                if self.options.balanced { "balanced" } else { "classic" },
            );
        if self.options.clock {
            let library = glob::glob("/usr/lib/*/faketime/libfaketime.so.1").unwrap().next();
            let library = library.expect("no libfaketime; run: make test-deps").unwrap();
            start = start
                .env("LD_PRELOAD", library.to_str().unwrap())
                .env("FAKETIME_TIMESTAMP_FILE", self.lab.path("clock").to_str().unwrap())
                .env("FAKETIME_NO_CACHE", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
                .env("NO_FAKE_STAT", "1");
        }
        let mut wrapper = Vec::new();
        if let Some(journal) = &self.journal {
            wrapper.extend(AbsentJournal::wrapper(journal.directory()));
        }
        let mut shell = |script: String| {
            wrapper.extend(["sh".to_owned(), "-ec".to_owned(), script, "sh".to_owned()]);
        };
        if let Some(limit) = self.options.descriptors {
            shell(format!("ulimit -n {limit}; exec \"$@\""));
        }
        if self.options.full_stderr {
            shell("exec \"$@\" 2>/dev/full".to_owned());
        }
        if wrapper.is_empty() { start } else { start.through(wrapper) }
    }

    pub fn service_process(&mut self) -> &mut Process {
        self.process.as_mut().unwrap()
    }

    /// Stops the service in order. Returns whether it ended in time and successfully.
    pub fn stop(&mut self, within: Duration) -> Result<(), String> {
        self.observer = None;
        let mut process = self.process.take().unwrap();
        match process.stop(within) {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(format!("the service stopped with {status}")),
            None => Err(format!("the service did not stop within {within:?}")),
        }
    }

    /// Returns the bus address for clients.
    pub fn bus(&self) -> String {
        self.lab.bus.address().to_owned()
    }

    /// Returns a sender on the attacker's wire.
    pub fn attacker_wire(&self) -> Wire {
        Wire::of(&self.lab.attacker)
    }

    fn shim(&self) -> PathBuf {
        self.lab.path("shim")
    }

    /// Installs programs that look up how to behave at each call.
    fn install_shim(&self) {
        let shim = self.shim();
        std::fs::create_dir(&shim).unwrap();
        if self.options.legacy {
            let legacy = self.lab.path("legacy");
            std::fs::create_dir(&legacy).unwrap();
            for program in PROGRAMS.iter().filter(|program| !program.contains("nft")) {
                let real = "/usr/sbin/xtables-legacy-multi";
                std::os::unix::fs::symlink(real, legacy.join(program)).unwrap();
            }
        }
        let script = format!(
            "#!/bin/sh\n\
             PATH=${{PATH#*:}}\n\
             cd {}\n\
             read mode 2>/dev/null <mode || mode=works\n\
             echo >>calls\n\
             calls=$(wc -l <calls)\n\
             case $mode in\n\
             hangs) exec sleep 1000 ;;\n\
             slow) sleep 6 ;;\n\
             slow-save) case $0 in *save) sleep 6 ;; esac ;;\n\
             once) [ $calls -gt 1 ] || {{ echo Resource temporarily unavailable >&2; exit 4; }} ;;\n\
             often) [ $((calls % 3)) = 0 ] || {{ echo Resource temporarily unavailable >&2; exit 4; }} ;;\n\
             esac\n\
             exec $(basename $0) \"$@\"\n",
            shim.display()
        );
        for program in PROGRAMS {
            let is_absent = self.options.legacy && program.contains("nft");
            if !is_absent {
                install_script(&shim.join(program), &script);
            }
        }
    }

    /// Decides how the programs of iptables behave. Ends those that hang when they work again.
    pub fn set_helper(&self, helper: Helper) {
        let mode = match helper {
            Helper::Works => "works",
            Helper::Hangs => "hangs",
            Helper::Slow => "slow",
            Helper::SlowToShow => "slow-save",
            Helper::FailsOnce => "once",
            Helper::FailsTwoOfThree => "often",
        };
        let shim = self.shim();
        let _ = std::fs::remove_file(shim.join("calls"));
        std::fs::write(shim.join("new"), format!("{mode}\n")).unwrap();
        std::fs::rename(shim.join("new"), shim.join("mode")).unwrap();
        if helper == Helper::Works {
            self.end_hanging_helpers();
        }
    }

    /// Ends the sleeping programs that the shim started in the victim's namespace.
    fn end_hanging_helpers(&self) {
        let pids =
            run(std::process::Command::new("ip").args(["netns", "pids", self.lab.victim.name()]));
        for pid in pids.out.split_whitespace() {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if command == b"sleep\x001000\0" {
                run(std::process::Command::new("kill").args(["-KILL", pid]));
            }
        }
    }

    /// Sets the service's wall clock ahead by so many seconds.
    pub fn set_clock(&self, ahead: i64) {
        let clock = self.lab.path("clock");
        std::fs::write(clock.with_extension("new"), format!("{ahead:+}\n")).unwrap();
        std::fs::rename(clock.with_extension("new"), clock).unwrap();
    }

    /// Runs a shell line on the victim as root.
    pub fn on_victim(&self, line: &str) {
        run(self.lab.victim.command("sh").args(["-c", line]));
    }

    /// Removes the jumps to our chain, so that rules must be repaired.
    pub fn flush_input(&self) {
        let iptables = if self.options.legacy { "iptables-legacy -w" } else { "iptables" };
        self.on_victim(&format!("{iptables} -F INPUT"));
    }

    /// Waits until the hooks are first in their chains again.
    pub fn await_hooks(&self, within: Duration) -> Result<(), String> {
        let deadline = Instant::now() + within;
        loop {
            let missing = self.missing_hooks();
            if missing.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("not repaired within {within:?}: {}", missing.join(", ")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Returns the built-in chains that do not jump to our chain first.
    pub fn missing_hooks(&self) -> Vec<String> {
        if self.options.legacy {
            let saved = run(&mut self.lab.victim.command("iptables-legacy-save")).out;
            let is_hooked = saved.contains("-A INPUT -j tcptracker");
            return if is_hooked { Vec::new() } else { vec!["INPUT".to_owned()] };
        }
        let rules = Rules::of(&self.lab.victim);
        let mut missing = Vec::new();
        for hook in ["INPUT", "FORWARD"] {
            for (family, rules) in ["ipv4", "ipv6"].iter().zip(rules.chain(hook)) {
                if rules.first() != Some(&"-j tcptracker") {
                    missing.push(format!("{hook} ({family})"));
                }
            }
        }
        missing
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.observer = None;
        if let Some(process) = &self.process {
            // A stopped process does not take part in its own end.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                process.signal(rustix::process::Signal::CONT);
            }));
        }
        let pid = self.process.as_ref().map(Process::pid);
        self.process = None;
        // libfaketime cannot remove its shared memory if the service is killed.
        for name in ["faketime_shm_", "sem.faketime_sem_"] {
            let _ = pid.map(|pid| std::fs::remove_file(format!("/dev/shm/{name}{pid}")));
        }
    }
}
