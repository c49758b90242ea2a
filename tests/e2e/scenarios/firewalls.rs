//! Beside ufw and firewalld, as Debian has them: their reloads leave nobody let in.
//!
//! They are unpacked, not installed (`tests/unpack-packages`), and laid over the system's files in a
//! mount namespace of their own.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use crate::kernel::Rules;
use crate::lab::{ATTACKER, Lab, OPEN_PORT, VICTIM};
use crate::namespace::Namespace;
use crate::service::Service;
use crate::tools::run;

const UNPACKED: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/firewalls");

/// A shell on the host in which they seem installed.
fn shell(host: &Namespace, script: &str) -> Command {
    let complete = std::path::Path::new(UNPACKED).join("complete").exists();
    assert!(complete, "ufw and firewalld are not unpacked in {UNPACKED}; run: make firewalls");
    let overlay = "mount -t tmpfs tmpfs /run; mkdir -p /run/lock /run/upper /run/work; \
                   mount -t overlay -o lowerdir=$0/usr:/usr overlay /usr; \
                   mount -t overlay \
                         -o lowerdir=$0/etc:/etc,upperdir=/run/upper,workdir=/run/work overlay /etc; ";
    let mut command = host.command("timeout");
    // Nobody waits for ever, not even for a firewall that hangs.
    command.args(["120", "sh", "-ec", &format!("{overlay}{script}"), UNPACKED]);
    command
}

fn attacked(lab: &Lab) -> Service {
    let service = lab.start();
    lab.bus.call("eth0", &["Block", "sts", &ATTACKER.to_string(), "3600", "stays out"]).ok();
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    lab.bystander.assert_reaches(VICTIM, OPEN_PORT);
    service
}

/// Waits until the hooks are first again, however often they were mended.
#[track_caller]
fn await_hooks(lab: &Lab, service: &mut Service) {
    let is_first = |program: &str, hook: &str| {
        let first = run(lab.victim.command(program).args(["-S", hook, "1"])).ok();
        first == format!("-A {hook} -j tcptracker\n")
    };
    for mends in 1.. {
        service.await_lines("enforcing: all is well again", mends);
        let both = |hook| is_first("iptables", hook) && is_first("ip6tables", hook);
        if ["INPUT", "FORWARD"].into_iter().all(both) {
            break;
        }
    }
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    lab.bystander.assert_reaches(VICTIM, OPEN_PORT);
}

#[test]
fn ufw_is_enabled_reloaded_and_disabled() {
    let lab = Lab::new();
    let mut service = attacked(&lab);
    // With MANAGE_BUILTINS it flushes the built-in chains, those of others too.
    let script = format!(
        "cp /usr/share/ufw/iptables/*.rules /usr/share/ufw/ufw.conf /etc/ufw/; \
         sed -i 's/MANAGE_BUILTINS=no/MANAGE_BUILTINS=yes/' /etc/default/ufw; \
         ufw allow {OPEN_PORT}/tcp; ufw --force enable; ufw reload"
    );
    let said = run(&mut shell(&lab.victim, &script)).ok();
    assert!(said.contains("Firewall reloaded"), "{said}");
    await_hooks(&lab, &mut service);
    let rules = Rules::of(&lab.victim);
    assert!(rules.ipv4.iter().any(|rule| rule.contains("ufw-before-input")), "{rules:#?}");
    assert_eq!(service.stop().code(), Some(0));
}

#[test]
fn firewalld_is_reloaded() {
    // With either, it flushes what others have in the filter table.
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
        let mut said = BufReader::new(firewalld.stdout.take().unwrap()).lines();
        let mut stdin = firewalld.stdin.take().unwrap();
        assert_eq!(said.next().unwrap().unwrap(), "running");

        let mut service = attacked(&lab);
        stdin.write_all(b"reload\n").unwrap();
        assert_eq!(said.next().unwrap().unwrap(), "success");
        await_hooks(&lab, &mut service);
        assert_eq!(service.stop().code(), Some(0));
        // It goes with the laboratory.
        drop(lab);
        firewalld.wait().unwrap();
    }
}
