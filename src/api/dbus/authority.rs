//! Authorization: root, members of group `tcptracker`, and users that polkit authorizes may change blocks.
//!
//! Owns the decision and the texts of refusals. Must never block the bus thread: a user who types a password
//! delays only their own call.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_channel::Receiver;
use async_lock::Semaphore;
use futures_lite::future::or;
use zbus::message::{Flags, Header};
use zbus::names::UniqueName;
use zbus::{Connection, Message, Variant, fdo};

use crate::api::dbus::callers::{Callers, MOST_QUESTIONS_PER_USER, NO_GROUP};
use crate::api::dbus::error::{Error, bounded};
use crate::api::users;
use crate::handles::{EventSink, Reader};
use crate::types::{Event, Moment, RateLimit, Refusal, Request};

/// The group whose members may make changes. sysusers adds it.
const GROUP: &str = "tcptracker";

/// The polkit action.
const ACTION: &str = "org.tcptracker.Tracker1.manage";

const POLKIT: &str = "org.freedesktop.PolicyKit1";
const POLKIT_PATH: &str = "/org/freedesktop/PolicyKit1/Authority";
const POLKIT_INTERFACE: &str = "org.freedesktop.PolicyKit1.Authority";

/// `CheckAuthorizationFlags`: polkit may ask for a password.
const ALLOW_USER_INTERACTION: u32 = 1;

/// Refusals per second in the journal. Any user can cause refusals, which must not push out other entries.
const REFUSALS: u32 = 10;

/// Questions to polkit without an answer, also of callers that have left. The bus allows a service 128 pending
/// calls in total (dbus-daemon(1), `max_replies_per_connection`).
const MOST_QUESTIONS: usize = 96;

/// Decides which callers may make changes.
pub struct Authority {
    group: Arc<AtomicU32>,
    refusals: Mutex<RateLimit>,
    /// The permits for questions to polkit.
    questions: Semaphore,
    /// The number of questions so far. It names the next one, so that it can be cancelled.
    asked: AtomicU64,
    events: EventSink,
}

impl Authority {
    /// Looks up the group once, because a lookup for each caller could take long.
    pub fn new(events: EventSink) -> Self {
        let refusals = Mutex::new(RateLimit::per_second(REFUSALS));
        let (group, asked) = (Arc::new(AtomicU32::new(NO_GROUP)), AtomicU64::default());
        let questions = Semaphore::new(MOST_QUESTIONS);
        let authority = Self { group, refusals, questions, asked, events };
        authority.look_up_group();
        authority
    }

    /// The gid of the group, or `NO_GROUP`.
    pub fn group(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.group)
    }

    /// Looks up the group again. An administrator may have created it meanwhile.
    pub fn look_up_group(&self) {
        self.group.store(users::gid_of(GROUP).unwrap_or(NO_GROUP), Ordering::Relaxed);
    }

    /// Returns the user that sent a message if the user may make the change. A refusal goes to the caller
    /// and to the journal.
    pub async fn authorize(
        &self,
        callers: &Callers,
        connection: &Connection,
        header: &Header<'_>,
        request: Request,
    ) -> Result<u32, Error> {
        let sender = header.sender().ok_or(zbus::Error::MissingField)?;
        let Some(caller) = callers.identity(sender) else { return Err(Denial::Left.into()) };
        let uid = caller.uid();
        if callers.is_privileged(&caller) {
            tracing::debug!("uid {uid}, {request:?}: allowed as root or member of the group");
            return Ok(uid);
        }
        let decision = match callers.ask(sender, header.primary().serial_num()) {
            Some(ended) => self.ask_polkit(connection, header, sender, &ended).await,
            None => Err(Denial::TooMany),
        };
        tracing::debug!("uid {uid}, {request:?}: polkit: {decision:?}");
        let Err(denial) = decision else { return Ok(uid) };
        if matches!(denial, Denial::Left) {
            return Err(denial.into());
        }
        let now = Moment::now();
        if self.refusals.lock().unwrap_or_else(PoisonError::into_inner).allow(now) {
            let why = Refusal::NotAuthorized(bounded(&denial.to_string()).into_owned());
            self.events.emit(Event::Refused { request, why, uid });
        } else {
            self.events.count_lost(Reader::Journal);
        }
        Err(denial.into())
    }

    /// Asks polkit, which gets the caller's identity from the bus. If the caller leaves, the question ends.
    async fn ask_polkit(
        &self,
        connection: &Connection,
        header: &Header<'_>,
        name: &UniqueName<'_>,
        ended: &Receiver<Infallible>,
    ) -> Result<(), Denial> {
        let _permit = self.questions.try_acquire().ok_or(Denial::TooManyInAll)?;
        let interactive = header.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
        let id = format!("tcptracker-{}", self.asked.fetch_add(1, Ordering::Relaxed));
        let subject = HashMap::from([("name", Variant::from(name.as_str()))]);
        let details: HashMap<&str, &str> = HashMap::new();
        let flags = if interactive { ALLOW_USER_INTERACTION } else { 0 };
        let question = (("system-bus-name", subject), ACTION, details, flags, id.as_str());
        let mut reply = pin!(call_polkit(connection, "CheckAuthorization", &question));
        let left = async {
            // Nothing is ever sent.
            let _ = ended.recv().await;
            None
        };
        let Some(reply) = or(async { Some(reply.as_mut().await) }, left).await else {
            let _ = call_polkit(connection, "CancelCheckAuthorization", &id).await;
            // Until polkit answers the first question, the bus counts it.
            let _ = reply.await;
            return Err(Denial::Left);
        };
        let answer = reply
            .and_then(|reply| reply.body().deserialize::<(bool, bool, HashMap<String, String>)>());
        match answer {
            Ok((true, ..)) => Ok(()),
            Ok((false, true, _)) if !interactive => Err(Denial::WouldAsk),
            Ok(_) => Err(Denial::Refused),
            Err(error) if is_absence(&error) => Err(Denial::NoPolkit),
            Err(error) => Err(Denial::Unclear(error)),
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
    #[error("{MOST_QUESTIONS_PER_USER} requests of this user are waiting for polkit")]
    TooMany,
    #[error("{MOST_QUESTIONS} requests are waiting for polkit")]
    TooManyInAll,
    #[error("polkit failed ({0})")]
    Unclear(zbus::Error),
    #[error("the caller has left")]
    Left,
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
            Self::TooManyInAll | Self::Unclear(_) => "use sudo",
            Self::Left => "call again",
        }
    }
}

impl From<Denial> for Error {
    fn from(denial: Denial) -> Self {
        let text = format!("{denial}; {}", denial.advice());
        Self::Common(match denial {
            Denial::WouldAsk => fdo::Error::InteractiveAuthorizationRequired(text),
            Denial::TooMany | Denial::TooManyInAll => fdo::Error::LimitsExceeded(text),
            _ => fdo::Error::AccessDenied(text),
        })
    }
}

async fn call_polkit<T>(connection: &Connection, member: &str, body: &T) -> zbus::Result<Message>
where
    T: serde::Serialize + zbus::DynamicType,
{
    let interface = Some(POLKIT_INTERFACE);
    connection.call_method(Some(POLKIT), POLKIT_PATH, interface, member, body).await
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

#[cfg(test)]
mod tests {
    use super::*;

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
