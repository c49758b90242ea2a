//! Programs the tests use: running them, and saying clearly what is missing.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long anything may take that ought to happen at once. Generous: machines are noisy, and what seems to be a
/// load balancer is judged after 35 s.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

const PROGRAMS: [&str; 18] = [
    "gdbus",
    "ip",
    "iptables",
    "ip6tables",
    "iptables-save",
    "ip6tables-save",
    "ipset",
    "nft",
    "conntrack",
    "nmap",
    "dbus-daemon",
    "busctl",
    "dbus-send",
    "setpriv",
    "mount",
    "mkfs.ext4",
    "script",
    "python3",
];

/// What a program that has ended had to say.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub out: String,
    /// What it complained about.
    pub err: String,
}

impl Outcome {
    /// Its output, provided it has succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }
}

/// Runs a program to its end.
#[track_caller]
pub fn run(command: &mut Command) -> Outcome {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {}: {error}", command.get_program().display()));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Outcome { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Puts a program in a place from where it will be started. Not written by the tests themselves: a process that
/// another test starts meanwhile would hold the new file open for writing, and nobody could execute it
/// (ETXTBSY).
#[track_caller]
pub fn install_script(at: &Path, script: &str) {
    let install = "printf %s \"$2\" >\"$1\" && chmod 755 \"$1\"";
    run(Command::new("sh").args(["-c", install, "sh"]).arg(at).arg(script)).ok();
}

/// The same for a copy of a program.
#[track_caller]
pub fn install_copy(at: &Path, program: impl AsRef<Path>) {
    run(Command::new("install").args(["-m", "755"]).arg(program.as_ref()).arg(at)).ok();
}

/// Runs a program that must succeed.
#[track_caller]
pub fn sh(words: &str) -> String {
    let mut words = words.split_whitespace();
    run(Command::new(words.next().unwrap()).args(words)).ok()
}

/// Fails with a sentence if the tests cannot run here at all.
pub fn require_prerequisites() {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    let problem = MISSING.get_or_init(|| {
        if !rustix::process::geteuid().is_root() {
            return Some(
                "the end-to-end tests make network namespaces: run them as root".to_owned(),
            );
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let absent = |program: &&&str| {
            !std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
        };
        let missing: Vec<&str> = PROGRAMS.iter().filter(absent).copied().collect();
        (!missing.is_empty()).then(|| {
            format!("the end-to-end tests need {}; install them: make deps", missing.join(", "))
        })
    });
    if let Some(problem) = problem {
        panic!("{problem}");
    }
}

/// Looks again and again whether something is so that nobody tells; whoever has to do it needs the machine, too.
#[track_caller]
pub fn await_that(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < TIMEOUT, "not so: {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// The wall clock in whole Unix seconds.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Numbers nobody would guess, and the same in every run (xorshift64).
pub struct Random(u64);

impl Random {
    pub fn seeded(seed: u64) -> Self {
        // Small seeds differ in few bits.
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        random.next();
        random
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit).unwrap();
        usize::try_from((self.next() >> 32) % limit).unwrap()
    }
}
