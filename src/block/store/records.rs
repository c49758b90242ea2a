//! What outlives the process: the content of the database as values.

use ipnet::IpNet;

use crate::types::{Block, BlockReason, Moment};

/// How often a network has been blocked for a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offences {
    pub count: u32,
    /// The most recent one.
    pub latest: Moment,
}

/// One row to write; without a value the row is deleted.
#[derive(Clone, Copy, Debug)]
pub enum Record<'a> {
    Block(IpNet, Option<&'a Block>),
    Offences(IpNet, Option<Offences>),
    /// A user unblocked the network: it is not blocked for a scan until this moment.
    Grace(IpNet, Option<Moment>),
}

/// Everything in the database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    pub blocks: Vec<(IpNet, Block)>,
    /// The oldest first.
    pub offences: Vec<(IpNet, Offences)>,
    /// The first to end first.
    pub graces: Vec<(IpNet, Moment)>,
}

impl Remembered {
    /// The latest beginning of a block, or offence.
    pub fn latest(&self) -> Option<Moment> {
        let blocks = self.blocks.iter().map(|(_, block)| block.since);
        let offences = self.offences.iter().map(|(_, offences)| offences.latest);
        blocks.chain(offences).max()
    }

    pub fn for_each_moment(&mut self, mut change: impl FnMut(&mut Moment)) {
        for (_, block) in &mut self.blocks {
            change(&mut block.since);
            block.until.iter_mut().for_each(&mut change);
            if let BlockReason::Scan(evidence) = &mut block.reason {
                evidence.attempts.iter_mut().for_each(|attempt| change(&mut attempt.moment));
            }
        }
        self.offences.iter_mut().for_each(|(_, offences)| change(&mut offences.latest));
        self.graces.iter_mut().for_each(|(_, until)| change(until));
    }
}
