//! What outcomes mean for a source: which failures count, and which rule a source exceeds.
//!
//! Pure. Owns everything that is remembered of sources and of open ports. Takes outcomes from
//! [`super::handshake`] and never looks at segments. The numbers belong to [`super::thresholds`].

#![expect(clippy::cast_possible_truncation, reason = "hashes are cut to the bits that are needed")]

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tracing::trace;

use crate::config::{DetectionConfig, Per};
use crate::detect::balanced::Context;
use crate::detect::balanced::connections::{Flow, Probe};
use crate::detect::balanced::credit::Credits;
use crate::detect::balanced::distributed::ReportOnly;
use crate::detect::balanced::first_failure::{Failure, FirstFailures};
use crate::detect::balanced::hash::Hashes;
use crate::detect::balanced::hosts::RecentHosts;
use crate::detect::balanced::open_ports::{OwnPorts, RecentlySeen};
use crate::detect::balanced::ports::RecentPorts;
use crate::detect::balanced::thresholds::{
    A_MINUTE, AN_HOUR, CONNECT_SCAN, CONNECT_SCAN_CHECKS, CONNECT_SCAN_DELAY, Limit, MANY_PORTS,
    MANY_SOURCES, OUT_OF_STATE, SWEEP,
};
use crate::detect::classic::ClassicDetector;
use crate::detect::decoys::Decoys;
use crate::detect::effort::Effort;
use crate::detect::key::Key;
use crate::detect::ongoing::OngoingScans;
use crate::detect::table::Table;
use crate::detect::{Detector, unit_of};
use crate::types::{
    Attempt, Moment, Outcome, Port, PortSet, Rule, Scan, ScanKind, Segment, SegmentKind, Summary,
    overlap,
};

/// Connections within this time are one health check, even if the service has several connections.
const ONE_CHECK: Duration = Duration::from_secs(1);

/// For so many sources that fail on several ports there is room for one that sweeps, and for one that sends
/// out-of-state segments, because there are fewer of these.
const SHARE_OF_OTHERS: usize = 16;

/// What is remembered of a source that has failed on several ports of a host.
#[derive(Default)]
struct Record {
    ports: RecentPorts,
    failures: u64,
    stealthy: bool,
    latest: Moment,
    reported: Option<Moment>,
    effort: Effort,
    /// The last open port to which the source connected without data.
    idle_connect: Option<Attempt>,
    /// When the source repeated that connection, as load balancers do.
    repeated_connect: Option<Moment>,
    /// A check for a connect scan is scheduled.
    awaits_check: bool,
}

impl Record {
    fn new(now: Moment) -> Self {
        Self { latest: now, ..Self::default() }
    }

    /// Adds a failure or a connection without data. Returns whether the port is new.
    fn add(&mut self, attempt: Attempt, now: Moment) -> bool {
        self.failures += 1;
        match self.idle_connect {
            _ if attempt.outcome != Outcome::Answered => {}
            Some(first) if !now.is_past(first.moment, CONNECT_SCAN.within) => {
                if first.port == attempt.port && now.is_past(first.moment, ONE_CHECK) {
                    self.repeated_connect = Some(now);
                }
            }
            _ => self.idle_connect = Some(attempt),
        }
        self.ports.add(attempt)
    }
}

/// A source and a port that it tries on several hosts.
#[derive(Clone, Copy, PartialEq, Eq)]
struct SweepKey {
    source: IpNet,
    port: Port,
}

/// Where a failure at a port was recorded.
enum Recorded {
    /// Nowhere: successful connections offset it.
    Excused,
    /// As the only port on which the source has failed.
    First,
    /// In the record of the source.
    Again,
}

/// The rules and what they remember.
pub struct Rules {
    rule: DetectionConfig,
    hashes: Hashes,
    /// The first failed port of each source and host.
    first_ports: FirstFailures,
    /// Sources that have failed on several ports of a host.
    records: Table<Key, Record>,
    credits: Credits,
    /// Failures that were excused.
    excused: RecentlySeen,
    /// When to check a source for a connect scan, in order.
    checks: VecDeque<(Moment, Flow)>,
    /// The first failed host of each source and port.
    first_hosts: FirstFailures,
    sweeps: Table<SweepKey, RecentHosts>,
    out_of_state: Table<Key, Record>,
    report_only: ReportOnly,
    /// Ports that have replied.
    open: RecentlySeen,
    own: OwnPorts,
    /// At least one probe was for another host than this one.
    sees_others: bool,
    /// Judges probes while replies are not visible.
    classic: ClassicDetector,
    ongoing: OngoingScans,
    decoys: Decoys,
    /// Scans that were found and not taken yet.
    scans: Vec<Scan>,
    evicted: u64,
}

impl Rules {
    pub fn new(rule: DetectionConfig) -> Self {
        let sources = rule.max_sources.get();
        Self {
            hashes: Hashes::new(),
            first_ports: FirstFailures::new(sources * 2),
            records: Table::new(sources),
            credits: Credits::new(),
            excused: RecentlySeen::new(),
            checks: VecDeque::with_capacity(CONNECT_SCAN_CHECKS),
            first_hosts: FirstFailures::new(sources),
            sweeps: Table::new(sources / SHARE_OF_OTHERS),
            out_of_state: Table::new(sources / SHARE_OF_OTHERS),
            report_only: ReportOnly::new(),
            open: RecentlySeen::new(),
            own: OwnPorts::default(),
            sees_others: false,
            classic: ClassicDetector::new(per_host(&rule)),
            ongoing: OngoingScans::new(),
            decoys: Decoys::new(),
            scans: Vec::new(),
            evicted: 0,
            rule,
        }
    }

    /// Applies another configuration. Returns false if all sources had to be forgotten.
    pub fn reconfigure(&mut self, rule: DetectionConfig) -> bool {
        let identity = |rule: &DetectionConfig| (rule.max_sources, rule.ipv6_prefix);
        let kept = identity(&rule) == identity(&self.rule);
        if kept {
            self.classic.reconfigure(per_host(&rule));
            self.rule = rule;
        } else {
            let own = std::mem::take(&mut self.own);
            *self = Self { own, ..Self::new(rule) };
        }
        kept
    }

    /// Reads the first failure of a source and host, so that it is in the cache for a later lookup.
    pub fn touch(&self, pair: u64) -> u64 {
        self.first_ports.touch(pair)
    }

    pub fn has_scans(&self) -> bool {
        !self.scans.is_empty()
    }

    pub fn take_scans(&mut self) -> Vec<Scan> {
        std::mem::take(&mut self.scans)
    }

    /// Takes note of a SYN. Returns the hash of source and host, and whether no service listens on the port,
    /// as far as known.
    pub fn on_open(&mut self, flow: &Flow, context: Context<'_>) -> (u64, bool) {
        let own = context.host.owns(flow.server);
        self.sees_others |= !own;
        let closed =
            own && self.own.is_closed(flow.port, context.now) && !self.has_replied(flow, context);
        (self.pair_of(flow, context), closed)
    }

    /// Takes note of a segment that no honest client sends.
    pub fn stealth_probe(&mut self, segment: &Segment, context: Context<'_>) {
        if !self.rule.stealth || context.host.owns(segment.source) {
            return;
        }
        let flow = Flow::from_client(segment);
        let pair = self.pair_of(&flow, context);
        let probe = Probe { flow, pair, moment: context.now, crafted: true };
        self.failed(&probe, Outcome::Unknown, false, context);
    }

    /// Takes note of a port that has replied.
    pub fn port_is_open(&mut self, flow: &Flow, context: Context<'_>) {
        let hash = self.hashes.of_port(flow.server_key(context.host), flow.port);
        self.open.note(hash, context.now);
    }

    /// Takes note that another host replies for a port of this host.
    pub fn port_is_forwarded(&mut self, context: Context<'_>) {
        self.own.forward(context.now);
    }

    /// The server has replied, perhaps after the probe had counted as unanswered.
    pub fn answered(&mut self, probe: &Probe, timed_out: bool, context: Context<'_>) {
        self.port_is_open(&probe.flow, context);
        // Credit is given at once. Otherwise a busy network would fail before its first connections end.
        if !probe.crafted {
            self.credits.earn(probe.pair, context.now);
        }
        if timed_out {
            self.undo_failure(probe, context);
        }
    }

    /// The connection was established and used.
    pub fn succeeded(&mut self, probe: &Probe, context: Context<'_>) {
        if probe.crafted {
            self.credits.earn(probe.pair, context.now);
        }
        let (key, hash) = self.sweep_of(&probe.flow, context);
        let server = self.hash_of_host(probe.flow.server);
        if let Some(sweep) = self.sweeps.peek(hash, &key) {
            sweep.earn(server, context.now);
        }
    }

    /// The client has abandoned the connection after the reply.
    pub fn abandoned(&mut self, probe: &Probe, outcome: Outcome, context: Context<'_>) {
        if !probe.crafted {
            self.credits.undo(probe.pair);
        }
        self.failed(probe, outcome, false, context);
    }

    /// The client has closed the connection without data.
    pub fn closed_without_data(&mut self, probe: &Probe, context: Context<'_>) {
        self.credits.without_data(probe.pair, probe.flow.port);
        self.idle_connect(probe, context);
    }

    /// A port has replied and was not used, or is a system port. No client uses many of either.
    pub fn idle_connect(&mut self, probe: &Probe, context: Context<'_>) {
        let (now, flow) = (context.now, &probe.flow);
        if self.report_only.answered(probe.pair, flow.port, now) {
            let attempt = Attempt { port: flow.port, moment: now, outcome: Outcome::Answered };
            let rule = (Rule::ManyPorts, MANY_PORTS);
            self.scans.push(self.scan(flow, ScanKind::Vertical, rule, vec![attempt], context));
        }
    }

    /// A probe has failed, or has only looked whether a port is open. `cut_off`: no source receives replies any
    /// more.
    pub fn failed(&mut self, probe: &Probe, outcome: Outcome, cut_off: bool, context: Context<'_>) {
        if is_silent(outcome) && self.is_known_open(&probe.flow, context) {
            log_failure(probe, outcome, "failure excused: the port was open recently");
            return;
        }
        self.failed_on_port(probe, outcome, context);
        // If this host is the only one, no source sweeps.
        if !cut_off && (self.sees_others || context.host.has_more_addresses_than(SWEEP.more_than)) {
            self.failed_on_host(probe, outcome, context);
        }
    }

    fn failed_on_port(&mut self, probe: &Probe, outcome: Outcome, context: Context<'_>) {
        let attempt = Attempt { port: probe.flow.port, moment: probe.moment, outcome };
        match self.record(probe, attempt, context) {
            Recorded::Excused => {
                log_failure(probe, outcome, "failure excused: offset by successful connections");
                return;
            }
            Recorded::First => self.check_distributed(probe, attempt, context),
            Recorded::Again => self.check_ports(probe, attempt, context),
        }
        log_failure(probe, outcome, "failed port counted");
    }

    /// Records a failure at a port, unless it is excused. In a flood the source has no earlier failure, and
    /// [`FirstFailures`] is the only memory that is read.
    fn record(&mut self, probe: &Probe, attempt: Attempt, context: Context<'_>) -> Recorded {
        let (now, pair) = (context.now, probe.pair);
        let stealthy = attempt.outcome == Outcome::Unknown;
        let failure = Failure {
            at: attempt.port.0.into(),
            outcome: attempt.outcome,
            crafted: stealthy,
            moment: attempt.moment,
        };
        let first = self.first_ports.known(pair);
        if first == Some(failure.at) {
            self.first_ports.note(pair, failure);
            return Recorded::First;
        }
        let key = self.key(&probe.flow, context);
        let record = if first.is_none() { self.records.get(pair, &key) } else { None };
        let known = record.map(|record| {
            // A source that was silent for an hour starts over.
            if now.is_past(record.latest, AN_HOUR.within) {
                (record.stealthy, record.reported) = (false, None);
            }
            record.latest = now;
            record.ports.attempts().iter().any(|known| known.port == attempt.port)
        });
        let is_another_port = first.is_some() || known == Some(false);
        let excusable = !probe.crafted && attempt.outcome != Outcome::Answered;
        if is_another_port && excusable && self.excuses(pair, attempt.port, now) {
            return Recorded::Excused;
        }
        if known.is_none() {
            let Some(first) = self.first_ports.note(pair, failure) else { return Recorded::First };
            let mut record = Record::new(now);
            let port = Port(u16::try_from(first.at).unwrap_or(0));
            record.stealthy = first.crafted;
            record.add(Attempt { port, moment: first.moment, outcome: first.outcome }, now);
            if let Some(evicted) = self.records.insert(pair, key, record) {
                self.evicted += u64::from(!now.is_past(evicted.latest, A_MINUTE.within));
            }
        }
        Recorded::Again
    }

    /// Adds a failure to the record of its source, and checks the rules about ports.
    fn check_ports(&mut self, probe: &Probe, attempt: Attempt, context: Context<'_>) {
        let (now, flow) = (context.now, &probe.flow);
        let key = self.key(flow, context);
        let Some(record) = self.records.peek(probe.pair, &key) else { return };
        record.stealthy |= attempt.outcome == Outcome::Unknown;
        let is_new = record.add(attempt, now);
        let reported = record.reported;
        if reported.is_some() {
            self.ongoing.add_probe(&key, attempt.port, now);
        } else if is_new {
            self.decoys.note(flow.client, attempt, record.ports.attempts().iter().copied());
        }
        let has_doubled = reported.is_some() && is_new && record.effort.add();
        if !has_doubled && reported.is_some_and(|past| !now.is_past(past, A_MINUTE.within)) {
            return;
        }
        if record.ports.exceeded(now).is_some() {
            // Some of the ports may have replied to another source since.
            let server = flow.server_key(context.host);
            let open = |port| self.open.knows(self.hashes.of_port(server, port), now);
            record.ports.retain(|attempt| !(is_silent(attempt.outcome) && open(attempt.port)));
        }
        if let Some(limit) = record.ports.exceeded(now) {
            self.report_ports(flow, key, (Rule::FailedPorts, limit), now, context);
            return;
        }
        if has_doubled && record.ports.is_connect_scan(now) {
            self.report_ports(flow, key, (Rule::ConnectScan, CONNECT_SCAN), now, context);
            return;
        }
        if record.ports.is_connect_scan(now) && !record.awaits_check {
            record.awaits_check = true;
            if self.checks.len() < CONNECT_SCAN_CHECKS {
                self.checks.push_back((now + CONNECT_SCAN_DELAY, *flow));
            } else {
                self.check_connect_scan(flow, context);
            }
        }
        if reported.is_none() {
            self.check_distributed(probe, attempt, context);
        }
    }

    /// Whether a failure is excused. One that was excused within the hour is excused again without charge,
    /// because clients retry a dead port again and again.
    fn excuses(&mut self, pair: u64, port: Port, now: Moment) -> bool {
        let failure = Hashes::with(pair, port.0.into());
        let excuses = self.excused.knows(failure, now) || self.credits.excuses(pair, now);
        if excuses {
            self.excused.note(failure, now);
        }
        excuses
    }

    /// When the next check for a connect scan is due.
    pub fn next_check(&self) -> Option<Moment> {
        self.checks.front().map(|(due, _)| *due)
    }

    /// Runs the next check for a connect scan.
    pub fn run_check(&mut self, context: Context<'_>) {
        if let Some((_, flow)) = self.checks.pop_front() {
            self.check_connect_scan(&flow, context);
        }
    }

    /// Reports a connect scan, unless the source has meanwhile repeated its connections as a load balancer does.
    fn check_connect_scan(&mut self, flow: &Flow, context: Context<'_>) {
        let now = context.now;
        let (key, pair) = (self.key(flow, context), self.pair_of(flow, context));
        let Some(record) = self.records.peek(pair, &key) else { return };
        record.awaits_check = false;
        let recent = |moment: Option<Moment>| {
            moment.is_some_and(|moment| !now.is_past(moment, CONNECT_SCAN.within))
        };
        if recent(record.repeated_connect) || recent(record.reported) {
            return;
        }
        let then = now.before(CONNECT_SCAN_DELAY);
        if record.ports.is_connect_scan(then) {
            self.report_ports(flow, key, (Rule::ConnectScan, CONNECT_SCAN), then, context);
        }
    }

    /// Reports a source that has exceeded a rule about ports, as its record was at `then`.
    fn report_ports(
        &mut self,
        flow: &Flow,
        key: Key,
        rule: (Rule, Limit),
        then: Moment,
        context: Context<'_>,
    ) {
        let now = context.now;
        let pair = self.pair_of(flow, context);
        let Some(record) = self.records.peek(pair, &key) else { return };
        let continued = record.reported.replace(now).is_some();
        let attempts = record.ports.evidence(rule.0, rule.1, then);
        let (probes, stealthy) = (record.failures, record.stealthy);
        let mut others = Vec::new();
        if !continued {
            others = self.decoys.around(&key.source, &attempts);
            record.effort.begin(attempts.len(), !others.is_empty());
            self.ongoing.begin(key, &attempts, probes, now);
        }
        let (tried, decoy) = (record.effort.tried(), record.effort.is_decoy());
        let kind = if stealthy { ScanKind::Stealth } else { ScanKind::Vertical };
        let scan = self.scan(flow, kind, rule, attempts, context);
        self.scans.push(Scan { probes, tried, continued, decoy, others, ..scan });
    }

    /// A probe has failed: counts the host for the sweep rules.
    pub fn failed_on_host(&mut self, probe: &Probe, outcome: Outcome, context: Context<'_>) {
        let (now, flow) = (context.now, &probe.flow);
        let (key, hash) = self.sweep_of(flow, context);
        let server = self.hash_of_host(flow.server);
        let failed = |outcome| outcome != Outcome::Answered;
        let failure = Failure { at: server, outcome, crafted: probe.crafted, moment: now };
        if self.first_hosts.known(hash) == Some(server) {
            self.first_hosts.note(hash, failure);
            return;
        }
        if self.sweeps.get(hash, &key).is_none() {
            let Some(first) = self.first_hosts.note(hash, failure) else { return };
            let mut sweep = RecentHosts::new(first.moment);
            sweep.add(first.at, failed(first.outcome), first.crafted, first.moment);
            self.sweeps.insert(hash, key, sweep);
        }
        let Some(sweep) = self.sweeps.peek(hash, &key) else { return };
        if failed(outcome) && !probe.crafted && !sweep.knows(server) {
            // A client that receives no reply retries for minutes.
            let failure = Hashes::with(hash, server);
            if self.excused.knows(failure, now) || sweep.excuses(now) {
                self.excused.note(failure, now);
                log_failure(
                    probe,
                    outcome,
                    "failed host excused: offset by successful connections",
                );
                return;
            }
        }
        let is_new = !sweep.knows(server);
        let exceeded = sweep.add(server, failed(outcome), probe.crafted, now);
        log_failure(probe, outcome, "failed host counted");
        let Some(limit) = exceeded else { return };
        let reported = sweep.reported();
        let has_doubled = reported.is_some() && is_new && sweep.effort().add();
        if !has_doubled && reported.is_some_and(|past| !now.is_past(past, SWEEP.within)) {
            return;
        }
        sweep.set_reported(Some(now));
        if reported.is_none() {
            sweep.effort().begin(limit.more_than + 1, false);
        }
        let tried = sweep.effort().tried();
        // The first attempt stands for all of them.
        let first = Attempt { port: flow.port, moment: sweep.first(), outcome };
        let rule = (Rule::FailedHosts, limit);
        let scan = self.scan(flow, ScanKind::Sweep, rule, vec![first], context);
        let (probes, continued) = (tried.into(), reported.is_some());
        self.scans.push(Scan { probes, tried, continued, ..scan });
    }

    /// A port has refused a segment that belongs to no connection.
    pub fn out_of_state(&mut self, flow: &Flow, context: Context<'_>) {
        if !self.rule.stealth {
            return;
        }
        let now = context.now;
        let (key, pair) = (self.key(flow, context), self.pair_of(flow, context));
        if self.out_of_state.get(pair, &key).is_none() {
            self.out_of_state.insert(pair, key, Record::new(now));
        }
        let Some(record) = self.out_of_state.peek(pair, &key) else { return };
        let attempt = Attempt { port: flow.port, moment: now, outcome: Outcome::Refused };
        let is_new = record.add(attempt, now);
        let too_many = record.ports.within(OUT_OF_STATE.within, now).0 > OUT_OF_STATE.more_than;
        let reported = record.reported;
        let has_doubled = reported.is_some() && is_new && record.effort.add();
        let is_due = reported.is_none_or(|past| now.is_past(past, OUT_OF_STATE.within));
        if !too_many || !(is_due || has_doubled) {
            return;
        }
        record.reported = Some(now);
        let attempts = record.ports.evidence(Rule::OutOfState, OUT_OF_STATE, now);
        if reported.is_none() {
            record.effort.begin(attempts.len(), false);
        }
        let (probes, tried) = (record.failures, record.effort.tried());
        let rule = (Rule::OutOfState, OUT_OF_STATE);
        let scan = self.scan(flow, ScanKind::Stealth, rule, attempts, context);
        self.scans.push(Scan { probes, tried, continued: reported.is_some(), ..scan });
    }

    /// Counts a failure of a source that was not reported for the rule about many sources.
    fn check_distributed(&mut self, probe: &Probe, attempt: Attempt, context: Context<'_>) {
        if attempt.outcome == Outcome::Answered {
            return;
        }
        let flow = &probe.flow;
        let server = self.hashes.of_host(flow.server);
        if self.report_only.failed(server, probe.pair, flow.port, context.now) {
            let rule = (Rule::ManySources, MANY_SOURCES);
            self.scans.push(self.scan(flow, ScanKind::Distributed, rule, vec![attempt], context));
        }
    }

    /// Undoes a failure, because the server has replied after all.
    fn undo_failure(&mut self, probe: &Probe, context: Context<'_>) {
        let flow = &probe.flow;
        let key = self.key(flow, context);
        self.first_ports.undo(probe.pair, flow.port.0.into());
        if let Some(record) = self.records.peek(probe.pair, &key) {
            record.ports.undo(flow.port);
        }
        let (key, hash) = self.sweep_of(flow, context);
        let server = self.hash_of_host(flow.server);
        self.first_hosts.undo(hash, server);
        if let Some(sweep) = self.sweeps.peek(hash, &key) {
            sweep.undo(server);
        }
    }

    /// Applies the classic rule to a probe, unless its port has replied while replies were visible: when a
    /// host goes down, all its clients keep trying.
    pub fn apply_classic(&mut self, flow: &Flow, context: Context<'_>) {
        if self.is_known_open(flow, context) {
            return;
        }
        let probe = Segment {
            moment: context.now,
            source: flow.client,
            destination: flow.server,
            source_port: flow.client_port,
            port: flow.port,
            kind: SegmentKind::Syn,
            sequence: 0,
            acknowledged: 0,
            crafted: false,
        };
        let scan = self.classic.observe_one(&probe, context.host);
        self.scans.extend(scan);
    }

    /// Whether a port has replied, or a service has listened on it, recently.
    fn is_known_open(&mut self, flow: &Flow, context: Context<'_>) -> bool {
        let own = context.host.owns(flow.server);
        self.has_replied(flow, context) || own && self.own.has_stopped(flow.port, context.now)
    }

    /// Whether a port has replied recently.
    fn has_replied(&self, flow: &Flow, context: Context<'_>) -> bool {
        let hash = self.hashes.of_port(flow.server_key(context.host), flow.port);
        self.open.knows(hash, context.now)
    }

    pub fn set_listening(&mut self, ports: Arc<PortSet>, now: Moment) {
        self.own.set_listening(ports, now);
    }

    pub fn sum_up(&mut self, now: Moment) -> (Vec<Summary>, u64) {
        let (mut summaries, dropped) = self.ongoing.sum_up(now);
        let (of_classic, more) = self.classic.sum_up(now);
        summaries.extend(of_classic);
        (summaries, dropped + more)
    }

    pub fn forget(&mut self, network: IpNet) {
        let within = |source: &IpNet| overlap(source, &network);
        self.records.remove_where(|key| within(&key.source));
        self.out_of_state.remove_where(|key| within(&key.source));
        self.sweeps.remove_where(|key| within(&key.source));
        self.ongoing.forget(network);
        self.classic.forget(network);
    }

    /// Has the next failure of the source of a scan return it again.
    pub fn not_delivered(&mut self, scan: &Scan) {
        let key = Key { source: scan.source, destination: Some(scan.destination) };
        let hash = self.hashes.of_pair(&scan.source, scan.destination);
        let records = [self.records.peek(hash, &key), self.out_of_state.peek(hash, &key)];
        for record in records.into_iter().flatten() {
            if scan.continued {
                record.effort.retry();
            } else {
                record.reported = None;
            }
        }
        let port = scan.attempts.first().map_or(Port(0), |attempt| attempt.port);
        let hash = self.hashes.of_sweep(&scan.source, port);
        if let Some(sweep) = self.sweeps.peek(hash, &SweepKey { source: scan.source, port }) {
            if scan.continued {
                sweep.effort().retry();
            } else {
                sweep.set_reported(None);
            }
        }
        self.classic.not_delivered(scan);
    }

    pub fn sources(&self) -> usize {
        self.records.len() + self.classic.sources()
    }

    pub fn evicted(&self) -> u64 {
        self.evicted + self.classic.evicted()
    }

    /// The identity of a host within a sweep.
    fn hash_of_host(&self, host: IpAddr) -> u32 {
        self.hashes.of_host(host) as u32
    }

    fn source_of(&self, flow: &Flow, context: Context<'_>) -> IpNet {
        unit_of(&self.rule, flow.client, context.host)
    }

    fn key(&self, flow: &Flow, context: Context<'_>) -> Key {
        Key { source: self.source_of(flow, context), destination: Some(flow.server) }
    }

    fn pair_of(&self, flow: &Flow, context: Context<'_>) -> u64 {
        self.hashes.of_pair(&self.source_of(flow, context), flow.server)
    }

    /// The key of a sweep and its hash.
    fn sweep_of(&self, flow: &Flow, context: Context<'_>) -> (SweepKey, u64) {
        let key = SweepKey { source: self.source_of(flow, context), port: flow.port };
        (key, self.hashes.of_sweep(&key.source, key.port))
    }

    fn scan(
        &self,
        flow: &Flow,
        kind: ScanKind,
        (rule, limit): (Rule, Limit),
        attempts: Vec<Attempt>,
        context: Context<'_>,
    ) -> Scan {
        Scan {
            source: self.source_of(flow, context),
            address: flow.client,
            destination: flow.server,
            kind,
            attempts,
            moment: context.now,
            probes: 1,
            rule,
            threshold: limit.more_than,
            span: limit.within,
            tried: 1,
            continued: false,
            decoy: false,
            others: Vec::new(),
        }
    }
}

/// Whether no service has replied.
fn is_silent(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Refused | Outcome::Unanswered)
}

/// The classic rule, but with the ports of each host counted separately, as the balanced rules do: a client of
/// many servers is no scanner.
fn per_host(rule: &DetectionConfig) -> DetectionConfig {
    DetectionConfig { per: Per::Pair, ..rule.clone() }
}

/// Logs whether a failure counts. Costs an atomic load while the level is off.
#[inline]
fn log_failure(probe: &Probe, outcome: Outcome, decision: &'static str) {
    trace!(
        source = %probe.flow.client,
        destination = %probe.flow.server,
        port = probe.flow.port.0,
        outcome = outcome.as_str(),
        crafted = probe.crafted,
        "{decision}"
    );
}
