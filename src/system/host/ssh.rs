//! SSH: the ports of sshd, and the peers of its sessions.
//!
//! Reads the ports from the configuration of sshd, and asks the kernel which peers are connected to them. The sandbox of the service hides the processes of other
//! users, so that it cannot find sshd itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use crate::system::host::files::FileWatcher;
use crate::system::host::sockets::{AF_INET, ESTABLISHED, Sockets};
use crate::system::netlink::NetlinkError;
use crate::types::SshPorts;

const DEFAULT_PORT: u16 = 22;

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

/// linux/socket.h
const AF_INET6: u8 = 10;

/// Reads the ports of sshd.
pub fn read_ports(files: &FileWatcher) -> SshPorts {
    let mut reader = Reader { files, ports: vec![DEFAULT_PORT], unreadable: Vec::new() };
    reader.read_configuration(Path::new(CONFIGURATION), DEPTH);
    for pattern in SOCKET_UNITS {
        for unit in reader.matching(Path::new(pattern)) {
            let text = reader.text_of(&unit);
            reader.ports.extend(text.lines().filter_map(listen_stream_in));
        }
    }
    let Reader { mut ports, unreadable, .. } = reader;
    ports.sort_unstable();
    ports.dedup();
    SshPorts { ports, unreadable }
}

/// Reads the configuration of sshd, and collects what it finds.
struct Reader<'a> {
    files: &'a FileWatcher,
    ports: Vec<u16>,
    unreadable: Vec<String>,
}

impl Reader<'_> {
    fn read_configuration(&mut self, path: &Path, depth: usize) {
        let text = self.text_of(path);
        for line in text.lines() {
            match directive_in(line) {
                Some(Directive::Port(port)) => self.ports.push(port),
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

/// A line of the configuration of sshd that concerns ports.
#[derive(Debug, PartialEq, Eq)]
enum Directive {
    Port(u16),
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
        "include" => Some(Directive::Include(words.map(PathBuf::from).collect())),
        _ => None,
    }
}

/// `ListenStream=22` or `ListenStream=192.0.2.1:22` (systemd.socket(5)).
fn listen_stream_in(line: &str) -> Option<u16> {
    let (key, value) = line.split_once('=')?;
    (key.trim() == "ListenStream").then(|| value.trim().rsplit(':').next()?.parse().ok()).flatten()
}

/// Asks the kernel for the peers of SSH sessions.
#[derive(Default)]
pub struct Sessions(Sockets);

impl Sessions {
    /// Returns the peers of all established connections to these local ports.
    pub fn peers(&mut self, ports: &[u16]) -> Result<Vec<IpAddr>, NetlinkError> {
        let mut peers = Vec::new();
        for port in ports {
            self.0.visit(ESTABLISHED, *port, |socket| peers.extend(peer_in(socket)))?;
        }
        Ok(peers)
    }
}

/// Returns the peer in a `struct inet_diag_msg`. A connection that no program has accepted has no inode, and
/// does not count.
pub fn peer_in(socket: &[u8]) -> Option<IpAddr> {
    if socket.get(68..72)? == [0; 4] {
        return None;
    }
    let octets: [u8; 16] = socket.get(24..40)?.try_into().ok()?;
    match *socket.first()? {
        AF_INET => Some(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into()),
        AF_INET6 => Some(IpAddr::from(Ipv6Addr::from(octets)).to_canonical()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{TcpListener, TcpStream};

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
    fn peers_of_accepted_connections_are_found() {
        for address in ["127.0.0.1", "::1"] {
            let address: IpAddr = address.parse().unwrap();
            // The host may have no IPv6.
            let Ok(listener) = TcpListener::bind((address, 0)) else { continue };
            let port = listener.local_addr().unwrap().port();
            let mut sessions = Sessions::default();
            assert_eq!(sessions.peers(&[port]).unwrap(), Vec::<IpAddr>::new());
            let client = TcpStream::connect((address, port)).unwrap();
            let none = Vec::<IpAddr>::new();
            assert_eq!(sessions.peers(&[port]).unwrap(), none, "not accepted yet");
            let accepted = listener.accept().unwrap();
            assert_eq!(sessions.peers(&[port]).unwrap(), [address]);
            drop((accepted, client));
            assert_eq!(sessions.peers(&[port]).unwrap(), none, "over");
        }
    }

    proptest! {
        #[test]
        fn no_answer_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = peer_in(&bytes);
        }

        #[test]
        fn no_line_panics(line in "\\PC*") {
            let _ = (directive_in(&line), listen_stream_in(&line));
        }
    }
}
