//! Users of a laboratory's own, and a polkit that knows them.
//!
//! Whatever runs in the victim sees another `/etc/passwd`, `/etc/group` and `/etc/polkit-1`: ip-netns(8)
//! mounts what lies in `/etc/netns/NAME` over them. The machine's own are not touched.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::tools::{Outcome, await_that, run};

const POLICY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/dbus/org.tcptracker.Tracker1.policy");

/// Where ip-netns(8) looks for what it mounts.
const VIEWS: &str = "/etc/netns";

/// The user the service runs as, and his group.
pub const SERVICE: u32 = 61_000;
/// Whom the laboratory's polkit authorises.
pub const TRUSTED: u32 = 61_001;
/// Whom it does not.
pub const UNTRUSTED: u32 = 61_002;
/// A member of group `tcptracker`.
pub const MEMBER: u32 = 61_003;

/// Polkit authorises one user and refuses another; of the rest it thinks as the shipped policy does.
const RULES: &str = r#"
polkit.addRule(function (action, subject) {
    if (action.id != "org.tcptracker.Tracker1.manage") return polkit.Result.NOT_HANDLED;
    if (subject.user == "trusted") return polkit.Result.YES;
    if (subject.user == "stranger") return polkit.Result.NO;
});
"#;

/// Held while views come and go: the directory they are in goes with the last of them.
static VIEWS_CHANGE: Mutex<()> = Mutex::new(());

/// What the victim's programs see instead of the machine's. Dropped, it is gone.
pub struct View(PathBuf);

impl View {
    /// Makes users and polkit's rules for a host in which nothing runs yet.
    pub fn make(host: &Namespace) -> Self {
        let directory = Path::new(VIEWS).join(host.name());
        let rules = directory.join("polkit-1/rules.d");
        {
            let _alone = alone();
            std::fs::create_dir_all(&rules).unwrap();
        }
        let mut passwd = std::fs::read_to_string("/etc/passwd").unwrap();
        let mut group = without_ours(&std::fs::read_to_string("/etc/group").unwrap());
        passwd = without_ours(&passwd);
        for (name, number) in [
            ("tcptracker", SERVICE),
            ("trusted", TRUSTED),
            ("stranger", UNTRUSTED),
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

impl Drop for View {
    fn drop(&mut self) {
        remove_view(&self.0);
    }
}

fn alone() -> MutexGuard<'static, ()> {
    VIEWS_CHANGE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes what a host saw; complains about nothing.
pub fn remove_view(directory: &Path) {
    let _alone = alone();
    let _ = std::fs::remove_dir_all(directory);
    // Ours only if nobody else uses it.
    let _ = std::fs::remove_dir(VIEWS);
}

/// The views there are.
pub fn views() -> &'static Path {
    Path::new(VIEWS)
}

/// The real polkit on a laboratory's bus. Dropped, it ends.
pub struct Polkit(Child);

impl Polkit {
    /// Starts it with the shipped policy and nobody else's, and waits until it is there.
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

/// What to start the service through, so that it may do what the unit lets it, and no more.
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

/// A program run by a user, who is in these groups beside his own.
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

/// A call by a user with busctl, which lets polkit ask for a password.
pub fn busctl(lab: &Lab, user: u32, groups: &[u32], member_and_arguments: &[&str]) -> Outcome {
    let mut command = as_user(user, groups, "busctl");
    command.arg(format!("--address={}", lab.bus.address()));
    run(command.arg("call").args(crate::bus::target("eth0")).args(member_and_arguments))
}

/// A call by a user with gdbus, which does not; arguments as GVariant writes them.
pub fn gdbus(lab: &Lab, user: u32, groups: &[u32], member: &str, arguments: &[&str]) -> Outcome {
    let [name, object, interface] = crate::bus::target("eth0");
    let mut command = as_user(user, groups, "gdbus");
    command.args(["call", "--address", lab.bus.address(), "--dest", &name]);
    command.args(["--object-path", &object, "--method", &format!("{interface}.{member}")]);
    run(command.args(arguments))
}

/// A call by a user with python-dbus; the arguments as python writes them.
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
