//! The handshake of each connection, as segments and the passage of time show it.
//!
//! Pure. Owns the connections and what is visible of replies. Determines the outcome of each connection and
//! passes it to [`Rules`]. Never decides what an outcome means for a source.

use crate::detect::balanced::Context;
use crate::detect::balanced::connections::{
    Connection, Connections, Flow, Probe, Reply, Stage, Timeout,
};
use crate::detect::balanced::early::EarlyReplies;
use crate::detect::balanced::hash::Hashes;
use crate::detect::balanced::rules::Rules;
use crate::detect::balanced::thresholds::{FOLLOWED, SYSTEM_PORTS_BELOW};
use crate::detect::balanced::visibility::Visibility;
use crate::types::{Moment, Outcome, Segment, SegmentKind};

/// The handshakes of all connections.
pub struct Handshakes {
    connections: Connections,
    early: EarlyReplies,
    visibility: Visibility,
    hashes: Hashes,
    /// A reply came from another hardware address than its SYN: the capture shows the side of a sender.
    shows_sides: bool,
}

impl Handshakes {
    pub fn new() -> Self {
        Self {
            connections: Connections::new(FOLLOWED),
            early: EarlyReplies::new(),
            visibility: Visibility::default(),
            hashes: Hashes::new(),
            shows_sides: false,
        }
    }

    pub fn visibility(&self) -> &Visibility {
        &self.visibility
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
        let flow = Flow::from_client(segment);
        rules.note_ftp(&flow, segment.sender, context);
        if context.host.owns(segment.source) || rules.is_ftp_data(&flow, segment.sender, context) {
            return;
        }
        let (pair, closed) = rules.on_open(&flow, context);
        let hash = self.hashes.of_flow(&flow);
        let evicted = self.connections.open(segment, hash, pair, context.now, closed);
        if let Some(connection) = evicted {
            // A flood. What waits for a reply has waited for long enough to count.
            self.unanswered(&connection, context, rules);
        }
        if let Some(reply) = self.early.of(hash, context.now)
            && (reply.sender == 0 || reply.sender != segment.sender)
            && let Some(connection) = self.connections.find(hash, &flow)
        {
            let (probe, closed) = (connection.probe(), connection.is_closed());
            let reply = connection.on_reply(reply.sequence, context.now);
            self.on_reply(&probe, closed, reply, context, rules);
        }
    }

    pub fn on_syn_ack(&mut self, segment: &Segment, context: Context<'_>, rules: &mut Rules) {
        let flow = Flow::from_server(segment);
        let hash = self.hashes.of_flow(&flow);
        let Some(connection) = self.connections.find(hash, &flow) else {
            self.early.note(hash, segment, context.now);
            return;
        };
        if !is_from_server(&mut self.shows_sides, connection, segment) {
            return;
        }
        let (probe, closed) = (connection.probe(), connection.is_closed());
        let reply = connection.on_reply(segment.sequence, context.now);
        self.on_reply(&probe, closed, reply, context, rules);
    }

    fn on_reply(
        &mut self,
        probe: &Probe,
        closed: bool,
        reply: Reply,
        context: Context<'_>,
        rules: &mut Rules,
    ) {
        match reply {
            Reply::First { timed_out } => {
                self.visibility.answered(context.now);
                rules.answered(probe, timed_out, context);
                if timed_out && closed {
                    rules.port_is_forwarded(context);
                }
                if probe.flow.port.0 < SYSTEM_PORTS_BELOW {
                    rules.idle_connect(probe, context);
                }
            }
            Reply::Repeated => rules.abandoned(probe, Outcome::HalfOpen, context),
            Reply::Other => {}
        }
    }

    pub fn on_reset(&mut self, segment: &Segment, context: Context<'_>, rules: &mut Rules) {
        let flow = Flow::from_client(segment);
        let hash = self.hashes.of_flow(&flow);
        if let Some(connection) = self.connections.find(hash, &flow) {
            let probe = connection.probe();
            let sent_nothing = connection.has_sent_nothing(segment);
            let idle = connection.is_idle(segment);
            let has_given_up = connection.was_answered_late() && !probe.crafted;
            match (connection.finish_if_answered(), segment.kind) {
                // The reply came too late for an honest client, whose system refuses it.
                (Stage::Answered, SegmentKind::Reset) if sent_nothing && has_given_up => {}
                (Stage::Answered, SegmentKind::Reset) if sent_nothing => {
                    rules.abandoned(&probe, Outcome::HalfOpen, context);
                }
                (Stage::Answered, SegmentKind::ResetAck) if idle => {
                    rules.idle_connect(&probe, context);
                    rules.abandoned(&probe, Outcome::Answered, context);
                }
                (Stage::Answered, _) => rules.succeeded(&probe, context),
                (Stage::Opening | Stage::TimedOut, _) => {
                    self.continued(hash, &flow, segment, context, rules);
                }
                (Stage::Over, _) => {}
            }
            return;
        }
        let flow = Flow::from_server(segment);
        if let Some(connection) = self.connections.find(hash, &flow) {
            if !is_from_server(&mut self.shows_sides, connection, segment) {
                return;
            }
            let probe = connection.probe();
            let is_refused = connection.is_refused_by(segment);
            match connection.finish() {
                Stage::Opening => {
                    self.visibility.answered(context.now);
                    rules.failed(&probe, Outcome::Refused, false, context);
                }
                Stage::Answered if is_refused => {
                    rules.abandoned(&probe, Outcome::Refused, context);
                }
                Stage::Answered => rules.succeeded(&probe, context),
                Stage::TimedOut | Stage::Over => {}
            }
        } else if segment.kind == SegmentKind::Reset
            && flow.is_towards_a_service()
            && !context.host.owns(flow.client)
            // A server replies to SYNs that were forged in the name of this host.
            && self.early.of(hash, context.now).is_none()
        {
            rules.out_of_state(&flow, context);
        }
    }

    pub fn on_fin(&mut self, segment: &Segment, context: Context<'_>, rules: &mut Rules) {
        let flow = Flow::from_client(segment);
        let hash = self.hashes.of_flow(&flow);
        if let Some(connection) = self.connections.find(hash, &flow) {
            let probe = connection.probe();
            let idle = connection.is_idle(segment);
            match connection.finish_if_answered() {
                Stage::Answered if idle => rules.closed_without_data(&probe, context),
                Stage::Answered => rules.succeeded(&probe, context),
                Stage::Opening | Stage::TimedOut => {
                    self.continued(hash, &flow, segment, context, rules);
                }
                Stage::Over => {}
            }
            return;
        }
        let flow = Flow::from_server(segment);
        if let Some(connection) = self.connections.find(hash, &flow) {
            if !is_from_server(&mut self.shows_sides, connection, segment) {
                return;
            }
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
        } else if !context.host.owns(segment.source) {
            // The end of a connection that began long ago, perhaps without a visible reply.
            rules.reply_not_seen(&Flow::from_client(segment), context);
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
            rules.failed(&probe, Outcome::Refused, false, context);
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
        } else {
            self.unanswered(&timeout.connection, context, rules);
        }
    }

    /// A connection has received no reply in time.
    fn unanswered(&mut self, connection: &Connection, context: Context<'_>, rules: &mut Rules) {
        let probe = connection.probe();
        let mut cut_off = false;
        // If no service listens on the port, silence is expected and shows nothing about visibility.
        if !connection.is_closed() && !probe.crafted {
            let source = self.hashes.of_source(probe.flow.client);
            self.visibility.unanswered(source, probe.moment);
            cut_off = self.visibility.is_cut_off(probe.moment);
        }
        rules.set_blind(self.visibility.is_one_sided());
        rules.failed(&probe, Outcome::Unanswered, cut_off, context);
        if connection.has_continued() {
            rules.reply_not_seen(&probe.flow, context);
        }
    }

    /// Takes note of a connection that goes on although no reply was seen.
    fn continued(
        &mut self,
        hash: u64,
        flow: &Flow,
        segment: &Segment,
        context: Context<'_>,
        rules: &mut Rules,
    ) {
        self.visibility.continued(context.now);
        let Some(connection) = self.connections.find(hash, flow) else { return };
        if connection.has_sent_nothing(segment) {
            return;
        }
        connection.set_continued();
        if connection.stage() == Stage::TimedOut {
            rules.reply_not_seen(flow, context);
        }
    }
}

/// Whether a reply comes from the side of the server. A scanner may forge replies to its own probes, but they
/// come from where its probes come from.
fn is_from_server(shows_sides: &mut bool, connection: &Connection, reply: &Segment) -> bool {
    if reply.sender == 0 || connection.sender() == 0 {
        return true;
    }
    let differs = reply.sender != connection.sender();
    *shows_sides |= differs;
    differs || !*shows_sides
}
