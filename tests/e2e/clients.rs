//! Honest clients and the servers they use, in a laboratory.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use crate::lab::{Lab, VICTIM};
use crate::namespace::Namespace;

/// Debian's own: another python has not what Debian packages.
const PYTHON: &str = "/usr/bin/python3";

/// Somebody who greets on these ports, reads what comes to its end and says goodbye.
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

/// What honest clients do: connect, say something, hear the server out, go. In so many threads, each with its
/// share of the ports, that begin so many connections a second together, if that is limited. A
/// monitoring client only looks whether there is a connection, and has not read the greeting then.
const CLIENT: &str = "
import select, socket, sys, threading, time
target, threads, rate, monitoring = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == 'look'
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

/// A server, until it is dropped.
pub struct Server(Child);

impl Server {
    /// Somebody who listens on these ports of the victim.
    pub fn on(lab: &Lab, ports: &[u16]) -> Self {
        let arguments: Vec<String> = ports.iter().map(u16::to_string).collect();
        Self::python(lab, SERVER, &arguments)
    }

    /// A program of the victim's, once it has said that it is ready.
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

/// Clients of the victim behind one address.
pub struct Clients<'a> {
    host: &'a Namespace,
    at_once: usize,
    rate: u32,
    how: &'static str,
}

impl<'a> Clients<'a> {
    /// One client, as fast as it can.
    pub fn at(host: &'a Namespace) -> Self {
        Self { host, at_once: 1, rate: 0, how: "talk" }
    }

    /// So many at once.
    pub fn at_once(self, at_once: usize) -> Self {
        Self { at_once, ..self }
    }

    /// So many connections a second.
    pub fn rate(self, rate: u32) -> Self {
        Self { rate, ..self }
    }

    /// They only look whether there is a connection.
    pub fn without_reading(self) -> Self {
        Self { how: "look", ..self }
    }

    /// They begin to connect to these ports, one after the other.
    pub fn begin(&self, ports: &[u16]) -> RunningClients {
        let mut command = self.host.command(PYTHON);
        let words = [VICTIM.to_string(), self.at_once.to_string(), self.rate.to_string()];
        command.args(["-c", CLIENT]).args(words).arg(self.how);
        // Whoever is shut out complains.
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        child.stdin.take().unwrap().write_all(ports.join(" ").as_bytes()).unwrap();
        RunningClients(child)
    }

    /// The same, to the end.
    #[track_caller]
    pub fn visit(&self, ports: &[u16]) {
        self.begin(ports).await_end();
    }
}

/// Clients at work, until they are dropped.
pub struct RunningClients(Child);

impl RunningClients {
    /// Waits until they have all been served, or refused.
    #[track_caller]
    pub fn await_end(mut self) {
        let mut complaints = String::new();
        let mut said = self.0.stderr.take().unwrap();
        std::io::Read::read_to_string(&mut said, &mut complaints).unwrap();
        assert!(self.0.wait().unwrap().success() && complaints.is_empty(), "{complaints}");
    }
}

impl Drop for RunningClients {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program to its end.
#[track_caller]
pub fn run_python(host: &Namespace, program: &str, arguments: &[String]) {
    let mut command: Command = host.command(PYTHON);
    crate::tools::run(command.args(["-c", program]).args(arguments)).ok();
}
