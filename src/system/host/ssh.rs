//! SSH: on which ports sshd listens, and who has a session there.
//!
//! The service's sandbox hides other users' processes, so that nobody can be asked which of them is
//! sshd. Owns reading its ports from its configuration, and asking the kernel (NETLINK_SOCK_DIAG,
//! linux/inet_diag.h) who is connected to them.

use crate::types::host::SshPorts;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use rustix::net::netlink::SOCK_DIAG;

use crate::system::host::files::Files;
use crate::system::netlink::{Body, NetlinkError, NetlinkSocket};

const USUAL_PORT: u16 = 22;

/// sshd_config(5); what it includes is relative to its directory.
const CONFIGURATION: &str = "/etc/ssh/sshd_config";

/// Where a socket unit listens in sshd's stead, and what changes it (systemd.unit(5)). Ubuntu's
/// generator writes one from sshd's configuration.
const SOCKET_UNITS: [&str; 4] = [
    "/etc/systemd/system/ssh*.socket",
    "/etc/systemd/system/ssh*.socket.d/*.conf",
    "/run/systemd/generator/ssh*.socket",
    "/run/systemd/generator/ssh*.socket.d/*.conf",
];

/// Files included within files, at most: sshd's own limit.
const DEPTH: usize = 16;

/// Asks for sockets of both families at once. The newer `SOCK_DIAG_BY_FAMILY` has the kernel go through
/// its table of connections, which is what takes the time, once for each.
const TCPDIAG_GETSOCK: u16 = 18;
/// linux/socket.h
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// The bit of `TCP_ESTABLISHED` (net/tcp_states.h).
const ESTABLISHED: u32 = 1 << 1;

/// Reads sshd's ports.
pub fn read_ports(files: &Files) -> SshPorts {
    let mut found = SshPorts { ports: vec![USUAL_PORT], unreadable: Vec::new() };
    found.read_configuration(files, Path::new(CONFIGURATION), DEPTH);
    for pattern in SOCKET_UNITS {
        for unit in found.matching(files, Path::new(pattern)) {
            let text = found.text_of(files, &unit);
            found.ports.extend(text.lines().filter_map(listen_stream_in));
        }
    }
    found.ports.sort_unstable();
    found.ports.dedup();
    found
}

impl SshPorts {
    fn read_configuration(&mut self, files: &Files, path: &Path, depth: usize) {
        let text = self.text_of(files, path);
        for line in text.lines() {
            match directive_in(line) {
                Some(Directive::Port(port)) => self.ports.push(port),
                Some(Directive::Include(patterns)) if depth > 0 => {
                    let directory = Path::new(CONFIGURATION).parent().unwrap_or(Path::new("/"));
                    for pattern in patterns {
                        for included in self.matching(files, &directory.join(pattern)) {
                            self.read_configuration(files, &included, depth - 1);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    fn text_of(&mut self, files: &Files, path: &Path) -> String {
        match files.read(path) {
            Ok(text) => text.unwrap_or_default(),
            Err(error) => {
                self.is_unreadable(path, &error);
                String::new()
            }
        }
    }

    fn matching(&mut self, files: &Files, pattern: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for file in files.matching(pattern) {
            match file {
                Ok(file) => found.push(file),
                Err(error) => self.is_unreadable(error.path(), error.error()),
            }
        }
        found
    }

    fn is_unreadable(&mut self, path: &Path, error: &std::io::Error) {
        self.unreadable.push(format!("{}: {error}", path.display()));
    }
}

/// A line of sshd's configuration that is of interest.
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
        // host:port, [address]:port, or either without a port; perhaps followed by a routing domain.
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

/// Those with a live SSH session to this host, by asking the kernel each time.
#[derive(Default)]
pub struct Sessions {
    socket: Option<NetlinkSocket>,
}

impl Sessions {
    /// The other ends of all established connections to these local ports.
    pub fn peers(&mut self, ports: &[u16]) -> Result<Vec<IpAddr>, NetlinkError> {
        // After an error with a new socket: what may still arrive on the old one is of no interest.
        let mut socket = match self.socket.take() {
            Some(socket) => socket,
            None => NetlinkSocket::open(Some(SOCK_DIAG), 0)?,
        };
        let mut peers = Vec::new();
        for port in ports {
            socket.dump(TCPDIAG_GETSOCK, &request(*port), |_, socket| {
                peers.extend(peer_in(socket));
            })?;
        }
        self.socket = Some(socket);
        Ok(peers)
    }
}

/// `struct inet_diag_req`: sockets that are connected, by their local port.
fn request(port: u16) -> Body {
    let mut header = [0; 60];
    header[0] = AF_INET;
    header[4..6].copy_from_slice(&port.to_be_bytes());
    header[52..56].copy_from_slice(&ESTABLISHED.to_ne_bytes());
    Body::with_header(&header)
}

/// The other end in a `struct inet_diag_msg`; none while no program has accepted the connection, which
/// shows in that it has no inode.
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
    fn ports_are_read_as_sshd_reads_them() {
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
    fn sockets_are_read_as_systemd_reads_them() {
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

    /// On the loopback of whatever machine this is.
    #[test]
    fn the_kernel_tells_who_is_connected() {
        for address in ["127.0.0.1", "::1"] {
            let address: IpAddr = address.parse().unwrap();
            // A host without IPv6 has nobody to tell of.
            let Ok(listener) = TcpListener::bind((address, 0)) else { continue };
            let port = listener.local_addr().unwrap().port();
            let mut sessions = Sessions::default();
            assert_eq!(sessions.peers(&[port]).unwrap(), Vec::<IpAddr>::new());
            let client = TcpStream::connect((address, port)).unwrap();
            let none = Vec::<IpAddr>::new();
            assert_eq!(sessions.peers(&[port]).unwrap(), none, "nobody has accepted it");
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
