//! The journal: each event becomes one entry that people can read and programs can filter.
//!
//! Owns the texts, the structured fields and the message IDs. Only the journal thread may write events,
//! because journald or the reader of stderr may be slow, or never read again. It must never decide anything.

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ipnet::IpNet;
use rustix::fs::fstat;
use rustix::process::geteuid;
use tracing::{Level, debug, error, info, trace, warn};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format::debug_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::api::log_filter::{LogFilter, WRITTEN};
use crate::api::log_output::{Journald, LogStderr, PATIENCE};
use crate::api::users;
use crate::config::{LogConfig, LogFormat};
use crate::types::{
    BackendNote, BlockCause, DECOYS_NAMED, Event, HumanDuration, IfName, Moment, Refusal,
    ReloadNote, Request, Scan, ScanKind, Summary, Suppressed, UnblockCause, Warning, show_network,
};

/// Events that may wait for the journal: those of 20 s at the default `log.rate`.
pub const QUEUE: usize = 2048;

/// The longest wait of the thread between two heartbeats.
const TICK: Duration = Duration::from_secs(1);

/// Message IDs (sd-id128(3)), each made once with `systemd-id128 new`.
mod id {
    pub const STARTED: &str = "fdb7f878f18d45e5ae664097c6d1c558";
    pub const STOPPED: &str = "8e2001616b6740948dd1ffd4217f4596";
    pub const CONNECTION: &str = "9840eea37f064008a5e6549aad6c92f2";
    pub const SUPPRESSED: &str = "239c82bea89f433ead9e746864055121";
    pub const SCAN: &str = "5d0741d35f104cf2bc625c85c40f2775";
    pub const SCAN_SUMMARY: &str = "d3ed6979d9704f129cd0be123972b434";
    pub const NOT_BLOCKED: &str = "9dc2be5efe0c4fbf82270cacf2a7e056";
    pub const ALREADY_BLOCKED: &str = "6ab3f8b87071424981c414caac5927f4";
    pub const BLOCKED: &str = "b39b4bac17384f029bb82ffb3b2b31d1";
    pub const RESTORED: &str = "d673031de68746a09503610eba093578";
    pub const UNBLOCKED: &str = "c86162991bca46138eff37cb5bb7453e";
    pub const REFUSED: &str = "b863594ede9b4faab476bc0ebaa7f200";
    pub const NOTHING_TO_UNBLOCK: &str = "eeeca1e4b851445d8b50607d849c13a3";
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
    pub const DATABASE_ROWS_LEFT_OUT: &str = "8e2b0c7d51f44f6a9d0a3c5be7164f92";
    pub const CAPTURE_REOPENED: &str = "d3ec234454a0463b8115989eebaab8bd";
    pub const RELOAD_FAILED: &str = "129f0dac28884d64a3ded7c35f7ba3fb";
}

/// Writes an entry with its message ID and the interface of this instance.
macro_rules! entry {
    ($level:ident $id:ident, $interface:expr, $($rest:tt)+) => {
        $level!(target: WRITTEN,
            MESSAGE_ID = id::$id, TCPTRACKER_INTERFACE = %$interface, $($rest)+)
    };
}

/// Sends the log to journald if the service manager has connected stderr to it, and to stderr otherwise,
/// as text or as one JSON object per line.
pub fn init(config: &LogConfig) -> LogFilter {
    let (log_filter, filter, queue) = LogFilter::new(config.level);
    let (written, losses) = (queue.excluded(), queue.clone());
    let registry = tracing_subscriber::registry().with(filter).with(queue);
    // Standard error may have no reader, for which a panic must not wait.
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("{}", panic.to_string().replace('\n', " "));
    }));
    if stderr_is_the_journal() && Journald::is_there() {
        registry.with(Journald::new(losses).with_filter(written)).init();
        return log_filter;
    }
    let stderr = tracing_subscriber::fmt::layer()
        .with_writer(move || LogStderr(losses.clone()))
        // Reported by a write to stderr that waits.
        .log_internal_errors(false)
        .with_target(false);
    if config.format == LogFormat::Json {
        registry.with(stderr.json().flatten_event(true).with_filter(written)).init();
        return log_filter;
    }
    // The fields of an event would repeat the text.
    let text_only = debug_fn(|writer, field, value| match field.name() {
        "message" => write!(writer, "{value:?}"),
        name if name.starts_with(char::is_uppercase) => Ok(()),
        name => write!(writer, " {name}={value:?}"),
    });
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    registry.with(stderr.with_ansi(colours).fmt_fields(text_only).with_filter(written)).init();
    log_filter
}

/// Whether the service manager has connected stderr to the journal. `JOURNAL_STREAM` names the device and
/// inode of that connection. A process whose stderr is redirected may inherit it (systemd.exec(5)).
fn stderr_is_the_journal() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
    fstat(std::io::stderr())
        .is_ok_and(|stderr| named == format!("{}:{}", stderr.st_dev, stderr.st_ino))
}

/// The last event, for a journal thread whose queue had no room for it.
pub type LastEvent = OnceLock<Arc<Event>>;

/// Writes events up to the last one. Beats unless a write has used up its time.
pub fn run(interface: &IfName, events: &Receiver<Arc<Event>>, last: &LastEvent, beat: impl Fn()) {
    loop {
        let event = match events.recv_timeout(TICK) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => last.get().cloned(),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let begun = Moment::now();
        if let Some(event) = event {
            write(interface, &event);
            if event.is_last() {
                return;
            }
        }
        if Moment::now().since(begun) < PATIENCE {
            beat();
        }
    }
}

fn write(interface: &IfName, event: &Event) {
    match event {
        Event::Connection { direction, source, source_port, destination, port } => {
            let direction = direction.as_str();
            let from = SocketAddr::new(*source, source_port.0);
            let to = SocketAddr::new(*destination, port.0);
            entry!(info CONNECTION, interface,
                TCPTRACKER_SOURCE = %source, TCPTRACKER_DESTINATION = %destination,
                TCPTRACKER_PORTS = %port, "new {direction} connection: {from} -> {to}");
        }
        Event::Suppressed { what, count, span } => {
            let (what, seconds) = (suppressed(*what), span.as_secs_f64());
            entry!(info SUPPRESSED, interface,
                "suppressed {count} {what} in {seconds:.1}s (log.rate)");
        }
        Event::Scan(scan) => write_scan(interface, scan),
        Event::ScanSummary(summary) => write_summary(interface, summary),
        Event::NotBlocked { scan, why } => {
            let source = show_network(&scan.source);
            entry!(warn NOT_BLOCKED, interface, TCPTRACKER_SOURCE = %source,
                TCPTRACKER_KIND = scan.kind.as_str(), TCPTRACKER_REASON = %why,
                "did not block {source}: {why}");
        }
        Event::AlreadyBlocked { source } => {
            let source = show_network(source);
            entry!(info ALREADY_BLOCKED, interface, TCPTRACKER_SOURCE = %source,
                "{source} is blocked already");
        }
        Event::Blocked { .. } => write_blocked(interface, event),
        Event::Restored { blocks: count, expired } => {
            let restored = blocks(*count, "block");
            let expired = match expired {
                0 => String::new(),
                expired => format!("; {expired} expired while the service was stopped"),
            };
            entry!(info RESTORED, interface, "restored {restored}{expired}");
        }
        Event::Unblocked { network, cause, uid } => {
            write_unblocked(interface, network, *cause, *uid);
        }
        Event::Refused { request, why, uid } => write_refused(interface, *request, why, *uid),
        Event::Reloaded { changes, notes, uid } => write_reloaded(interface, changes, notes, *uid),
        Event::ReloadFailed { error, uid } => write_reload_failed(interface, error, *uid),
        Event::Repaired { found } => entry!(warn REPAIRED, interface,
            TCPTRACKER_REASON = %found, "repaired firewall: {found}"),
        Event::StateChanged { has_started: true, .. } => {}
        Event::StateChanged { state, reason: None, .. } => {
            entry!(info STATE, interface, "{state}: no problems");
        }
        Event::StateChanged { state, reason: Some(reason), .. } => {
            entry!(warn STATE, interface, TCPTRACKER_REASON = reason, "{state}: {reason}");
        }
        Event::CaptureReopened { gap } => entry!(info CAPTURE_REOPENED, interface,
            "capture reopened after {:.3}s; packets in between were not seen", gap.as_secs_f64()),
        Event::Message { level, text } => write_message(*level, text),
        Event::Warning(warning) => write_warning(interface, warning),
        Event::Started { status } => entry!(info STARTED, interface, "{status}"),
        Event::Stopped { signal } => entry!(info STOPPED, interface, "stopped by {signal}"),
        Event::Failed { error } => entry!(error STOPPED, interface,
            "failed: {error}; existing blocks stay in the kernel until they expire or the service restarts"),
    }
}

/// A level is a constant of the place that logs.
fn write_message(level: Level, text: &str) {
    match level {
        Level::ERROR => error!(target: WRITTEN, "{text}"),
        Level::WARN => warn!(target: WRITTEN, "{text}"),
        Level::INFO => info!(target: WRITTEN, "{text}"),
        Level::DEBUG => debug!(target: WRITTEN, "{text}"),
        Level::TRACE => trace!(target: WRITTEN, "{text}"),
    }
}

fn write_scan(interface: &IfName, scan: &Scan) {
    let (ports, kind, source) = (scan.ports(), scan.kind.as_str(), show_network(&scan.source));
    let evidence = if scan.rule.looks_at_outcomes() {
        scan.evidence()
    } else {
        let (ports, within) = (list_of(&ports, ", "), HumanDuration(scan.span));
        format!("ports {ports}, more than {} within {within}", scan.threshold)
    };
    entry!(warn SCAN, interface,
        TCPTRACKER_SOURCE = %source, TCPTRACKER_DESTINATION = %scan.destination,
        TCPTRACKER_PORTS = list_of(&ports, ","), TCPTRACKER_KIND = kind,
        TCPTRACKER_DECOYS = scan.decoy.then(|| list_of(&scan.others, ",")),
        "{kind} port scan by {source} on {}{}: {evidence}{}",
        scan.destination, if scan.kind == ScanKind::Sweep { " and others" } else { "" }, decoys_of(scan));
}

fn decoys_of(scan: &Scan) -> String {
    if !scan.decoy {
        return String::new();
    }
    let more = if scan.others.len() < DECOYS_NAMED { "" } else { " and others" };
    let others = list_of(&scan.others, ", ");
    format!("; at the same time by {others}{more}: all but one may be decoys")
}

fn write_summary(interface: &IfName, summary: &Summary) {
    let Summary { source, ports, probes, length, goes_on } = summary;
    let (source, seconds) = (show_network(source), length.as_secs_f64());
    let what = if *goes_on { "continues" } else { "ended" };
    entry!(info SCAN_SUMMARY, interface, TCPTRACKER_SOURCE = %source,
        "port scan by {source} {what}: {ports} ports, {probes} probes in {seconds:.1}s");
}

/// A warning like the scan, so that a reader who filters for warnings sees both.
fn write_blocked(interface: &IfName, event: &Event) {
    let Event::Blocked { network, until, duration, reason, cause, ports, offences, uid } = event
    else {
        return;
    };
    let (source, uid) = (show_network(network), *uid);
    let span = duration.map_or_else(
        || "until unblocked".to_owned(),
        |duration| format!("for {}", HumanDuration(duration)),
    );
    let how = match cause {
        BlockCause::Scan => format!("{span} (offence {offences})"),
        BlockCause::Found => format!("{span} (adopted)"),
        BlockCause::Manual => format!("{} {span}", by(uid)),
    };
    entry!(warn BLOCKED, interface, TCPTRACKER_SOURCE = %source,
        TCPTRACKER_PORTS = (!ports.is_empty()).then(|| list_of(ports, ",")),
        TCPTRACKER_UNTIL = until, TCPTRACKER_REASON = %reason,
        TCPTRACKER_UID = uid.map(tracing::field::display), "blocked {source} {how}: {reason}");
}

fn blocks(count: usize, unit: &str) -> String {
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

fn write_unblocked(interface: &IfName, network: &IpNet, cause: UnblockCause, uid: Option<u32>) {
    let why = match cause {
        UnblockCause::Expired => "expired".to_owned(),
        UnblockCause::Manual => by(uid),
        UnblockCause::Exempt => "now exempt".to_owned(),
        UnblockCause::Evicted => "evicted to make room for a newer block".to_owned(),
    };
    let source = show_network(network);
    entry!(info UNBLOCKED, interface, TCPTRACKER_SOURCE = %source,
        TCPTRACKER_REASON = cause.as_str(), TCPTRACKER_UID = uid.map(tracing::field::display),
        "unblocked {source}: {why}");
}

fn write_refused(interface: &IfName, request: Request, why: &Refusal, uid: u32) {
    let user = user(uid);
    if let (Request::Unblock(network), Refusal::NotBlocked) = (request, why) {
        // A mistake of the user, which needs no attention.
        let network = show_network(&network);
        return entry!(info NOTHING_TO_UNBLOCK, interface, TCPTRACKER_UID = uid,
            "nothing to unblock for {user}: {network} is not blocked");
    }
    let request = match request {
        Request::Block(network) => format!("block {}", show_network(&network)),
        Request::Unblock(network) => format!("unblock {}", show_network(&network)),
        Request::Reload => "reload the configuration".to_owned(),
    };
    let why = match why {
        Refusal::NotAuthorized(text) => text.clone(),
        Refusal::Failed(why) => why.to_string(),
        Refusal::Exempt(why) => format!("exempt: {why}"),
        Refusal::NotBlocked => "not blocked".to_owned(),
    };
    entry!(warn REFUSED, interface, TCPTRACKER_REASON = %why, TCPTRACKER_UID = uid,
        "refused to {request} for {user}: {why}");
}

fn write_reloaded(interface: &IfName, changes: &[String], notes: &[ReloadNote], uid: Option<u32>) {
    let changes = if changes.is_empty() { "no changes".to_owned() } else { changes.join(", ") };
    let notes: String = notes.iter().map(|note| format!("; {}", note_text(note))).collect();
    entry!(info RELOADED, interface, TCPTRACKER_UID = uid.map(tracing::field::display),
        "configuration reloaded by {}: {changes}{notes}", origin_of_reload(uid));
}

fn write_reload_failed(interface: &IfName, error: &str, uid: Option<u32>) {
    entry!(warn RELOAD_FAILED, interface, TCPTRACKER_REASON = %error,
        TCPTRACKER_UID = uid.map(tracing::field::display),
        "configuration reload by {} failed: {}; the previous configuration stays in force; check the \
         files with: tcptracker config -i {interface}",
        origin_of_reload(uid), error.replace('\n', "; "));
}

fn write_warning(interface: &IfName, warning: &Warning) {
    let (id, text) = match warning {
        Warning::LockHeldByOther { socket, uid } => {
            let owner = uid.map_or_else(String::new, |uid| format!(" of {}", user(uid)));
            let text = format!(
                "another process{owner} owns the lock socket {socket}; the service uses another socket; \
                 find the process with `ss -xlp` and end it"
            );
            (id::LOCK_HELD_BY_OTHER, text)
        }
        Warning::MetricsUnavailable { address, error } => {
            let text = format!(
                "cannot serve metrics on {address}: {error}; choose another address with \
                 metrics.listen, or \"off\""
            );
            (id::METRICS_UNAVAILABLE, text)
        }
        Warning::MetricsAddressMissing { address } => {
            let text = format!(
                "{address} is not an address of this host yet; metrics are served as soon as it is"
            );
            (id::METRICS_ADDRESS_MISSING, text)
        }
        Warning::SshConfigUnreadable { file } => {
            let text = format!(
                "cannot read {file}; if it sets another port for sshd, sessions there are not exempt: \
                 make the file readable, or add your address to exempt.networks"
            );
            (id::SSH_CONFIG_UNREADABLE, text)
        }
        Warning::RepliesMissing => {
            let text = "replies are missing from this capture (one-way mirror port or asymmetric \
                        route); four unanswered ports count within a minute only";
            (id::REPLIES_MISSING, text.to_owned())
        }
        Warning::RepliesVisible => {
            let text = "replies are visible again; using all rules for unanswered probes";
            (id::REPLIES_VISIBLE, text.to_owned())
        }
        Warning::Backend(note) => (id::BACKEND, backend_note(note)),
        Warning::BlocksSuspended { count } => {
            let blocks = blocks(*count, "block");
            let text = format!("observe mode: {blocks} suspended until block.enabled = true");
            (id::BLOCKS_SUSPENDED, text)
        }
        Warning::StaleBlocksRemoved { count } => {
            let blocks = blocks(*count, "stale block");
            let text = format!("removed {blocks} that another program restored to the kernel");
            (id::STALE_BLOCKS_REMOVED, text)
        }
        Warning::RestoreIncomplete { count, error } => {
            let blocks = blocks(*count, "block");
            (id::RESTORE_INCOMPLETE, format!("could not restore {blocks}: {error}"))
        }
        Warning::DatabaseQuarantined { file, kept, error, at_start } => {
            let next = if *at_start {
                "starting with the blocks in the kernel"
            } else {
                "a new database replaces it"
            };
            let (file, kept) = (file.display(), kept.display());
            let text = format!("cannot use {file} ({error}); moved it to {kept}; {next}");
            (id::DATABASE_QUARANTINED, text)
        }
        Warning::DatabaseRowsLeftOut { file, count, kept } => {
            let kept = match kept {
                Ok(kept) => format!("compare them with the copy {}", kept.display()),
                Err(error) => format!("no copy of them was kept: {error}"),
            };
            let (s, file) = (if *count == 1 { "" } else { "s" }, file.display());
            let text =
                format!("left out {count} row{s} of {file}: not written by tcptracker; {kept}");
            (id::DATABASE_ROWS_LEFT_OUT, text)
        }
    };
    warn!(target: WRITTEN, MESSAGE_ID = id, TCPTRACKER_INTERFACE = %interface, "{text}");
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

const fn suppressed(what: Suppressed) -> &'static str {
    match what {
        Suppressed::Connections => "new connections",
        Suppressed::Scans => "port scans",
        Suppressed::Summaries => "summaries of port scans",
    }
}

fn list_of(items: &[impl ToString], separator: &str) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(separator)
}

fn user(uid: u32) -> String {
    users::name_of(uid).map_or_else(|| format!("uid {uid}"), |name| format!("{name} (uid {uid})"))
}

fn by(uid: Option<u32>) -> String {
    uid.map_or_else(|| "manually".to_owned(), |uid| format!("by {}", user(uid)))
}

/// The unit's `ExecReload=` asks over D-Bus as the service's own user, so that nobody else is known.
fn origin_of_reload(uid: Option<u32>) -> String {
    match uid {
        None => "SIGHUP".to_owned(),
        Some(uid) if uid != 0 && uid == geteuid().as_raw() => "systemctl reload".to_owned(),
        Some(uid) => user(uid),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn message_ids_are_distinct_and_well_formed() {
        let lines = include_str!("journal.rs").lines().map(str::trim);
        let ids = lines.filter_map(|line| line.strip_prefix("pub const ")?.split('"').nth(1));
        let mut seen = BTreeSet::new();
        for id in ids {
            assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
            assert!(seen.insert(id), "{id}");
        }
        assert!(seen.len() > 25, "{seen:?}");
    }
}
