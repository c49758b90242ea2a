//! A system bus of the test's own, with the policy file that is shipped, and busctl to talk on it.

use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::namespace::Namespace;
use crate::tools::{Outcome, TIMEOUT, run};

const POLICY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/dbus/org.tcptracker.Tracker1.conf");

/// Starts the other bus, which `make firewalls` has unpacked.
const BROKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/start-dbus-broker");
const UNPACKED: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/firewalls");

/// Which bus.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// dbus-daemon
    Daemon,
    /// dbus-broker
    Broker,
}

/// A block as `List` tells it: address, since, until, offences, reason.
pub type Block = (String, u64, u64, u64, String);

/// The bus.
pub struct Bus {
    address: String,
    daemon: Child,
}

impl Bus {
    /// Starts it in the victim's namespace, so that it goes with it; its socket is a file.
    pub fn start(directory: &Path, victim: &Namespace) -> Self {
        Self::start_as(Kind::Daemon, directory, victim)
    }

    /// Starts one or the other.
    pub fn start_as(kind: Kind, directory: &Path, victim: &Namespace) -> Self {
        let address = format!("unix:path={}", directory.join("bus").display());
        let file = directory.join("bus.conf");
        // The frame is that of Debian's system.conf: nothing is allowed unless a policy says so.
        std::fs::write(&file, configuration(&address)).unwrap();
        let mut command = match kind {
            Kind::Daemon => {
                let mut command = victim.command("dbus-daemon");
                command.args(["--nofork", "--print-address=1", "--config-file"]).arg(&file);
                command
            }
            Kind::Broker => {
                let mut command = victim.command(BROKER);
                command.arg(UNPACKED).arg(directory);
                command
            }
        };
        let mut daemon = command
            .stdout(Stdio::piped())
            // It may not know user tcptracker, who is not made on a machine for tests.
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // It prints its address when it listens.
        let said = lines_of(daemon.stdout.take().unwrap()).next();
        assert!(said.is_some(), "dbus-daemon did not start with {POLICY}");
        Self { address, daemon }
    }

    /// Lets a program use this bus, and nothing of the machine's: neither its bus nor a configuration
    /// somebody has exported.
    pub fn environment<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"TCPTRACKER_") {
                command.env_remove(name);
            }
        }
        command.env("DBUS_SYSTEM_BUS_ADDRESS", &self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    fn busctl(&self) -> Command {
        let mut command = Command::new("busctl");
        command.arg(format!("--address={}", self.address));
        command
    }

    /// `busctl call` of a member of our interface, as written in the contract.
    pub fn call(&self, instance: &str, member_and_arguments: &[&str]) -> Outcome {
        run(self.busctl().args(["call"]).args(target(instance)).args(member_and_arguments))
    }

    /// The same by a user without privileges, with any busctl command.
    pub fn as_nobody(&self, arguments: &[&str]) -> Outcome {
        run(Command::new("setpriv")
            .args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "busctl"])
            .arg(format!("--address={}", self.address))
            .args(arguments))
    }

    /// Nobody but the service may have its names.
    #[track_caller]
    pub fn assert_nobody_cannot_own_name(&self) {
        let bus = "org.freedesktop.DBus";
        let name = "org.tcptracker.Tracker1.eth9";
        let asked = ["call", bus, "/org/freedesktop/DBus", bus, "RequestName", "su", name, "0"];
        let taken = self.as_nobody(&asked);
        assert_eq!(taken.code, Some(1), "{taken:?}");
    }

    /// What a member of our interface answers, as JSON.
    #[track_caller]
    pub fn ask(&self, instance: &str, member: &str) -> Value {
        let mut command = self.busctl();
        command.args(["--json=short", "call"]).args(target(instance)).arg(member);
        serde_json::from_str(&run(&mut command).ok()).unwrap()
    }

    /// The name of the error a member answers with; arguments as dbus-send(1) takes them.
    #[track_caller]
    pub fn error_of(&self, member: &str, arguments: &str) -> String {
        self.error_of_call(member, &arguments.split_whitespace().collect::<Vec<_>>())
    }

    /// The same for arguments with blanks in them.
    #[track_caller]
    pub fn error_of_call(&self, member: &str, arguments: &[&str]) -> String {
        let [name, object, interface] = target("eth0");
        let answer = run(Command::new("dbus-send")
            .arg(format!("--bus={}", self.address))
            .args(["--print-reply", &format!("--dest={name}"), &object])
            .arg(format!("{interface}.{member}"))
            .args(arguments));
        assert_eq!(answer.code, Some(1), "{answer:?}");
        // "Error NAME: text"
        let said = answer.err.strip_prefix("Error ").and_then(|rest| rest.split(':').next());
        said.unwrap_or_else(|| panic!("{answer:?}")).to_owned()
    }

    /// What is known of an address: each key with its type and its value.
    #[track_caller]
    pub fn why(&self, address: &str) -> Value {
        let mut command = self.busctl();
        command.args(["--json=short", "call"]).args(target("eth0")).args(["Why", "s", address]);
        let answer: Value = serde_json::from_str(&run(&mut command).ok()).unwrap();
        assert_eq!(answer["type"], "a{sv}");
        answer["data"][0].clone()
    }

    /// A property: its type and its value.
    #[track_caller]
    pub fn property(&self, name: &str) -> (String, Value) {
        let mut command = self.busctl();
        command.args(["--json=short", "get-property"]).args(target("eth0")).arg(name);
        let answer: Value = serde_json::from_str(&run(&mut command).ok()).unwrap();
        (answer["type"].as_str().unwrap().to_owned(), answer["data"].clone())
    }

    /// What the instance on an interface blocks.
    #[track_caller]
    pub fn list_on(&self, instance: &str) -> Vec<Block> {
        let answer = self.ask(instance, "List");
        assert_eq!(answer["type"], "a(sttus)");
        serde_json::from_value(answer["data"][0].clone()).unwrap()
    }

    /// What the instance on `eth0` blocks.
    #[track_caller]
    pub fn list(&self) -> Vec<Block> {
        self.list_on("eth0")
    }

    /// The block of an address by the instance on `eth0`.
    #[track_caller]
    pub fn block_of(&self, address: &impl ToString) -> Block {
        let (address, list) = (address.to_string(), self.list());
        let found = list.iter().find(|block| block.0 == address).cloned();
        found.unwrap_or_else(|| panic!("{address} is not among {list:?}"))
    }

    /// Whether a name has an owner.
    pub fn has(&self, name: &str) -> bool {
        run(self.busctl().args(["status", name])).code == Some(0)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.daemon), signal).unwrap();
    }

    /// Kills it.
    pub fn die(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }

    /// Listens to the signals of our interface from now on.
    pub fn listen(&self) -> Signals {
        self.listen_to("org.tcptracker.Tracker1")
    }

    /// Listens to the signals of an interface from now on.
    pub fn listen_to(&self, interface: &str) -> Signals {
        let mut monitor = self
            .busctl()
            .args(["--json=short", "monitor"])
            .args(["--match", &format!("type='signal',interface='{interface}'")])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // "Monitoring bus message stream."
        let said = lines_of(monitor.stderr.take().unwrap()).next();
        assert!(said.is_some(), "busctl does not monitor");
        let (tell, told) = channel();
        let signals = BufReader::new(monitor.stdout.take().unwrap()).lines();
        std::thread::spawn(move || {
            for line in signals.map_while(Result::ok) {
                let _ = tell.send(line);
            }
        });
        Signals { monitor, told }
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// Somebody who listens.
pub struct Signals {
    monitor: Child,
    told: Receiver<String>,
}

impl Signals {
    /// The next signal: its name, its types and its arguments.
    #[track_caller]
    pub fn next(&self) -> (String, String, Value) {
        let line = self.told.recv_timeout(TIMEOUT).expect("a signal");
        let signal: Value = serde_json::from_str(&line).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (
            text(&signal["member"]),
            text(&signal["payload"]["type"]),
            signal["payload"]["data"].clone(),
        )
    }

    /// How many have come since somebody asked last.
    pub fn take_count(&self) -> u64 {
        u64::try_from(self.told.try_iter().count()).unwrap()
    }

    /// The next signal of this name.
    #[track_caller]
    pub fn next_named(&self, name: &str) -> (String, Value) {
        loop {
            let (found, types, data) = self.next();
            if found == name {
                return (types, data);
            }
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        let _ = self.monitor.kill();
        let _ = self.monitor.wait();
    }
}

/// Name, object and interface of an instance, as busctl takes them.
pub fn target(instance: &str) -> [String; 3] {
    [
        format!("org.tcptracker.Tracker1.{instance}"),
        format!("/org/tcptracker/Tracker1/{instance}"),
        "org.tcptracker.Tracker1".to_owned(),
    ]
}

fn lines_of<R: std::io::Read>(reader: R) -> impl Iterator<Item = String> {
    let lines: Lines<BufReader<R>> = BufReader::new(reader).lines();
    lines.map_while(Result::ok)
}

fn configuration(address: &str) -> String {
    let policy = PathBuf::from(POLICY);
    format!(
        r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>{address}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
    <deny send_destination="org.freedesktop.DBus"
          send_interface="org.freedesktop.DBus" send_member="UpdateActivationEnvironment"/>
    <allow send_destination="org.freedesktop.DBus"
           send_interface="org.freedesktop.DBus.Introspectable"/>
    <!-- As polkit's own policy has it. -->
    <allow own="org.freedesktop.PolicyKit1"/>
    <allow send_destination="org.freedesktop.PolicyKit1"/>
  </policy>
  <policy user="root">
    <allow send_destination="org.freedesktop.DBus"
           send_interface="org.freedesktop.DBus.Monitoring"/>
  </policy>
  <include>{}</include>
</busconfig>
"#,
        policy.display()
    )
}
