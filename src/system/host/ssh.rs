//! SSH: the configuration of sshd, and its connections.
//!
//! Reads the files of sshd, and asks the kernel which peers are connected to its ports. The sandbox of the
//! service hides the processes of other users, so that it cannot find sshd itself. Never decides whether a peer
//! is logged in.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::system::host::files::FileWatcher;
use crate::system::host::sockets::{ESTABLISHED, Sockets, peer_in};
use crate::system::netlink::NetlinkError;
use crate::types::{SshConnection, Sshd};

/// sshd_config(5)
const DEFAULT_PORT: u16 = 22;
const DEFAULT_LOGIN_GRACE: Duration = Duration::from_secs(120);

/// sshd_config(5). Paths of included files are relative to its directory.
const CONFIGURATION: &str = "/etc/ssh/sshd_config";

/// Socket units that listen for sshd, and drop-ins for them (systemd.unit(5)). A generator of Ubuntu makes a
/// unit from the configuration of sshd.
const SOCKET_UNITS: [&str; 4] = [
    "/etc/systemd/system/ssh*.socket",
    "/etc/systemd/system/ssh*.socket.d/*.conf",
    "/run/systemd/generator/ssh*.socket",
    "/run/systemd/generator/ssh*.socket.d/*.conf",
];

/// How deep files may include files: the limit of sshd.
const DEPTH: usize = 16;

/// Reads the configuration of sshd.
pub fn read_configuration(files: &FileWatcher) -> Sshd {
    let ports = vec![DEFAULT_PORT];
    let mut reader = Reader { files, ports, login_grace: None, unreadable: Vec::new() };
    reader.read_configuration(Path::new(CONFIGURATION), DEPTH);
    for pattern in SOCKET_UNITS {
        for unit in reader.matching(Path::new(pattern)) {
            let text = reader.text_of(&unit);
            reader.ports.extend(text.lines().filter_map(listen_stream_in));
        }
    }
    let Reader { mut ports, login_grace, unreadable, .. } = reader;
    ports.sort_unstable();
    ports.dedup();
    Sshd { ports, login_grace: login_grace.unwrap_or(DEFAULT_LOGIN_GRACE), unreadable }
}

/// Reads the configuration of sshd, and collects what it finds.
struct Reader<'a> {
    files: &'a FileWatcher,
    ports: Vec<u16>,
    /// The first value counts.
    login_grace: Option<Duration>,
    unreadable: Vec<String>,
}

impl Reader<'_> {
    fn read_configuration(&mut self, path: &Path, depth: usize) {
        let text = self.text_of(path);
        for line in text.lines() {
            match directive_in(line) {
                Some(Directive::Port(port)) => self.ports.push(port),
                Some(Directive::LoginGrace(time)) => {
                    self.login_grace.get_or_insert(time);
                }
                Some(Directive::Include(patterns)) if depth > 0 => {
                    let directory = Path::new(CONFIGURATION).parent().unwrap_or(Path::new("/"));
                    for pattern in patterns {
                        for included in self.matching(&directory.join(pattern)) {
                            self.read_configuration(&included, depth - 1);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    fn text_of(&mut self, path: &Path) -> String {
        match self.files.read(path) {
            Ok(text) => text.unwrap_or_default(),
            Err(error) => {
                self.add_unreadable(path, &error);
                String::new()
            }
        }
    }

    fn matching(&mut self, pattern: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for file in self.files.matching(pattern) {
            match file {
                Ok(file) => found.push(file),
                Err(error) => self.add_unreadable(error.path(), error.error()),
            }
        }
        found
    }

    fn add_unreadable(&mut self, path: &Path, error: &std::io::Error) {
        self.unreadable.push(format!("{}: {error}", path.display()));
    }
}

/// A line of the configuration of sshd.
#[derive(Debug, PartialEq, Eq)]
enum Directive {
    Port(u16),
    LoginGrace(Duration),
    Include(Vec<PathBuf>),
}

fn directive_in(line: &str) -> Option<Directive> {
    let separates = |c: char| c.is_whitespace() || c == '=';
    let line = line.split('#').next()?.trim();
    let (keyword, rest) = line.split_once(separates)?;
    let mut words =
        rest.split(separates).map(|word| word.trim_matches('"')).filter(|w| !w.is_empty());
    match keyword.to_ascii_lowercase().as_str() {
        "port" => words.next()?.parse().ok().map(Directive::Port),
        // host:port, [address]:port, or either without a port. A routing domain may follow.
        "listenaddress" => {
            let (host, port) = words.next()?.rsplit_once(':')?;
            let alone = host.starts_with('[') || !host.contains(':');
            alone.then(|| port.parse().ok().map(Directive::Port)).flatten()
        }
        "logingracetime" => time_in(words.next()?).map(Directive::LoginGrace),
        "include" => Some(Directive::Include(words.map(PathBuf::from).collect())),
        _ => None,
    }
}

/// `ListenStream=22` or `ListenStream=192.0.2.1:22` (systemd.socket(5)).
fn listen_stream_in(line: &str) -> Option<u16> {
    let (key, value) = line.split_once('=')?;
    (key.trim() == "ListenStream").then(|| value.trim().rsplit(':').next()?.parse().ok()).flatten()
}

/// A time of sshd, such as `120`, `2m` or `1h30m`.
fn time_in(text: &str) -> Option<Duration> {
    let mut seconds = 0_u64;
    let mut number = None;
    for c in text.chars() {
        let unit = match c.to_ascii_lowercase() {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            'w' => 604_800,
            digit => {
                let digit = u64::from(digit.to_digit(10)?);
                number = Some(number.unwrap_or(0_u64).checked_mul(10)?.checked_add(digit)?);
                continue;
            }
        };
        seconds = seconds.checked_add(number.take()?.checked_mul(unit)?)?;
    }
    seconds.checked_add(number.unwrap_or(0)).map(Duration::from_secs)
}

/// Asks the kernel for connections to sshd.
#[derive(Default)]
pub struct Connections(Sockets);

impl Connections {
    /// Returns all established connections to these local ports.
    pub fn list(&mut self, ports: &[u16]) -> Result<Vec<SshConnection>, NetlinkError> {
        let mut connections = Vec::new();
        for port in ports {
            self.0.visit(ESTABLISHED, *port, |socket| connections.extend(connection_in(socket)))?;
        }
        Ok(connections)
    }
}

/// Returns the connection in a `struct inet_diag_msg`. One that no program has accepted has no inode, and does
/// not count.
pub fn connection_in(socket: &[u8]) -> Option<SshConnection> {
    if socket.get(68..72)? == [0; 4] {
        return None;
    }
    let id = u64::from_ne_bytes(socket.get(44..52)?.try_into().ok()?);
    Some(SshConnection { id, peer: peer_in(socket)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{IpAddr, TcpListener, TcpStream};

    #[test]
    fn ports_are_read_like_sshd() {
        let port = |line| match directive_in(line) {
            Some(Directive::Port(port)) => Some(port),
            _ => None,
        };
        for (line, expected) in [
            ("Port 2222", Some(2222)),
            ("  port=2222 # not 22", Some(2222)),
            ("PORT\t\"2222\"", Some(2222)),
            ("ListenAddress 192.0.2.1:2222", Some(2222)),
            ("ListenAddress [2001:db8::1]:2222 rdomain red", Some(2222)),
            ("ListenAddress bastion.example:2222", Some(2222)),
            ("ListenAddress 2001:db8::2222", None),
            ("LoginGraceTime 2222", None),
            ("ListenAddress 192.0.2.1", None),
            ("#Port 2222", None),
            ("GatewayPorts 2222", None),
            ("Port", None),
            ("Port 70000", None),
        ] {
            assert_eq!(port(line), expected, "{line}");
        }
        let included = ["sshd_config.d/*.conf", "/etc/extra"].map(PathBuf::from).to_vec();
        let line = "Include sshd_config.d/*.conf /etc/extra";
        assert_eq!(directive_in(line), Some(Directive::Include(included)));
    }

    #[test]
    fn times_are_read_like_sshd() {
        for (text, seconds) in [
            ("120", Some(120)),
            ("0", Some(0)),
            ("2m", Some(120)),
            ("1H30m5", Some(5405)),
            ("1w", Some(604_800)),
            ("m", None),
            ("never", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(time_in(text), seconds.map(Duration::from_secs), "{text}");
        }
        let time = Duration::from_secs(30);
        assert_eq!(directive_in("LoginGraceTime 30 # s"), Some(Directive::LoginGrace(time)));
    }

    #[test]
    fn sockets_are_read_like_systemd() {
        for (line, expected) in [
            ("ListenStream=2222", Some(2222)),
            ("ListenStream = [::]:2222", Some(2222)),
            ("ListenStream=0.0.0.0:2222", Some(2222)),
            ("ListenStream=", None),
            ("ListenStream=/run/ssh.sock", None),
            ("#ListenStream=2222", None),
            ("ListenDatagram=2222", None),
        ] {
            assert_eq!(listen_stream_in(line), expected, "{line}");
        }
    }

    #[test]
    fn accepted_connections_are_found() {
        for address in ["127.0.0.1", "::1"] {
            let address: IpAddr = address.parse().unwrap();
            // The host may have no IPv6.
            let Ok(listener) = TcpListener::bind((address, 0)) else { continue };
            let port = listener.local_addr().unwrap().port();
            let mut connections = Connections::default();
            let mut peers = || {
                let list = connections.list(&[port]).unwrap();
                list.into_iter().map(|with| (with.peer, with.id)).collect::<Vec<_>>()
            };
            assert_eq!(peers(), []);
            let client = TcpStream::connect((address, port)).unwrap();
            assert_eq!(peers(), [], "not accepted yet");
            let accepted = listener.accept().unwrap();
            let found = peers();
            assert!(matches!(found[..], [(peer, _)] if peer == address));
            assert_eq!(peers(), found, "the number stays");
            drop((accepted, client));
            assert_eq!(peers(), [], "over");
        }
    }

    proptest! {
        #[test]
        fn no_answer_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = (connection_in(&bytes), peer_in(&bytes));
        }

        #[test]
        fn no_line_panics(line in "\\PC*") {
            let _ = (directive_in(&line), listen_stream_in(&line), time_in(&line));
        }
    }
}
