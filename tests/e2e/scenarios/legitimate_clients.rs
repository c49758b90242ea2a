//! Legitimate clients that use many ports, alone and next to a scanner, with both presets.

use std::net::IpAddr;

use crate::clients::{Clients, Server, run_python};
use crate::kernel::Rules;
use crate::lab::{ATTACKER, Lab, OPEN_PORT, VICTIM};
use crate::service::Service;
use crate::tools::Random;

const BYSTANDER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 77, 0, 3));

const MAIL: [u16; 7] = [25, 110, 143, 465, 587, 993, 995];

pub(super) fn start(lab: &Lab, preset: &str) -> Service {
    lab.configure(&format!("[detection]\npreset = \"{preset}\"\n"));
    let service = lab.start();
    Rules::of(&lab.victim).assert_enforced_for(&["eth0"]);
    service
}

/// Runs the bystander's traffic and then the attacker's scan, and asserts which addresses each
/// preset blocks.
#[track_caller]
fn assert_blocked(ports: &[u16], traffic: impl Fn(&Lab), by: [(&str, &[IpAddr]); 2]) {
    for (preset, expected) in by {
        let lab = Lab::new();
        let server = Server::on(&lab, ports);
        let mut service = start(&lab, preset);
        traffic(&lab);
        // The detector handles packets in order, so it has judged the bystander's traffic when it
        // blocks the attacker.
        lab.attacker.nmap("-sS -p 1-20", VICTIM);
        service.await_line(&format!("blocked {ATTACKER}"));
        let mut blocked: Vec<String> = lab.bus.list().into_iter().map(|block| block.0).collect();
        blocked.sort();
        let expected: Vec<String> = expected.iter().map(IpAddr::to_string).collect();
        assert_eq!(blocked, expected, "{preset}");
        if !expected.contains(&BYSTANDER.to_string()) {
            lab.bystander.assert_reaches(VICTIM, OPEN_PORT);
        }
        assert_eq!(service.stop().code(), Some(0));
        drop(server);
    }
}

/// Only the classic preset blocks the legitimate client.
const ONLY_CLASSIC: [(&str, &[IpAddr]); 2] =
    [("classic", &[ATTACKER, BYSTANDER]), ("balanced", &[ATTACKER])];

/// Neither preset blocks the legitimate client.
const NEITHER: [(&str, &[IpAddr]); 2] = [("classic", &[ATTACKER]), ("balanced", &[ATTACKER])];

#[test]
fn balanced_does_not_block_a_mail_client() {
    let traffic = |lab: &Lab| {
        // A blocked client never finishes, so do not wait for it.
        let client = Clients::at(&lab.bystander).begin(&[&MAIL[..], &MAIL[..]].concat());
        if is_balanced(lab) { client.await_end() } else { lab.await_blocked(BYSTANDER) }
    };
    assert_blocked(&MAIL, traffic, ONLY_CLASSIC);
}

#[test]
fn balanced_does_not_block_a_browser() {
    let traffic = |lab: &Lab| {
        let client = Clients::at(&lab.bystander).begin(&[443, 80, 8000, 8888].repeat(5));
        if is_balanced(lab) { client.await_end() } else { lab.await_blocked(BYSTANDER) }
    };
    assert_blocked(&[80, 443], traffic, ONLY_CLASSIC);
    // Neither preset counts repeated attempts on one closed port.
    let retries = |lab: &Lab| Clients::at(&lab.bystander).run(&[443, 80, 8443].repeat(20));
    assert_blocked(&[80, 443], retries, NEITHER);
}

/// The client only checks that 10 services are up, of which 3 are down. It leaves greetings unread,
/// so its kernel resets the connections, as in a connect scan.
#[test]
fn balanced_does_not_block_a_monitoring_host() {
    let down = [21, 3306, 5432];
    let all = [&MAIL[..], &down].concat();
    let traffic = |lab: &Lab| {
        let client = Clients::at(&lab.bystander).without_reading().begin(&all.repeat(3));
        if is_balanced(lab) { client.await_end() } else { lab.await_blocked(BYSTANDER) }
    };
    assert_blocked(&MAIL, traffic, ONLY_CLASSIC);
}

/// 60 clients share one address, and 3% of their connections go to random ports.
#[test]
fn balanced_does_not_block_a_nat_gateway() {
    // Exclude SSH, because an open SSH session would exempt the address.
    let services = [25, 80, 443, 587, 993, 8080];
    let mut random = Random::seeded(7);
    let ports: Vec<u16> = (0..1800)
        .map(|_| match random.below(100) {
            0..3 => 10_000 + u16::try_from(random.below(50_000)).unwrap(),
            _ => services[random.below(services.len())],
        })
        .collect();
    let traffic = |lab: &Lab| {
        let clients = Clients::at(&lab.bystander).at_once(60).begin(&ports);
        if is_balanced(lab) { clients.await_end() } else { lab.await_blocked(BYSTANDER) }
    };
    assert_blocked(&services, traffic, ONLY_CLASSIC);
}

/// A slow scan runs next to 100 legitimate connections per second from another address.
#[test]
fn slow_scan_is_detected_among_legitimate_connections() {
    let services = [80, 443, 8080];
    for preset in ["classic", "balanced"] {
        let lab = Lab::new();
        let server = Server::on(&lab, &services);
        let mut service = start(&lab, preset);
        let clients =
            Clients::at(&lab.bystander).at_once(20).rate(100).begin(&services.repeat(130));
        lab.attacker.nmap("-sS -T2 -p 101-106", VICTIM);
        service.await_line(&format!("blocked {ATTACKER}"));
        clients.await_end();
        assert_eq!(lab.bus.list().len(), 1, "{preset}");
        lab.bystander.assert_reaches(VICTIM, OPEN_PORT);
        drop(server);
    }
}

/// Successful connections of other hosts at the same address must not offset the scan's failures.
#[test]
fn scan_is_detected_behind_a_nat_gateway() {
    for scan in ["-sS", "-sT --max-rate 40"] {
        let lab = Lab::new();
        let server = Server::on(&lab, &[80, 443]);
        let mut service = start(&lab, "balanced");
        Clients::at(&lab.bystander).at_once(20).run(&[80, 443].repeat(100));
        let _clients =
            Clients::at(&lab.bystander).at_once(20).rate(100).begin(&[80, 443].repeat(2000));
        lab.bystander.nmap(&format!("{scan} -p 1001-1200"), VICTIM);
        service.await_line(&format!("blocked {BYSTANDER}"));
        drop(server);
    }
}

/// Active and passive FTP with a real server and a real client. Each file uses a new port.
#[test]
fn balanced_does_not_block_an_ftp_client() {
    const DAEMON: &str = "
import logging, sys
logging.basicConfig(level=logging.WARNING)
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import FTPServer
FTPHandler.authorizer = DummyAuthorizer()
FTPHandler.authorizer.add_anonymous(sys.argv[1])
server = FTPServer(('', 21), FTPHandler)
print('ready', flush=True)
server.serve_forever()
";
    const CLIENT: &str = "
import ftplib, sys
for passive in (True, False):
    ftp = ftplib.FTP(sys.argv[1], timeout=20)
    ftp.login()
    ftp.set_pasv(passive)
    for _ in range(120):
        ftp.retrbinary('RETR file', lambda data: None)
    ftp.quit()
";
    let lab = Lab::new();
    let directory = lab.path("ftp");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("file"), "content").unwrap();
    let server = Server::python(&lab, DAEMON, &[directory.display().to_string()]);
    let mut service = start(&lab, "balanced");
    run_python(&lab.bystander, CLIENT, &[VICTIM.to_string()]);
    lab.attacker.nmap("-sS -p 1-20", VICTIM);
    service.await_line(&format!("blocked {ATTACKER}"));
    assert_eq!(service.lines_with("port scan by").len(), 1, "{:?}", service.log());
    assert_eq!(lab.bus.list().len(), 1);

    // The classic preset takes the client for a scanner.
    service.stop();
    let mut service = start(&lab, "classic");
    let client = "import ftplib, sys
ftp = ftplib.FTP(sys.argv[1], timeout=20)
ftp.login()
for _ in range(3):
    ftp.retrbinary('RETR file', lambda data: None)
";
    run_python(&lab.bystander, client, &[VICTIM.to_string()]);
    service.await_line(&format!("blocked {BYSTANDER}"));
    drop(server);
}

/// A redirected port is open although no process listens on it.
#[test]
fn redirected_port_counts_as_open() {
    let redirected: Vec<u16> = (2001..=2008).collect();
    let traffic = |lab: &Lab| {
        for port in &redirected {
            let rule =
                format!("-t nat -A PREROUTING -p tcp --dport {port} -j REDIRECT --to-ports 80");
            crate::tools::run(lab.victim.command("iptables").args(rule.split(' '))).ok();
        }
        let client = Clients::at(&lab.bystander).begin(&redirected.repeat(2));
        if is_balanced(lab) { client.await_end() } else { lab.await_blocked(BYSTANDER) }
    };
    assert_blocked(&[80], traffic, ONLY_CLASSIC);
}

fn is_balanced(lab: &Lab) -> bool {
    std::fs::read_to_string(lab.path("tcptracker.toml")).unwrap().contains("balanced")
}

impl Lab {
    fn await_blocked(&self, address: IpAddr) {
        crate::tools::await_that("the address is blocked", || {
            self.bus.list().iter().any(|block| block.0 == address.to_string())
        });
    }
}
