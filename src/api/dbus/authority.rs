//! Authorization: root, members of group `tcptracker`, and users that polkit authorizes may change blocks.
//!
//! Owns the decision and the texts of refusals. Must never block the bus thread: a user who types a password
//! delays only their own call.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use zbus::message::{Flags, Header};
use zbus::names::UniqueName;
use zbus::{Connection, OwnedVariant, Variant, fdo};

use crate::api::dbus::error::Error;
use crate::handles::{EventSink, Reader};
use crate::types::{Event, Moment, RateLimit, Refusal, Request};

/// The group whose members may make changes.
const GROUP: &str = "tcptracker";

/// The local groups (group(5)). sysusers adds ours.
const GROUPS: &str = "/etc/group";

/// The polkit action.
const ACTION: &str = "org.tcptracker.Tracker1.manage";

const POLKIT: &str = "org.freedesktop.PolicyKit1";

/// `CheckAuthorizationFlags`: polkit may ask for a password.
const ALLOW_USER_INTERACTION: u32 = 1;

/// The gid that no process has (credentials(7)).
const NO_GROUP: u32 = u32::MAX;

/// Refusals per second in the journal. Any user can cause refusals, which must not push out other entries.
const REFUSALS: u32 = 10;

/// Pending polkit requests per user. A request waits for a password without a time limit, and the bus
/// allows a service 128 pending calls in total (dbus-daemon(1), `max_replies_per_connection`).
const PENDING_PER_USER: usize = 8;

/// Decides which callers may make changes.
pub struct Authority {
    group: AtomicU32,
    refusals: Mutex<RateLimit>,
    /// The user of each pending polkit request.
    pending: Mutex<Vec<u32>>,
    events: EventSink,
}

impl Authority {
    /// Looks up the group once, because a lookup for each caller could take long.
    pub fn new(events: EventSink) -> Self {
        let refusals = Mutex::new(RateLimit::per_second(REFUSALS));
        let (group, pending) = (AtomicU32::new(NO_GROUP), Mutex::default());
        let authority = Self { group, refusals, pending, events };
        authority.look_up_group();
        authority
    }

    /// Looks up the group again. An administrator may have created it meanwhile.
    pub fn look_up_group(&self) {
        let listed = std::fs::read_to_string(Path::new(GROUPS)).unwrap_or_default();
        self.group.store(find_gid(GROUP, &listed).unwrap_or(NO_GROUP), Ordering::Relaxed);
    }

    /// Returns the user that sent a message if the user may make the change. A refusal goes to the caller
    /// and to the journal.
    pub async fn authorize(
        &self,
        connection: &Connection,
        header: &Header<'_>,
        request: Request,
    ) -> Result<u32, Error> {
        let sender = header.sender().ok_or(zbus::Error::MissingField)?;
        let Caller { uid, groups } = Caller::look_up(connection, sender).await?;
        if uid == 0 || groups.contains(&self.group.load(Ordering::Relaxed)) {
            tracing::debug!("uid {uid}, {request:?}: allowed as root or member of the group");
            return Ok(uid);
        }
        let interactive = header.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
        let decision = match self.begin_request(uid) {
            Some(_pending) => ask_polkit(connection, sender, interactive).await,
            None => Err(Denial::TooMany),
        };
        tracing::debug!("uid {uid}, {request:?}: polkit: {decision:?}");
        let Err(denial) = decision else { return Ok(uid) };
        let now = Moment::now();
        if self.refusals.lock().unwrap_or_else(PoisonError::into_inner).allow(now) {
            let why = Refusal::NotAuthorized(denial.to_string());
            self.events.emit(Event::Refused { request, why, uid });
        } else {
            self.events.count_lost(Reader::Journal);
        }
        Err(denial.into())
    }

    /// Counts a polkit request of a user as pending. None if the user has too many.
    fn begin_request(&self, uid: u32) -> Option<PendingRequest<'_>> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.iter().filter(|user| **user == uid).count() >= PENDING_PER_USER {
            return None;
        }
        pending.push(uid);
        Some(PendingRequest { pending: &self.pending, uid })
    }
}

/// A pending polkit request. Dropping it, also with the task of its caller, makes room for another.
struct PendingRequest<'a> {
    pending: &'a Mutex<Vec<u32>>,
    uid: u32,
}

impl Drop for PendingRequest<'_> {
    fn drop(&mut self) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = pending.iter().position(|user| *user == self.uid) {
            pending.swap_remove(at);
        }
    }
}

/// Why a caller may not make a change.
#[derive(Debug, thiserror::Error)]
enum Denial {
    #[error("only root and members of group {GROUP} may do this; polkit is not running")]
    NoPolkit,
    #[error("polkit does not authorize this user ({ACTION})")]
    Refused,
    #[error("polkit requires a password ({ACTION}), and the client does not allow a prompt")]
    WouldAsk,
    #[error("{PENDING_PER_USER} requests of this user are waiting for polkit")]
    TooMany,
    #[error("polkit failed ({0})")]
    Unclear(zbus::Error),
}

impl Denial {
    /// What the caller can do. The journal leaves this out.
    const fn advice(&self) -> &'static str {
        match self {
            Self::NoPolkit | Self::Refused | Self::WouldAsk => {
                "use sudo, or add yourself to group tcptracker and log in again: \
                 sudo gpasswd -a $USER tcptracker"
            }
            Self::TooMany => "enter the password, or end the waiting commands",
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

/// A caller. The bus asked the kernel for these numbers when the caller connected.
struct Caller {
    uid: u32,
    groups: Vec<u32>,
}

impl Caller {
    async fn look_up(connection: &Connection, name: &UniqueName<'_>) -> Result<Self, Error> {
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
        let mut credentials: HashMap<String, OwnedVariant> = reply.body().deserialize()?;
        let mut take = |key: &str| credentials.remove(key);
        let uid = take("UnixUserID").and_then(|value| u32::try_from(value).ok());
        let groups = take("UnixGroupIDs").and_then(|value| Vec::<u32>::try_from(value).ok());
        let uid = uid.ok_or(zbus::Error::MissingField)?;
        Ok(Self { uid, groups: groups.unwrap_or_default() })
    }
}

/// Asks polkit, which gets the caller's identity from the bus.
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

/// Whether the error means that polkit does not exist or cannot be started.
fn is_absence(error: &zbus::Error) -> bool {
    match error {
        zbus::Error::MethodError(name, ..) => names_absence(name),
        zbus::Error::FDO(error) => names_absence(&zbus::DBusError::name(&**error)),
        _ => false,
    }
}

fn names_absence(name: &str) -> bool {
    // systemd starts polkit, and reports if the unit is masked.
    name.starts_with("org.freedesktop.systemd1.")
        || name.strip_prefix("org.freedesktop.DBus.Error.").is_some_and(|name| {
            matches!(name, "ServiceUnknown" | "NameHasNoOwner") || name.starts_with("Spawn")
        })
}

/// Finds the gid of a group in the text of group(5): `name:password:gid:members`.
fn find_gid(group: &str, listed: &str) -> Option<u32> {
    let fields = listed.lines().map(|line| line.split(':').collect::<Vec<_>>());
    fields.into_iter().find(|fields| fields.first() == Some(&group))?.get(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_is_found_by_its_whole_name() {
        let listed = "root:x:0:\ntcptrackers:x:7:\n# tcptracker:x:8:\ntcptracker:x:983:ann,ben\n";
        assert_eq!(find_gid("tcptracker", listed), Some(983));
        assert_eq!(find_gid("tcp", listed), None);
        assert_eq!(find_gid("tcptracker", "tcptracker:x:"), None);
    }

    #[test]
    fn error_of_the_bus_shows_that_polkit_is_missing() {
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
