//! The handshake of each connection, as segments and the passage of time show it.
//!
//! Pure. Owns the connections and what is visible of replies. Determines the outcome of each connection and
//! passes it to [`Rules`]. Never decides what an outcome means for a source.

use std::net::IpAddr;

use crate::detect::balanced::Context;
use crate::detect::balanced::connections::{Connections, Flow, Reply, Stage, Timeout};
use crate::detect::balanced::hash::Hashes;
use crate::detect::balanced::rules::Rules;
use crate::detect::balanced::thresholds::{FOLLOWED, SYSTEM_PORTS_BELOW};
use crate::detect::balanced::visibility::Visibility;
use crate::types::{Moment, Outcome, Segment, SegmentKind};

/// The handshakes of all connections.
pub struct Handshakes {
    connections: Connections,
    visibility: Visibility,
    hashes: Hashes,
}

impl Handshakes {
    pub fn new() -> Self {
        Self {
            connections: Connections::new(FOLLOWED),
            visibility: Visibility::new(),
            hashes: Hashes::new(),
        }
    }

    pub fn visibility(&self) -> &Visibility {
        &self.visibility
    }

    /// How many connections were evicted before their outcome was known.
    pub fn evicted(&self) -> u64 {
        self.connections.evicted()
    }

    /// Whether a connection waits for a timeout.
    pub fn is_waiting(&self) -> bool {
        self.connections.is_waiting()
    }

    /// Takes note that replies may have been lost.
    pub fn packets_lost(&mut self) {
        self.connections.drop_unanswered();
    }

    /// Reads what these segments, and the timeouts meanwhile, need from memory. To wait for all of it at once
    /// instead of piece by piece saves most of the cost of a flood.
    pub fn read_ahead(&self, segments: &[Segment], rules: &Rules) {
        let mut read = 0;
        for segment in segments {
            read ^= self.connections.touch(self.hashes.of_flow(&Flow::from_client(segment)));
        }
        for pair in self.connections.next_pairs(segments.len()) {
            read ^= rules.touch(pair);
        }
        std::hint::black_box(read);
    }

    pub fn on_syn(&mut self, segment: &Segment, context: Context<'_>, rules: &mut Rules) {
        if context.host.owns(segment.source) {
            return;
        }
        let flow = Flow::from_client(segment);
        if self.visibility.is_blind() {
            rules.apply_classic(&flow, context);
        }
        let (pair, closed) = rules.on_open(&flow, context);
        let hash = self.hashes.of_flow(&flow);
        self.connections.open(segment, hash, pair, context.now, closed);
    }

    pub fn on_syn_ack(&mut self, segment: &Segment, context: Context<'_>, rules: &mut Rules) {
        let flow = Flow::from_server(segment);
        let hash = self.hashes.of_flow(&flow);
        let Some(connection) = self.connections.find(hash, &flow) else {
            // The SYN was lost, or follows in a capture that was merged from two lines. The port is open
            // anyway. What this host itself opens does not matter.
            if !context.host.owns(flow.client) {
                rules.port_is_open(&flow, context);
            }
            return;
        };
        let (probe, closed) = (connection.probe(), connection.is_closed());
        match connection.on_reply(segment, context.now) {
            Reply::First { timed_out } => {
                self.visibility.answered(context.now);
                rules.answered(&probe, timed_out, context);
                if timed_out && closed {
                    rules.port_is_forwarded(context);
                }
                if flow.port.0 < SYSTEM_PORTS_BELOW {
                    rules.idle_connect(&probe, context);
                }
            }
            Reply::Repeated => rules.abandoned(&probe, Outcome::HalfOpen, context),
            Reply::Other => {}
        }
    }

    pub fn on_reset(&mut self, segment: &Segment, context: Context<'_>, rules: &mut Rules) {
        let flow = Flow::from_client(segment);
        let hash = self.hashes.of_flow(&flow);
        if let Some(connection) = self.connections.find(hash, &flow) {
            let probe = connection.probe();
            let sent_nothing = connection.has_sent_nothing(segment);
            let idle = sent_nothing && connection.has_received_nothing(segment);
            match (connection.finish_if_answered(), segment.kind) {
                (Stage::Answered, SegmentKind::Reset) if sent_nothing => {
                    rules.abandoned(&probe, Outcome::HalfOpen, context);
                }
                (Stage::Answered, SegmentKind::ResetAck) if idle => {
                    rules.idle_connect(&probe, context);
                    rules.abandoned(&probe, Outcome::Answered, context);
                }
                (Stage::Answered, _) => rules.succeeded(&probe, context),
                // The client refuses a reply that was not seen.
                (Stage::Opening | Stage::TimedOut, _) => {
                    self.reply_not_seen(flow.client, context, rules);
                }
                (Stage::Over, _) => {}
            }
            return;
        }
        let flow = Flow::from_server(segment);
        if let Some(connection) = self.connections.find(hash, &flow) {
            let probe = connection.probe();
            match connection.finish() {
                Stage::Opening => {
                    self.visibility.answered(context.now);
                    rules.failed(&probe, Outcome::Refused, context);
                }
                Stage::Answered => rules.succeeded(&probe, context),
                Stage::TimedOut | Stage::Over => {}
            }
        } else if segment.kind == SegmentKind::Reset
            && flow.is_towards_a_service()
            && !context.host.owns(flow.client)
        {
            rules.out_of_state(&flow, context);
        }
    }

    pub fn on_fin(&mut self, segment: &Segment, context: Context<'_>, rules: &mut Rules) {
        let flow = Flow::from_client(segment);
        let hash = self.hashes.of_flow(&flow);
        if let Some(connection) = self.connections.find(hash, &flow) {
            let probe = connection.probe();
            let idle =
                connection.has_sent_nothing(segment) && connection.has_received_nothing(segment);
            match connection.finish_if_answered() {
                Stage::Answered => {
                    rules.succeeded(&probe, context);
                    if idle {
                        rules.closed_without_data(&probe, context);
                    }
                }
                Stage::Opening | Stage::TimedOut => {
                    self.reply_not_seen(flow.client, context, rules);
                }
                Stage::Over => {}
            }
            return;
        }
        let flow = Flow::from_server(segment);
        if let Some(connection) = self.connections.find(hash, &flow) {
            let probe = connection.probe();
            match connection.finish() {
                // A server closes only a connection that a program has accepted.
                Stage::Answered => rules.succeeded(&probe, context),
                // The server has replied, and the reply was lost on the way to the capture.
                stage @ (Stage::Opening | Stage::TimedOut) => {
                    self.visibility.answered(context.now);
                    rules.answered(&probe, stage == Stage::TimedOut, context);
                    rules.succeeded(&probe, context);
                }
                Stage::Over => {}
            }
        }
    }

    pub fn on_unreachable(&mut self, segment: &Segment, context: Context<'_>, rules: &mut Rules) {
        let flow = Flow::from_server(segment);
        let hash = self.hashes.of_flow(&flow);
        let Some(connection) = self.connections.find(hash, &flow) else { return };
        if connection.stage() == Stage::Opening && connection.is_quoted_by(segment) {
            connection.finish();
            let probe = connection.probe();
            self.visibility.answered(context.now);
            rules.failed(&probe, Outcome::Refused, context);
        }
    }

    /// The next connection whose time is up by `now`.
    pub fn next_timeout(&mut self, now: Moment) -> Option<Timeout> {
        self.connections.next_timeout(now)
    }

    pub fn on_timeout(&mut self, timeout: &Timeout, context: Context<'_>, rules: &mut Rules) {
        let probe = timeout.connection.probe();
        if timeout.answered {
            rules.succeeded(&probe, context);
            rules.idle_connect(&probe, context);
            return;
        }
        let was_blind = self.visibility.is_blind();
        // If no service listens on the port, silence is expected and shows nothing about visibility.
        if !timeout.connection.is_closed() {
            let source = self.hashes.of_source(probe.flow.client);
            self.visibility.unanswered(source, probe.moment, probe.crafted);
        }
        if !self.visibility.is_one_sided() {
            let cut_off = !probe.crafted && self.visibility.is_cut_off(probe.moment);
            rules.unanswered(&probe, cut_off, context);
            return;
        }
        if !self.visibility.is_blind() {
            rules.apply_classic(&probe.flow, context);
        } else if !was_blind {
            self.lost_visibility(context, rules);
        }
        // The classic rule has no sweeps. Only crafted SYNs distinguish a sweep from a browser with many hosts
        // here.
        if probe.crafted {
            rules.failed_on_host(&probe, Outcome::Unanswered, context);
        }
    }

    /// Takes note of a connection that continued although no reply was seen.
    fn reply_not_seen(&mut self, client: IpAddr, context: Context<'_>, rules: &mut Rules) {
        let was_blind = self.visibility.is_blind();
        self.visibility.unseen(self.hashes.of_source(client), context.now);
        if self.visibility.is_blind() && !was_blind {
            self.lost_visibility(context, rules);
        }
    }

    /// Applies the classic rule to the probes without a reply, as it applies to all probes from now on.
    fn lost_visibility(&mut self, context: Context<'_>, rules: &mut Rules) {
        for flow in self.connections.unanswered() {
            rules.apply_classic(&flow, context);
        }
    }
}
