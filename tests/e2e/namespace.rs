//! Network namespaces: the hosts of a lab.

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

/// The directory where ip-netns(8) mounts namespaces.
pub const DIRECTORY: &str = "/run/netns";

/// A host without an answer within this time gets none: an answer takes microseconds over a veth
/// pair, and the kernel repeats the first SYN after 1 s.
pub const ANSWER_TIMEOUT: Duration = Duration::from_millis(1500);

/// A network namespace. Removed on drop, together with its processes.
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

    /// Runs ip(8) for this namespace.
    #[track_caller]
    pub fn ip(&self, words: &str) -> String {
        sh(&format!("ip -n {} {words}", self.name))
    }

    /// Returns the hardware address of an interface.
    pub fn hardware_address(&self, interface: &str) -> [u8; 6] {
        let shown = self.ip(&format!("-json link show dev {interface}"));
        let links: serde_json::Value = serde_json::from_str(&shown).unwrap();
        let octets = links[0]["address"].as_str().unwrap().split(':');
        let octets: Vec<u8> = octets.map(|hex| u8::from_str_radix(hex, 16).unwrap()).collect();
        octets.try_into().unwrap()
    }

    /// Returns a command that runs in this namespace.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs a closure in this namespace, on a new thread, because a namespace change affects the
    /// thread.
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

    /// Listens on a port over IPv4 and IPv6. The kernel completes handshakes without `accept`.
    pub fn listen(&self, port: u16) -> TcpListener {
        self.inside(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap())
    }

    /// Returns whether a connection attempt is answered, by acceptance or refusal.
    pub fn is_answered(&self, to: SocketAddr, within: Duration) -> bool {
        match self.inside(|| TcpStream::connect_timeout(&to, within)) {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => true,
            // HostUnreachable: neighbour discovery got no answer.
            Err(error)
                if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::HostUnreachable) =>
            {
                false
            }
            Err(error) => panic!("connecting from {} to {to}: {error}", self.name),
        }
    }

    /// Connects to a port in a loop until [`ConnectLoop::stop`]. Each attempt waits at most 2 ms.
    pub fn connect_in_loop(&self, to: IpAddr, port: u16) -> ConnectLoop {
        let (name, to) = (self.name.clone(), SocketAddr::new(to, port));
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let namespace = std::mem::ManuallyDrop::new(Namespace { name });
            namespace.inside(move || {
                let is_running = || matches!(stopped.try_recv(), Err(TryRecvError::Empty));
                let mut connected = false;
                while is_running() {
                    let within = Duration::from_millis(2);
                    connected |= TcpStream::connect_timeout(&to, within).is_ok();
                }
                connected
            })
        });
        ConnectLoop { stop, thread }
    }

    /// Asserts that a connection attempt is answered.
    #[track_caller]
    pub fn assert_reaches(&self, to: IpAddr, port: u16) {
        let to = SocketAddr::new(to, port);
        assert!(self.is_answered(to, TIMEOUT), "{} cannot reach {to}", self.name);
    }

    /// Asserts that a connection attempt is not answered.
    #[track_caller]
    pub fn assert_cannot_reach(&self, to: IpAddr, port: u16) {
        let to = SocketAddr::new(to, port);
        assert!(!self.is_answered(to, ANSWER_TIMEOUT), "{} reaches {to}", self.name);
    }

    /// Returns whether a web server on this host's loopback address answers within
    /// [`ANSWER_TIMEOUT`].
    pub fn serves(&self, port: u16) -> bool {
        self.inside(|| {
            let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
            stream.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
            let sent = stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
            sent.is_ok() && stream.read(&mut [0; 12]).is_ok_and(|length| length == 12)
        })
    }

    /// Sends a GET request to this host's loopback address and returns the status code and the
    /// body.
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

    /// Scans with nmap, with short timeouts, because the tests ignore nmap's results.
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

/// A running connect loop.
pub struct ConnectLoop {
    stop: Sender<()>,
    thread: JoinHandle<bool>,
}

impl ConnectLoop {
    /// Stops the loop and returns whether any attempt succeeded.
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

/// Kills the processes in a namespace and removes it. Ignores errors: the namespace may be
/// incomplete.
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
