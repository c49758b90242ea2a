//! `tcptracker watch`: what happens, as it happens.
//!
//! Believes only those who own our names on the bus: anybody may send a signal that looks like ours.
//! Instances come and go; it stays until the bus goes or nobody reads any more.

use std::collections::{BTreeSet, HashMap};

use futures_lite::StreamExt;
use futures_lite::stream::or;
use serde::Serialize;
use zbus::fdo::{DBusProxy, NameOwnerChanged};
use zbus::message::Type;
use zbus::{Connection, MatchRule, Message, MessageStream};

use crate::api::dbus::names::{COMMON_NAME, INTERFACE, interface_of, object_path};
use crate::cli::CliError;
use crate::cli::arguments::Select;
use crate::cli::client::{ClientError, connect};
use crate::cli::output::{Style, on_terminal, print, print_json_line, say, styled, width, wrapped};
use crate::cli::time::{now, on_its_day, time_of_day};
use crate::types::ifname::IfName;

/// What has happened, as a program reads it: an object a line. The keys stay as they are.
#[derive(Serialize)]
struct Line {
    /// Unix seconds.
    time: u64,
    interface: String,
    #[serde(flatten)]
    event: Event,
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event {
    Scan {
        address: String,
        ports: Vec<u16>,
        kind: String,
    },
    Blocked {
        address: String,
        until: Option<u64>,
        reason: String,
    },
    Unblocked {
        address: String,
        cause: String,
    },
    State {
        state: String,
    },
    /// The service has left the bus.
    Gone,
    /// The service is there.
    Running,
}

/// Who is who on the bus, and what is to be shown.
struct Watch<'a> {
    select: &'a Select,
    /// By the bus's own names.
    running: HashMap<String, IfName>,
    /// Seen so far: with more than one, lines say which.
    seen: BTreeSet<IfName>,
}

pub fn run(select: &Select) -> Result<(), CliError> {
    zbus::block_on(async {
        let connection = connect().await?;
        let mut messages = subscribe(&connection).await.map_err(ClientError::NoBus)?;
        let mut watch = Watch { select, running: HashMap::new(), seen: BTreeSet::new() };
        watch.look(&connection).await.map_err(ClientError::NoBus)?;
        watch.greet();
        while let Some(message) = messages.next().await {
            // What cannot be read is none of ours.
            if let Some(line) = message.ok().and_then(|message| watch.hear(&message)) {
                watch.show(&line)?;
            }
        }
        Err(ClientError::BusGone.into())
    })
}

type Messages = std::pin::Pin<Box<dyn futures_lite::Stream<Item = zbus::Result<Message>>>>;

/// Names that change hands, and before their new owners' signals; then our signals.
async fn subscribe(connection: &Connection) -> zbus::Result<Messages> {
    let names = MatchRule::builder()
        .msg_type(Type::Signal)
        .sender("org.freedesktop.DBus")
        .interface("org.freedesktop.DBus")
        .member("NameOwnerChanged")
        .arg0ns(COMMON_NAME)
        .build()?;
    let events = MatchRule::builder().msg_type(Type::Signal).interface(INTERFACE).build()?;
    let names = MessageStream::for_match_rule(names, connection, None).await?;
    let events = MessageStream::for_match_rule(events, connection, None).await?;
    Ok(Box::pin(or(names, events)))
}

impl Watch<'_> {
    fn wanted(&self, interface: &IfName) -> bool {
        self.select.interface.as_ref().is_none_or(|only| only == interface)
    }

    /// Who is there already.
    async fn look(&mut self, connection: &Connection) -> zbus::Result<()> {
        let bus = DBusProxy::new(connection).await?;
        for name in bus.list_names().await? {
            let Some(interface) = interface_of(name.as_str()).filter(|one| self.wanted(one)) else {
                continue;
            };
            // Gone again in between: its leaving is heard.
            if let Ok(owner) = bus.get_name_owner(name.inner().clone()).await {
                self.seen.insert(interface.clone());
                self.running.insert(owner.to_string(), interface);
            }
        }
        Ok(())
    }

    fn greet(&self) {
        let names: Vec<&str> = self.seen.iter().map(IfName::as_str).collect();
        match (&names[..], &self.select.interface) {
            ([], Some(only)) => {
                say(&format!(
                    "not running on {only} yet; waiting (systemctl start {})",
                    only.unit()
                ));
            }
            ([], None) => say(&"not running yet; waiting (systemctl start tcptracker@INTERFACE)"),
            (names, _) if on_terminal() && !self.select.json => {
                say(&format!("watching {}; Ctrl-C ends it", names.join(", ")));
            }
            _ => {}
        }
    }

    fn hear(&mut self, message: &Message) -> Option<Line> {
        let header = message.header();
        let (interface, event) = if header.member()?.as_str() == "NameOwnerChanged" {
            self.name_changed(message)?
        } else {
            let interface = self.running.get(header.sender()?.as_str())?.clone();
            let ours = header.path()?.as_str() == object_path(&interface);
            (interface, ours.then(|| event_of(message)).flatten()?)
        };
        self.seen.insert(interface.clone());
        Some(Line { time: now(), interface: interface.to_string(), event })
    }

    fn name_changed(&mut self, message: &Message) -> Option<(IfName, Event)> {
        let change = NameOwnerChanged::from_message(message.clone())?;
        let arguments = change.args().ok()?;
        let interface = interface_of(arguments.name().as_str()).filter(|one| self.wanted(one))?;
        if let Some(owner) = arguments.old_owner().as_ref() {
            self.running.remove(owner.as_str());
        }
        let Some(owner) = arguments.new_owner().as_ref() else {
            return Some((interface, Event::Gone));
        };
        let earlier = self.running.insert(owner.to_string(), interface.clone());
        // It came between the first look and now.
        if earlier.is_some() { None } else { Some((interface, Event::Running)) }
    }

    fn show(&self, line: &Line) -> Result<(), CliError> {
        if self.select.json {
            return print_json_line(line);
        }
        let (what, text, style) = line.event.told(line.time);
        let time = time_of_day(line.time);
        if !on_terminal() {
            return print(&format!("{time}\t{}\t{what}\t{text}\n", line.interface));
        }
        let widest = self.seen.iter().map(|name| name.as_str().chars().count()).max().unwrap_or(0);
        let interface = match self.seen.len() {
            0 | 1 => String::new(),
            _ => format!("{:<widest$}  ", line.interface),
        };
        let before = time.chars().count() + 2 + interface.chars().count() + 11;
        let mut lines = wrapped(&text, width().saturating_sub(before).max(20)).into_iter();
        let (time, what) = (styled(Style::Dim, &time), styled(style, &format!("{what:<9}")));
        let mut shown =
            format!("{time}  {interface}{what}  {}\n", lines.next().unwrap_or_default());
        shown.extend(lines.map(|line| format!("{:before$}{line}\n", "")));
        print(&shown)
    }
}

fn event_of(message: &Message) -> Option<Event> {
    let body = message.body();
    let event = match message.header().member()?.as_str() {
        "ScanDetected" => {
            let (address, ports, kind) = body.deserialize().ok()?;
            Event::Scan { address, ports, kind }
        }
        "Blocked" => {
            let (address, until, reason): (String, u64, String) = body.deserialize().ok()?;
            Event::Blocked { address, until: (until > 0).then_some(until), reason }
        }
        "Unblocked" => {
            let (address, cause) = body.deserialize().ok()?;
            Event::Unblocked { address, cause }
        }
        "StateChanged" => Event::State { state: body.deserialize().ok()? },
        _ => return None,
    };
    Some(event)
}

impl Event {
    /// In a word, in a sentence, and how it stands out.
    fn told(&self, now: u64) -> (&'static str, String, Style) {
        match self {
            Self::Scan { address, ports, kind } => {
                let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
                ("scan", format!("{address}: {kind}, ports {}", ports.join(", ")), Style::Yellow)
            }
            Self::Blocked { address, until, reason } => {
                let until =
                    until.map_or_else(|| "unblocked".to_owned(), |until| on_its_day(until, now));
                ("blocked", format!("{address} until {until}: {reason}"), Style::Red)
            }
            Self::Unblocked { address, cause } => {
                let cause = match cause.as_str() {
                    "manual" => "by hand",
                    "expired" => "its time is up",
                    "exempt" => "it is exempt now",
                    "displaced" => "to make room",
                    other => other,
                };
                ("unblocked", format!("{address}: {cause}"), Style::Green)
            }
            Self::State { state } => {
                let style = if state == "degraded" { Style::Red } else { Style::Bold };
                ("state", state.clone(), style)
            }
            Self::Gone => {
                ("gone", "the service has stopped; waiting for it".to_owned(), Style::Red)
            }
            Self::Running => ("running", "the service is there".to_owned(), Style::Green),
        }
    }
}
