//! Coexistence with Debian's ufw and firewalld: blocks stay in force after their reloads.
//!
//! The packages are unpacked, not installed (`tests/unpack-packages`), and mounted over the
//! system's files in a private mount namespace.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use crate::kernel::Rules;
use crate::lab::{ATTACKER, Lab, OPEN_PORT, VICTIM};
use crate::namespace::Namespace;
use crate::service::Service;
use crate::tools::run;

const UNPACKED: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/firewalls");

/// Returns a shell on the host that sees the packages as installed.
fn shell(host: &Namespace, script: &str) -> Command {
    let complete = std::path::Path::new(UNPACKED).join("complete").exists();
    assert!(complete, "ufw and firewalld are not unpacked in {UNPACKED}; run: make firewalls");
    let overlay = "mount -t tmpfs tmpfs /run; mkdir -p /run/lock /run/upper /run/work; \
                   mount -t overlay -o lowerdir=$0/usr:/usr overlay /usr; \
                   mount -t overlay \
                         -o lowerdir=$0/etc:/etc,upperdir=/run/upper,workdir=/run/work overlay /etc; ";
    let mut command = host.command("timeout");
    // Bound the wait for a firewall program that hangs.
    command.args(["120", "sh", "-ec", &format!("{overlay}{script}"), UNPACKED]);
    command
}

fn start_with_blocked_attacker(lab: &Lab) -> Service {
    let service = lab.start();
    lab.bus.call("eth0", &["Block", "sts", &ATTACKER.to_string(), "3600", "test"]).ok();
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    lab.bystander.assert_reaches(VICTIM, OPEN_PORT);
    service
}

/// Waits until the hooks are the first rules again, after any number of repairs.
#[track_caller]
fn await_hooks(lab: &Lab, service: &mut Service) {
    let is_first = |program: &str, hook: &str| {
        let first = run(lab.victim.command(program).args(["-S", hook, "1"])).ok();
        first == format!("-A {hook} -j tcptracker\n")
    };
    for repairs in 1.. {
        service.await_lines("enforcing: no problems", repairs);
        let both = |hook| is_first("iptables", hook) && is_first("ip6tables", hook);
        if ["INPUT", "FORWARD"].into_iter().all(both) {
            break;
        }
    }
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    lab.bystander.assert_reaches(VICTIM, OPEN_PORT);
}

#[test]
fn blocks_survive_ufw_enable_and_reload() {
    let lab = Lab::new();
    let mut service = start_with_blocked_attacker(&lab);
    // With MANAGE_BUILTINS, ufw flushes the built-in chains, including rules of other programs.
    let script = format!(
        "cp /usr/share/ufw/iptables/*.rules /usr/share/ufw/ufw.conf /etc/ufw/; \
         sed -i 's/MANAGE_BUILTINS=no/MANAGE_BUILTINS=yes/' /etc/default/ufw; \
         ufw allow {OPEN_PORT}/tcp; ufw --force enable; ufw reload"
    );
    let output = run(&mut shell(&lab.victim, &script)).ok();
    assert!(output.contains("Firewall reloaded"), "{output}");
    await_hooks(&lab, &mut service);
    let rules = Rules::of(&lab.victim);
    assert!(rules.ipv4.iter().any(|rule| rule.contains("ufw-before-input")), "{rules:#?}");
    assert_eq!(service.stop().code(), Some(0));
}

#[test]
fn blocks_survive_firewalld_reload() {
    // With both backends, firewalld flushes the rules of other programs in the filter table.
    for backend in ["iptables", "nftables"] {
        let lab = Lab::new();
        let script = format!(
            "sed -i 's/^FirewallBackend=.*/FirewallBackend={backend}/' /etc/firewalld/firewalld.conf; \
             DBUS_SYSTEM_BUS_ADDRESS=$(dbus-daemon --session --fork --print-address); \
             export DBUS_SYSTEM_BUS_ADDRESS; \
             firewall-offline-cmd -q --add-port={OPEN_PORT}/tcp; \
             firewalld --nofork --nopid & \
             until firewall-cmd -q --state; do :; done; \
             echo running; read go; firewall-cmd --reload 2>&1 || true; read go"
        );
        let mut firewalld = shell(&lab.victim, &script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(firewalld.stdout.take().unwrap()).lines();
        let mut stdin = firewalld.stdin.take().unwrap();
        assert_eq!(output.next().unwrap().unwrap(), "running");

        let mut service = start_with_blocked_attacker(&lab);
        stdin.write_all(b"reload\n").unwrap();
        assert_eq!(output.next().unwrap().unwrap(), "success");
        await_hooks(&lab, &mut service);
        assert_eq!(service.stop().code(), Some(0));
        // Removing the lab kills firewalld.
        drop(lab);
        firewalld.wait().unwrap();
    }
}
