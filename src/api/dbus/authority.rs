//! Who may change something: root, group `tcptracker`, and whomever polkit authorises.
//!
//! Owns the question and the answer's words. Nothing here waits on a thread: a person who types a password
//! holds up his own call only.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use zbus::message::{Flags, Header};
use zbus::names::UniqueName;
use zbus::{Connection, OwnedVariant, Variant, fdo};

use crate::api::dbus::error::Error;
use crate::api::dbus::limiter::Limiter;
use crate::handles::events::{EventSink, Reader};
use crate::types::clock::Moment;
use crate::types::event::{Event, Refusal, Request};

/// The group whose members may.
const GROUP: &str = "tcptracker";

/// Where local groups are listed (group(5)); sysusers puts ours there.
const GROUPS: &str = "/etc/group";

/// What polkit is asked for.
const ACTION: &str = "org.tcptracker.Tracker1.manage";

const POLKIT: &str = "org.freedesktop.PolicyKit1";

/// `CheckAuthorizationFlags`: polkit may ask for a password.
const ALLOW_USER_INTERACTION: u32 = 1;

/// No such group: the number that is nobody's (credentials(7)).
const NO_GROUP: u32 = u32::MAX;

/// Refusals listed in the journal each second. Anybody can be refused as often as he likes, which must not
/// push out what others have to tell.
const REFUSALS: u32 = 10;

/// Questions to polkit that each user may have open. It may be waiting for a password, as long as he likes,
/// and the bus lets a service have 128 questions open in all (dbus-daemon(1), `max_replies_per_connection`).
const QUESTIONS: usize = 8;

/// Decides who may.
#[derive(Clone)]
pub struct Authority {
    group: Arc<AtomicU32>,
    refusals: Arc<Mutex<Limiter>>,
    /// Whose questions polkit has not answered yet, once for each.
    asking: Arc<Mutex<Vec<u32>>>,
    events: EventSink,
}

impl Authority {
    /// Looks up the group; its name is not looked up for a caller, which could take long.
    pub fn new(events: EventSink) -> Self {
        let refusals = Arc::new(Mutex::new(Limiter::new(REFUSALS)));
        let (group, asking) = (Arc::new(AtomicU32::new(NO_GROUP)), Arc::default());
        let authority = Self { group, refusals, asking, events };
        authority.look_up_group();
        authority
    }

    /// Looks the group up again: it may have been made meanwhile.
    pub fn look_up_group(&self) {
        let listed = std::fs::read_to_string(Path::new(GROUPS)).unwrap_or_default();
        self.group.store(number_of(GROUP, &listed).unwrap_or(NO_GROUP), Ordering::Relaxed);
    }

    /// The user who sent a message, provided he may do what he asks for. Who may not is told why, and so
    /// is the journal.
    pub async fn authorise(
        &self,
        connection: &Connection,
        header: &Header<'_>,
        request: Request,
    ) -> Result<u32, Error> {
        let sender = header.sender().ok_or(zbus::Error::MissingField)?;
        let Caller { uid, groups } = Caller::ask_for(connection, sender).await?;
        if uid == 0 || groups.contains(&self.group.load(Ordering::Relaxed)) {
            return Ok(uid);
        }
        let interactive = header.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
        let asked = match self.question_by(uid) {
            Some(_open) => ask_polkit(connection, sender, interactive).await,
            None => Err(Denial::TooMany),
        };
        let Err(refusal) = asked else { return Ok(uid) };
        let now = Moment::now();
        if self.refusals.lock().unwrap_or_else(PoisonError::into_inner).permits(now) {
            let why = Refusal::NotAuthorized(refusal.to_string());
            self.events.emit(Event::Refused { request, why, uid });
        } else {
            self.events.count_lost(Reader::Journal);
        }
        Err(refusal.into())
    }

    /// A place among the open questions of a user, as long as it is held.
    fn question_by(&self, uid: u32) -> Option<Question> {
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        if asking.iter().filter(|user| **user == uid).count() >= QUESTIONS {
            return None;
        }
        asking.push(uid);
        Some(Question { asking: Arc::clone(&self.asking), uid })
    }
}

/// An open question. Dropped, also if its caller's task is, there is room for another.
struct Question {
    asking: Arc<Mutex<Vec<u32>>>,
    uid: u32,
}

impl Drop for Question {
    fn drop(&mut self) {
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = asking.iter().position(|user| *user == self.uid) {
            asking.swap_remove(at);
        }
    }
}

/// Why somebody may not.
#[derive(Debug, thiserror::Error)]
enum Denial {
    #[error("only root and members of group {GROUP} may do this, as polkit is not running")]
    NoPolkit,
    #[error("polkit does not authorise it ({ACTION})")]
    Refused,
    #[error("polkit would ask for a password ({ACTION}), which the caller does not allow")]
    WouldAsk,
    #[error("polkit has not answered {QUESTIONS} questions about this user yet")]
    TooMany,
    #[error("polkit could not say whether this is allowed ({0})")]
    Unclear(zbus::Error),
}

impl Denial {
    /// What the caller may do about it; the journal's readers need not know.
    const fn advice(&self) -> &'static str {
        match self {
            Self::NoPolkit | Self::Refused => {
                "use sudo, or add yourself to group tcptracker and log in again: \
                 sudo gpasswd -a $USER tcptracker"
            }
            Self::WouldAsk => {
                "use sudo, or a client that allows it, as `tcptracker` does on a terminal"
            }
            Self::TooMany => "give your password, or end what waits for it",
            Self::Unclear(_) => "use sudo",
        }
    }
}

impl From<Denial> for Error {
    fn from(denial: Denial) -> Self {
        let text = format!("{denial}; {}", denial.advice());
        Self::Common(match denial {
            Denial::WouldAsk => fdo::Error::InteractiveAuthorizationRequired(text),
            Denial::TooMany => fdo::Error::LimitsExceeded(text),
            _ => fdo::Error::AccessDenied(text),
        })
    }
}

/// A caller, as the bus knows him: it has asked the kernel when he connected.
struct Caller {
    uid: u32,
    groups: Vec<u32>,
}

impl Caller {
    async fn ask_for(connection: &Connection, name: &UniqueName<'_>) -> Result<Self, Error> {
        let bus = "org.freedesktop.DBus";
        let reply = connection
            .call_method(
                Some(bus),
                "/org/freedesktop/DBus",
                Some(bus),
                "GetConnectionCredentials",
                name,
            )
            .await?;
        let mut told: HashMap<String, OwnedVariant> = reply.body().deserialize()?;
        let mut take = |key: &str| told.remove(key);
        let uid = take("UnixUserID").and_then(|value| u32::try_from(value).ok());
        let groups = take("UnixGroupIDs").and_then(|value| Vec::<u32>::try_from(value).ok());
        let uid = uid.ok_or(zbus::Error::MissingField)?;
        Ok(Self { uid, groups: groups.unwrap_or_default() })
    }
}

/// Asks polkit, which knows by the bus who it is.
async fn ask_polkit(
    connection: &Connection,
    name: &UniqueName<'_>,
    interactive: bool,
) -> Result<(), Denial> {
    let subject = HashMap::from([("name", Variant::from(name.as_str()))]);
    let details: HashMap<&str, &str> = HashMap::new();
    let flags = if interactive { ALLOW_USER_INTERACTION } else { 0 };
    let question = (("system-bus-name", subject), ACTION, details, flags, "");
    let answer = connection
        .call_method(
            Some(POLKIT),
            "/org/freedesktop/PolicyKit1/Authority",
            Some("org.freedesktop.PolicyKit1.Authority"),
            "CheckAuthorization",
            &question,
        )
        .await
        .and_then(|reply| reply.body().deserialize::<(bool, bool, HashMap<String, String>)>());
    match answer {
        Ok((true, ..)) => Ok(()),
        Ok((false, true, _)) if !interactive => Err(Denial::WouldAsk),
        Ok(_) => Err(Denial::Refused),
        Err(error) if is_absence(&error) => Err(Denial::NoPolkit),
        Err(error) => Err(Denial::Unclear(error)),
    }
}

/// Whether the bus says that there is no polkit, or that it cannot be started.
fn is_absence(error: &zbus::Error) -> bool {
    match error {
        zbus::Error::MethodError(name, ..) => names_absence(name),
        zbus::Error::FDO(error) => names_absence(&zbus::DBusError::name(&**error)),
        _ => false,
    }
}

fn names_absence(name: &str) -> bool {
    // systemd starts it, and says so where it is masked, for one.
    name.starts_with("org.freedesktop.systemd1.")
        || name.strip_prefix("org.freedesktop.DBus.Error.").is_some_and(|name| {
            matches!(name, "ServiceUnknown" | "NameHasNoOwner") || name.starts_with("Spawn")
        })
}

/// The number of a group in the text of group(5): `name:password:number:members`.
fn number_of(group: &str, listed: &str) -> Option<u32> {
    let fields = listed.lines().map(|line| line.split(':').collect::<Vec<_>>());
    fields.into_iter().find(|fields| fields.first() == Some(&group))?.get(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_its_whole_name() {
        let listed = "root:x:0:\ntcptrackers:x:7:\n# tcptracker:x:8:\ntcptracker:x:983:ann,ben\n";
        assert_eq!(number_of("tcptracker", listed), Some(983));
        assert_eq!(number_of("tcp", listed), None);
        assert_eq!(number_of("tcptracker", "tcptracker:x:"), None);
    }

    #[test]
    fn a_polkit_that_is_not_there_shows_in_the_buses_answer() {
        for absence in [
            "org.freedesktop.DBus.Error.ServiceUnknown",
            "org.freedesktop.DBus.Error.NameHasNoOwner",
            "org.freedesktop.DBus.Error.Spawn.ExecFailed",
            "org.freedesktop.systemd1.UnitMasked",
        ] {
            assert!(names_absence(absence), "{absence}");
        }
        for other in
            ["org.freedesktop.DBus.Error.NoReply", "org.freedesktop.PolicyKit1.Error.Failed"]
        {
            assert!(!names_absence(other), "{other}");
        }
    }
}
