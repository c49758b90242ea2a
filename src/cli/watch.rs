//! `tcptracker watch`: events as they happen.
//!
//! Runs until the bus or the reader of the output goes away; instances may stop and start meanwhile. Must
//! show only signals of the owners of tcptracker's bus names: any local user can send similar ones.

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
use crate::cli::client::{ClientError, connect, not_running};
use crate::cli::output::{
    Style, on_terminal, print, print_error, print_json_line, print_styled, styled, width, wrapped,
};
use crate::cli::time::{now, on_its_day, time_of_day};
use crate::types::{IfName, printable};

/// An event in the JSON output, one object per line. Its keys are stable.
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
    /// The service has joined the bus.
    Running,
}

struct Watch<'a> {
    select: &'a Select,
    /// The instances by their unique bus names.
    running: HashMap<String, IfName>,
    /// All instances so far. With more than one, each line names its interface.
    seen: BTreeSet<IfName>,
}

pub fn run(select: &Select) -> Result<(), CliError> {
    zbus::block_on(async {
        let connection = connect().await?;
        let mut messages = subscribe(&connection).await.map_err(ClientError::NoBus)?;
        let mut watch = Watch { select, running: HashMap::new(), seen: BTreeSet::new() };
        watch.find_instances(&connection).await.map_err(ClientError::NoBus)?;
        watch.greet(&connection).await?;
        while let Some(message) = messages.next().await {
            // An unreadable message is not from tcptracker.
            if let Some(line) = message.ok().and_then(|message| watch.line_of(&message)) {
                watch.show(&line)?;
            }
        }
        Err(ClientError::BusGone.into())
    })
}

type Messages = std::pin::Pin<Box<dyn futures_lite::Stream<Item = zbus::Result<Message>>>>;

/// Subscribes to changes of name owners, and to the signals of the new owners, in this order.
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

    async fn find_instances(&mut self, connection: &Connection) -> zbus::Result<()> {
        let bus = DBusProxy::new(connection).await?;
        for name in bus.list_names().await? {
            let Some(interface) = interface_of(name.as_str()).filter(|one| self.wanted(one)) else {
                continue;
            };
            // If it has left meanwhile, a signal reports it.
            if let Ok(owner) = bus.get_name_owner(name.inner().clone()).await {
                self.seen.insert(interface.clone());
                self.running.insert(owner.to_string(), interface);
            }
        }
        Ok(())
    }

    /// Says what is watched, or what is missing. An interface that does not exist is an error: waiting for
    /// a misspelled name would never end.
    async fn greet(&self, connection: &Connection) -> Result<(), ClientError> {
        if self.seen.is_empty() {
            let only = self.select.interface.as_ref();
            match not_running(connection, only, &[]).await {
                error @ ClientError::NoSuchInterface { .. } => return Err(error),
                error => print_error(&format!("waiting for the service: {error}")),
            }
        } else if on_terminal() && !self.select.json {
            let names: Vec<&str> = self.seen.iter().map(IfName::as_str).collect();
            print_error(&format!("watching {}; press Ctrl-C to stop", names.join(", ")));
        }
        Ok(())
    }

    fn line_of(&mut self, message: &Message) -> Option<Line> {
        let header = message.header();
        let (interface, event) = if header.member()?.as_str() == "NameOwnerChanged" {
            self.name_changed(message)?
        } else {
            let interface = self.running.get(header.sender()?.as_str())?.clone();
            let is_ours = header.path()?.as_str() == object_path(&interface);
            (interface, is_ours.then(|| event_of(message)).flatten()?)
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
        // `find_instances` may have seen it already.
        if earlier.is_some() { None } else { Some((interface, Event::Running)) }
    }

    fn show(&self, line: &Line) -> Result<(), CliError> {
        if self.select.json {
            return print_json_line(line);
        }
        let (what, text, style) = line.event.described(line.time);
        let text = printable(&text);
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
        print_styled(&shown)
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
    /// Returns the name of the event, its text and its style.
    fn described(&self, now: u64) -> (&'static str, String, Style) {
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
                    "manual" => "manually",
                    "exempt" => "now exempt",
                    "displaced" => "evicted to make room for a newer block",
                    other => other,
                };
                ("unblocked", format!("{address}: {cause}"), Style::Green)
            }
            Self::State { state } => {
                let style = if state == "degraded" { Style::Red } else { Style::Bold };
                ("state", state.clone(), style)
            }
            Self::Gone => {
                let text = "the service has stopped; waiting until it runs again";
                ("gone", text.to_owned(), Style::Red)
            }
            Self::Running => ("running", "the service has started".to_owned(), Style::Green),
        }
    }
}
