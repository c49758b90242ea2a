//! A network namespace: one host of the laboratory, and what can be done from it.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Sender, TryRecvError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::tools::{TIMEOUT, sh};

/// Where ip-netns(8) keeps them.
pub const DIRECTORY: &str = "/run/netns";

/// An answer comes over a veth pair in microseconds, and the first SYN is repeated after a second:
/// who has heard nothing for so long gets no answer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_millis(1500);

/// A network namespace. Dropped, it is removed with everything that runs in it.
pub struct Namespace {
    name: String,
}

impl Namespace {
    pub fn new(name: String) -> Self {
        sh(&format!("ip netns add {name}"));
        let namespace = Self { name };
        namespace.ip("link set lo up");
        namespace
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// ip(8) for this namespace.
    #[track_caller]
    pub fn ip(&self, words: &str) -> String {
        sh(&format!("ip -n {} {words}", self.name))
    }

    /// The hardware address of an interface.
    pub fn hardware_address(&self, interface: &str) -> [u8; 6] {
        let shown = self.ip(&format!("-json link show dev {interface}"));
        let links: serde_json::Value = serde_json::from_str(&shown).unwrap();
        let octets = links[0]["address"].as_str().unwrap().split(':');
        let octets: Vec<u8> = octets.map(|hex| u8::from_str_radix(hex, 16).unwrap()).collect();
        octets.try_into().unwrap()
    }

    /// A program that will run in it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Does something inside: on a thread of its own, so that no other test is moved.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(Path::new(DIRECTORY).join(&self.name)).unwrap();
        let enter_and_work = || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        };
        std::thread::scope(|scope| {
            let done = scope.spawn(enter_and_work).join();
            done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Listens on a port of both families. The kernel answers for it: nobody needs to accept.
    pub fn listen(&self, port: u16) -> TcpListener {
        self.inside(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap())
    }

    /// Whether a connection attempt is answered: a connection and a refusal are answers.
    pub fn is_answered(&self, to: SocketAddr, within: Duration) -> bool {
        match self.inside(|| TcpStream::connect_timeout(&to, within)) {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => true,
            // Nor does a host answer whose hardware address nobody could find out.
            Err(error)
                if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::HostUnreachable) =>
            {
                false
            }
            Err(error) => panic!("connecting from {} to {to}: {error}", self.name),
        }
    }

    /// Knocks at a port all the time until told to stop, without waiting for answers.
    pub fn connect_in_loop(&self, to: IpAddr, port: u16) -> ConnectLoop {
        let (name, to) = (self.name.clone(), SocketAddr::new(to, port));
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let namespace = std::mem::ManuallyDrop::new(Namespace { name });
            namespace.inside(move || {
                let is_to_go_on = || matches!(stopped.try_recv(), Err(TryRecvError::Empty));
                let mut let_in = false;
                while is_to_go_on() {
                    let within = Duration::from_millis(2);
                    let_in |= TcpStream::connect_timeout(&to, within).is_ok();
                }
                let_in
            })
        });
        ConnectLoop { stop, thread }
    }

    #[track_caller]
    pub fn assert_reaches(&self, to: IpAddr, port: u16) {
        let to = SocketAddr::new(to, port);
        assert!(self.is_answered(to, TIMEOUT), "{} gets no answer from {to}", self.name);
    }

    #[track_caller]
    pub fn assert_cannot_reach(&self, to: IpAddr, port: u16) {
        let to = SocketAddr::new(to, port);
        assert!(!self.is_answered(to, ANSWER_TIMEOUT), "{} gets an answer from {to}", self.name);
    }

    /// Whether a web server of this host itself answers at all, soon.
    pub fn serves(&self, port: u16) -> bool {
        self.inside(|| {
            let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
            stream.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
            let asked = stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
            asked.is_ok() && stream.read(&mut [0; 12]).is_ok_and(|length| length == 12)
        })
    }

    /// Asks a web server of this host itself: status code and body.
    pub fn http_get(&self, port: u16, path: &str) -> (u16, String) {
        let answer = self.inside(|| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let code = head.split_whitespace().nth(1).unwrap().parse().unwrap();
        (code, body.to_owned())
    }

    /// A scan with nmap. Its own verdict is of no interest here, so it need not wait for answers.
    pub fn nmap(&self, options: &str, target: IpAddr) {
        let family = if target.is_ipv6() { "-6" } else { "-4" };
        let arguments = format!(
            "{family} -n -Pn --disable-arp-ping -r --max-retries 0 --initial-rtt-timeout 100ms \
             --max-rtt-timeout 300ms --host-timeout 30s {options} {target}"
        );
        let arguments = arguments.split_whitespace().filter(|word| *word != "-4");
        crate::tools::run(self.command("nmap").args(arguments)).ok();
    }
}

/// Somebody who knocks.
pub struct ConnectLoop {
    stop: Sender<()>,
    thread: JoinHandle<bool>,
}

impl ConnectLoop {
    /// Ends it; whether he was ever let in.
    pub fn stop(self) -> bool {
        drop(self.stop);
        self.thread.join().unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Ends what runs in a namespace, then removes it. Complains about nothing: it may be half-made.
pub fn remove(name: &str) {
    let quietly = |program: &str, arguments: &[&str]| {
        Command::new(program).args(arguments).output().map(|output| output.stdout)
    };
    if let Ok(running) = quietly("ip", &["netns", "pids", name]) {
        for pid in String::from_utf8_lossy(&running).split_whitespace() {
            let _ = quietly("kill", &["-KILL", pid]);
        }
    }
    let _ = quietly("ip", &["netns", "del", name]);
}
