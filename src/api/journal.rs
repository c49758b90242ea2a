//! The journal: every event as one entry a person can read and a program can filter.
//!
//! Owns the texts, the structured fields and the identifiers of messages, and the one thread that
//! writes them: journald may be slow, and nobody else waits for it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use rustix::fs::fstat;
use tracing::{error, info, warn};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::debug_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogFormat;
use crate::types::block::{BlockCause, SkipReason, UnblockCause};
use crate::types::clock::HumanDuration;
use crate::types::event::{BackendNote, Event, Refusal, ReloadNote, Request, Suppressed, Warning};
use crate::types::ifname::IfName;
use crate::types::network::show_network;
use crate::types::scan::{Attempt, Scan, ScanKind};
use crate::types::state::State;

/// Events that may wait for the journal: twenty seconds of as many as are listed one by one.
pub const QUEUE: usize = 2048;

/// How long the thread waits at most before it shows that it is alive.
const TICK: Duration = Duration::from_millis(500);

/// Identifiers of the kinds of messages (sd-id128(3)), made once with `systemd-id128 new`.
mod id {
    pub const STARTED: &str = "fdb7f878f18d45e5ae664097c6d1c558";
    pub const STOPPED: &str = "8e2001616b6740948dd1ffd4217f4596";
    pub const CONNECTION: &str = "9840eea37f064008a5e6549aad6c92f2";
    pub const NOT_LISTED: &str = "239c82bea89f433ead9e746864055121";
    pub const SCAN: &str = "5d0741d35f104cf2bc625c85c40f2775";
    pub const SCAN_SUMMARY: &str = "d3ed6979d9704f129cd0be123972b434";
    pub const SPARED: &str = "9dc2be5efe0c4fbf82270cacf2a7e056";
    pub const BLOCKED: &str = "b39b4bac17384f029bb82ffb3b2b31d1";
    pub const RESTORED: &str = "d673031de68746a09503610eba093578";
    pub const UNBLOCKED: &str = "c86162991bca46138eff37cb5bb7453e";
    pub const REFUSED: &str = "b863594ede9b4faab476bc0ebaa7f200";
    pub const STATE: &str = "a860683651934960a006abc92420fc60";
    pub const RELOADED: &str = "e2a78b3843a64828968f76a8c552930f";
    pub const REPAIRED: &str = "19a8d40cb80c4be493ce1d5c7abcd599";
    pub const LOCK_HELD_BY_OTHER: &str = "253f0f9d9e0747c1b2924954ea0cd8fb";
    pub const METRICS_UNAVAILABLE: &str = "4d81c393a5e9475893ba38b2110eb157";
    pub const METRICS_ADDRESS_MISSING: &str = "53318f28b47d469980d9a8fd45172a9b";
    pub const SSH_CONFIG_UNREADABLE: &str = "406486e194f249be908026f2448626d1";
    pub const REPLIES_MISSING: &str = "92258117c5c346bcaa781014000045ab";
    pub const REPLIES_VISIBLE: &str = "45cc82baced04b9cb29e7fcd58a9eca6";
    pub const BACKEND: &str = "21b08c9fe67f4a85911c8c88170b00d8";
    pub const BLOCKS_SUSPENDED: &str = "1a8ffbc1573a49198bd95621c031d015";
    pub const STALE_BLOCKS_REMOVED: &str = "362c05049c764788a2d13acd0f94464b";
    pub const RESTORE_INCOMPLETE: &str = "17658869a60b4ca3b905027073de8783";
    pub const DATABASE_QUARANTINED: &str = "0dc3b16d69a240b9912134d4288343f5";
    pub const RELOAD_FAILED: &str = "129f0dac28884d64a3ded7c35f7ba3fb";
}

/// Sends what is logged to journald where the service manager has connected stderr to it, and to
/// stderr otherwise, as text or as an object a line.
pub fn init(format: LogFormat) {
    // What libraries have to tell below a warning is of no use to whoever runs a server.
    let ours = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target(env!("CARGO_CRATE_NAME"), LevelFilter::INFO);
    let registry = tracing_subscriber::registry().with(ours);
    if stderr_is_the_journal()
        && let Ok(journald) = tracing_journald::layer()
    {
        let priorities =
            PriorityMappings { info: Priority::Informational, ..PriorityMappings::new() };
        registry
            .with(
                journald
                    // With a prefix MESSAGE_ID would not be one.
                    .with_field_prefix(None)
                    .with_syslog_identifier("tcptracker".to_owned())
                    .with_priority_mappings(priorities),
            )
            .init();
        return;
    }
    let stderr = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    if format == LogFormat::Json {
        registry.with(stderr.json().flatten_event(true)).init();
        return;
    }
    // The text says it all; the fields would say it twice.
    let text_only =
        debug_fn(
            |writer, field, value| {
                if field.name() == "message" { write!(writer, "{value:?}") } else { Ok(()) }
            },
        );
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    registry.with(stderr.with_ansi(colours).fmt_fields(text_only)).init();
}

/// Whether the service manager has connected stderr to the journal: `JOURNAL_STREAM` names the device
/// and inode of that connection, and is inherited by those whose stderr goes elsewhere (systemd.exec(5)).
fn stderr_is_the_journal() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
    fstat(std::io::stderr())
        .is_ok_and(|stderr| named == format!("{}:{}", stderr.st_dev, stderr.st_ino))
}

/// Says that the service is up.
pub fn started(interface: &IfName, text: &str) {
    info!(MESSAGE_ID = id::STARTED, TCPTRACKER_INTERFACE = %interface, "{text}");
}

/// Says that the service was stopped, by which signal.
pub fn stopped(interface: &IfName, signal: &str) {
    info!(MESSAGE_ID = id::STOPPED, TCPTRACKER_INTERFACE = %interface, "stopped by {signal}");
}

/// Says that the service ends because something failed.
pub fn failed(interface: &IfName, error: &dyn std::error::Error) {
    error!(
        MESSAGE_ID = id::STOPPED,
        TCPTRACKER_INTERFACE = %interface,
        "failed: {error}; what is blocked stays so until the next start, or until its time is up"
    );
}

/// Writes events until all who could tell one have ended.
pub fn run(interface: &IfName, events: &Receiver<Arc<Event>>, beat: impl Fn()) {
    loop {
        beat();
        match events.recv_timeout(TICK) {
            Ok(event) => write(interface, &event),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn write(interface: &IfName, event: &Event) {
    match event {
        Event::Connection { direction, source, source_port, destination, port } => info!(
            MESSAGE_ID = id::CONNECTION,
            TCPTRACKER_INTERFACE = %interface,
            TCPTRACKER_SOURCE = %source,
            TCPTRACKER_DESTINATION = %destination,
            TCPTRACKER_PORTS = %port,
            "new {} connection: {} -> {}",
            direction.as_str(),
            std::net::SocketAddr::new(*source, source_port.0),
            std::net::SocketAddr::new(*destination, port.0),
        ),
        Event::Suppressed { what, count, span } => info!(
            MESSAGE_ID = id::NOT_LISTED,
            TCPTRACKER_INTERFACE = %interface,
            "suppressed {count} {} in {:.1}s (log.rate)",
            suppressed(*what),
            span.as_secs_f64(),
        ),
        Event::Scan(scan) => write_scan(interface, scan),
        Event::ScanSummary(summary) => info!(
            MESSAGE_ID = id::SCAN_SUMMARY,
            TCPTRACKER_INTERFACE = %interface,
            TCPTRACKER_SOURCE = %show_network(&summary.source),
            "the port scan by {} {}: {} ports, {} probes in {:.1}s",
            show_network(&summary.source),
            if summary.goes_on { "goes on" } else { "is over" },
            summary.ports,
            summary.probes,
            summary.length.as_secs_f64(),
        ),
        Event::NotBlocked { scan, why } => write_spared(interface, scan, why),
        Event::Blocked { network, until, duration, reason, cause, ports, offences, uid } => {
            let span = duration.map_or_else(
                || "until unblocked".to_owned(),
                |duration| format!("for {}", HumanDuration(duration)),
            );
            let who = match (cause, uid) {
                (BlockCause::Scan, _) => format!("offence {offences}"),
                (BlockCause::Found, _) => "adopted".to_owned(),
                (BlockCause::Manual, uid) => by(*uid),
            };
            // A warning like the scan: a reader who sees only warnings should see both.
            warn!(
                MESSAGE_ID = id::BLOCKED,
                TCPTRACKER_INTERFACE = %interface,
                TCPTRACKER_SOURCE = %show_network(network),
                TCPTRACKER_PORTS = (!ports.is_empty()).then(|| list_of(ports, ",")),
                TCPTRACKER_UNTIL = until,
                TCPTRACKER_REASON = %reason,
                TCPTRACKER_UID = uid.map(tracing::field::display),
                "blocked {} {span} ({who}): {reason}",
                show_network(network),
            );
        }
        Event::Restored { blocks, expired } => info!(
            MESSAGE_ID = id::RESTORED,
            TCPTRACKER_INTERFACE = %interface,
            "{}",
            restored(*blocks, *expired),
        ),
        Event::Unblocked { network, cause, uid } => {
            let why = match cause {
                UnblockCause::Expired => "expired".to_owned(),
                UnblockCause::Manual => by(*uid),
                UnblockCause::Exempt => "now exempt".to_owned(),
                UnblockCause::Evicted => "evicted to make room for a newer block".to_owned(),
            };
            info!(
                MESSAGE_ID = id::UNBLOCKED,
                TCPTRACKER_INTERFACE = %interface,
                TCPTRACKER_SOURCE = %show_network(network),
                TCPTRACKER_REASON = cause.as_str(),
                TCPTRACKER_UID = uid.map(tracing::field::display),
                "unblocked {}: {why}",
                show_network(network),
            );
        }
        Event::Refused { request, why, uid } => warn!(
            MESSAGE_ID = id::REFUSED,
            TCPTRACKER_INTERFACE = %interface,
            TCPTRACKER_REASON = %refusal(why),
            TCPTRACKER_UID = uid,
            "refused to {} ({}): {}",
            requested(*request),
            by(Some(*uid)),
            refusal(why),
        ),
        Event::Reloaded { changes, notes, uid } => write_reloaded(interface, changes, notes, *uid),
        Event::Repaired { found } => warn!(
            MESSAGE_ID = id::REPAIRED,
            TCPTRACKER_INTERFACE = %interface,
            TCPTRACKER_REASON = %found,
            "repaired firewall: {found}"
        ),
        Event::StateChanged { state, reason } => write_state(interface, *state, reason.as_deref()),
        Event::ReloadFailed { error, uid } => warn!(
            MESSAGE_ID = id::RELOAD_FAILED,
            TCPTRACKER_INTERFACE = %interface,
            TCPTRACKER_REASON = %error,
            TCPTRACKER_UID = uid.map(tracing::field::display),
            "configuration not reloaded ({}): {}; the running configuration stays in force",
            uid.map_or_else(|| "by SIGHUP".to_owned(), |uid| by(Some(uid))),
            error.replace('\n', "; "),
        ),
        Event::Warning(warning) => write_warning(interface, warning),
    }
}

fn write_warning(interface: &IfName, warning: &Warning) {
    macro_rules! write {
        ($id:ident, $($text:tt)+) => {
            warn!(MESSAGE_ID = id::$id, TCPTRACKER_INTERFACE = %interface, $($text)+)
        };
    }
    match warning {
        Warning::LockHeldByOther { socket, uid } => {
            let owner = uid.map_or_else(String::new, |uid| format!(" ({})", by(Some(uid))));
            write!(
                LOCK_HELD_BY_OTHER,
                "another process{owner} owns the lock socket {socket}; \
                 a second instance on this interface would not be refused"
            );
        }
        Warning::MetricsUnavailable { address, error } => write!(
            METRICS_UNAVAILABLE,
            "cannot serve metrics on {address}: {error}; choose another address with metrics.listen, \
             or \"off\""
        ),
        Warning::MetricsAddressMissing { address } => write!(
            METRICS_ADDRESS_MISSING,
            "{address} is not an address of this host yet; metrics.listen is served there as soon as it is"
        ),
        Warning::SshConfigUnreadable { file } => write!(
            SSH_CONFIG_UNREADABLE,
            "cannot read {file}; if it names another port of sshd, sessions there are not exempt: make \
             the file readable, or add your address to exempt.networks"
        ),
        Warning::RepliesMissing => write!(
            REPLIES_MISSING,
            "replies are missing from this capture (one-way mirror port or asymmetric route); using the \
             classic rule for unanswered probes"
        ),
        Warning::RepliesVisible => write!(
            REPLIES_VISIBLE,
            "replies are visible again; using the balanced rules for unanswered probes"
        ),
        Warning::Backend(note) => write!(BACKEND, "{}", backend_note(note)),
        Warning::BlocksSuspended { count } => write!(
            BLOCKS_SUSPENDED,
            "observe mode: {} suspended until block.enabled = true",
            blocks(*count, "block")
        ),
        Warning::StaleBlocksRemoved { count } => write!(
            STALE_BLOCKS_REMOVED,
            "removed {} that another program restored to the kernel",
            blocks(*count, "stale block")
        ),
        Warning::RestoreIncomplete { count, error } => {
            write!(RESTORE_INCOMPLETE, "could not restore {}: {error}", blocks(*count, "block"));
        }
        Warning::DatabaseQuarantined { file, kept, error, at_start } => write!(
            DATABASE_QUARANTINED,
            "cannot use {} ({error}); moved it to {}; {}",
            file.display(),
            kept.display(),
            if *at_start {
                "starting with the blocks in the kernel"
            } else {
                "a new one replaces it"
            },
        ),
    }
}

fn backend_note(note: &BackendNote) -> String {
    let BackendNote { error, capacity } = note;
    format!("{error}; using one firewall rule per address instead (at most {capacity})")
}

fn note_text(note: &ReloadNote) -> String {
    match note {
        ReloadNote::SourcesReset => "tracked sources were reset".to_owned(),
        ReloadNote::AtNextStart(key) => format!("{key} takes effect at the next restart"),
        ReloadNote::Backend(note) => backend_note(note),
    }
}

fn restored(count: usize, expired: usize) -> String {
    let restored = blocks(count, "block");
    match expired {
        0 => format!("restored {restored}"),
        _ => format!("restored {restored}; {expired} expired while the service was stopped"),
    }
}

fn blocks(count: usize, unit: &str) -> String {
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

const fn suppressed(what: Suppressed) -> &'static str {
    match what {
        Suppressed::Connections => "new connections",
        Suppressed::Scans => "port scans",
        Suppressed::Summaries => "summaries of port scans",
    }
}

fn requested(request: Request) -> String {
    match request {
        Request::Block(network) => format!("block {}", show_network(&network)),
        Request::Unblock(network) => format!("unblock {}", show_network(&network)),
        Request::Reload => "reload the configuration".to_owned(),
    }
}

fn refusal(why: &Refusal) -> String {
    match why {
        Refusal::NotAuthorized(text) => text.clone(),
        Refusal::Failed(why) => why.to_string(),
        Refusal::Exempt(why) => format!("exempt: {why}"),
        Refusal::NotBlocked => "it is not blocked".to_owned(),
    }
}

fn write_reloaded(interface: &IfName, changes: &[String], notes: &[ReloadNote], uid: Option<u32>) {
    info!(
        MESSAGE_ID = id::RELOADED,
        TCPTRACKER_INTERFACE = %interface,
        TCPTRACKER_UID = uid.map(tracing::field::display),
        "configuration reloaded ({}): {}{}",
        uid.map_or_else(|| "by SIGHUP".to_owned(), |uid| by(Some(uid))),
        if changes.is_empty() { "nothing has changed".to_owned() } else { changes.join(", ") },
        notes.iter().map(|note| format!("; {}", note_text(note))).collect::<String>(),
    );
}

fn write_scan(interface: &IfName, scan: &Scan) {
    let ports = scan.ports();
    warn!(
        MESSAGE_ID = id::SCAN,
        TCPTRACKER_INTERFACE = %interface,
        TCPTRACKER_SOURCE = %show_network(&scan.source),
        TCPTRACKER_DESTINATION = %scan.destination,
        TCPTRACKER_PORTS = list_of(&ports, ","),
        TCPTRACKER_KIND = scan.kind.as_str(),
        TCPTRACKER_DECOYS = scan.may_be_decoy().then(|| list_of(&scan.others, ",")),
        "{} port scan by {} on {}{}: {}{}",
        scan.kind.as_str(),
        show_network(&scan.source),
        scan.destination,
        if scan.kind == ScanKind::Sweep { " and others" } else { "" },
        evidence_of(scan, &ports),
        decoys_of(scan),
    );
}

/// The ports that make it a scan and, where that counts, what became of each.
fn evidence_of(scan: &Scan, ports: &[crate::types::segment::Port]) -> String {
    if !scan.rule.looks_at_outcomes() {
        let (ports, within) = (list_of(ports, ", "), HumanDuration(scan.span));
        return format!("ports {ports}, more than {} within {within}", scan.threshold);
    }
    let told: Vec<String> = scan.attempts.iter().map(Attempt::told).collect();
    let what = if told.len() == 1 { "port" } else { "ports" };
    format!("{what} {}; {}", told.join(", "), scan.rule.sentence(scan.threshold, scan.span))
}

/// The others of a group of which most are decoys.
fn decoys_of(scan: &Scan) -> String {
    if !scan.may_be_decoy() {
        return String::new();
    }
    let more = if scan.others.len() < crate::detect::decoys::NAMED { "" } else { ", perhaps more" };
    format!(
        "; at the same time by {}{more}: all but one may be decoys",
        list_of(&scan.others, ", ")
    )
}

fn write_spared(interface: &IfName, scan: &Scan, why: &SkipReason) {
    warn!(
        MESSAGE_ID = id::SPARED,
        TCPTRACKER_INTERFACE = %interface,
        TCPTRACKER_SOURCE = %show_network(&scan.source),
        TCPTRACKER_KIND = scan.kind.as_str(),
        TCPTRACKER_REASON = %why,
        "did not block {}: {why}",
        show_network(&scan.source),
    );
}

fn write_state(interface: &IfName, state: State, reason: Option<&str>) {
    if let Some(reason) = reason {
        warn!(
            MESSAGE_ID = id::STATE,
            TCPTRACKER_INTERFACE = %interface,
            TCPTRACKER_REASON = reason,
            "{state}: {reason}"
        );
    } else {
        info!(
            MESSAGE_ID = id::STATE,
            TCPTRACKER_INTERFACE = %interface,
            "{state}: all is well again"
        );
    }
}

fn list_of(items: &[impl ToString], separator: &str) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(separator)
}

fn by(uid: Option<u32>) -> String {
    uid.map_or_else(|| "by hand".to_owned(), |uid| format!("by uid {uid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_ids_are_distinct_and_well_formed() {
        let ids = [
            id::STARTED,
            id::STOPPED,
            id::CONNECTION,
            id::NOT_LISTED,
            id::SCAN,
            id::SCAN_SUMMARY,
            id::SPARED,
            id::BLOCKED,
            id::RESTORED,
            id::UNBLOCKED,
            id::REFUSED,
            id::STATE,
            id::RELOADED,
            id::REPAIRED,
            id::LOCK_HELD_BY_OTHER,
            id::METRICS_UNAVAILABLE,
            id::METRICS_ADDRESS_MISSING,
            id::SSH_CONFIG_UNREADABLE,
            id::REPLIES_MISSING,
            id::REPLIES_VISIBLE,
            id::BACKEND,
            id::BLOCKS_SUSPENDED,
            id::STALE_BLOCKS_REMOVED,
            id::RESTORE_INCOMPLETE,
            id::DATABASE_QUARANTINED,
            id::RELOAD_FAILED,
        ];
        for (at, id) in ids.iter().enumerate() {
            assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
            assert!(!ids[..at].contains(id), "{id}");
        }
    }
}
