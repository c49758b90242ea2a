//! Legitimate clients and servers of a lab.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use crate::lab::{Lab, VICTIM};
use crate::namespace::Namespace;

/// Debian's Python: another Python does not find the modules that Debian packages.
const PYTHON: &str = "/usr/bin/python3";

/// A server that sends a greeting on each port, reads until end of file and closes the connection.
const SERVER: &str = "
import selectors, socket, sys
waiting = selectors.DefaultSelector()
for port in map(int, sys.argv[1:]):
    listener = socket.create_server(('', port), backlog=128)
    waiting.register(listener, selectors.EVENT_READ)
print('ready', flush=True)
while True:
    for ready, _ in waiting.select():
        if ready.data is None:
            connection, _ = ready.fileobj.accept()
            try:
                connection.sendall(b'hello')
                waiting.register(connection, selectors.EVENT_READ, 'connection')
            except ConnectionError:
                connection.close()
            continue
        try:
            over = not ready.fileobj.recv(100)
        except ConnectionError:
            over = True
        if over:
            waiting.unregister(ready.fileobj)
            ready.fileobj.close()
";

/// A client that connects to each port, sends data, reads until end of file and closes the
/// connection.
///
/// The threads share the ports and start at most `rate` connections per second in total; 0 is
/// unlimited. A monitoring client only checks that it can connect and leaves the greeting unread.
const CLIENT: &str = "
import select, socket, sys, threading, time
target, threads, rate, monitoring = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == 'check'
ports = list(map(int, sys.stdin.read().split()))
begun = time.monotonic()
def work(first):
    for number in range(first, len(ports), threads):
        if rate:
            time.sleep(max(0, begun + number / rate - time.monotonic()))
        try:
            with socket.create_connection((target, ports[number]), 20) as connection:
                if monitoring:
                    select.select([connection], [], [], 20)
                    continue
                connection.sendall(b'hello')
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(100):
                    pass
        except ConnectionRefusedError:
            pass
workers = [threading.Thread(target=work, args=(first,)) for first in range(threads)]
for worker in workers: worker.start()
for worker in workers: worker.join()
";

/// A running server. Killed on drop.
pub struct Server(Child);

impl Server {
    /// Starts [`SERVER`] on these ports of the victim.
    pub fn on(lab: &Lab, ports: &[u16]) -> Self {
        let arguments: Vec<String> = ports.iter().map(u16::to_string).collect();
        Self::python(lab, SERVER, &arguments)
    }

    /// Starts a Python program on the victim and waits until it prints "ready".
    pub fn python(lab: &Lab, program: &str, arguments: &[String]) -> Self {
        let mut command = lab.victim.command(PYTHON);
        command.args(["-c", program]).args(arguments);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
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

/// Clients with one source address that connect to the victim.
pub struct Clients<'a> {
    host: &'a Namespace,
    at_once: usize,
    rate: u32,
    mode: &'static str,
}

impl<'a> Clients<'a> {
    /// One client without a rate limit.
    pub fn at(host: &'a Namespace) -> Self {
        Self { host, at_once: 1, rate: 0, mode: "talk" }
    }

    /// Sets the number of concurrent clients.
    pub fn at_once(self, at_once: usize) -> Self {
        Self { at_once, ..self }
    }

    /// Limits the total number of connections per second.
    pub fn rate(self, rate: u32) -> Self {
        Self { rate, ..self }
    }

    /// Makes the clients check that they can connect, without reading the greeting.
    pub fn without_reading(self) -> Self {
        Self { mode: "check", ..self }
    }

    /// Starts connecting to these ports, in order.
    pub fn begin(&self, ports: &[u16]) -> RunningClients {
        let mut command = self.host.command(PYTHON);
        let words = [VICTIM.to_string(), self.at_once.to_string(), self.rate.to_string()];
        command.args(["-c", CLIENT]).args(words).arg(self.mode);
        // A blocked client prints an error.
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        child.stdin.take().unwrap().write_all(ports.join(" ").as_bytes()).unwrap();
        RunningClients(child)
    }

    /// Connects to these ports, in order, and waits until all connections have ended.
    #[track_caller]
    pub fn run(&self, ports: &[u16]) {
        self.begin(ports).await_end();
    }
}

/// Running clients. Killed on drop.
pub struct RunningClients(Child);

impl RunningClients {
    /// Waits until each connection was served or refused, and asserts that no client was blocked.
    #[track_caller]
    pub fn await_end(mut self) {
        let mut errors = String::new();
        let mut stderr = self.0.stderr.take().unwrap();
        std::io::Read::read_to_string(&mut stderr, &mut errors).unwrap();
        assert!(self.0.wait().unwrap().success() && errors.is_empty(), "{errors}");
    }
}

impl Drop for RunningClients {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a Python program on a host and waits until it ends.
#[track_caller]
pub fn run_python(host: &Namespace, program: &str, arguments: &[String]) {
    let mut command: Command = host.command(PYTHON);
    crate::tools::run(command.args(["-c", program]).args(arguments)).ok();
}
