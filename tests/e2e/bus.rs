//! A private system bus with the shipped policy file, and busctl calls on it.

use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::namespace::Namespace;
use crate::tools::{Outcome, TIMEOUT, run};

const POLICY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/dbus/org.tcptracker.Tracker1.conf");

/// Starts dbus-broker, which `make firewalls` unpacks.
const BROKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/start-dbus-broker");
const UNPACKED: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/firewalls");

/// A bus implementation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Daemon,
    Broker,
}

/// A block as `List` returns it: address, since, until, offences, reason.
pub type Block = (String, u64, u64, u64, String);

/// A running bus. The daemon is killed on drop.
pub struct Bus {
    address: String,
    daemon: Child,
}

impl Bus {
    /// Starts dbus-daemon in the victim's namespace, so that removing the namespace ends the
    /// daemon.
    pub fn start(directory: &Path, victim: &Namespace) -> Self {
        Self::start_as(Kind::Daemon, directory, victim)
    }

    /// Starts the given bus implementation.
    pub fn start_as(kind: Kind, directory: &Path, victim: &Namespace) -> Self {
        let address = format!("unix:path={}", directory.join("bus").display());
        let file = directory.join("bus.conf");
        // Based on Debian's system.conf, which denies everything that no policy allows.
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
            // The daemon warns about user tcptracker, which does not exist on test machines.
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The daemon prints its address when it listens.
        let printed = lines_of(daemon.stdout.take().unwrap()).next();
        assert!(printed.is_some(), "dbus-daemon did not start with {POLICY}");
        Self { address, daemon }
    }

    /// Points a program at this bus, and removes tcptracker settings that the caller's environment
    /// exports.
    pub fn environment<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"TCPTRACKER_") {
                command.env_remove(name);
            }
        }
        command.env("DBUS_SYSTEM_BUS_ADDRESS", &self.address)
    }

    /// Returns the D-Bus address of the bus.
    pub fn address(&self) -> &str {
        &self.address
    }

    fn busctl(&self) -> Command {
        let mut command = Command::new("busctl");
        command.arg(format!("--address={}", self.address));
        command
    }

    /// Calls a member of our interface with `busctl call`.
    pub fn call(&self, instance: &str, member_and_arguments: &[&str]) -> Outcome {
        run(self.busctl().args(["call"]).args(target(instance)).args(member_and_arguments))
    }

    /// Runs any busctl command as user nobody.
    pub fn as_nobody(&self, arguments: &[&str]) -> Outcome {
        run(Command::new("setpriv")
            .args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "busctl"])
            .arg(format!("--address={}", self.address))
            .args(arguments))
    }

    /// Asserts that the policy denies our bus names to user nobody.
    #[track_caller]
    pub fn assert_nobody_cannot_own_name(&self) {
        let bus = "org.freedesktop.DBus";
        let name = "org.tcptracker.Tracker1.eth9";
        let request = ["call", bus, "/org/freedesktop/DBus", bus, "RequestName", "su", name, "0"];
        let outcome = self.as_nobody(&request);
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
    }

    /// Calls a member without arguments and returns its reply as JSON.
    #[track_caller]
    pub fn call_json(&self, instance: &str, member: &str) -> Value {
        let mut command = self.busctl();
        command.args(["--json=short", "call"]).args(target(instance)).arg(member);
        serde_json::from_str(&run(&mut command).ok()).unwrap()
    }

    /// Returns the name of the error that a call fails with. Arguments are in dbus-send(1) syntax.
    #[track_caller]
    pub fn error_of(&self, member: &str, arguments: &str) -> String {
        self.error_of_call(member, &arguments.split_whitespace().collect::<Vec<_>>())
    }

    /// Returns the name of the error that a call fails with. An argument may contain blanks.
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
        let name = answer.err.strip_prefix("Error ").and_then(|rest| rest.split(':').next());
        name.unwrap_or_else(|| panic!("{answer:?}")).to_owned()
    }

    /// Returns the answer of `Why`: each key with its type and its value.
    #[track_caller]
    pub fn why(&self, address: &str) -> Value {
        let mut command = self.busctl();
        command.args(["--json=short", "call"]).args(target("eth0")).args(["Why", "s", address]);
        let answer: Value = serde_json::from_str(&run(&mut command).ok()).unwrap();
        assert_eq!(answer["type"], "a{sv}");
        answer["data"][0].clone()
    }

    /// Returns the type and the value of a property.
    #[track_caller]
    pub fn property(&self, name: &str) -> (String, Value) {
        let mut command = self.busctl();
        command.args(["--json=short", "get-property"]).args(target("eth0")).arg(name);
        let answer: Value = serde_json::from_str(&run(&mut command).ok()).unwrap();
        (answer["type"].as_str().unwrap().to_owned(), answer["data"].clone())
    }

    /// Returns the blocks of the instance on an interface.
    #[track_caller]
    pub fn list_on(&self, instance: &str) -> Vec<Block> {
        let answer = self.call_json(instance, "List");
        assert_eq!(answer["type"], "a(sttus)");
        serde_json::from_value(answer["data"][0].clone()).unwrap()
    }

    /// Returns the blocks of the instance on `eth0`.
    #[track_caller]
    pub fn list(&self) -> Vec<Block> {
        self.list_on("eth0")
    }

    /// Returns the block of an address on `eth0`.
    #[track_caller]
    pub fn block_of(&self, address: &impl ToString) -> Block {
        let (address, list) = (address.to_string(), self.list());
        let found = list.iter().find(|block| block.0 == address).cloned();
        found.unwrap_or_else(|| panic!("{address} is not among {list:?}"))
    }

    /// Returns whether a bus name has an owner.
    pub fn has(&self, name: &str) -> bool {
        run(self.busctl().args(["status", name])).code == Some(0)
    }

    /// Sends a Unix signal to the bus daemon.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.daemon), signal).unwrap();
    }

    /// Kills the bus daemon.
    pub fn kill(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }

    /// Subscribes to the signals of our interface.
    pub fn listen(&self) -> Signals {
        self.listen_to("org.tcptracker.Tracker1")
    }

    /// Subscribes to the signals of an interface.
    pub fn listen_to(&self, interface: &str) -> Signals {
        let mut monitor = self
            .busctl()
            .args(["--json=short", "monitor"])
            .args(["--match", &format!("type='signal',interface='{interface}'")])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // busctl prints "Monitoring bus message stream." when the subscription is active.
        let printed = lines_of(monitor.stderr.take().unwrap()).next();
        assert!(printed.is_some(), "busctl does not monitor");
        let (sender, received) = channel();
        let signals = BufReader::new(monitor.stdout.take().unwrap()).lines();
        std::thread::spawn(move || {
            for line in signals.map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Signals { monitor, received }
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// A subscription to D-Bus signals.
pub struct Signals {
    monitor: Child,
    received: Receiver<String>,
}

impl Signals {
    /// Waits for the next signal and returns its name, its types and its arguments.
    #[track_caller]
    pub fn next(&self) -> (String, String, Value) {
        let line = self.received.recv_timeout(TIMEOUT).expect("a signal");
        let signal: Value = serde_json::from_str(&line).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (
            text(&signal["member"]),
            text(&signal["payload"]["type"]),
            signal["payload"]["data"].clone(),
        )
    }

    /// Discards the signals that have arrived and returns their number.
    pub fn take_count(&self) -> u64 {
        u64::try_from(self.received.try_iter().count()).unwrap()
    }

    /// Waits for the next signal of this name and returns its types and its arguments.
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

/// Returns the bus name, object path and interface of an instance.
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
    <!-- Copied from polkit's own policy. -->
    <allow own="org.freedesktop.PolicyKit1"/>
    <allow send_destination="org.freedesktop.PolicyKit1"/>
    <!-- Copied from logind's own policy. -->
    <allow own="org.freedesktop.login1"/>
    <allow send_destination="org.freedesktop.login1"/>
    <!-- For the fake systemd. -->
    <allow own="org.freedesktop.systemd1"/>
    <allow send_destination="org.freedesktop.systemd1"/>
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
