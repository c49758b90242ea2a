//! The environment of the self-test: namespaces of its own for network, mounts and processes.
//!
//! This process is the first one in its process namespace: when it ends, the kernel ends all others in it
//! and removes the namespaces. Must not touch the host, so that nothing has to be restored.
#![expect(
    clippy::disallowed_methods,
    reason = "it starts ip, mount, dbus-daemon and this program, and polls"
)]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write, stdout};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::types::Moment;

/// Set in the environment of the process inside.
const INSIDE: &str = "TCPTRACKER_SELF_TEST";

/// How long a step may take. Each takes milliseconds on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How long answers to a fast scan may take.
const ANSWER_TIME: Duration = Duration::from_millis(300);

/// The time between two polls.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// On a private /run.
const DIRECTORY: &str = "/run/self-test";

/// The address of the metrics inside.
pub const METRICS: &str = "127.0.0.1:8081";

/// The address of the bus inside.
pub const BUS: &str = "unix:path=/run/self-test/bus";

pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs this program again inside, in place of this process. Returns only if that fails.
pub fn enter(json: bool) -> String {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return format!("cannot find this program: {error}"),
    };
    let _ = stdout().flush();
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(program)
        .args(["doctor", "--self-test"])
        .args(json.then_some("--json"))
        .env(INSIDE, "inside");
    let error = command.exec();
    format!("cannot run unshare ({error}); install the package util-linux")
}

/// Makes the namespaces and their network. Returns the bus, which runs until this process ends.
pub fn make() -> Result<Child, String> {
    // The kernel ignores signals without a handler to the first process of a namespace.
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let always = Arc::new(AtomicBool::new(true));
        signal_hook::flag::register_conditional_shutdown(signal, 130, always)
            .map_err(|error| format!("cannot handle signals: {error}"))?;
    }
    run("mount -t tmpfs -o mode=755 tmpfs /run")?;
    std::fs::create_dir(DIRECTORY).map_err(|error| format!("{DIRECTORY}: {error}"))?;
    for words in [
        "ip link set lo up",
        "ip netns add scanner",
        "ip link add eth0 type veth peer name eth0 netns scanner",
        "ip addr add 192.0.2.1/24 dev eth0",
        "ip link set eth0 up",
        "ip -n scanner addr add 192.0.2.2/24 dev eth0",
        "ip -n scanner addr add 192.0.2.3/24 dev eth0",
        "ip -n scanner link set eth0 up",
    ] {
        run(words)?;
    }
    start_bus()
}

/// Starts the service and waits until it is ready.
pub fn start_service() -> Result<Child, String> {
    let place = |name: &str| Path::new(DIRECTORY).join(name);
    let configuration = place("tcptracker.toml");
    std::fs::write(&configuration, format!("[metrics]\nlisten = \"{METRICS}\"\n"))
        .map_err(failed("cannot write the configuration"))?;
    let socket = UnixDatagram::bind(place("notify"))
        .and_then(|socket| socket.set_read_timeout(Some(POLL_INTERVAL)).map(|()| socket))
        .map_err(failed("cannot create the notification socket"))?;
    let log = File::create(place("log")).map_err(failed("cannot create the log"))?;
    let program = std::env::current_exe().map_err(failed("cannot find this program"))?;
    let mut service = Command::new(program)
        .args(["run", "-i", "eth0", "--config"])
        .arg(configuration)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("STATE_DIRECTORY", place("state/eth0"))
        .env("NOTIFY_SOCKET", place("notify"))
        .env("DBUS_SYSTEM_BUS_ADDRESS", BUS)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(failed("cannot start the service"))?;
    let mut ended = false;
    let ready = wait_for(|| {
        let mut buffer = [0; 1024];
        let length = socket.recv(&mut buffer).unwrap_or(0);
        ended = service.try_wait().is_ok_and(|status| status.is_some());
        ended || String::from_utf8_lossy(&buffer[..length]).contains("READY=1")
    });
    if ready.is_none() || ended {
        return Err(format!("the service did not start: {}", last_log_line()));
    }
    Ok(service)
}

fn failed(what: &'static str) -> impl Fn(std::io::Error) -> String {
    move |error| format!("{what}: {error}")
}

/// Returns the last line of the service's log.
pub fn last_log_line() -> String {
    let log = std::fs::read_to_string(Path::new(DIRECTORY).join("log")).unwrap_or_default();
    log.lines().last().unwrap_or("its log is empty").to_owned()
}

/// Stops the service and waits until it has ended.
pub fn stop(mut service: Child) -> Result<(), String> {
    let pid = Pid::from_child(&service);
    kill_process(pid, Signal::TERM).map_err(|error| format!("cannot stop the service: {error}"))?;
    let mut status = None;
    wait_for(|| {
        status = service.try_wait().ok().flatten();
        status.is_some()
    })
    .ok_or("the service has not stopped")?;
    match status {
        Some(status) if status.success() => Ok(()),
        _ => Err("the service stopped with an error".to_owned()),
    }
}

/// Runs something in the namespace of the scanner.
fn as_scanner<T: Send>(
    attempt: impl FnOnce() -> std::io::Result<T> + Send,
) -> std::thread::Result<std::io::Result<T>> {
    let inside = || {
        let namespace = File::open("/run/netns/scanner")?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        attempt()
    };
    std::thread::scope(|scope| scope.spawn(inside).join())
}

/// Tries to connect to these ports from an address of the scanner, without a pause. Returns how many answers
/// it gets.
pub fn count_learned(from: Ipv4Addr, to: Ipv4Addr, ports: Range<u16>) -> Result<usize, String> {
    let outcome = as_scanner(|| {
        let mut sockets = Vec::new();
        for port in ports {
            let (family, kind) = (AddressFamily::INET, SocketType::STREAM);
            let socket = socket_with(family, kind, SocketFlags::NONBLOCK, None)?;
            bind(&socket, &SocketAddr::from((from, 0)))?;
            let result = connect(&socket, &SocketAddr::from((to, port)));
            sockets.push((socket, result));
        }
        std::thread::sleep(ANSWER_TIME);
        let is_refused = |(socket, result): &(OwnedFd, rustix::io::Result<()>)| {
            *result == Err(Errno::CONNREFUSED)
                || sockopt::socket_error(socket) == Ok(Err(Errno::CONNREFUSED))
        };
        Ok(sockets.iter().filter(|socket| is_refused(socket)).count())
    });
    match outcome {
        Ok(Ok(count)) => Ok(count),
        Ok(Err(error)) => Err(format!("cannot scan {to}: {error}")),
        Err(_) => Err(format!("cannot scan {to}")),
    }
}

/// Returns the value of a metric of the service.
pub fn metric(name: &str) -> Result<f64, String> {
    let read = || {
        let mut stream = TcpStream::connect(METRICS)?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text)
    };
    let text = read().map_err(failed("cannot read the metrics"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.ok_or_else(|| format!("the metrics lack {name}"))
}

/// Tells whether a connection attempt of the scanner is answered, by SYN-ACK or RST.
pub fn is_answered(to: SocketAddr, within: Duration) -> Result<bool, String> {
    match as_scanner(|| TcpStream::connect_timeout(&to, within)) {
        Ok(Ok(_)) => Ok(true),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(true),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::TimedOut => Ok(false),
        Ok(Err(error)) => Err(format!("cannot connect to {to}: {error}")),
        Err(_) => Err(format!("cannot connect to {to}")),
    }
}

/// Polls a condition. Returns how long it took to become true, or None after [`PATIENCE`].
pub fn wait_for(mut condition: impl FnMut() -> bool) -> Option<Duration> {
    let begun = Moment::now();
    loop {
        if condition() {
            return Some(Moment::now().since(begun));
        }
        if Moment::now().is_past(begun, PATIENCE) {
            return None;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn start_bus() -> Result<Child, String> {
    // The configuration of session buses lets every program own names and call methods.
    let mut bus = Command::new("dbus-daemon")
        .args(["--session", "--nofork", "--print-address=1", "--address", BUS])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot run dbus-daemon ({error}); install the package dbus"))?;
    // It prints its address when it listens.
    let mut address = String::new();
    let said = bus.stdout.take().map(|out| BufReader::new(out).read_line(&mut address));
    match said {
        Some(Ok(length)) if length > 0 => Ok(bus),
        _ => Err("dbus-daemon does not start".to_owned()),
    }
}

fn run(words: &str) -> Result<(), String> {
    let mut parts = words.split(' ');
    let program = parts.next().unwrap_or_default();
    let output = Command::new(program).args(parts).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("`{words}` failed: {}", said.trim()))
        }
        Err(error) => {
            let package = if program == "ip" { "iproute2" } else { program };
            Err(format!("cannot run {program} ({error}); install the package {package}"))
        }
    }
}
