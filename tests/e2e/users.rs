//! Private users of a lab, and a polkit that knows them.
//!
//! Programs in the victim's namespace see a different `/etc/passwd`, `/etc/group` and
//! `/etc/polkit-1`: ip-netns(8) mounts the files in `/etc/netns/NAME` over them. The machine's
//! files do not change.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::tools::{Outcome, await_that, run};

const POLICY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/dbus/org.tcptracker.Tracker1.policy");

/// The directory with the files that ip-netns(8) mounts over `/etc`.
const OVERLAYS: &str = "/etc/netns";

/// The uid of the service user and the gid of its group.
pub const SERVICE: u32 = 61_000;
/// A user that the lab's polkit authorizes.
pub const TRUSTED: u32 = 61_001;
/// A user that the lab's polkit refuses.
pub const UNTRUSTED: u32 = 61_002;
/// A member of group `tcptracker`.
pub const MEMBER: u32 = 61_003;

/// Polkit authorizes one user and refuses another. The shipped policy decides for all other users.
const RULES: &str = r#"
polkit.addRule(function (action, subject) {
    if (action.id != "org.tcptracker.Tracker1.manage") return polkit.Result.NOT_HANDLED;
    if (subject.user == "trusted") return polkit.Result.YES;
    if (subject.user == "untrusted") return polkit.Result.NO;
});
"#;

/// Held while an overlay is created or removed: the last removal also removes the parent directory.
static DIRECTORY_LOCK: Mutex<()> = Mutex::new(());

/// Files that the victim's programs see instead of the machine's. Removed on drop.
pub struct EtcOverlay(PathBuf);

impl EtcOverlay {
    /// Creates users and polkit rules for a host in which no program runs yet.
    pub fn create(host: &Namespace) -> Self {
        let directory = Path::new(OVERLAYS).join(host.name());
        let rules = directory.join("polkit-1/rules.d");
        {
            let _lock = lock_directory();
            std::fs::create_dir_all(&rules).unwrap();
        }
        let mut passwd = std::fs::read_to_string("/etc/passwd").unwrap();
        let mut group = without_ours(&std::fs::read_to_string("/etc/group").unwrap());
        passwd = without_ours(&passwd);
        for (name, number) in [
            ("tcptracker", SERVICE),
            ("trusted", TRUSTED),
            ("untrusted", UNTRUSTED),
            ("member", MEMBER),
        ] {
            passwd += &format!("{name}:x:{number}:{number}::/nonexistent:/usr/sbin/nologin\n");
            let members = if name == "tcptracker" { "member" } else { "" };
            group += &format!("{name}:x:{number}:{members}\n");
        }
        std::fs::write(directory.join("passwd"), passwd).unwrap();
        std::fs::write(directory.join("group"), group).unwrap();
        std::fs::write(rules.join("10-test.rules"), RULES).unwrap();
        for path in [&directory, &directory.join("polkit-1"), &rules] {
            std::fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        }
        Self(directory)
    }
}

fn without_ours(listed: &str) -> String {
    let others = listed.lines().filter(|line| !line.starts_with("tcptracker:"));
    others.map(|line| format!("{line}\n")).collect()
}

impl Drop for EtcOverlay {
    fn drop(&mut self) {
        remove_overlay(&self.0);
    }
}

fn lock_directory() -> MutexGuard<'static, ()> {
    DIRECTORY_LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the overlay of a host and ignores errors.
pub fn remove_overlay(directory: &Path) {
    let _lock = lock_directory();
    let _ = std::fs::remove_dir_all(directory);
    // Fails if the directory still contains other overlays.
    let _ = std::fs::remove_dir(OVERLAYS);
}

/// Returns the directory that contains all overlays.
pub fn overlay_directory() -> &'static Path {
    Path::new(OVERLAYS)
}

/// The real polkit on a lab's bus. Killed on drop.
pub struct Polkit(Child);

impl Polkit {
    /// Starts polkit with only the shipped policy, and waits until it is on the bus.
    pub fn start(lab: &Lab) -> Self {
        let actions = lab.path("actions");
        std::fs::create_dir(&actions).unwrap();
        std::fs::copy(POLICY, actions.join("org.tcptracker.Tracker1.policy")).unwrap();
        for path in [actions.clone(), actions.join("org.tcptracker.Tracker1.policy")] {
            std::fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        }
        let script = format!(
            "mount --bind {} /usr/share/polkit-1/actions && \
             exec /usr/lib/polkit-1/polkitd --no-debug",
            actions.display()
        );
        let mut command = lab.victim.command("sh");
        lab.bus.environment(command.args(["-c", &script]));
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let polkit = Self(child);
        await_that("polkit is on the bus", || lab.bus.has("org.freedesktop.PolicyKit1"));
        polkit
    }
}

impl Drop for Polkit {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns a command prefix that gives the service the same privileges as the systemd unit.
pub fn with_unit_privileges() -> [String; 8] {
    [
        "setpriv".to_owned(),
        format!("--reuid={SERVICE}"),
        format!("--regid={SERVICE}"),
        "--clear-groups".to_owned(),
        "--inh-caps=-all,+net_admin,+net_raw".to_owned(),
        "--ambient-caps=-all,+net_admin,+net_raw".to_owned(),
        "--bounding-set=-all,+net_admin,+net_raw".to_owned(),
        "--no-new-privs".to_owned(),
    ]
}

/// Returns a command that runs a program as a user with these supplementary groups.
pub fn as_user(user: u32, groups: &[u32], program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={user}")).arg(format!("--regid={user}"));
    if groups.is_empty() {
        command.arg("--clear-groups");
    } else {
        let listed: Vec<String> = groups.iter().map(ToString::to_string).collect();
        command.arg(format!("--groups={}", listed.join(",")));
    }
    command.arg(program);
    command
}

/// Calls a member with busctl, which allows polkit to ask for a password.
pub fn busctl(lab: &Lab, user: u32, groups: &[u32], member_and_arguments: &[&str]) -> Outcome {
    let mut command = as_user(user, groups, "busctl");
    command.arg(format!("--address={}", lab.bus.address()));
    run(command.arg("call").args(crate::bus::target("eth0")).args(member_and_arguments))
}

/// Calls a member with gdbus, which does not allow polkit to ask for a password. Arguments are in
/// GVariant text format.
pub fn gdbus(lab: &Lab, user: u32, groups: &[u32], member: &str, arguments: &[&str]) -> Outcome {
    let [name, object, interface] = crate::bus::target("eth0");
    let mut command = as_user(user, groups, "gdbus");
    command.args(["call", "--address", lab.bus.address(), "--dest", &name]);
    command.args(["--object-path", &object, "--method", &format!("{interface}.{member}")]);
    run(command.args(arguments))
}

/// Calls a member with python-dbus. `call` is Python source text.
pub fn python(lab: &Lab, user: u32, groups: &[u32], call: &str) -> Outcome {
    let [name, object, interface] = crate::bus::target("eth0");
    let script = format!(
        "import dbus\n\
         bus = dbus.bus.BusConnection('{}')\n\
         tracker = dbus.Interface(bus.get_object('{name}', '{object}'), '{interface}')\n\
         try:\n    print(tracker.{call})\n\
         except dbus.DBusException as error:\n    raise SystemExit(error.get_dbus_name())\n",
        lab.bus.address()
    );
    run(as_user(user, groups, "/usr/bin/python3").args(["-c", &script]))
}
