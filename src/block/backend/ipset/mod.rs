//! Back end `ipset`: a kernel set per family, over netlink. The rules thread keeps the rule that matches it.
//!
//! Owns the names of the sets. Must not start a program or wait for one: a block takes one message. A set
//! cannot be removed before its rule. `members.rs` compares what a set holds with what it should hold.

pub mod members;
pub mod netlink;

use std::time::Duration;

use ipnet::IpNet;

use crate::block::backend::ipset::members::Schedule;
use crate::block::backend::ipset::netlink::{
    AT_ONCE, CAPACITY, Element, IpsetError, KernelSet, LONGEST_TIMEOUT,
};
use crate::block::backend::rules::families;
use crate::block::backend::{Backend, FirewallError, Refused, block_each};
use crate::block::reconcile::{DesiredState, Fault};
use crate::types::{Family, IfName};

/// The sets of an instance.
pub struct IpsetBackend {
    /// One for each of [`families`].
    sides: Vec<Side>,
}

/// The set of one family.
struct Side {
    set: KernelSet,
    schedule: Schedule,
    /// How many networks it holds.
    held: u32,
}

impl IpsetBackend {
    /// Connects to the kernel. Changes nothing.
    pub fn connect(interface: &IfName) -> Result<Self, FirewallError> {
        let connect = |family| -> Result<Side, FirewallError> {
            let set = KernelSet::connect(set_name(interface, family), family)?;
            Ok(Side { set, schedule: Schedule::default(), held: 0 })
        };
        Ok(Self { sides: families().map(connect).collect::<Result<_, _>>()? })
    }

    fn side(&mut self, network: IpNet) -> Option<&mut Side> {
        self.sides.get_mut(Family::of(network) as usize)
    }
}

/// The name of an instance's set. At most 29 of the 31 bytes that a name may have.
pub fn set_name(interface: &IfName, family: Family) -> String {
    let version = match family {
        Family::V4 => "v4",
        Family::V6 => "v6",
    };
    format!("tcptracker-{interface}-{version}")
}

impl Side {
    fn ensure_set(&mut self) -> Result<(), IpsetError> {
        match self.set.create() {
            // Another version of tcptracker or another program has made it with other options. If its type
            // does not permit an exchange, the rules thread removes the rule that uses it.
            Err(IpsetError::Foreign(_)) if self.set.replace_foreign().is_err() => {
                self.set.destroy()?;
                self.set.create()
            }
            Err(IpsetError::Foreign(_)) => Ok(()),
            result => result,
        }
    }

    /// Returns the elements that a crashed instance has left, or `None` if there is no set.
    fn left_over(&mut self) -> Result<Option<Vec<Element>>, IpsetError> {
        let mut elements = Vec::new();
        match self.set.for_each(|element| elements.push(element)) {
            Err(IpsetError::Missing(_)) => Ok(None),
            result => result.map(|()| Some(elements)),
        }
    }
}

impl Backend for IpsetBackend {
    fn name(&self) -> &'static str {
        "ipset"
    }

    fn install(&mut self) -> Result<Option<Vec<Element>>, FirewallError> {
        let mut found: Option<Vec<Element>> = None;
        for side in &mut self.sides {
            if let Some(elements) = side.left_over()? {
                found.get_or_insert_default().extend(elements);
            }
            side.ensure_set()?;
        }
        Ok(found)
    }

    fn block(&mut self, network: IpNet, duration: Duration) -> Result<(), FirewallError> {
        let side = self.side(network).ok_or(FirewallError::NoIpv6)?;
        Ok(side.set.add(network, duration)?)
    }

    fn block_all(&mut self, networks: &[(IpNet, Duration)]) -> Refused {
        let mut refused = Vec::new();
        for family in Family::ALL {
            let is_of_family = |(network, _): &&(IpNet, Duration)| Family::of(*network) == family;
            let of_family: Vec<_> = networks.iter().filter(is_of_family).copied().collect();
            for some in of_family.chunks(AT_ONCE) {
                let side = self.side(some[0].0);
                if side.is_none_or(|side| side.set.add_all(some).is_err()) {
                    refused.extend(block_each(self, some));
                }
            }
        }
        refused
    }

    fn unblock(&mut self, network: IpNet) -> Result<(), FirewallError> {
        let Some(side) = self.side(network) else { return Ok(()) };
        match side.set.delete(network) {
            // Without its set nothing is blocked.
            Ok(_) | Err(IpsetError::Missing(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn check(&mut self, desired: &DesiredState<'_>) -> Result<Vec<Fault>, FirewallError> {
        let mut faults = Vec::new();
        for side in &mut self.sides {
            let (held, fault) = members::check(&mut side.set, &mut side.schedule, desired)?;
            side.held = held;
            faults.extend(fault);
        }
        Ok(faults)
    }

    fn repair(&mut self, desired: &DesiredState<'_>) -> Result<(), FirewallError> {
        for side in &mut self.sides {
            match side.ensure_set() {
                // Until the rules thread has removed its rule, the fault stays.
                Err(IpsetError::InUse(_)) => {}
                result => {
                    result?;
                    members::repair(&mut side.set, desired)?;
                    side.schedule = Schedule::default();
                }
            }
        }
        Ok(())
    }

    fn held(&self, family: Family) -> u32 {
        self.sides.get(family as usize).map_or(0, |side| side.held)
    }

    fn dropped_from(&mut self, network: IpNet) -> Result<u64, FirewallError> {
        let Some(side) = self.side(network) else { return Ok(0) };
        let mut packets = 0;
        // The kernel cannot list a single element.
        side.set.for_each(|element| {
            if element.network == network {
                packets = element.packets;
            }
        })?;
        Ok(packets)
    }

    fn capacity(&self) -> u32 {
        CAPACITY
    }

    fn longest(&self) -> Duration {
        LONGEST_TIMEOUT
    }

    fn clear(&mut self) -> Result<(), FirewallError> {
        let cleared = self.sides.iter_mut().map(|side| side.set.flush()).fold(Ok(()), Result::and);
        Ok(cleared?)
    }

    fn remove(&mut self) -> Result<(), FirewallError> {
        // A family that cannot be removed must not keep the other one.
        let removed =
            self.sides.iter_mut().map(|side| side.set.destroy()).fold(Ok(()), Result::and);
        Ok(removed?)
    }
}
