//! The metrics port: who is let in, and for how long.
//!
//! Owns the listener and the connections, few at a time. Whatever clients do, they cost no more than these:
//! where one more comes, the one that has got no further for the longest time has to go. So whoever asks is
//! answered, however many have come to say nothing.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{set_ip_freebind, set_socket_recv_buffer_size, set_socket_reuseaddr};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};

use crate::api::metrics::head::{Ask, LIMIT};
use crate::api::metrics::visitor::Visitor;
use crate::handles::stop_flag::StopFlag;
use crate::types::clock::Moment;

/// Connections at a time. A host has one or two scrapers.
const ROOM: usize = 64;

/// Connections let in at one look: a client is heard once more at least before as many have come as there
/// is room for.
const AT_ONCE: usize = ROOM / 2;

/// Connections that may wait in the kernel: for one more, a client would try again after a second.
const QUEUE: i32 = 512;

/// How long nothing is done at most.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };

/// The listener and who has come.
pub struct Door {
    listener: TcpListener,
    /// This host did not have the address.
    awaited: bool,
    /// In the order in which they have come.
    visitors: Vec<Visitor>,
    /// There was no descriptor for one more: nobody is let in for a tick.
    shut: bool,
}

impl Door {
    /// Listens. At boot the service may be there before the address is: then, it is waited for.
    pub fn open(address: SocketAddr) -> std::io::Result<Self> {
        let (listener, awaited) = match TcpListener::bind(address) {
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => (ahead(address)?, true),
            bound => (bound?, false),
        };
        listener.set_nonblocking(true)?;
        // Connections have this from their listener. The kernel would keep megabytes for each.
        set_socket_recv_buffer_size(&listener, LIMIT)?;
        listen(&listener, QUEUE)?;
        Ok(Self { listener, awaited, visitors: Vec::new(), shut: false })
    }

    /// Whether this host did not have the address.
    pub const fn awaits_its_address(&self) -> bool {
        self.awaited
    }

    /// Waits until somebody comes, asks or takes, a tick at most; false once it is to stop.
    pub fn wait(&mut self, stop: &StopFlag) -> Result<bool, Errno> {
        let mut fds = vec![PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN)];
        fds.extend(self.visitors.iter().map(Visitor::awaited));
        if !self.shut {
            fds.push(PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN));
        }
        match poll(&mut fds, Some(&TICK)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        let is_to_go_on = fds[0].revents().is_empty();
        let called: Vec<bool> = fds[1..].iter().map(|fd| !fd.revents().is_empty()).collect();
        for (visitor, called) in self.visitors.iter_mut().zip(called) {
            visitor.is_called = called;
        }
        self.shut = false;
        Ok(is_to_go_on)
    }

    /// Lets those take a step who can, and the next ones in.
    pub fn look(&mut self, now: Moment, mut answer: impl FnMut(&Ask) -> std::io::Result<Vec<u8>>) {
        self.visitors
            .retain_mut(|visitor| visitor.step(now, &mut answer).is_ok() && !visitor.is_late(now));
        for _ in 0..AT_ONCE {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    let Ok(mut visitor) = Visitor::new(stream, now) else { continue };
                    // Most have asked by now.
                    if visitor.step(now, &mut answer).is_ok() {
                        self.make_room();
                        self.visitors.push(visitor);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if is_want_of_room(&error) => {
                    self.shut = self.visitors.is_empty();
                    self.send_one_away();
                    return;
                }
                // One that is gone already.
                Err(_) => {}
            }
        }
    }

    fn make_room(&mut self) {
        if self.visitors.len() >= ROOM {
            self.send_one_away();
        }
    }

    /// The one that has got no further for the longest time.
    fn send_one_away(&mut self) {
        let idlest = self.visitors.iter().enumerate().min_by_key(|(_, visitor)| visitor.since());
        if let Some((at, _)) = idlest {
            self.visitors.remove(at);
        }
    }
}

/// No descriptor or no memory is left for one more, in the process or on the host.
fn is_want_of_room(error: &std::io::Error) -> bool {
    let wants = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|error| wants.contains(&error))
}

/// At an address that this host does not have yet.
fn ahead(address: SocketAddr) -> std::io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // As the standard library does for others: connections of the last instance's may linger.
    set_socket_reuseaddr(&socket, true)?;
    set_ip_freebind(&socket, true)?;
    bind(&socket, &address)?;
    Ok(TcpListener::from(socket))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::Duration;

    use super::*;

    struct House {
        door: Door,
        stop: StopFlag,
        now: Moment,
    }

    impl House {
        fn new() -> Self {
            let door = Door::open(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
            Self { door, stop: StopFlag::new().unwrap(), now: Moment::now() }
        }

        /// Looks once more, so much later.
        fn reconcile(&mut self, span: Duration) {
            assert!(self.door.wait(&self.stop).unwrap());
            self.now = self.now + span;
            self.door.look(self.now, |_| Ok(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()));
        }

        fn client(&mut self, says: &[u8]) -> TcpStream {
            let mut client = TcpStream::connect(self.door.listener.local_addr().unwrap()).unwrap();
            client.write_all(says).unwrap();
            self.reconcile(Duration::from_millis(1));
            client
        }
    }

    /// What has come, and whether the connection has ended.
    fn heard(mut client: &TcpStream) -> (String, bool) {
        client.set_nonblocking(true).unwrap();
        let mut text = String::new();
        let ended = client.read_to_string(&mut text).is_ok();
        (text, ended)
    }

    const ASK: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn nobody_stays_for_ever() {
        let mut house = House::new();
        let silent = house.client(b"");
        let slow = house.client(b"GET / HT");
        let scraper = house.client(ASK);
        let leaving = house.client(b"GET / HTTP/1.0\r\n\r\n");
        assert_eq!(heard(&scraper), ("HTTP/1.1 200 OK\r\n\r\n".to_owned(), false));
        assert!(heard(&leaving).1);
        house.reconcile(9 * SECOND);
        assert_eq!(house.door.visitors.len(), 4);
        house.reconcile(SECOND);
        assert!(heard(&silent).1 && heard(&slow).1 && !heard(&scraper).1);
        house.reconcile(288 * SECOND);
        assert!(!heard(&scraper).1);
        house.reconcile(2 * SECOND);
        assert!(heard(&scraper).1);
        assert!(house.door.visitors.is_empty());
    }

    #[test]
    fn who_has_got_no_further_for_the_longest_time_makes_room() {
        let mut house = House::new();
        let mut scraper = house.client(ASK);
        let silent: Vec<TcpStream> = (1..ROOM).map(|_| house.client(b"")).collect();
        scraper.write_all(ASK).unwrap();
        house.reconcile(Duration::from_millis(1));
        let _more: Vec<TcpStream> = (0..5).map(|_| house.client(b"")).collect();
        assert_eq!(house.door.visitors.len(), ROOM);
        assert_eq!(heard(&scraper).0.matches("200 OK").count(), 2);
        let gone = silent.iter().take_while(|client| heard(client).1).count();
        assert_eq!(gone, 5);
        assert!(silent[5..].iter().all(|client| !heard(client).1));
        assert!(!heard(&scraper).1);
    }

    /// However much somebody has asked at once, the others get their turn.
    #[test]
    fn a_look_answers_one_request_of_each() {
        let mut house = House::new();
        let greedy = house.client(&ASK.repeat(100));
        assert_eq!(heard(&greedy).0.matches("200 OK").count(), 1);
        house.reconcile(Duration::from_millis(1));
        assert_eq!(heard(&greedy).0.matches("200 OK").count(), 1);
        let polite = house.client(ASK);
        assert_eq!(heard(&polite).0.matches("200 OK").count(), 1);
        for _ in 0..97 {
            house.reconcile(Duration::from_millis(1));
        }
        assert_eq!(heard(&greedy).0.matches("200 OK").count(), 98);
    }
}
