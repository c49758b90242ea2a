//! What outcomes mean for a source: which failures count, and which rule a source exceeds.
//!
//! Pure. Owns everything that is remembered of sources and of open ports. Takes outcomes from
//! [`super::handshake`] and never looks at segments. The numbers belong to [`super::thresholds`].

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use tracing::trace;

use crate::config::DetectionConfig;
use crate::detect::balanced::Context;
use crate::detect::balanced::connections::{Flow, Probe, UNSPECIFIED};
use crate::detect::balanced::credit::Credits;
use crate::detect::balanced::distributed::ReportOnly;
use crate::detect::balanced::first_failure::{Failure, FirstFailures};
use crate::detect::balanced::hash::Hashes;
use crate::detect::balanced::known::{OwnPorts, RecentlySeen, UsedPorts};
use crate::detect::balanced::record::{Circumstances, Record, Verdict};
use crate::detect::balanced::sweeps::Sweeps;
use crate::detect::balanced::thresholds::{
    A_DAY, A_MINUTE, AN_HOUR, CHECKS, JUDGED_AFTER, Limit, MANY_PORTS, MANY_SOURCES, OUT_OF_STATE,
    SWEEP, SYSTEM_PORTS_BELOW,
};
use crate::detect::decisions::Decisions;
use crate::detect::decoys::Decoys;
use crate::detect::key::Key;
use crate::detect::ongoing::OngoingScans;
use crate::detect::table::Table;
use crate::detect::traps::Traps;
use crate::detect::unit_of;
use crate::types::{
    Attempt, Decision, Host, Judged, Moment, Outcome, Pending, Port, PortSet, Progress, Rule, Scan,
    ScanKind, Segment, Summary, overlap,
};

/// How many first failures are remembered for each source of the configuration: at the default, a scanner with
/// one probe a second is in three of four cases still there after 300,000 forged probes.
pub const FIRST_PORTS_PER_SOURCE: usize = 8;

/// For so many sources that fail on several ports there is room for one that sweeps, and for one that sends
/// out-of-state segments, because there are fewer of these.
pub const SHARE_OF_OTHERS: usize = 16;

/// The port on which an FTP server accepts sessions, and the port from which it opens connections for data.
const FTP: Port = Port(21);
const FTP_DATA: Port = Port(20);

/// Where a failure at a port was recorded.
enum Recorded {
    /// Nowhere, for this reason.
    Excused(Decision),
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
    /// When to judge a source that had its time, in order.
    checks: VecDeque<(Moment, Flow)>,
    sweeps: Sweeps,
    out_of_state: Table<Key, Record>,
    report_only: ReportOnly,
    /// Ports that were used.
    open: RecentlySeen,
    used: UsedPorts,
    own: OwnPorts,
    /// At least one probe was for another host than this one.
    sees_others: bool,
    /// No reply is visible.
    blind: bool,
    ongoing: OngoingScans,
    decoys: Decoys,
    traps: Traps,
    decisions: Decisions,
    /// Scans that were found and not taken yet.
    scans: Vec<Scan>,
    evicted: u64,
}

impl Rules {
    pub fn new(rule: DetectionConfig) -> Self {
        let sources = rule.max_sources.get();
        Self {
            hashes: Hashes::new(),
            first_ports: FirstFailures::new(sources * FIRST_PORTS_PER_SOURCE),
            records: Table::new(sources),
            credits: Credits::new(),
            excused: RecentlySeen::new(),
            checks: VecDeque::with_capacity(CHECKS),
            sweeps: Sweeps::new(sources, sources / SHARE_OF_OTHERS),
            out_of_state: Table::new(sources / SHARE_OF_OTHERS),
            report_only: ReportOnly::new(),
            open: RecentlySeen::new(),
            used: UsedPorts::new(),
            own: OwnPorts::default(),
            sees_others: false,
            blind: false,
            ongoing: OngoingScans::new(),
            decoys: Decoys::new(),
            traps: Traps::new(&rule),
            decisions: Decisions::default(),
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
            self.traps.reconfigure(&rule);
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
            own && self.own.is_closed(flow.port, context.now) && !self.is_known_open(flow, context);
        (self.pair_of(flow, context), closed)
    }

    /// Reports a probe of a trap port.
    pub fn trap(&mut self, segment: &Segment, host: &Host) {
        self.scans.extend(self.traps.consider(segment, &self.rule, host));
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

    /// Takes note whether replies are visible.
    pub fn set_blind(&mut self, blind: bool) {
        self.blind = blind;
    }

    /// Takes note of a SYN to an FTP server, given the hardware address that has sent it.
    pub fn note_ftp(&mut self, flow: &Flow, sender: u16, context: Context<'_>) {
        if flow.port == FTP && context.host.owns(flow.client) {
            let session = self.hashes.of_pair(&flow.client.into(), flow.server);
            self.used.note(session, context.now);
            self.used.note(Hashes::with(session, sender.into()), context.now);
        }
    }

    /// Whether a SYN opens the data connection of an FTP session (RFC 959, 3.2). The server connects to a port
    /// that its client has told it, and a firewall of the client may drop that.
    pub fn is_ftp_data(&mut self, flow: &Flow, sender: u16, context: Context<'_>) -> bool {
        if flow.client_port != FTP_DATA || flow.port.0 < SYSTEM_PORTS_BELOW {
            return false;
        }
        if context.host.owns(flow.server) {
            let session = self.hashes.of_pair(&flow.server.into(), flow.client);
            // A session that came from the side of the server is forged.
            let forged = Hashes::with(session, sender.into());
            return self.used.renew(session, context.now)
                && (sender == 0 || !self.used.renew(forged, context.now));
        }
        let session =
            Flow { client: flow.server, server: flow.client, client_port: flow.port, port: FTP };
        let pair = self.pair_of(&session, context);
        self.used.renew(Hashes::with(pair, FTP.0.into()), context.now)
    }

    /// Takes note that another host replies for a port of this host.
    pub fn port_is_forwarded(&mut self, context: Context<'_>) {
        self.own.forward(context.now);
    }

    /// The server has replied, perhaps after the probe had counted as unanswered.
    pub fn answered(&mut self, probe: &Probe, timed_out: bool, context: Context<'_>) {
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
        self.used.note(Hashes::with(probe.pair, probe.flow.port.0.into()), context.now);
        let host = probe.flow.server_key(context.host);
        self.open.note(self.hashes.of_port(host, probe.flow.port), context.now);
        let source = self.source_of(&probe.flow, context);
        self.sweeps.succeeded(source, probe, context.now, &self.hashes);
    }

    /// The client has abandoned the connection after the reply.
    pub fn abandoned(&mut self, probe: &Probe, outcome: Outcome, context: Context<'_>) {
        if !probe.crafted {
            self.credits.undo(probe.pair);
        }
        self.failed(probe, outcome, false, context);
    }

    /// The client has closed the connection without data, which shows that the port is open.
    pub fn closed_without_data(&mut self, probe: &Probe, context: Context<'_>) {
        if !probe.crafted {
            self.credits.undo(probe.pair);
        }
        self.idle_connect(probe, context);
    }

    /// The client goes on with a connection although no reply was seen, or the reply came very late: that port is
    /// open.
    pub fn reply_not_seen(&mut self, flow: &Flow, context: Context<'_>) {
        let (key, pair) = (self.key(flow, context), self.pair_of(flow, context));
        self.first_ports.excuse(pair, flow.port.0.into());
        if let Some(record) = self.records.peek(pair, &key) {
            record.ports.excuse(flow.port);
        }
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
        let (flow, now) = (&probe.flow, context.now);
        if is_silent(outcome) {
            let has_stopped =
                context.host.owns(flow.server) && self.own.has_stopped(flow.port, now);
            if has_stopped || outcome == Outcome::Refused && self.is_known_open(flow, context) {
                self.decide(probe, outcome, Decision::KnownOpen, false);
                return;
            }
        }
        self.failed_on_port(probe, outcome, context);
        let is_excused =
            !probe.crafted && (cut_off || outcome == Outcome::Unanswered && self.blind);
        // If this host is the only one, no source sweeps.
        if outcome != Outcome::Answered
            && !is_excused
            && (self.sees_others || context.host.has_more_addresses_than(SWEEP.more_than))
        {
            self.failed_on_host(probe, outcome, context);
        }
    }

    fn failed_on_port(&mut self, probe: &Probe, outcome: Outcome, context: Context<'_>) {
        let attempt = Attempt { port: probe.flow.port, moment: probe.moment, outcome };
        match self.record(probe, attempt, context) {
            Recorded::Excused(why) => {
                self.decide(probe, outcome, why, false);
            }
            Recorded::First => {
                self.decide(probe, outcome, Decision::Counts, true);
                self.check_distributed(probe, attempt, context);
            }
            Recorded::Again => {
                self.decide(probe, outcome, Decision::Counts, false);
                self.check_ports(probe, attempt, context);
            }
        }
    }

    /// Takes note of whether a failure at a port counts.
    fn decide(&mut self, probe: &Probe, outcome: Outcome, decision: Decision, is_first: bool) {
        let Flow { client, server, port, .. } = probe.flow;
        let attempt = Attempt { port, moment: probe.moment, outcome };
        let judged = Judged { source: client, host: Some(server), attempt, decision };
        self.decisions.note(judged, is_first);
        log_failure(probe, outcome, decision.as_str());
    }

    /// Explains how far a source is from a block for failed ports.
    pub fn explain(&mut self, source: IpNet, context: Context<'_>) -> Pending {
        let now = context.now;
        let source = unit_of(&self.rule, source.addr(), context.host);
        let mut failures = self.decisions.of(&source);
        // All addresses of this host count as one host.
        let other = |judged: &Judged| judged.host.filter(|host| !context.host.owns(*host));
        let mut hosts: Vec<Option<IpAddr>> = failures.iter().map(other).chain([None]).collect();
        hosts.sort_unstable();
        hosts.dedup();
        let mut progress = Vec::new();
        for host in hosts {
            let attempts = self.failed_ports(source, host, now);
            let is_counted = |port| attempts.iter().any(|attempt| attempt.port == port);
            let pair = self.hashes.of_pair(&source, host.unwrap_or(UNSPECIFIED));
            for judged in failures.iter_mut().filter(|judged| other(judged) == host) {
                judged.decision = match (is_counted(judged.attempt.port), judged.decision) {
                    (true, _) => Decision::Counts,
                    (false, Decision::Counts)
                        if self
                            .used
                            .knows(Hashes::with(pair, judged.attempt.port.0.into()), now) =>
                    {
                        Decision::Used
                    }
                    (false, Decision::Counts) => Decision::NoLonger,
                    (false, excused) => excused,
                };
            }
            let is_known = |attempt: &Attempt| {
                let of_host = failures.iter().filter(|judged| other(judged) == host);
                of_host.clone().any(|judged| judged.attempt.port == attempt.port)
            };
            let others = attempts.iter().filter(|attempt| !is_known(attempt)).copied();
            let (address, decision) = (source.addr(), Decision::Counts);
            let judged = |attempt| Judged { source: address, host, attempt, decision };
            let others: Vec<Judged> = others.map(judged).collect();
            failures.extend(others);
            for limit in [A_MINUTE, AN_HOUR, A_DAY] {
                let recent = |attempt: &&Attempt| !now.is_past(attempt.moment, limit.within);
                let count = attempts.iter().filter(recent).count();
                let (rule, threshold, span) = (Rule::FailedPorts, limit.more_than, limit.within);
                if count > 0 {
                    progress.push(Progress { rule, host, count, threshold, span });
                }
            }
        }
        failures.sort_by_key(|judged| judged.attempt.moment);
        Pending { progress, failures }
    }

    /// Returns the ports of a host on which a source has failed within a day, and which count.
    fn failed_ports(&mut self, source: IpNet, host: Option<IpAddr>, now: Moment) -> Vec<Attempt> {
        let pair = self.hashes.of_pair(&source, host.unwrap_or(UNSPECIFIED));
        let record = self.records.peek(pair, &Key { source, destination: host });
        let mut attempts = match (record, self.first_ports.get(pair, now)) {
            (Some(record), _) => record.ports.attempts().to_vec(),
            (None, Some(Failure { at, moment, outcome, .. })) => {
                vec![Attempt { port: Port(u16::try_from(at).unwrap_or(0)), moment, outcome }]
            }
            (None, None) => Vec::new(),
        };
        attempts.retain(|attempt| {
            attempt.outcome != Outcome::Answered
                && !now.is_past(attempt.moment, A_DAY.within)
                && !self.used.knows(Hashes::with(pair, attempt.port.0.into()), now)
        });
        attempts
    }

    /// Records a failure at a port, unless it is excused. In a flood the source has no earlier failure, and
    /// [`FirstFailures`] is the only memory that is read.
    fn record(&mut self, probe: &Probe, attempt: Attempt, context: Context<'_>) -> Recorded {
        let (now, pair) = (context.now, probe.pair);
        let stealthy = attempt.outcome == Outcome::Unknown;
        let failure = Failure {
            at: attempt.port.0.into(),
            outcome: attempt.outcome,
            crafted: stealthy || probe.crafted,
            excused: false,
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
            record.touch(now);
            record.ports.attempts().iter().any(|known| known.port == attempt.port)
        });
        let is_another_port = first.is_some() || known == Some(false);
        if is_another_port && is_silent(attempt.outcome) && self.has_used(pair, failure.at, now) {
            return Recorded::Excused(Decision::Used);
        }
        let excusable = !probe.crafted && attempt.outcome != Outcome::Answered;
        if is_another_port && excusable && self.excuses(pair, attempt.port, now) {
            return Recorded::Excused(Decision::Offset);
        }
        if let Some(first) = first
            && self.has_used(pair, first, now)
        {
            self.first_ports.undo(pair, first);
        }
        if known.is_none() {
            let Some(first) = self.first_ports.note(pair, failure) else { return Recorded::First };
            let mut record = Record::new(now);
            let port = Port(u16::try_from(first.at).unwrap_or(0));
            let attempt = Attempt { port, moment: first.moment, outcome: first.outcome };
            record.add(attempt, Port::default(), first.crafted);
            if first.excused {
                record.ports.excuse(port);
            }
            if let Some(evicted) = self.records.insert(pair, key, record) {
                self.evicted += u64::from(!now.is_past(evicted.latest, A_MINUTE.within));
            }
        }
        Recorded::Again
    }

    /// Whether a source has used a port within a day, which this try renews.
    fn has_used(&mut self, pair: u64, port: u32, now: Moment) -> bool {
        self.used.renew(Hashes::with(pair, port), now)
    }

    /// Adds a failure to the record of its source, and judges the source.
    fn check_ports(&mut self, probe: &Probe, attempt: Attempt, context: Context<'_>) {
        let (now, flow) = (context.now, &probe.flow);
        let key = self.key(flow, context);
        let Some(record) = self.records.peek(probe.pair, &key) else { return };
        let is_new = record.add(attempt, flow.client_port, probe.crafted);
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
        if !self.judge(flow, has_doubled, context) && reported.is_none() {
            self.check_distributed(probe, attempt, context);
        }
    }

    /// Judges a source by its record, now or later. Returns whether it is a scanner.
    fn judge(&mut self, flow: &Flow, has_waited: bool, context: Context<'_>) -> bool {
        let now = context.now;
        let (key, pair) = (self.key(flow, context), self.pair_of(flow, context));
        let Some(record) = self.records.peek(pair, &key) else { return false };
        let known = Circumstances {
            blind: self.blind,
            is_client: self.credits.uses(pair, now),
            has_waited: has_waited || self.checks.len() >= CHECKS,
        };
        match record.judge(known) {
            Verdict::Scan(rule, limit) => {
                self.report_ports(flow, key, (rule, limit), context);
                true
            }
            Verdict::Later => {
                if !std::mem::replace(&mut record.awaits_verdict, true) {
                    self.checks.push_back((now + JUDGED_AFTER, *flow));
                }
                false
            }
            Verdict::Nothing => false,
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

    /// When the next source had its time.
    pub fn next_check(&self) -> Option<Moment> {
        self.checks.front().map(|(due, _)| *due)
    }

    /// Judges the next source that had its time.
    pub fn run_check(&mut self, context: Context<'_>) {
        let Some((_, flow)) = self.checks.pop_front() else { return };
        let (key, pair) = (self.key(&flow, context), self.pair_of(&flow, context));
        let Some(record) = self.records.peek(pair, &key) else { return };
        record.awaits_verdict = false;
        let recently = |past| !context.now.is_past(past, A_MINUTE.within);
        if !record.reported.is_some_and(recently) {
            self.judge(&flow, true, context);
        }
    }

    /// Reports a source that has exceeded a rule about ports.
    fn report_ports(&mut self, flow: &Flow, key: Key, rule: (Rule, Limit), context: Context<'_>) {
        let now = context.now;
        let pair = self.pair_of(flow, context);
        let Some(record) = self.records.peek(pair, &key) else { return };
        let continued = record.reported.replace(now).is_some();
        let attempts = record.ports.evidence(rule.0, rule.1);
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
    fn failed_on_host(&mut self, probe: &Probe, outcome: Outcome, context: Context<'_>) {
        let flow = &probe.flow;
        if is_silent(outcome) && self.has_used(probe.pair, flow.port.0.into(), context.now) {
            log_failure(probe, outcome, "failed host excused: the source has used the port");
            return;
        }
        let source = self.source_of(flow, context);
        let (found, excused) =
            self.sweeps.failed(source, probe, outcome, context.now, &self.hashes);
        let offset = "failed host excused: offset by successful connections";
        log_failure(probe, outcome, if excused { offset } else { "failed host counted" });
        let Some(sweep) = found else { return };
        // The first attempt stands for all of them.
        let first = Attempt { port: flow.port, moment: sweep.first, outcome };
        let rule = if probe.crafted { Rule::FailedTargets } else { Rule::FailedHosts };
        let scan = self.scan(flow, ScanKind::Sweep, (rule, sweep.limit), vec![first], context);
        let (tried, continued) = (sweep.tried, sweep.continued);
        self.scans.push(Scan { probes: tried.into(), tried, continued, ..scan });
    }

    /// A port has refused a segment that belongs to no connection.
    pub fn out_of_state(&mut self, flow: &Flow, context: Context<'_>) {
        if !self.rule.stealth {
            return;
        }
        let now = context.now;
        let (key, pair) = (self.key(flow, context), self.pair_of(flow, context));
        if self.has_used(pair, flow.port.0.into(), now) {
            // The host has forgotten a connection.
            return;
        }
        if self.out_of_state.get(pair, &key).is_none() {
            self.out_of_state.insert(pair, key, Record::new(now));
        }
        let Some(record) = self.out_of_state.peek(pair, &key) else { return };
        let attempt = Attempt { port: flow.port, moment: now, outcome: Outcome::Refused };
        let is_new = record.add(attempt, flow.client_port, true);
        let too_many = record.ports.exceeded(&[OUT_OF_STATE], |_| true).is_some();
        let reported = record.reported;
        let has_doubled = reported.is_some() && is_new && record.effort.add();
        let is_due = reported.is_none_or(|past| now.is_past(past, OUT_OF_STATE.within));
        if !too_many || !(is_due || has_doubled) {
            return;
        }
        record.reported = Some(now);
        let attempts = record.ports.evidence(Rule::OutOfState, OUT_OF_STATE);
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
        let (key, port) = (self.key(&probe.flow, context), probe.flow.port);
        self.first_ports.undo(probe.pair, port.0.into());
        if let Some(record) = self.records.peek(probe.pair, &key) {
            record.ports.undo(port);
        }
        self.sweeps.undo(key.source, probe, &self.hashes);
    }

    /// Whether a port was used recently.
    fn is_known_open(&self, flow: &Flow, context: Context<'_>) -> bool {
        let hash = self.hashes.of_port(flow.server_key(context.host), flow.port);
        self.open.knows(hash, context.now)
    }

    pub fn set_listening(&mut self, ports: Arc<PortSet>, now: Moment) {
        self.own.set_listening(ports, now);
    }

    pub fn sum_up(&mut self, now: Moment) -> (Vec<Summary>, u64) {
        self.ongoing.sum_up(now)
    }

    pub fn forget(&mut self, network: IpNet) {
        let within = |source: &IpNet| overlap(source, &network);
        self.records.remove_where(|key| within(&key.source));
        self.out_of_state.remove_where(|key| within(&key.source));
        self.sweeps.forget(within);
        self.traps.forget(network);
        self.ongoing.forget(network);
    }

    /// Has the next failure of the source of a scan return it again.
    pub fn not_delivered(&mut self, scan: &Scan) {
        self.traps.not_delivered(scan);
        // The host is this one, or another one.
        for host in [None, Some(scan.destination)] {
            let key = Key { source: scan.source, destination: host };
            let hash = self.hashes.of_pair(&scan.source, host.unwrap_or(UNSPECIFIED));
            let records = [self.records.peek(hash, &key), self.out_of_state.peek(hash, &key)];
            for record in records.into_iter().flatten() {
                if scan.continued {
                    record.effort.retry();
                } else {
                    record.reported = None;
                }
            }
        }
        let port = scan.attempts.first().map_or(Port(0), |attempt| attempt.port);
        self.sweeps.not_delivered(scan.source, port, scan.continued, &self.hashes);
    }

    pub fn sources(&self) -> usize {
        self.records.len()
    }

    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    fn source_of(&self, flow: &Flow, context: Context<'_>) -> IpNet {
        unit_of(&self.rule, flow.client, context.host)
    }

    /// All addresses of this host count as one host.
    fn key(&self, flow: &Flow, context: Context<'_>) -> Key {
        let destination = (!context.host.owns(flow.server)).then_some(flow.server);
        Key { source: self.source_of(flow, context), destination }
    }

    fn pair_of(&self, flow: &Flow, context: Context<'_>) -> u64 {
        self.hashes.of_pair(&self.source_of(flow, context), flow.server_key(context.host))
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
