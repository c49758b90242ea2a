//! Helpers to run programs, to wait, and to check that the required programs exist.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Upper bound of every wait. It is generous because test machines are noisy, and because the
/// balanced preset decides only after 35 s whether a source is a load balancer.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Interval between two checks of a condition.
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

/// The result of a program that has exited.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code, or `None` if a signal ended the program.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Outcome {
    /// Asserts success and returns the standard output.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }
}

/// Runs a program until it exits.
#[track_caller]
pub fn run(command: &mut Command) -> Outcome {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {}: {error}", command.get_program().display()));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Outcome { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Installs an executable script.
///
/// A child process writes the file. If the test wrote it, a process that another test starts at
/// that moment would inherit the open file, and executing it would fail with ETXTBSY.
#[track_caller]
pub fn install_script(at: &Path, script: &str) {
    let install = "printf %s \"$2\" >\"$1\" && chmod 755 \"$1\"";
    run(Command::new("sh").args(["-c", install, "sh"]).arg(at).arg(script)).ok();
}

/// Installs a copy of a program, in a child process for the reason given at [`install_script`].
#[track_caller]
pub fn install_copy(at: &Path, program: impl AsRef<Path>) {
    run(Command::new("install").args(["-m", "755"]).arg(program.as_ref()).arg(at)).ok();
}

/// Runs a program and asserts that it succeeds.
#[track_caller]
pub fn sh(words: &str) -> String {
    let mut words = words.split_whitespace();
    run(Command::new(words.next().unwrap()).args(words)).ok()
}

/// Panics with an explanation if the tests cannot run on this machine.
pub fn require_prerequisites() {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    let problem = MISSING.get_or_init(|| {
        if !rustix::process::geteuid().is_root() {
            return Some(
                "the end-to-end tests create network namespaces; run them as root".to_owned(),
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

/// Polls a condition. Sleeps between two checks, because the service needs the CPU too.
#[track_caller]
pub fn await_that(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < TIMEOUT, "timed out waiting until {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Returns the wall clock time in whole Unix seconds.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A reproducible pseudo-random number generator (xorshift64).
pub struct Random(u64);

impl Random {
    pub fn seeded(seed: u64) -> Self {
        // Small seeds differ in few bits, so mix them first.
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
