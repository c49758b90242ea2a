//! Which blocks to restore at the start: what the database holds and what the kernel still holds, merged.
//!
//! Pure. The database is written before a caller gets its answer, so it is right in general. Sets that an
//! instance left in the kernel show what happened in its last moment, or while the database could not be
//! written.

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::block::backend::ipset::netlink::Element;
use crate::block::ledger::Ledger;
use crate::block::store::Precedence;
use crate::types::{Block, BlockReason, Moment};

/// What becomes of each network.
#[derive(Debug, Default)]
pub struct Merged {
    /// To be blocked again.
    pub restored: Vec<(IpNet, Block)>,
    /// In the database, and expired, or unblocked after the last write.
    pub expired: Vec<IpNet>,
    /// Expired, and still in the kernel: to be unblocked there.
    pub lingering: Vec<(IpNet, Block)>,
    /// In the kernel and not in the database: blocked in the last moment of an instance.
    pub found: Vec<(IpNet, Block)>,
    /// In the kernel and not in the database, because another program restored saved sets there.
    pub stale: Vec<IpNet>,
}

/// Merges the blocks of the database with the elements of the kernel's sets; none: there were no sets, as
/// after a stop or a boot.
pub fn merge(
    saved: Vec<(IpNet, Block)>,
    precedence: Precedence,
    elements: Option<Vec<Element>>,
    now: Moment,
    ledger: &Ledger,
) -> Merged {
    let is_kernel_right = precedence == Precedence::Kernel && elements.is_some();
    let elements = elements.unwrap_or_default().into_iter();
    let mut elements: BTreeMap<IpNet, Element> =
        elements.map(|element| (element.network, element)).collect();
    let mut merged = Merged::default();
    for (network, mut block) in saved {
        let has_expired = block.until.is_some_and(|until| until <= now);
        let element = elements.remove(&network);
        match element {
            // The kernel holds a later block of this network.
            Some(element) if is_kernel_right && has_expired => {
                elements.insert(network, element);
            }
            // The kernel may hold it for longer than the database says.
            Some(element) if is_kernel_right => {
                let until = found(&element, now, ledger).until;
                block.until = block.until.zip(until).map(|(saved, held)| saved.max(held));
                merged.restored.push((network, block));
            }
            // It was unblocked after the last write.
            None if is_kernel_right => merged.expired.push(network),
            element if has_expired => {
                merged.expired.push(network);
                merged.lingering.extend(element.map(|_| (network, block)));
            }
            _ => merged.restored.push((network, block)),
        }
    }
    let is_stale = |element: &Element| match precedence {
        Precedence::Kernel => false,
        // An instance blocked it in its last moment, unless a user had unblocked it.
        Precedence::Store => ledger.grace(&element.network, now).is_some(),
        Precedence::StoreAlone => true,
    };
    for element in elements.into_values() {
        if is_stale(&element) {
            merged.stale.push(element.network);
        } else {
            merged.found.push((element.network, found(&element, now, ledger)));
        }
    }
    merged
}

/// The block for an element of which the database knows nothing.
fn found(element: &Element, now: Moment, ledger: &Ledger) -> Block {
    let is_endless = ledger.is_endless(element.remaining);
    Block {
        since: now,
        until: (!is_endless).then(|| now + element.remaining),
        offences: 0,
        reason: BlockReason::Found,
    }
}
