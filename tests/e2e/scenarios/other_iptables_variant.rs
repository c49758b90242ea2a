//! iptables-legacy, which keeps its rules in ip_tables instead of nf_tables.

use std::path::PathBuf;

use serde_json::json;

use super::repairs::{block, damage_at_once};
use crate::lab::{ATTACKER, Lab, OPEN_PORT, VICTIM, VICTIM_V6};
use crate::service::Start;
use crate::tools::run;

/// ip_tables has no generation counter, so the service has to compare the rules.
#[test]
fn legacy_rules_are_repaired() {
    let lab = Lab::new();
    let path = legacy(&lab);
    let mut service = Start::on("eth0").env("PATH", &path).begin(&lab).await_ready();
    block(&lab);
    // The lock of iptables-legacy is global: other tests may hold it, so wait for it (-w).
    for (number, damage) in [
        "iptables-legacy -w -F; iptables-legacy -w -X",
        "ip6tables-legacy -w -F tcptracker",
        "iptables-legacy -w -I INPUT -p tcp -j ACCEPT",
    ]
    .iter()
    .enumerate()
    {
        damage_at_once(&lab, &service, damage);
        service.await_lines("repaired firewall: ", number + 1);
        service.await_lines("enforcing: no problems", number + 1);
        lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
        lab.attacker.assert_cannot_reach(VICTIM_V6, OPEN_PORT);
    }
    assert_eq!(service.stop().code(), Some(0));
    let left = run(&mut lab.victim.command("iptables-legacy-save")).ok();
    assert!(!left.contains("tcptracker"), "{left}");
}

/// A kernel without nfnetlink has no sets; iptables-legacy does not need nfnetlink.
#[test]
fn auto_falls_back_to_rules_without_kernel_sets() {
    let lab = Lab::new();
    let path = legacy(&lab);
    // A seccomp(2) filter refuses NETLINK_NETFILTER sockets with EPROTONOSUPPORT, as that kernel
    // does.
    let without = "import ctypes, os, struct, sys\n\
        def op(code, jt, jf, k): return struct.pack('HBBI', code, jt, jf, k)\n\
        program = b''.join([op(0x20, 0, 0, 0), op(0x15, 0, 5, 41), op(0x20, 0, 0, 16), op(0x15, 0, 3, 16),\n\
            op(0x20, 0, 0, 32), op(0x15, 0, 1, 12), op(0x06, 0, 0, 0x50000 | 93), op(0x06, 0, 0, 0x7fff0000)])\n\
        code = ctypes.create_string_buffer(program)\n\
        filter = struct.pack('HxxxxxxP', 8, ctypes.addressof(code))\n\
        libc = ctypes.CDLL(None, use_errno=True)\n\
        assert libc.prctl(38, 1, 0, 0, 0) == 0\n\
        assert libc.prctl(22, 2, ctypes.c_char_p(filter), 0, 0) == 0\n\
        os.execvp(sys.argv[1], sys.argv[1:])\n";
    let start = Start::on("eth0").env("PATH", &path).through(["python3", "-c", without]);
    let mut service = start.begin(&lab).await_ready();
    service.await_line(
        "kernel sets of type hash:net are not available: the modules ip_set and ip_set_hash_net are \
         missing; using one firewall rule per address instead (at most 1000)",
    );
    assert_eq!(lab.bus.property("Backend").1, json!("iptables"));
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER} for 1h"));
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    lab.bystander.assert_reaches(VICTIM, OPEN_PORT);
    run(lab.victim.command("iptables-legacy").args(["-w", "-F", "tcptracker"])).ok();
    service.await_line("repaired firewall: 1 set member (ipv4) was missing");
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    assert_eq!(service.stop().code(), Some(0));
    let left = run(&mut lab.victim.command("iptables-legacy-save")).ok();
    assert!(!left.contains("tcptracker"), "{left}");
}

/// Each variant of iptables shows only its own rules.
#[test]
fn rules_left_by_the_other_variant_are_removed() {
    let lab = Lab::new();
    let path = legacy(&lab);
    for legacy_first in [true, false] {
        let start = |legacy: bool| {
            let start = Start::on("eth0");
            if legacy { start.env("PATH", &path) } else { start }
        };
        let mut service = start(legacy_first).begin(&lab).await_ready();
        lab.cli(&format!("block {ATTACKER}")).ok();
        service.crash();
        lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);

        let mut service = start(!legacy_first).begin(&lab).await_ready();
        lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
        lab.cli(&format!("unblock {ATTACKER}")).ok();
        lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
        assert_eq!(service.stop().code(), Some(0));
        for kind in ["legacy", "nft"] {
            for program in ["iptables", "ip6tables"] {
                let left = run(&mut lab.victim.command(format!("{program}-{kind}-save"))).ok();
                assert!(!left.contains("tcptracker"), "{left}");
            }
        }
    }
    lab.assert_untouched();
}

/// Returns a PATH on which iptables is iptables-legacy.
pub(super) fn legacy(lab: &Lab) -> String {
    let directory = lab.path("legacy");
    std::fs::create_dir(&directory).unwrap();
    for program in ["iptables", "ip6tables"] {
        for suffix in ["", "-save", "-restore"] {
            let real = PathBuf::from("/usr/sbin/xtables-legacy-multi");
            std::os::unix::fs::symlink(real, directory.join(format!("{program}{suffix}"))).unwrap();
        }
    }
    format!("{}:{}", directory.display(), std::env::var("PATH").unwrap())
}
