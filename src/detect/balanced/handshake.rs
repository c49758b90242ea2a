//! What becomes of a connection that has begun, as segments and time tell it.
//!
//! Pure. Owns telling the outcomes apart; what follows from a failure is [`super::held`]'s.

use std::net::{IpAddr, Ipv4Addr};

use crate::detect::balanced::BalancedDetector;
use crate::detect::balanced::connections::{Begun, Flow, Stage};
use crate::detect::balanced::rules::Tried;
use crate::detect::balanced::thresholds::{REPEATED_AFTER, STRAY_PORTS_BELOW, SYSTEM_PORTS_BELOW};
use crate::types::host::Host;
use crate::types::scan::Scan;
use crate::types::segment::{Outcome, Segment, SegmentKind};

/// Whose a port is. This host's addresses are one: who tries IPv6 first and is refused goes on with IPv4.
pub fn whose(server: IpAddr, host: &Host) -> IpAddr {
    if host.owns(server) { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { server }
}

impl Flow {
    /// Whether a segment of no connection may be a scanner's: else it is what a server has sent to a client
    /// that was gone already.
    fn may_be_a_probe(&self) -> bool {
        let to_a_service = self.port.0 < STRAY_PORTS_BELOW;
        let from_a_service = self.client_port.0 < STRAY_PORTS_BELOW;
        self.port.0 < SYSTEM_PORTS_BELOW || to_a_service && !from_a_service
    }
}

impl Begun {
    fn tried(&self) -> Tried {
        Tried { flow: self.flow, pair: self.pair, moment: self.moment, crafted: self.crafted }
    }

    /// Whether this segment of the client's shows that it has sent nothing but its SYN, which counts as
    /// one.
    fn said_nothing(&self, segment: &Segment) -> bool {
        segment.sequence == self.sequence.wrapping_add(1)
    }

    /// Likewise, that it has received nothing but the answer.
    fn heard_nothing(&self, segment: &Segment) -> bool {
        segment.acknowledged == self.answer.wrapping_add(1)
    }
}

impl BalancedDetector {
    pub fn on_syn(&mut self, segment: &Segment, host: &Host, found: &mut Vec<Scan>) {
        let now = self.latest;
        if host.owns(segment.source) {
            return;
        }
        let flow = Flow::from_client(segment);
        if self.sight.is_blind() {
            self.fall_back(&flow, host, found);
        }
        let own = host.owns(segment.destination);
        self.sees_others |= !own;
        let closed = own && self.own.is_closed(segment.port, now) && !self.knows_open(&flow, host);
        let (hash, pair) = (self.hashes.of_flow(&flow), self.pair_of(&flow, host));
        self.pending.begin(segment, hash, pair, now, closed);
    }

    /// Nothing was heard in time.
    pub fn unanswered(&mut self, begun: &Begun, host: &Host, found: &mut Vec<Scan>) {
        let blind = self.sight.is_blind();
        // Where nothing listens, silence is no riddle.
        if !begun.closed {
            let source = self.hashes.of_source(begun.flow.client);
            self.sight.unanswered(source, begun.moment, begun.crafted);
        }
        if !self.sight.is_one_sided() {
            self.failed(begun.tried(), Outcome::Unanswered, host, found);
            return;
        }
        if !self.sight.is_blind() {
            self.fall_back(&begun.flow, host, found);
        } else if !blind {
            self.has_gone_blind(host, found);
        }
        // The classic rule knows no sweeps, and here nothing else tells them from a browser's many hosts.
        if begun.crafted {
            self.failed_at_host(&begun.tried(), Outcome::Unanswered, host, found);
        }
    }

    /// A connection was answered, and nothing was seen of its end.
    pub fn settled(&mut self, begun: &Begun, host: &Host, found: &mut Vec<Scan>) {
        self.came_about(&begun.tried(), host);
        self.unused(&begun.tried(), host, found);
    }

    pub fn on_answer(&mut self, segment: &Segment, host: &Host, found: &mut Vec<Scan>) {
        let (now, flow) = (self.latest, Flow::from_server(segment));
        let hash = self.hashes.of_flow(&flow);
        let Some(begun) = self.pending.find(hash, &flow) else {
            // Its question was lost, or comes after it in a capture of two lines put together: the port is open
            // all the same. What this host asks itself is no matter.
            if !host.owns(flow.client) {
                self.open.note(self.hashes.of_port(whose(flow.server, host), flow.port), now);
            }
            return;
        };
        let tried = begun.tried();
        let after = now.since(begun.moment);
        match begun.stage {
            Stage::Begun | Stage::GivenUp => {
                let given_up = begun.stage == Stage::GivenUp;
                let late = given_up && begun.closed;
                begun.stage = Stage::Answered;
                begun.answered_after = u16::try_from(after.as_millis()).unwrap_or(u16::MAX);
                begun.answer = segment.sequence;
                self.answered(&tried, given_up, host);
                if late {
                    self.own.forward(now);
                }
                if flow.port.0 < SYSTEM_PORTS_BELOW {
                    self.unused(&tried, host, found);
                }
            }
            // The server asks whether it was heard, and nobody has asked it again.
            Stage::Answered if !begun.repeated => {
                let answered_after = u128::from(begun.answered_after);
                if after.as_millis() >= answered_after + REPEATED_AFTER.as_millis() {
                    begun.stage = Stage::Over;
                    self.left(tried, Outcome::HalfOpen, host, found);
                }
            }
            Stage::Answered | Stage::Over => {}
        }
    }

    pub fn on_reset(&mut self, segment: &Segment, host: &Host, found: &mut Vec<Scan>) {
        let flow = Flow::from_client(segment);
        let hash = self.hashes.of_flow(&flow);
        if let Some(begun) = self.pending.find(hash, &flow) {
            let (tried, stage) = (begun.tried(), begun.stage);
            let silent = begun.said_nothing(segment);
            let unused = silent && begun.heard_nothing(segment);
            if stage == Stage::Answered {
                begun.stage = Stage::Over;
                match segment.kind {
                    SegmentKind::Reset if silent => {
                        self.left(tried, Outcome::HalfOpen, host, found);
                    }
                    SegmentKind::ResetAck if unused => {
                        self.unused(&tried, host, found);
                        self.left(tried, Outcome::Answered, host, found);
                    }
                    _ => self.came_about(&tried, host),
                }
            } else if stage != Stage::Over {
                // It refuses an answer that was not seen.
                self.unseen(flow.client, host, found);
            }
            return;
        }
        let flow = Flow::from_server(segment);
        if let Some(begun) = self.pending.find(hash, &flow) {
            let (tried, stage) = (begun.tried(), begun.stage);
            begun.stage = Stage::Over;
            match stage {
                Stage::Begun => {
                    self.sight.answered(self.latest);
                    self.failed(tried, Outcome::Refused, host, found);
                }
                Stage::Answered => self.came_about(&tried, host),
                Stage::GivenUp | Stage::Over => {}
            }
        } else if segment.kind == SegmentKind::Reset
            && flow.may_be_a_probe()
            && self.rule.stealth
            && !host.owns(flow.client)
        {
            self.strayed(&flow, host, found);
        }
    }

    pub fn on_close(&mut self, segment: &Segment, host: &Host, found: &mut Vec<Scan>) {
        let flow = Flow::from_client(segment);
        let hash = self.hashes.of_flow(&flow);
        if let Some(begun) = self.pending.find(hash, &flow) {
            let tried = begun.tried();
            let silent = begun.said_nothing(segment) && begun.heard_nothing(segment);
            match begun.stage {
                Stage::Answered => {
                    begun.stage = Stage::Over;
                    self.came_about(&tried, host);
                    if silent {
                        self.credits.silent(tried.pair, tried.flow.port);
                        self.unused(&tried, host, found);
                    }
                }
                Stage::Begun | Stage::GivenUp => self.unseen(flow.client, host, found),
                Stage::Over => {}
            }
            return;
        }
        let flow = Flow::from_server(segment);
        if let Some(begun) = self.pending.find(hash, &flow) {
            let tried = begun.tried();
            match std::mem::replace(&mut begun.stage, Stage::Over) {
                // It closes only what a program has taken from it.
                Stage::Answered => self.came_about(&tried, host),
                // And it closes what it has answered: that was lost on the way here.
                stage @ (Stage::Begun | Stage::GivenUp) => {
                    self.answered(&tried, stage == Stage::GivenUp, host);
                    self.came_about(&tried, host);
                }
                Stage::Over => {}
            }
        }
    }

    pub fn on_unreachable(&mut self, segment: &Segment, host: &Host, found: &mut Vec<Scan>) {
        let flow = Flow::from_server(segment);
        let hash = self.hashes.of_flow(&flow);
        let Some(begun) = self.pending.find(hash, &flow) else { return };
        // Whoever makes up such messages has to guess.
        if begun.stage == Stage::Begun && begun.sequence == segment.sequence {
            begun.stage = Stage::Over;
            let tried = begun.tried();
            self.sight.answered(self.latest);
            self.failed(tried, Outcome::Refused, host, found);
        }
    }

    /// A server has answered, perhaps after its client was given up.
    fn answered(&mut self, tried: &Tried, given_up: bool, host: &Host) {
        let flow = &tried.flow;
        self.sight.answered(self.latest);
        self.open.note(self.hashes.of_port(whose(flow.server, host), flow.port), self.latest);
        // Counted at once, or a busy network would err before its first connections are over.
        if !tried.crafted {
            self.credits.earn(tried.pair, self.latest);
        }
        if given_up {
            self.take_back(tried, host);
        }
    }

    /// A connection went on whose answer was not seen.
    fn unseen(&mut self, client: IpAddr, host: &Host, found: &mut Vec<Scan>) {
        let blind = self.sight.is_blind();
        self.sight.unseen(self.hashes.of_source(client), self.latest);
        if self.sight.is_blind() && !blind {
            self.has_gone_blind(host, found);
        }
    }

    /// From now on the classic rule judges; what it has missed is made up for.
    fn has_gone_blind(&mut self, host: &Host, found: &mut Vec<Scan>) {
        let missed: Vec<Begun> = self.pending.unanswered().collect();
        for begun in missed {
            self.fall_back(&begun.flow, host, found);
        }
    }

    /// A connection that was answered has not come about, or was dropped at once.
    fn left(&mut self, tried: Tried, outcome: Outcome, host: &Host, found: &mut Vec<Scan>) {
        if !tried.crafted {
            self.credits.take_back(tried.pair);
        }
        self.failed(tried, outcome, host, found);
    }

    /// A connection has come about.
    fn came_about(&mut self, tried: &Tried, host: &Host) {
        let (now, flow) = (self.latest, &tried.flow);
        if tried.crafted {
            self.credits.earn(tried.pair, now);
        }
        let key = self.sweep_key(flow, host);
        let hash = self.hashes.of_sweep(&key.source, key.port);
        let server = self.hash_of_host(flow.server);
        if let Some(sweep) = self.sweeps.look(hash, &key) {
            sweep.earn(server, now);
        }
    }

    /// What was taken for a failure was answered after all.
    fn take_back(&mut self, tried: &Tried, host: &Host) {
        let flow = &tried.flow;
        let key = self.key(flow, host);
        self.first_ports.take_back(tried.pair, flow.port.0.into());
        if let Some(record) = self.records.look(tried.pair, &key) {
            record.ports.take_back(flow.port);
        }
        let key = self.sweep_key(flow, host);
        let hash = self.hashes.of_sweep(&key.source, key.port);
        let server = self.hash_of_host(flow.server);
        self.first_hosts.take_back(hash, server);
        if let Some(sweep) = self.sweeps.look(hash, &key) {
            sweep.take_back(server);
        }
    }

    /// Whether a port has answered lately, or was listened on: it is no fault to ask there.
    pub fn is_no_secret(&mut self, flow: &Flow, host: &Host) -> bool {
        let own = host.owns(flow.server);
        self.knows_open(flow, host) || own && self.own.has_stopped(flow.port, self.latest)
    }

    /// Whether somebody is known to have answered there lately.
    pub fn knows_open(&self, flow: &Flow, host: &Host) -> bool {
        let hash = self.hashes.of_port(whose(flow.server, host), flow.port);
        self.open.knows(hash, self.latest)
    }
}
