//! Logins over SSH: which peers of sshd are logged in, and about which that is not known yet.
//!
//! Pure. Owns since when each connection is known. It asks neither the kernel nor logind.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::types::{Moment, SshConnection, SshSessions, Sshd};

/// sshd ends connections without a login at the end of LoginGraceTime. This much later it has.
const SLACK: Duration = Duration::from_secs(5);

/// What is known of a connection.
#[derive(Clone, Copy)]
struct Known {
    since: Moment,
    /// logind listed its peer when it last answered.
    listed: bool,
}

/// Follows the connections to sshd.
#[derive(Default)]
pub struct Logins {
    /// The connections by the number that the kernel gave them.
    known: HashMap<u64, Known>,
}

impl Logins {
    /// Sorts the peers of the present connections. `listed` are the remote hosts of sessions, unless logind does
    /// not answer or does not exist.
    pub fn look(
        &mut self,
        connections: &[SshConnection],
        listed: Option<&[IpAddr]>,
        sshd: &Sshd,
        now: Moment,
    ) -> SshSessions {
        let before = std::mem::take(&mut self.known);
        let known = |SshConnection { id, peer }: &SshConnection| {
            let before = before.get(id).copied().unwrap_or(Known { since: now, listed: false });
            let listed = listed.map_or(before.listed, |listed| listed.contains(peer));
            (*id, Known { listed, ..before })
        };
        self.known = connections.iter().map(known).collect();

        let grace = (!sshd.login_grace.is_zero()).then(|| sshd.login_grace + SLACK);
        // If a file is unreadable, sshd may wait longer than the readable ones say.
        let age_counts = listed.is_none() || sshd.unreadable.is_empty();
        let mut sessions = SshSessions::default();
        sessions.logged_in.extend(listed.unwrap_or_default());
        for SshConnection { id, peer } in connections {
            let known = self.known.get(id);
            let is_old =
                known.zip(grace).is_some_and(|(known, grace)| now.is_past(known.since, grace));
            if is_old && age_counts || known.is_some_and(|known| known.listed) {
                sessions.logged_in.push(*peer);
            } else if listed.is_none() && grace.is_some() {
                sessions.undecided.push(*peer);
            }
        }
        for peers in [&mut sessions.logged_in, &mut sessions.undecided] {
            peers.sort_unstable();
            peers.dedup();
        }
        sessions
    }

    /// Returns whether exactly these connections were there at the last look.
    pub fn knows(&self, connections: &[SshConnection]) -> bool {
        connections.len() == self.known.len()
            && connections.iter().all(|with| self.known.contains_key(&with.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 7));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 8));

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    fn sshd(grace: u64) -> Sshd {
        Sshd { login_grace: Duration::from_secs(grace), ..Sshd::default() }
    }

    fn connection(id: u64) -> SshConnection {
        SshConnection { id, peer: PEER }
    }

    fn sessions(logged_in: &[IpAddr], undecided: &[IpAddr]) -> SshSessions {
        SshSessions {
            logged_in: logged_in.to_vec(),
            undecided: undecided.to_vec(),
            ..SshSessions::default()
        }
    }

    #[test]
    fn without_logind_a_peer_is_logged_in_after_the_grace_time() {
        let mut logins = Logins::default();
        let mut look = |id, second| logins.look(&[connection(id)], None, &sshd(120), at(second));
        assert_eq!(look(1, 0), sessions(&[], &[PEER]));
        assert_eq!(look(1, 124), sessions(&[], &[PEER]));
        assert_eq!(look(1, 125), sessions(&[PEER], &[]));
        assert_eq!(look(2, 126), sessions(&[], &[PEER]), "another connection is not as old");
        assert_eq!(logins.look(&[], None, &sshd(120), at(127)), sessions(&[], &[]));
    }

    #[test]
    fn logind_decides_at_once() {
        let mut logins = Logins::default();
        let mut look = |listed: &[IpAddr], second| {
            logins.look(&[connection(1)], Some(listed), &sshd(120), at(second))
        };
        assert_eq!(look(&[], 0), sessions(&[], &[]));
        assert_eq!(look(&[OTHER], 1), sessions(&[OTHER], &[]));
        assert_eq!(look(&[PEER, PEER], 2), sessions(&[PEER], &[]));
        assert_eq!(look(&[], 125), sessions(&[PEER], &[]), "sshd does not tell logind everything");
    }

    #[test]
    fn login_counts_while_its_connection_lasts_and_logind_does_not_answer() {
        let mut logins = Logins::default();
        let listed = [PEER];
        for (id, listed, expected) in [
            (1, Some(&listed[..]), sessions(&[PEER], &[])),
            (1, None, sessions(&[PEER], &[])),
            (2, None, sessions(&[], &[PEER])),
            (2, Some(&listed), sessions(&[PEER], &[])),
            (2, Some(&[]), sessions(&[], &[])),
        ] {
            assert_eq!(logins.look(&[connection(id)], listed, &sshd(120), at(1)), expected);
        }
    }

    #[test]
    fn age_proves_no_login_if_the_grace_time_is_not_certain() {
        let unreadable = Sshd { unreadable: vec!["/etc/ssh/x".to_owned()], ..sshd(120) };
        for (sshd, listed, is_old) in [
            (&unreadable, Some(&[][..]), false),
            (&unreadable, None, true),
            (&sshd(0), None, false),
        ] {
            let mut logins = Logins::default();
            logins.look(&[connection(1)], listed, sshd, at(0));
            let found = logins.look(&[connection(1)], listed, sshd, at(1000));
            assert_eq!(found, sessions(if is_old { &[PEER] } else { &[] }, &[]));
        }
    }
}
