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

use super::error::Error;
use super::limiter::Limiter;
use crate::clock::Moment;
use crate::events::{Event, Reporter};

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

/// Decides who may.
#[derive(Clone)]
pub struct Authority {
    group: Arc<AtomicU32>,
    refusals: Arc<Mutex<Limiter>>,
    reporter: Reporter,
}

impl Authority {
    /// Looks up the group; its name is not looked up for a caller, which could take long.
    pub fn new(reporter: Reporter) -> Self {
        let refusals = Arc::new(Mutex::new(Limiter::new(REFUSALS)));
        let authority = Self { group: Arc::new(AtomicU32::new(NO_GROUP)), refusals, reporter };
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
    pub(super) async fn authorise(
        &self,
        connection: &Connection,
        header: &Header<'_>,
        request: impl FnOnce() -> String,
    ) -> Result<u32, Error> {
        let sender = header.sender().ok_or(zbus::Error::MissingField)?;
        let Caller { uid, groups } = Caller::ask_for(connection, sender).await?;
        if uid == 0 || groups.contains(&self.group.load(Ordering::Relaxed)) {
            return Ok(uid);
        }
        let interactive = header.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
        let Err(refusal) = ask_polkit(connection, sender, interactive).await else {
            return Ok(uid);
        };
        let now = Moment::now();
        if self.refusals.lock().unwrap_or_else(PoisonError::into_inner).permits(now) {
            let why = refusal.to_string();
            self.reporter.tell(Event::Refused { request: request(), why, uid });
        } else {
            self.reporter.metrics().events_lost_on_journal.inc();
        }
        Err(refusal.into())
    }
}

/// Why somebody may not.
#[derive(Debug, thiserror::Error)]
enum Denial {
    #[error(
        "only root and members of group {GROUP} may do this, as polkit is not running; use sudo, or add \
         yourself to the group and log in again: sudo gpasswd -a $USER {GROUP}"
    )]
    NoPolkit,
    #[error(
        "polkit does not authorise you ({ACTION}); use sudo, or add yourself to group {GROUP} and log in \
         again: sudo gpasswd -a $USER {GROUP}"
    )]
    Refused,
    #[error(
        "polkit would ask for a password ({ACTION}), but the caller does not allow that; use sudo, or a \
         client that does, as `tcptracker` and `busctl` do"
    )]
    WouldAsk,
    #[error("polkit could not say whether you may do this ({0}); use sudo")]
    Unclear(zbus::Error),
}

impl From<Denial> for Error {
    fn from(denial: Denial) -> Self {
        let text = denial.to_string();
        Self::Common(match denial {
            Denial::WouldAsk => fdo::Error::InteractiveAuthorizationRequired(text),
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
    let name = match error {
        zbus::Error::MethodError(name, ..) => name.to_string(),
        zbus::Error::FDO(error) => zbus::DBusError::name(&**error).to_string(),
        _ => return false,
    };
    name.strip_prefix("org.freedesktop.DBus.Error.").is_some_and(|name| {
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
}
