//! Exempt addresses: never blocked, automatically or manually, and updated when the host changes.

use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::Command;

use crate::fake_logind::FakeLogind;
use crate::files::Files;
use crate::flood::Flood;
use crate::frames::{BROADCAST, syn};
use crate::lab::{ATTACKER, ATTACKER_V6, BINARY, Lab, OPEN_PORT, VICTIM, VICTIM_V6};
use crate::service::{Service, Start};
use crate::tools::{await_that, run};

const SSH: u16 = 22;

/// An SSH session as the kernel sees it: a connection that sshd accepted.
struct Session {
    _ends: (TcpStream, TcpStream),
}

impl Session {
    fn open(lab: &Lab, sshd: &TcpListener, victim: IpAddr) -> Self {
        let port = sshd.local_addr().unwrap().port();
        let client = lab.attacker.inside(|| TcpStream::connect((victim, port)).unwrap());
        Self { _ends: (client, sshd.accept().unwrap().0) }
    }
}

/// Blocks an address over the bus. The address must not be exempt yet.
#[track_caller]
fn block(lab: &Lab, address: &str) {
    lab.bus.call("eth0", &["Block", "sts", address, "0", "until it is exempt"]).ok();
}

/// Waits until an address is unblocked because it became exempt, and asserts that a new block is
/// refused for this reason.
#[track_caller]
fn await_exemption(lab: &Lab, service: &mut Service, address: &str, why: &str) {
    service.await_line(&format!("unblocked {address}: now exempt"));
    assert_refused(lab, address, why);
    assert_eq!(lab.bus.list(), []);
}

#[track_caller]
fn assert_refused(lab: &Lab, network: &str, why: &str) {
    let refused = lab.bus.call("eth0", &["Block", "sts", network, "0", ""]);
    assert!(refused.code != Some(0) && refused.err.contains(why), "{network}: {refused:?}");
}

/// A connection to sshd protects no scanner. A login does, until logout, and then what the peer has done
/// meanwhile counts at once.
#[test]
fn ssh_peer_is_exempt_exactly_while_it_is_logged_in() {
    for (attacker, victim, around) in
        [(ATTACKER, VICTIM, "10.77.0.0/31"), (ATTACKER_V6, VICTIM_V6, "fd77::/127")]
    {
        let lab = Lab::new();
        let logind = FakeLogind::on(&lab.bus);
        let mut service = lab.start();
        let sshd = lab.victim.listen(SSH);
        let session = Session::open(&lab, &sshd, victim);
        lab.attacker.nmap("-sS -p 1-10", victim);
        let blocked = format!("WARN blocked {attacker} for 1h");
        service.await_line(&blocked);
        lab.attacker.assert_cannot_reach(victim, OPEN_PORT);

        logind.log_in(attacker);
        service.await_line(&format!("unblocked {attacker}: now exempt"));
        let why = format!("{attacker} has an SSH session open to this host");
        service.clear_log();
        lab.attacker.nmap("-sS -p 1-10", victim);
        service.await_line(&format!("did not block {attacker}: exempt: {why}"));
        lab.attacker.assert_reaches(victim, OPEN_PORT);
        for network in [attacker.to_string().as_str(), around] {
            assert_refused(&lab, network, &format!("{network} is never blocked: {why}"));
        }
        assert_eq!(lab.bus.error_of("Block", &format!("string:{around} uint64:0 string:")), EXEMPT);
        assert_eq!(lab.bus.list(), []);

        logind.close();
        drop(session);
        service.await_line(&format!("WARN blocked {attacker} for 4h"));
        lab.attacker.assert_cannot_reach(victim, OPEN_PORT);
        assert_eq!(service.stop().code(), Some(0));
        lab.assert_untouched();
    }
}

/// If a block would end a session, a peer of sshd is not blocked as long as it may be one. Without logind
/// that is known when sshd would have ended the connection.
#[test]
fn block_does_not_cut_a_session_that_is_not_recognised_yet() {
    let lab = Lab::new();
    let files = Files::new(&lab);
    files.write("/etc/ssh/sshd_config", "LoginGraceTime 1\n");
    lab.configure("[block]\nestablished = \"cut\"\n");
    let mut service = Start::on("eth0").through(files.wrapper()).begin(&lab).await_ready();
    let sshd = lab.victim.listen(SSH);
    let session = Session::open(&lab, &sshd, VICTIM);
    let maybe = format!("exempt: {ATTACKER} may be logged in over SSH");
    // The service looks for connections every 0.4 s.
    let known = || {
        let refused = lab.bus.call("eth0", &["Block", "sts", &ATTACKER.to_string(), "1", ""]);
        refused.err.contains("may be logged in")
    };
    await_that("the connection is known", known);
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("did not block {ATTACKER}: {maybe}"));
    // sshd ends the connection without a login.
    drop(session);
    service.await_line(&format!("WARN blocked {ATTACKER} for 1h"));
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    lab.bus.call("eth0", &["Unblock", "s", &ATTACKER.to_string()]).ok();

    let session = Session::open(&lab, &sshd, VICTIM);
    let why = format!("{ATTACKER} has an SSH session open to this host");
    await_that("the connection is a session", || {
        let refused = lab.bus.call("eth0", &["Block", "sts", &ATTACKER.to_string(), "1", ""]);
        refused.err.contains(&why)
    });
    drop(session);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

const EXEMPT: &str = "org.tcptracker.Tracker1.Error.Exempt";

/// A session on another port becomes exempt as soon as sshd's configuration names the port.
#[test]
fn changed_sshd_ports_are_followed() {
    let lab = Lab::new();
    let files = Files::new(&lab);
    // Without logind, a connection is a session when it is older than this.
    let config = "LoginGraceTime 1\nInclude /etc/ssh/sshd_config.d/*.conf\n";
    files.write("/etc/ssh/sshd_config", config);
    let mut service = Start::on("eth0").through(files.wrapper()).begin(&lab).await_ready();
    let why = format!("{ATTACKER} has an SSH session open to this host");
    for (port, file, contents) in [
        (
            2201,
            "/etc/ssh/sshd_config",
            "LoginGraceTime 1\nInclude sshd_config.d/*.conf\nPort 2201\n",
        ),
        (2202, "/etc/ssh/sshd_config.d/ours.conf", "ListenAddress 0.0.0.0:2202\n"),
        (2203, "/etc/systemd/system/ssh.socket.d/ours.conf", "[Socket]\nListenStream=2203\n"),
    ] {
        let sshd = lab.victim.listen(port);
        let session = Session::open(&lab, &sshd, VICTIM);
        // The service looks every 0.4 s whether the previous session has ended.
        await_that("the attacker is not exempt", || {
            let attacker = ATTACKER.to_string();
            lab.bus.call("eth0", &["Block", "sts", &attacker, "0", "until exempt"]).code == Some(0)
        });
        lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
        files.replace(file, contents);
        await_exemption(&lab, &mut service, &ATTACKER.to_string(), &why);
        lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
        drop(session);
        service.clear_log();
    }
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// The service has the privileges of the unit. It reports configuration files that it cannot read.
#[test]
fn ssh_sessions_are_found_without_root_privileges() {
    let lab = Lab::new();
    let files = Files::new(&lab);
    let config = "Include sshd_config.d/*.conf ours.d/*\nPort 2201\nLoginGraceTime 1\n";
    files.write("/etc/ssh/sshd_config", config);
    files.write("/etc/ssh/ours.d/one", "Port 2202\n");
    files.set_mode("/etc/ssh/ours.d", 0o700);
    // cloud-init creates the file with this mode.
    let secret = "/etc/ssh/sshd_config.d/50-cloud-init.conf";
    files.write(secret, "PasswordAuthentication no\n");
    files.set_mode(secret, 0o600);
    let binary = lab.path("tcptracker");
    run(Command::new("cp").arg(BINARY).arg(&binary)).ok();
    let wrapper = files.wrapper().into_iter().chain(AS_SERVICE.map(str::to_owned));
    let start = Start::on("eth0").through(wrapper).binary(binary);
    // The policy allows the bus name only for root and user tcptracker, which does not exist on
    // test machines.
    let start = start.env("TCPTRACKER_BUS__ENABLED", "false");
    let state = lab.state_directory("eth0");
    std::fs::create_dir_all(&state).unwrap();
    run(Command::new("chown").arg("nobody").arg(&state)).ok();
    let mut service = start.begin(&lab).await_ready();
    for secret in [secret, "/etc/ssh/ours.d"] {
        service.await_line(&format!("WARN cannot read {secret}: Permission denied"));
    }
    let sshd = lab.victim.listen(2201);
    let session = Session::open(&lab, &sshd, VICTIM);
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER} for 1h"));
    service.await_line(&format!("unblocked {ATTACKER}: now exempt"));
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    let why = format!("{ATTACKER} has an SSH session open to this host");
    service.await_line(&format!("did not block {ATTACKER}: exempt: {why}"));
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
    assert_eq!(service.lines_with("degraded"), Vec::<String>::new());
    drop(session);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

const AS_SERVICE: [&str; 6] = [
    "setpriv",
    "--reuid=nobody",
    "--regid=nogroup",
    "--clear-groups",
    "--inh-caps=-all,+net_admin,+net_raw",
    "--ambient-caps=-all,+net_admin,+net_raw",
];

#[test]
fn scanning_gateway_is_reported_but_not_blocked() {
    let lab = Lab::new();
    lab.victim.ip(&format!("route add default via {ATTACKER}"));
    let mut service = lab.start();
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    let why = format!("{ATTACKER} is a gateway of this host");
    service.await_line(&format!("did not block {ATTACKER}: exempt: {why}"));
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
    assert_refused(&lab, "10.77.0.0/31", &why);
    assert_eq!(lab.metric(r#"tcptracker_scans_total{kind="vertical"}"#), 1);
    assert_eq!(lab.bus.list(), []);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// Covers every form in which a route can name its gateway.
#[test]
fn gateway_of_a_new_route_is_unblocked() {
    let lab = Lab::new();
    // Otherwise routes would also contain the gateway of their nexthop object.
    lab.victim.inside(|| std::fs::write("/proc/sys/net/ipv4/nexthop_compat_mode", "0").unwrap());
    let mut service = lab.start();
    for (command, gateway) in [
        ("route add default via 10.77.0.31", "10.77.0.31"),
        ("route add 198.51.100.0/24 via 10.77.0.32 table 77", "10.77.0.32"),
        ("route add 198.51.101.0/24 nexthop via 10.77.0.4 nexthop via 10.77.0.33", "10.77.0.33"),
        ("nexthop add id 7 via 10.77.0.34 dev eth0", "10.77.0.34"),
        ("route add 198.51.102.0/24 via inet6 fd77::35 dev eth0", "fd77::35"),
        (
            "route add 198.51.103.0/24 nexthop via 10.77.0.4 nexthop via inet6 fd77::36 dev eth0",
            "fd77::36",
        ),
        ("-6 route add default via fd77::37", "fd77::37"),
        ("-6 route add 2001:db8::/32 nexthop via fd77::4 nexthop via fd77::38", "fd77::38"),
    ] {
        block(&lab, gateway);
        lab.victim.ip(command);
        let why = format!("{gateway} is a gateway of this host");
        await_exemption(&lab, &mut service, gateway, &why);
    }
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn resolver_changes_are_followed() {
    let lab = Lab::new();
    let files = Files::new(&lab);
    files.replace("/etc/resolv.conf", "nameserver 192.0.2.1\n");
    let mut service = Start::on("eth0").through(files.wrapper()).begin(&lab).await_ready();
    assert_refused(&lab, "192.0.2.0/24", "192.0.2.1 is a name server of this host");

    let stub = "/run/systemd/resolve/stub-resolv.conf";
    let steps: [(&str, &dyn Fn()); 6] = [
        ("192.0.2.2", &|| files.write("/etc/resolv.conf", "nameserver 192.0.2.2\n")),
        ("192.0.2.3", &|| files.replace("/etc/resolv.conf", "nameserver 192.0.2.3\n")),
        // systemd-resolved: resolv.conf names its stub listener, and another file names the
        // upstream servers.
        ("2001:db8::4", &|| {
            files.write(stub, "nameserver 127.0.0.53\n");
            files.link("/etc/resolv.conf", &format!("..{stub}"));
            files.write("/run/systemd/resolve/resolv.conf", "nameserver 2001:db8::4\n");
        }),
        ("192.0.2.5", &|| {
            files.replace("/run/systemd/resolve/resolv.conf", "nameserver 192.0.2.5\n");
        }),
        ("192.0.2.6", &|| files.replace(stub, "nameserver 192.0.2.6\n")),
        ("192.0.2.7", &|| {
            files.write("/etc/another", "nameserver 192.0.2.7\n");
            files.link("/etc/resolv.conf", "another");
        }),
    ];
    for (address, change) in steps {
        block(&lab, address);
        change();
        let why = format!("{address} is a name server of this host");
        await_exemption(&lab, &mut service, address, &why);
    }
    // A former resolver is no longer exempt.
    block(&lab, "192.0.2.2");
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// More changes at once than the netlink buffer holds, so the kernel reports lost messages.
#[test]
fn address_changes_survive_netlink_overrun() {
    let lab = Lab::new();
    let mut service = lab.start();
    let last = "10.99.15.255";
    block(&lab, last);
    let all = (0..16).flat_map(|third| (0..=255).map(move |fourth| (third, fourth)));
    let batch: String = all
        .map(|(third, fourth)| format!("addr add 10.99.{third}.{fourth}/32 dev eth0\n"))
        .collect();
    let file = lab.path("batch");
    std::fs::write(&file, batch).unwrap();
    run(lab.victim.command("ip").arg("-batch").arg(file)).ok();
    await_exemption(&lab, &mut service, last, &format!("{last} is an address of this host"));
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn ipv4_address_is_exempt_in_every_spelling() {
    let lab = Lab::new();
    lab.configure("[exempt]\nnetworks = [\"203.0.113.5\"]\n");
    let mut service = lab.start();
    for spelled in [
        "::ffff:203.0.113.5",
        "::203.0.113.5",
        "64:ff9b::203.0.113.5",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "64:ff9b:1:cb00:71:500::",
        "2002:cb00:7105::/48",
        "2002:cb00:7105::1",
    ] {
        assert_refused(&lab, spelled, "203.0.113.5 is listed in exempt.networks");
    }
    let mut flood = Flood::on(&lab);
    let mut scan = |source: &str| {
        for port in 1..=10 {
            assert!(flood.frame(&syn(BROADCAST, source.parse().unwrap(), VICTIM_V6, port)));
        }
        flood.settle();
    };
    scan("64:ff9b::203.0.113.5");
    let why = "exempt: 203.0.113.5 is listed in exempt.networks";
    service.await_line(&format!("did not block 64:ff9b::cb00:7105: {why}"));
    // Another host behind the same NAT64 is another source.
    scan("64:ff9b::203.0.113.6");
    service.await_line("WARN blocked 64:ff9b::cb00:7106 for 1h");
    assert_eq!(lab.bus.list().len(), 1);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn addresses_that_no_remote_host_has_cannot_be_blocked() {
    let lab = Lab::new();
    lab.configure("[exempt]\nautomatic = false\n");
    let mut service = lab.start();
    for (network, special) in [
        ("0.1.2.3", "0.0.0.0/8"),
        ("224.0.0.5", "224.0.0.0/4"),
        ("240.1.2.3", "240.0.0.0/4"),
        ("255.255.255.255", "240.0.0.0/4"),
        ("224.0.0.0/3", "224.0.0.0/3"),
        ("::", "::/127"),
        ("ff02::5", "ff00::/8"),
    ] {
        let why = format!("no remote host can have an address in {special}");
        assert_refused(&lab, network, &format!("{network} is never blocked: {why}"));
    }
    assert_refused(&lab, "127.9.9.9", "127.0.0.0/8 is loopback");
    // The lab's addresses have no broadcast address, but the kernel uses the last one of a network.
    assert_refused(&lab, "10.77.0.255", "10.77.0.255 is a broadcast address");
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn only_listed_networks_are_exempt_when_automatic_is_off() {
    let lab = Lab::new();
    lab.configure("[exempt]\nautomatic = false\nnetworks = [\"10.77.0.3\"]\n");
    lab.victim.ip(&format!("route add default via {ATTACKER}"));
    let mut service = lab.start();
    let sshd = lab.victim.listen(SSH);
    let session = Session::open(&lab, &sshd, VICTIM);
    lab.bystander.nmap("-sS -p 1-10", VICTIM);
    service.await_line("did not block 10.77.0.3: exempt: 10.77.0.3 is listed in exempt.networks");
    assert_refused(&lab, &VICTIM.to_string(), "10.77.0.2 is an address of this host");
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER} for 1h"));
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    drop(session);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}
