//! The threads between a probe and its block get the processor at once, and nothing else does.

use crate::flood::Flood;
use crate::lab::{ATTACKER, Lab, VICTIM};
use crate::scenarios::doctor::finding;
use crate::service::{Service, Start};
use crate::tools::{await_that, install_script, run};

const URGENT: [&str; 3] = ["capture", "detector", "firewall"];

/// The policies of proc_pid_stat(5).
const SCHED_OTHER: &str = "0";
const SCHED_RR: &str = "2";

/// Awaits the policy of all threads between a probe and its block.
fn await_policy(service: &Service, policy: &str) {
    for thread in URGENT {
        await_that(&format!("{thread} has policy {policy}"), || {
            service.policies().iter().any(|(name, found)| name == thread && found == policy)
        });
    }
}

#[test]
fn only_the_threads_of_a_block_have_real_time_priority() {
    let lab = Lab::new();
    // Each program of the firewall notes its policy, which is field 41.
    let (shim, policies) = (lab.path("shim"), lab.path("policies"));
    std::fs::create_dir(&shim).unwrap();
    for program in ["iptables-nft-save", "iptables-nft-restore"] {
        let script = format!(
            "#!/bin/sh\ncut -d' ' -f41 /proc/$$/stat >>{}\nexec /usr/sbin/{program} \"$@\"\n",
            policies.display()
        );
        install_script(&shim.join(program), &script);
    }
    let path = format!("{}:{}", shim.display(), std::env::var("PATH").unwrap());
    let mut service = Start::on("eth0").env("PATH", &path).begin(&lab).await_ready();
    await_policy(&service, SCHED_RR);
    lab.attacker.nmap("-sS -p 1-4", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER} for 1h"));
    run(lab.victim.command("iptables").args(["-D", "INPUT", "-j", "tcptracker"])).ok();
    service.await_line("repaired firewall: hook INPUT (ipv4) was missing");
    await_policy(&service, SCHED_RR);
    for (name, policy) in service.policies() {
        assert!(URGENT.contains(&&*name) || policy == SCHED_OTHER, "{name}: {policy}");
    }
    let noted = std::fs::read_to_string(policies).unwrap();
    assert!(noted.lines().count() > 2 && noted.lines().all(|policy| policy == "0"), "{noted}");
    let scheduling = finding(&lab.cli("doctor --json"), "scheduling");
    assert_eq!(scheduling["result"], "ok", "{scheduling}");
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// As in most containers.
#[test]
fn without_permission_it_blocks_as_usual_and_doctor_reports_it() {
    let lab = Lab::new();
    let without = ["setpriv", "--bounding-set=-sys_nice", "--inh-caps=-sys_nice"];
    let mut service = Start::on("eth0").through(without).begin(&lab).await_ready();
    lab.attacker.nmap("-sS -p 1-4", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER} for 1h"));
    assert!(service.policies().iter().all(|(_, policy)| policy == SCHED_OTHER));
    let scheduling = finding(&lab.cli("doctor --json"), "scheduling");
    assert_eq!(scheduling["result"], "warning", "{scheduling}");
    assert!(scheduling["remedy"].as_str().unwrap().contains("LimitRTPRIO=1"), "{scheduling}");
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn flood_takes_the_priority_until_it_is_over() {
    let lab = Lab::new();
    let mut service = lab.start();
    await_policy(&service, SCHED_RR);
    let mut flood = Flood::on(&lab);
    let mut number = 0;
    await_that("the capture thread is a normal one", || {
        for _ in 0..10_000 {
            number += 1;
            flood.syn(std::net::Ipv4Addr::from(0x0b00_0000 + number), [10, 77, 0, 2].into(), 80);
        }
        service.policies().contains(&("capture".to_owned(), SCHED_OTHER.to_owned()))
    });
    await_policy(&service, SCHED_RR);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}
