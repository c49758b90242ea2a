//! Back end `nftables`: a table of its own, over netlink, without any program.
//!
//! Owns the chains, rules and sets of its instance in the table `inet tcptracker`, which all instances share.
//! It has one hash set for each prefix length that is blocked: networks may overlap, each with its own time,
//! and a look-up takes as long for one as for 100,000. Must not touch other tables.

pub mod events;
pub mod messages;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use ipnet::IpNet;
use rustix::net::netlink::NETFILTER;
use tracing::debug;

use crate::block::backend::counter_totals::{CounterKey, CounterTotals};
use crate::block::backend::ipset::members::{Verdict, verdict};
use crate::block::backend::ipset::netlink::{CAPACITY, Element, LONGEST_TIMEOUT};
use crate::block::backend::nft::events::Events;
use crate::block::backend::nft::messages::{AT_ONCE, Object, Rule, SetKey, chain_name};
use crate::block::backend::rulebook::RulePlan;
use crate::block::backend::{Backend, FirewallError, Refused, block_each};
use crate::block::reconcile::{DesiredState, Fault};
use crate::config::FirewallConfig;
use crate::config::values::{Established, Hook};
use crate::system::netlink::{EXCL, NetlinkError, NetlinkSocket, Request};
use crate::types::{Family, IfName, Moment};

const ENOENT: i32 = 2;
const EEXIST: i32 = 17;

/// The members that are looked for when the set may have been changed: if all are missing, it was emptied.
const SAMPLE: usize = 4;

/// After a comparison of all members, the next one waits for 20 times as long, so that comparing takes at most
/// 5 % of a processor however often other programs change rules. The kernel lists a large set slowly: 1 s for
/// 100,000 members.
const REST: u32 = 20;

/// The chains, rules and sets of an instance.
pub struct NftBackend {
    socket: NetlinkSocket,
    events: Events,
    /// The address of the socket, by which the kernel names who has made a change.
    own: u32,
    interface: IfName,
    firewall: FirewallConfig,
    established: Established,
    /// What the kernel held after the last change or check.
    known: Known,
    /// The number of the last change to nf_tables that is known.
    generation: u32,
    /// Another program may have changed members since the last comparison.
    is_suspect: bool,
    /// When the members may be compared again.
    compare_after: Moment,
    held: [u32; 2],
    dropped: [CounterTotals; 2],
}

/// Chains, their rules and sets, by handles: a changed object has another one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    chains: BTreeMap<Vec<u8>, (u64, Vec<u64>)>,
    sets: BTreeMap<SetKey, u64>,
    /// Whether the table is in use: another program can switch it off.
    is_active: bool,
}

/// What a set lacks, each network with its time, and what it should not hold.
type Difference = (Vec<(IpNet, Duration)>, Vec<IpNet>);

impl NftBackend {
    /// Connects to the kernel. Changes nothing.
    pub fn connect(plan: &RulePlan) -> Result<Self, FirewallError> {
        let mut socket = NetlinkSocket::open(Some(NETFILTER), 0)?;
        let generation = read_generation(&mut socket)?;
        Ok(Self {
            events: Events::subscribe()?,
            own: socket.port()?,
            socket,
            interface: plan.interface.clone(),
            firewall: plan.firewall.clone(),
            established: plan.established,
            known: Known::default(),
            generation,
            is_suspect: true,
            compare_after: Moment::default(),
            held: [0; 2],
            dropped: Default::default(),
        })
    }

    /// Has the kernel carry out requests, all or none.
    fn commit(&mut self, requests: &[Request]) -> Result<(), NetlinkError> {
        self.socket.transact(&messages::enclosing(), requests)?;
        // If another program makes a change at the same time, the next check finds a greater number.
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    fn hooks(&self) -> Vec<Hook> {
        self.firewall.hooks.clone()
    }

    /// Reads what there is of this instance.
    fn read_known(&mut self) -> Result<Known, NetlinkError> {
        let mut known = Known { is_active: self.is_table_active()?, ..Known::default() };
        let Request { kind, body, .. } = messages::get_sets();
        let mut sets: Vec<Object> = Vec::new();
        missing_is_empty(
            self.socket.dump(kind, &body, |_, set| sets.extend(messages::read_set(set))),
        )?;
        for Object { name, handle } in sets {
            known.sets.extend(SetKey::parse(&name, &self.interface).map(|key| (key, handle)));
        }
        let Request { kind, body, .. } = messages::get_chains();
        let mut chains: Vec<Object> = Vec::new();
        self.socket.dump(kind, &body, |_, chain| chains.extend(messages::read_chain(chain)))?;
        for hook in Hook::ALL {
            let name = chain_name(hook, &self.interface).into_bytes();
            let Some(chain) = chains.iter().find(|chain| chain.name == name) else { continue };
            let rules = self.read_rules(hook)?.into_iter().map(|rule| rule.handle).collect();
            known.chains.insert(name, (chain.handle, rules));
        }
        Ok(known)
    }

    fn is_table_active(&mut self) -> Result<bool, NetlinkError> {
        let Request { kind, body, .. } = messages::get_table();
        let mut is_active = false;
        let read =
            self.socket.query(kind, &body, |_, table| is_active = !messages::is_dormant(table));
        missing_is_empty(read)?;
        Ok(is_active)
    }

    /// The rules of a chain, in order.
    fn read_rules(&mut self, hook: Hook) -> Result<Vec<Rule>, NetlinkError> {
        let Self { socket, interface, .. } = self;
        let Request { kind, body, .. } = messages::get_rules(hook, interface);
        let mut rules = Vec::new();
        let read =
            socket.dump(kind, &body, |_, rule| rules.extend(messages::read_rule(rule, interface)));
        missing_is_empty(read)?;
        Ok(rules)
    }

    fn for_each(&mut self, key: SetKey, mut each: impl FnMut(Element)) -> Result<(), NetlinkError> {
        let Request { kind, body, .. } = messages::get_elements(key, &self.interface);
        let read = self.socket.dump(kind, &body, |_, answer| {
            messages::read_elements(key, answer, &mut each);
        });
        missing_is_empty(read)
    }

    fn find(&mut self, network: IpNet) -> Result<Option<Element>, NetlinkError> {
        let Request { kind, body, .. } = messages::get_element(network, &self.interface);
        let mut found = None;
        let read = self.socket.query(kind, &body, |_, answer| {
            messages::read_elements(SetKey::of(network), answer, |element| found = Some(element));
        });
        missing_is_empty(read)?;
        Ok(found)
    }

    /// The prefix lengths that have a set: those that are common, and those of blocked networks.
    fn lengths(&self, desired: Option<&DesiredState<'_>>) -> BTreeSet<SetKey> {
        let mut keys: BTreeSet<SetKey> = self.known.sets.keys().copied().collect();
        keys.extend([
            SetKey { family: Family::V4, length: 32 },
            SetKey { family: Family::V6, length: 64 },
            SetKey { family: Family::V6, length: 128 },
        ]);
        if let Some(desired) = desired {
            for family in Family::ALL {
                keys.extend(desired.members(family).map(|(network, _)| SetKey::of(network)));
            }
        }
        keys
    }

    /// Makes chains and rules again, and the sets that are missing, in one step: no packet passes in between.
    fn rebuild(&mut self, keys: &BTreeSet<SetKey>) -> Result<(), NetlinkError> {
        self.count_dropped()?;
        let present = self.read_known()?;
        if !present.is_active {
            // The kernel does not switch a table on together with changes to its chains.
            self.commit(&[messages::add_table()])?;
        }
        let mut requests = vec![messages::add_table()];
        requests.extend(present.chains.keys().map(|name| messages::delete_chain(name)));
        let hooks = self.hooks();
        requests.extend(hooks.iter().map(|hook| messages::add_chain(*hook, &self.interface)));
        let new = keys.iter().filter(|key| !present.sets.contains_key(key));
        requests.extend(new.map(|key| messages::add_set(*key, &self.interface)));
        for hook in hooks {
            requests.extend(keys.iter().map(|key| self.rule(hook, *key)));
        }
        self.commit(&requests)?;
        self.known = self.read_known()?;
        Ok(())
    }

    fn rule(&self, hook: Hook, key: SetKey) -> Request {
        messages::add_rule(hook, key, self.established, self.firewall.target, &self.interface)
    }

    /// Adds the set for a prefix length, and its rules.
    fn add_length(&mut self, key: SetKey) -> Result<(), NetlinkError> {
        let mut requests = vec![messages::add_set(key, &self.interface)];
        requests.extend(self.hooks().iter().map(|hook| self.rule(*hook, key)));
        self.commit(&requests)?;
        self.known = self.read_known()?;
        Ok(())
    }

    /// Adds the packets that the rules have dropped since the last call to the totals.
    fn count_dropped(&mut self) -> Result<(), NetlinkError> {
        let mut readings: [Vec<(CounterKey, u64)>; 2] = Default::default();
        for hook in self.hooks() {
            for Rule { handle, packets, set } in self.read_rules(hook)? {
                if let Some(SetKey { family, .. }) = set {
                    readings[family as usize].push((CounterKey::Handle(handle), packets));
                }
            }
        }
        for (totals, readings) in self.dropped.iter_mut().zip(readings) {
            totals.update(readings.into_iter());
        }
        Ok(())
    }

    /// Compares all members with what they should be.
    fn compare(
        &mut self,
        family: Family,
        desired: &DesiredState<'_>,
    ) -> Result<Difference, NetlinkError> {
        let begun = Moment::now();
        let (mut held, mut stray) = (HashSet::new(), Vec::new());
        let keys: Vec<SetKey> = self.known.sets.keys().copied().collect();
        for key in keys.into_iter().filter(|key| key.family == family) {
            self.for_each(key, |Element { network, remaining, .. }| {
                match verdict(desired, &network, remaining, Moment::now) {
                    Verdict::Held => drop(held.insert(network)),
                    Verdict::TooShort => {}
                    Verdict::Stray => stray.push(network),
                }
            })?;
        }
        self.held[family as usize] = u32::try_from(held.len()).unwrap_or(u32::MAX);
        let missing = desired.members(family).filter(|(network, _)| !held.contains(network));
        let ended = Moment::now();
        self.compare_after = ended + ended.since(begun) * REST;
        Ok((missing.collect(), stray))
    }

    /// Whether a set was emptied: none of a few members is there.
    fn is_emptied(
        &mut self,
        family: Family,
        desired: &DesiredState<'_>,
    ) -> Result<bool, NetlinkError> {
        let sample: Vec<IpNet> =
            desired.members(family).map(|(network, _)| network).take(SAMPLE).collect();
        for network in &sample {
            if self.find(*network)?.is_some() {
                return Ok(false);
            }
        }
        Ok(!sample.is_empty())
    }

    /// Finds what is wrong with the members, if they may have been changed.
    fn check_members(&mut self, desired: &DesiredState<'_>) -> Result<Vec<Fault>, NetlinkError> {
        let mut faults = Vec::new();
        let may_compare = desired.now() >= self.compare_after;
        for family in Family::ALL {
            let count = desired.count(family);
            let (missing, stray) = if self.is_emptied(family, desired)? {
                (count, 0)
            } else if may_compare {
                let (missing, stray) = self.compare(family, desired)?;
                // Members that expired during the comparison may or may not be there.
                let expired = desired.over(family, Moment::now());
                (missing.len().saturating_sub(expired), stray.len())
            } else {
                continue;
            };
            if missing > 0 || stray > 0 {
                debug!(
                    family = family.as_str(),
                    count, missing, stray, "a set of nf_tables differs"
                );
                faults.push(Fault::Members { family, missing, stray });
            }
        }
        self.is_suspect = !may_compare || !faults.is_empty();
        Ok(faults)
    }

    /// Finds what is wrong with the table, its chains, rules and sets.
    fn check_objects(&mut self) -> Result<Vec<Fault>, NetlinkError> {
        let found = self.read_known()?;
        if found == self.known {
            return Ok(Vec::new());
        }
        self.is_suspect = true;
        let mut faults = Vec::new();
        if !found.is_active || found.chains.keys().ne(self.known.chains.keys()) {
            faults.extend(Family::ALL.map(Fault::Chain));
        } else if found.chains != self.known.chains {
            faults.extend(Family::ALL.map(Fault::Rule));
        }
        for family in Family::ALL {
            let of_family = |known: &Known| -> Vec<(SetKey, u64)> {
                let sets = known.sets.iter().map(|(key, handle)| (*key, *handle));
                sets.filter(|(key, _)| key.family == family).collect()
            };
            if of_family(&found) != of_family(&self.known) {
                faults.push(Fault::Set(family));
            }
        }
        Ok(faults)
    }

    /// Replaces an element that exists. What it has counted stays.
    fn replace(&mut self, network: IpNet, duration: Duration) -> Result<(), NetlinkError> {
        let key = SetKey::of(network);
        let packets = self.find(network)?.map_or(0, |element| element.packets);
        // Before Linux 6.12 an element that is added again keeps its time.
        let delete = messages::delete_elements(key, &[network], &self.interface);
        let add =
            messages::add_elements(key, &[(network, duration, packets)], EXCL, &self.interface);
        match self.commit(&[delete, add]) {
            // It has just expired.
            Err(NetlinkError::Refused(ENOENT)) => {
                let add = messages::add_elements(
                    key,
                    &[(network, duration, packets)],
                    0,
                    &self.interface,
                );
                self.commit(&[add])
            }
            result => result,
        }
    }

    fn add(&mut self, network: IpNet, duration: Duration) -> Result<(), NetlinkError> {
        let key = SetKey::of(network);
        if !self.known.sets.contains_key(&key) {
            self.add_length(key)?;
        }
        let add = messages::add_elements(key, &[(network, duration, 0)], EXCL, &self.interface);
        match self.commit(&[add]) {
            Err(NetlinkError::Refused(EEXIST)) => self.replace(network, duration),
            result => result,
        }
    }
}

impl Backend for NftBackend {
    fn name(&self) -> &'static str {
        "nftables"
    }

    fn install(&mut self) -> Result<Option<Vec<Element>>, FirewallError> {
        let present = self.read_known()?;
        let has_left = present != Known::default();
        let mut elements = Vec::new();
        for key in present.sets.keys() {
            self.for_each(*key, |element| elements.push(element))?;
        }
        self.known = present;
        let keys = self.lengths(None);
        self.rebuild(&keys)?;
        Ok(has_left.then_some(elements))
    }

    fn block(&mut self, network: IpNet, duration: Duration) -> Result<(), FirewallError> {
        Ok(self.add(network, duration)?)
    }

    fn block_all(&mut self, networks: &[(IpNet, Duration)]) -> Refused {
        let mut by_length: BTreeMap<SetKey, Vec<(IpNet, Duration, u64)>> = BTreeMap::new();
        for (network, duration) in networks {
            by_length.entry(SetKey::of(*network)).or_default().push((*network, *duration, 0));
        }
        let mut refused = Vec::new();
        for (key, elements) in by_length {
            let is_ready = self.known.sets.contains_key(&key) || self.add_length(key).is_ok();
            for some in elements.chunks(AT_ONCE) {
                let add = messages::add_elements(key, some, EXCL, &self.interface);
                if !is_ready || self.commit(&[add]).is_err() {
                    let one_by_one: Vec<_> =
                        some.iter().map(|(net, time, _)| (*net, *time)).collect();
                    refused.extend(block_each(self, &one_by_one));
                }
                // What this socket itself has changed must not fill the queue of events.
                self.is_suspect |=
                    self.events.has_changed_members(&self.interface, self.own).unwrap_or(true);
            }
        }
        refused
    }

    fn unblock(&mut self, network: IpNet) -> Result<(), FirewallError> {
        let delete = messages::delete_elements(SetKey::of(network), &[network], &self.interface);
        // Without its element nothing is blocked.
        Ok(missing_is_empty(self.commit(&[delete]))?)
    }

    fn check(&mut self, desired: &DesiredState<'_>) -> Result<Vec<Fault>, FirewallError> {
        let generation = read_generation(&mut self.socket)?;
        self.is_suspect |= self.events.has_changed_members(&self.interface, self.own)?;
        let mut faults = Vec::new();
        if generation != self.generation {
            faults = self.check_objects()?;
            // A table that has to be made again is checked again.
            if faults.is_empty() {
                self.generation = generation;
            }
        }
        self.count_dropped()?;
        if self.is_suspect && faults.is_empty() {
            faults = self.check_members(desired)?;
        }
        if faults.iter().any(Fault::breaks_all) {
            self.held = [0; 2];
        } else if !self.is_suspect {
            // The kernel itself ends what has expired.
            for family in Family::ALL {
                let count = desired.count(family) - desired.over(family, desired.now());
                self.held[family as usize] = u32::try_from(count).unwrap_or(u32::MAX);
            }
        }
        Ok(faults)
    }

    fn repair(&mut self, desired: &DesiredState<'_>) -> Result<(), FirewallError> {
        let keys = self.lengths(Some(desired));
        if self.read_known()? != self.known || keys.len() != self.known.sets.len() {
            self.rebuild(&keys)?;
        }
        for family in Family::ALL {
            let (missing, stray) = if self.is_emptied(family, desired)? {
                (desired.members(family).collect(), Vec::new())
            } else {
                self.compare(family, desired)?
            };
            for network in stray {
                self.unblock(network)?;
            }
            if let Some((_, error)) = self.block_all(&missing).into_iter().next() {
                return Err(error);
            }
        }
        self.is_suspect = true;
        self.compare_after = Moment::default();
        Ok(())
    }

    fn held(&self, family: Family) -> u32 {
        self.held[family as usize]
    }

    fn dropped(&self, family: Family) -> u64 {
        self.dropped[family as usize].total()
    }

    fn dropped_from(&mut self, network: IpNet) -> Result<u64, FirewallError> {
        Ok(self.find(network)?.map_or(0, |element| element.packets))
    }

    fn capacity(&self) -> u32 {
        CAPACITY
    }

    fn longest(&self) -> Duration {
        LONGEST_TIMEOUT
    }

    fn clear(&mut self) -> Result<(), FirewallError> {
        let keys: Vec<SetKey> = self.read_known()?.sets.keys().copied().collect();
        let flush: Vec<_> =
            keys.into_iter().map(|key| messages::flush_set(key, &self.interface)).collect();
        Ok(self.commit(&flush)?)
    }

    fn remove(&mut self) -> Result<(), FirewallError> {
        let present = self.read_known()?;
        if present == Known::default() {
            return Ok(());
        }
        let mut requests: Vec<_> =
            present.chains.keys().map(|name| messages::delete_chain(name)).collect();
        let names = present.sets.keys().map(|key| key.name(&self.interface));
        requests.extend(names.map(|name| messages::delete_set(name.as_bytes())));
        self.commit(&requests)?;
        // Another instance may use the table.
        let _ = self.commit(&[messages::delete_table()]);
        self.known = Known::default();
        Ok(())
    }
}

/// The number of the last change to nf_tables in this network namespace.
fn read_generation(socket: &mut NetlinkSocket) -> Result<u32, NetlinkError> {
    let Request { kind, body, .. } = messages::get_generation();
    let mut generation = None;
    socket.query(kind, &body, |_, answer| generation = messages::read_generation(answer))?;
    generation.ok_or(NetlinkError::Garbled)
}

/// What does not exist holds nothing.
fn missing_is_empty(result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        Err(NetlinkError::Refused(ENOENT)) => Ok(()),
        result => result,
    }
}
