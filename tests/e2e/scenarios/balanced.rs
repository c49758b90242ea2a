//! `detection.preset = "balanced"`: whoever fails is a scanner, and honest clients are none, in both
//! presets as each promises.

use std::net::{IpAddr, TcpListener};
use std::process::Command;

use crate::kernel::Rules;
use crate::lab::{ATTACKER, Lab, OPEN_PORT, VICTIM};
use crate::service::{Service, Start};
use crate::tools::{await_that, run};

const BYSTANDER: &str = "10.77.0.3";

fn balanced(lab: &Lab) -> Service {
    lab.configure("[detection]\npreset = \"balanced\"\n");
    let service = lab.start();
    Rules::of(&lab.victim).assert_enforced_for(&["eth0"]);
    service
}

/// What an honest client does, ports apart: connect, say something, go. Refused ports are passed over.
const CLIENT: &str = "
import socket, sys
target, rounds = sys.argv[1], int(sys.argv[2])
for _ in range(rounds):
    for port in map(int, sys.argv[3:]):
        try:
            with socket.create_connection((target, port), 20) as connection:
                connection.sendall(b'hello\\n')
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(100):
                    pass
        except ConnectionRefusedError:
            pass
";

/// Somebody who takes connections on these ports, reads them to their end and says goodbye.
const SERVER: &str = "
import selectors, socket, sys
waiting = selectors.DefaultSelector()
for port in map(int, sys.argv[1:]):
    listener = socket.create_server(('', port), backlog=128)
    waiting.register(listener, selectors.EVENT_READ)
print('ready', flush=True)
while True:
    for ready, _ in waiting.select():
        connection, _ = ready.fileobj.accept()
        with connection:
            while connection.recv(100):
                pass
            connection.sendall(b'bye')
";

fn python(command: &mut Command, program: &str, arguments: &[String]) {
    command.args(["-c", program]).args(arguments);
}

/// A server in the victim, until it is dropped.
struct Server(std::process::Child);

impl Server {
    fn on(lab: &Lab, ports: &[u16]) -> Self {
        let mut command = lab.victim.command("python3");
        let arguments: Vec<String> = ports.iter().map(u16::to_string).collect();
        python(&mut command, SERVER, &arguments);
        let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let out = child.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An honest client at the bystander's, to its end.
#[track_caller]
fn visit(lab: &Lab, rounds: u32, ports: &[u16]) {
    let mut command = lab.bystander.command("python3");
    let mut arguments = vec![VICTIM.to_string(), rounds.to_string()];
    arguments.extend(ports.iter().map(u16::to_string));
    python(&mut command, CLIENT, &arguments);
    run(&mut command).ok();
}

/// All that came before was judged: a scanner that came after it is blocked.
fn everything_was_judged(lab: &Lab, service: &mut Service) {
    lab.attacker.nmap("-sS -p 1-20", VICTIM);
    service.await_line(&format!("blocked {ATTACKER}"));
}

fn blocked(lab: &Lab) -> Vec<String> {
    lab.bus.list().into_iter().map(|block| block.0).collect()
}

#[test]
fn refused_ports_block_and_are_told_with_what_became_of_them() {
    let lab = Lab::new();
    let mut service = balanced(&lab);
    lab.attacker.nmap("-sS -p 1-4", VICTIM);
    service.await_line(&format!("blocked {ATTACKER} for 1h (offence 1)"));
    let told = service.await_line("vertical port scan by");
    assert!(told.contains(" refused"), "{told}");
    assert!(told.contains("more than 3 failed ports of one host in 60s"), "{told}");
    let why = lab.bus.why("10.77.0.1").to_string();
    assert!(why.contains("refused") && why.contains("failed ports"), "{why}");
    lab.attacker.assert_shut_out(VICTIM, OPEN_PORT);
    lab.bystander.assert_let_in(VICTIM, OPEN_PORT);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// Where a firewall drops what comes to closed ports, nobody answers.
#[test]
fn unanswered_ports_block() {
    let lab = Lab::new();
    run(lab.victim.command("iptables").args("-A INPUT -p tcp --dport 1:100 -j DROP".split(' ')))
        .ok();
    let mut service = balanced(&lab);
    lab.attacker.nmap("-sS -p 11-30", VICTIM);
    service.await_line(&format!("blocked {ATTACKER}"));
    let told = service.await_line("vertical port scan by");
    assert!(told.contains(" unanswered"), "{told}");
}

#[test]
fn half_open_and_stealthy_scans_of_open_ports_block() {
    for scan in ["-sS", "-sF", "-sX", "-sN"] {
        let lab = Lab::new();
        let open: Vec<TcpListener> = (21..=28).map(|port| lab.victim.listen(port)).collect();
        let mut service = balanced(&lab);
        lab.attacker.nmap(&format!("{scan} -p 21-28"), VICTIM);
        service.await_line(&format!("blocked {ATTACKER}"));
        drop(open);
    }
}

/// A mail client's ports, a browser's, a monitoring host's with two dead services: classic takes them for
/// scanners, balanced does not.
#[test]
fn honest_clients_of_many_ports_are_no_scanners() {
    let open = [25, 80, 110, 143, 443, 465, 587, 993, 995, 8080];
    let lab = Lab::new();
    let server = Server::on(&lab, &open);
    let mut service = balanced(&lab);
    visit(&lab, 3, &open);
    visit(&lab, 5, &[80, 443, 8000, 8888]);
    everything_was_judged(&lab, &mut service);
    assert_eq!(blocked(&lab), [ATTACKER.to_string()]);
    lab.bystander.assert_let_in(VICTIM, OPEN_PORT);
    assert_eq!(service.stop().code(), Some(0));
    drop(service);

    lab.configure("");
    let mut service = lab.start();
    visit(&lab, 1, &open[..4]);
    service.await_line(&format!("blocked {BYSTANDER}"));
    drop(server);
}

/// 60 users behind one address, 3 in 100 of whose connections go wrong; and a scanner behind another
/// beside them.
#[test]
fn a_network_behind_one_address_may_err_and_hides_no_scanner() {
    let lab = Lab::new();
    let server = Server::on(&lab, &[80, 443, 8080]);
    let mut service = balanced(&lab);
    let mut ports = Vec::new();
    for number in 0..600u16 {
        let wrong = number % 33 == 20;
        ports.push(if wrong { 20_000 + number } else { [80, 443, 8080][usize::from(number % 3)] });
    }
    visit(&lab, 1, &ports);
    everything_was_judged(&lab, &mut service);
    assert_eq!(blocked(&lab), [ATTACKER.to_string()]);
    // The scanner among them.
    let scan: Vec<u16> = (1..=200).flat_map(|port| [80, port + 1000]).collect();
    let mut command = lab.bystander.command("python3");
    let mut arguments = vec![VICTIM.to_string(), "1".to_owned()];
    arguments.extend(scan.iter().map(u16::to_string));
    python(&mut command, CLIENT, &arguments);
    // Shut out, it waits for answers: nobody waits for it.
    let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    service.await_line(&format!("blocked {BYSTANDER}"));
    let _ = child.kill();
    let _ = child.wait();
    drop(server);
}

/// The preset is changed while the service runs, to and fro.
#[test]
fn another_preset_holds_from_a_reload_on() {
    let lab = Lab::new();
    let server = Server::on(&lab, &[25, 80, 110, 143, 443]);
    let mut service = lab.start();
    lab.configure("[detection]\npreset = \"balanced\"\n");
    service.signal(rustix::process::Signal::HUP);
    service.await_line("configuration reloaded");
    visit(&lab, 2, &[25, 80, 110, 143, 443]);
    // The change itself is over.
    await_that("the scanner is blocked", || {
        lab.attacker.nmap("-sS -p 31-40", VICTIM);
        blocked(&lab) == [ATTACKER.to_string()]
    });
    lab.configure("");
    service.signal(rustix::process::Signal::HUP);
    service.await_lines("configuration reloaded", 2);
    visit(&lab, 1, &[25, 80, 110, 143]);
    service.await_line(&format!("blocked {BYSTANDER}"));
    drop(server);
}

/// Active and passive, with a real server and client.
#[test]
fn ftp_is_no_scan() {
    let lab = Lab::new();
    let directory = lab.path("ftp");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("file"), "content").unwrap();
    let daemon = "
import sys
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import FTPServer
FTPHandler.authorizer = DummyAuthorizer()
FTPHandler.authorizer.add_anonymous(sys.argv[1])
server = FTPServer(('', 21), FTPHandler)
print('ready', flush=True)
server.serve_forever()
";
    let client = "
import ftplib, sys
for passive in (True, False):
    ftp = ftplib.FTP(sys.argv[1], timeout=20)
    ftp.login()
    ftp.set_pasv(passive)
    for _ in range(12):
        ftp.retrbinary('RETR file', lambda data: None)
    ftp.quit()
";
    // Debian's own: another python has not what Debian packages.
    let mut command = lab.victim.command("/usr/bin/python3");
    python(&mut command, daemon, &[directory.display().to_string()]);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let out = child.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
    let server = Server(child);
    assert_eq!(line, "ready\n");

    let mut service = balanced(&lab);
    let mut command = lab.bystander.command("python3");
    python(&mut command, client, &[VICTIM.to_string()]);
    run(&mut command).ok();
    everything_was_judged(&lab, &mut service);
    assert_eq!(blocked(&lab), [ATTACKER.to_string()]);
    drop(server);
}

/// A port forwarded to somebody else: nothing listens on it here, and it is open.
#[test]
fn a_redirected_port_is_an_open_one() {
    let lab = Lab::new();
    let server = Server::on(&lab, &[80]);
    for port in 2001..=2008 {
        let rule = format!("-t nat -A PREROUTING -p tcp --dport {port} -j REDIRECT --to-ports 80");
        run(lab.victim.command("iptables").args(rule.split(' '))).ok();
    }
    let mut service = balanced(&lab);
    visit(&lab, 2, &[2001, 2002, 2003, 2004, 2005, 2006, 2007, 2008]);
    everything_was_judged(&lab, &mut service);
    let attacker: IpAddr = ATTACKER;
    assert_eq!(blocked(&lab), [attacker.to_string()]);
    drop(server);
}

/// `--observe` and balanced: reported, not blocked.
#[test]
fn observing_reports_by_the_balanced_rules() {
    let lab = Lab::new();
    lab.configure("[detection]\npreset = \"balanced\"\n");
    let mut service = Start::on("eth0").flag("--observe").begin(&lab).await_ready();
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line("more than 3 failed ports of one host in 60s");
    lab.attacker.assert_let_in(VICTIM, OPEN_PORT);
}
