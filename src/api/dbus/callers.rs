//! The callers on the bus, and their calls in progress.
//!
//! Owns how many calls are in progress at once, in all and per user. Must never wait or ask: the gate looks
//! up who calls, and tells it what happens to each call.

use std::collections::HashMap;
use std::convert::Infallible;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_channel::{Receiver, Sender};
use zbus::OwnedVariant;
use zbus::names::{OwnedUniqueName, UniqueName};

use crate::types::{Moment, RateLimit};

/// Calls in progress at once.
const MOST_CALLS: usize = 64;

/// Of these, calls of users without privileges. The rest is kept for root and the group.
const MOST_UNPRIVILEGED_CALLS: usize = 48;

/// Calls in progress of one user without privileges.
const MOST_CALLS_PER_USER: usize = 8;

/// More refused calls in a second are a flood. dbus-daemon then takes our answers slowly, 2 KiB at a time
/// between the messages of others, and answers to root must not wait behind long ones.
const REFUSALS: u32 = 100;

/// A flood is taken to go on for so long after the last sign of it.
const CALM: Duration = Duration::from_secs(2);

/// Calls in progress of one user without privileges during a flood.
const MOST_CALLS_IN_A_FLOOD: usize = 2;

/// Calls of one user that wait for polkit. They wait for a password without a time limit.
pub const MOST_QUESTIONS_PER_USER: usize = 8;

/// Connections whose users are remembered while they have no call in progress.
const MOST_NAMES: usize = 1024;

/// The gid that no process has (credentials(7)).
pub const NO_GROUP: u32 = u32::MAX;

/// The user of a connection. The bus asked the kernel for these numbers when the user connected.
#[derive(Debug)]
pub struct Identity {
    uid: u32,
    groups: Vec<u32>,
}

impl Identity {
    /// Reads the answer of `GetConnectionCredentials`.
    pub fn read(mut credentials: HashMap<String, OwnedVariant>) -> Option<Self> {
        let mut take = |key: &str| credentials.remove(key);
        let uid = take("UnixUserID").and_then(|value| u32::try_from(value).ok())?;
        let groups = take("UnixGroupIDs").and_then(|value| Vec::<u32>::try_from(value).ok());
        Some(Self { uid, groups: groups.unwrap_or_default() })
    }

    pub const fn uid(&self) -> u32 {
        self.uid
    }
}

/// Whether a call may begin.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    Admitted,
    /// The bus has to say first which user calls.
    Stranger,
    /// A call of root or the group has to wait for the end of another one.
    Full,
    /// Why it may not begin.
    Refused(String),
    /// The caller used the number of a call that is in progress, so that no answer could be told apart.
    Repeated,
}

/// A call in progress, and what it counts as.
#[derive(Debug)]
struct Call {
    wants_reply: bool,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Working {
        is_privileged: bool,
    },
    /// It waits for polkit. The end of the call closes the channel.
    Asking(#[expect(dead_code, reason = "its drop is the message")] Sender<Infallible>),
}

/// A connection and its calls in progress, by their numbers.
#[derive(Debug)]
struct Caller {
    identity: Arc<Identity>,
    calls: HashMap<NonZeroU32, Call>,
    has_left: bool,
}

/// The calls in progress of a user.
#[derive(Debug, Default)]
struct Load {
    working: usize,
    asking: usize,
}

#[derive(Debug)]
struct Table {
    names: HashMap<OwnedUniqueName, Caller>,
    /// Users without a call in progress are absent.
    users: HashMap<u32, Load>,
    /// The calls of all users that do not wait for polkit, and those without privileges.
    working: usize,
    unprivileged: usize,
    refusals: RateLimit,
    flooded_until: Moment,
}

/// The callers of one connection to the bus.
#[derive(Debug)]
pub struct Callers {
    group: Arc<AtomicU32>,
    table: Mutex<Table>,
    /// Holds a token after the end of a call.
    ended: (Sender<()>, Receiver<()>),
}

impl Callers {
    /// No callers yet. Members of the group have the privileges of root.
    pub fn new(group: Arc<AtomicU32>) -> Self {
        let table = Table {
            names: HashMap::new(),
            users: HashMap::new(),
            working: 0,
            unprivileged: 0,
            refusals: RateLimit::per_second(REFUSALS),
            flooded_until: Moment::default(),
        };
        Self { group, table: Mutex::new(table), ended: async_channel::bounded(1) }
    }

    /// Returns whether a user may make every change. The calls of such a user go first.
    pub fn is_privileged(&self, identity: &Identity) -> bool {
        let group = self.group.load(Ordering::Relaxed);
        identity.uid == 0 || (group != NO_GROUP && identity.groups.contains(&group))
    }

    /// Returns the user of a connection that has a call in progress. None: it has closed.
    pub fn identity(&self, name: &UniqueName<'_>) -> Option<Arc<Identity>> {
        let table = self.table();
        let caller = table.names.get(name.as_str()).filter(|caller| !caller.has_left)?;
        Some(Arc::clone(&caller.identity))
    }

    /// Remembers the user of a connection.
    pub fn introduce(&self, name: OwnedUniqueName, identity: Identity) {
        let mut table = self.table();
        if table.names.len() >= MOST_NAMES {
            table.names.retain(|_, caller| !caller.calls.is_empty());
        }
        let (identity, calls) = (Arc::new(identity), HashMap::new());
        let caller = Caller { identity, calls, has_left: false };
        table.names.entry(name).or_insert(caller);
    }

    /// A call was refused, or left out because it needs no answer.
    pub fn note_refusal(&self, now: Moment) {
        let mut table = self.table();
        if !table.refusals.allow(now) {
            table.flooded_until = now + CALM;
        }
    }

    /// Returns whether there are more calls than can be answered.
    pub fn is_flooded(&self, now: Moment) -> bool {
        now < self.table().flooded_until
    }

    /// Decides whether a call may begin. If so, it is in progress until it is finished or the caller leaves.
    pub fn admit(
        &self,
        name: &UniqueName<'_>,
        serial: NonZeroU32,
        wants_reply: bool,
        now: Moment,
    ) -> Admission {
        let mut table = self.table();
        let Table { names, users, working, unprivileged, flooded_until, .. } = &mut *table;
        let Some(caller) = names.get_mut(name.as_str()).filter(|caller| !caller.has_left) else {
            return Admission::Stranger;
        };
        if caller.calls.contains_key(&serial) {
            return Admission::Repeated;
        }
        let is_privileged = self.is_privileged(&caller.identity);
        if !is_privileged {
            let own = users.get(&caller.identity.uid).map_or(0, |load| load.working);
            let most =
                if now < *flooded_until { MOST_CALLS_IN_A_FLOOD } else { MOST_CALLS_PER_USER };
            if own >= most {
                return Admission::Refused(format!("{own} calls of this user are in progress"));
            }
            if *unprivileged >= MOST_UNPRIVILEGED_CALLS {
                return Admission::Refused(format!(
                    "{MOST_UNPRIVILEGED_CALLS} calls of all users are in progress"
                ));
            }
        }
        if *working >= MOST_CALLS {
            return Admission::Full;
        }
        users.entry(caller.identity.uid).or_default().working += 1;
        *working += 1;
        *unprivileged += usize::from(!is_privileged);
        caller.calls.insert(serial, Call { wants_reply, stage: Stage::Working { is_privileged } });
        Admission::Admitted
    }

    /// Waits for the end of a call.
    pub async fn await_end(&self) {
        // The sender lives as long as the receiver.
        let _ = self.ended.1.recv().await;
    }

    /// Returns whether the caller wants the reply to a call. None: the call is not in progress, because the
    /// caller has left.
    pub fn wants_reply(&self, name: &UniqueName<'_>, serial: NonZeroU32) -> Option<bool> {
        let table = self.table();
        table.names.get(name.as_str())?.calls.get(&serial).map(|call| call.wants_reply)
    }

    /// Ends a call.
    pub fn finish(&self, name: &UniqueName<'_>, serial: NonZeroU32) {
        let mut table = self.table();
        let Some(caller) = table.names.get_mut(name.as_str()) else { return };
        if let Some(call) = caller.calls.remove(&serial) {
            let (uid, is_last) = (caller.identity.uid, caller.has_left && caller.calls.is_empty());
            table.forget(uid, &call.stage);
            if is_last {
                table.names.remove(name.as_str());
            }
            let _ = self.ended.0.try_send(());
        }
    }

    /// A connection has closed. Its calls that wait for polkit end. The others still cost what they cost, and
    /// keep their places until they end; otherwise a user could begin any number of them.
    pub fn leave(&self, name: &UniqueName<'_>) {
        let mut table = self.table();
        let Some(mut caller) = table.names.remove(name.as_str()) else { return };
        caller.has_left = true;
        let uid = caller.identity.uid;
        caller.calls.retain(|_, call| {
            call.wants_reply = false;
            let stays = matches!(call.stage, Stage::Working { .. });
            if !stays {
                table.forget(uid, &call.stage);
            }
            stays
        });
        if !caller.calls.is_empty() {
            table.names.insert(name.to_owned().into(), caller);
        }
    }

    /// A call begins to wait for polkit, and leaves its place to another call. Returns a channel that closes
    /// when the call ends; none if too many calls of the user wait, or if the call has ended.
    pub fn ask(&self, name: &UniqueName<'_>, serial: NonZeroU32) -> Option<Receiver<Infallible>> {
        let mut table = self.table();
        let Table { names, users, .. } = &mut *table;
        let caller = names.get_mut(name.as_str())?;
        let (uid, call) = (caller.identity.uid, caller.calls.get_mut(&serial)?);
        let load = users.entry(uid).or_default();
        if load.asking >= MOST_QUESTIONS_PER_USER {
            return None;
        }
        let (asked, ended) = async_channel::bounded(1);
        load.asking += 1;
        let before = std::mem::replace(&mut call.stage, Stage::Asking(asked));
        table.forget(uid, &before);
        let _ = self.ended.0.try_send(());
        Some(ended)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// No longer counts a call of a user.
    fn forget(&mut self, uid: u32, stage: &Stage) {
        let load = self.users.entry(uid).or_default();
        match stage {
            Stage::Working { is_privileged } => {
                load.working -= 1;
                self.working -= 1;
                self.unprivileged -= usize::from(!is_privileged);
            }
            Stage::Asking(_) => load.asking -= 1,
        }
        if load.working == 0 && load.asking == 0 {
            self.users.remove(&uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: u32 = 999;

    fn callers() -> Callers {
        Callers::new(Arc::new(AtomicU32::new(GROUP)))
    }

    /// The user `uid` connects.
    fn connect(callers: &Callers, number: u32, uid: u32, groups: &[u32]) -> UniqueName<'static> {
        let name = UniqueName::try_from(format!(":1.{number}")).unwrap();
        callers.introduce(name.clone().into(), Identity { uid, groups: groups.to_vec() });
        name
    }

    /// Returns how many of 100 calls are admitted.
    fn admitted(callers: &Callers, name: &UniqueName<'_>) -> u32 {
        let admitted =
            (1..=100).take_while(|serial| admit(callers, name, *serial) == Admission::Admitted);
        u32::try_from(admitted.count()).unwrap()
    }

    fn admit(callers: &Callers, name: &UniqueName<'_>, number: u32) -> Admission {
        callers.admit(name, serial(number), true, Moment::default())
    }

    fn serial(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).unwrap()
    }

    #[test]
    fn one_user_has_eight_calls_in_progress_over_all_connections() {
        let callers = callers();
        let (first, second) = (connect(&callers, 1, 1000, &[]), connect(&callers, 2, 1000, &[]));
        assert_eq!(admitted(&callers, &first), 8);
        let refused = admit(&callers, &second, 1);
        assert!(
            matches!(&refused, Admission::Refused(why) if why.contains("of this user")),
            "{refused:?}"
        );
        callers.finish(&first, serial(3));
        assert_eq!(admitted(&callers, &second), 1);
    }

    #[test]
    fn flood_leaves_two_calls_to_each_user_and_none_of_its_places_to_root() {
        let callers = callers();
        let now = Moment::from_nanos(1_000_000_000);
        let (user, root) = (connect(&callers, 1, 1000, &[]), connect(&callers, 2, 0, &[]));
        (0..REFUSALS).for_each(|_| callers.note_refusal(now));
        assert!(!callers.is_flooded(now));
        callers.note_refusal(now);
        assert!(callers.is_flooded(now));
        let admit = |name, number| callers.admit(name, serial(number), true, now);
        for number in 1..=2 {
            assert_eq!(admit(&user, number), Admission::Admitted);
        }
        assert!(matches!(admit(&user, 3), Admission::Refused(_)));
        for number in 1..=20 {
            assert_eq!(admit(&root, number), Admission::Admitted);
        }
        assert!(!callers.is_flooded(now + CALM));
        assert_eq!(callers.admit(&user, serial(3), true, now + CALM), Admission::Admitted);
    }

    #[test]
    fn root_and_the_group_have_places_when_all_users_have_used_theirs() {
        let callers = callers();
        for user in 0..20 {
            let _ = admitted(&callers, &connect(&callers, user, 1000 + user, &[]));
        }
        let member = connect(&callers, 50, 1000, &[7, GROUP]);
        assert_eq!(admit(&callers, &member, 1), Admission::Admitted);
        let root = connect(&callers, 51, 0, &[]);
        assert_eq!(admitted(&callers, &root), 15);
        assert_eq!(admit(&callers, &root, 99), Admission::Full);
        callers.finish(&root, serial(1));
        assert_eq!(admit(&callers, &root, 99), Admission::Admitted);
    }

    #[test]
    fn closed_connection_ends_its_questions_and_its_other_calls_keep_their_places() {
        let callers = callers();
        let name = connect(&callers, 1, 1000, &[]);
        assert_eq!(admitted(&callers, &name), 8);
        let question = callers.ask(&name, serial(1)).unwrap();
        callers.leave(&name);
        assert!(question.is_closed());
        assert!(callers.identity(&name).is_none());
        assert_eq!(admit(&callers, &name, 9), Admission::Stranger);
        assert_eq!(callers.wants_reply(&name, serial(1)), None);
        assert_eq!(callers.wants_reply(&name, serial(2)), Some(false));

        let next = connect(&callers, 2, 1000, &[]);
        assert_eq!(admit(&callers, &next, 1), Admission::Admitted);
        assert!(matches!(admit(&callers, &next, 2), Admission::Refused(_)));
        (1..=8).for_each(|number| callers.finish(&name, serial(number)));
        assert_eq!(callers.table().names.len(), 1);
        callers.finish(&next, serial(1));
        assert!(callers.table().users.is_empty());
    }

    #[test]
    fn calls_that_wait_for_polkit_leave_their_places_to_others() {
        let callers = callers();
        let name = connect(&callers, 1, 1000, &[]);
        for number in 1..=8 {
            assert_eq!(admit(&callers, &name, number), Admission::Admitted);
            assert!(callers.ask(&name, serial(number)).is_some());
        }
        assert_eq!(admit(&callers, &name, 9), Admission::Admitted);
        assert!(callers.ask(&name, serial(9)).is_none());
        callers.finish(&name, serial(1));
        assert!(callers.ask(&name, serial(9)).is_some());
    }

    #[test]
    fn number_of_a_call_in_progress_is_not_used_twice() {
        let callers = callers();
        let name = connect(&callers, 1, 1000, &[]);
        assert_eq!(admit(&callers, &name, 1), Admission::Admitted);
        assert_eq!(admit(&callers, &name, 1), Admission::Repeated);
        assert_eq!(callers.wants_reply(&name, serial(1)), Some(true));
    }

    #[test]
    fn connections_without_a_call_are_forgotten_when_there_are_many() {
        let callers = callers();
        let busy = connect(&callers, 0, 1000, &[]);
        assert_eq!(admit(&callers, &busy, 1), Admission::Admitted);
        for number in 1..5000 {
            connect(&callers, number, 1000, &[]);
        }
        assert!(callers.table().names.len() <= MOST_NAMES);
        assert!(callers.identity(&busy).is_some());
    }
}
