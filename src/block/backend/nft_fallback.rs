//! Table `filter` where somebody has added rules with nft(8) that iptables cannot express: then iptables
//! shows nothing of the table, and deletes nothing from the chains they are in.
//!
//! Owns the way round it: what nf_tables itself tells is put into the words of `iptables-save`, so that
//! `listing.rs` reads both alike, and jumps to our chain are deleted by their numbers. Everything else
//! iptables does as ever, since our own chain is not mixed.

use crate::block::backend::FirewallError;
use crate::block::backend::nftables::{Goes, Nftables, Rule};
use crate::block::backend::program::Program;
use crate::block::backend::ruleset::{CHAIN, delete};
use crate::types::network::Family;

/// The table, as `iptables-save` would print it, as far as it concerns our chain.
pub fn show(program: Program, nftables: &mut Nftables) -> Result<String, FirewallError> {
    let mut shown = Vec::new();
    if nftables.has_our_chain(program.family)? {
        shown.push(format!(":{CHAIN} - [0:0]"));
        shown.extend(program.chain(CHAIN)?.lines().filter_map(counter_in_front));
    }
    let others = others(nftables, program.family)?;
    shown.extend(others.iter().map(|rule| format!("[0:0] {}", words(rule))));
    Ok(shown.join("\n"))
}

/// Carries out commands that follow from what was shown.
pub fn handle(
    program: Program,
    nftables: &mut Nftables,
    commands: &[String],
) -> Result<(), FirewallError> {
    let family = program.family;
    let deletions = others(nftables, family)?.into_iter().map(|rule| (delete(&words(&rule)), rule));
    let deletions: Vec<(String, Rule)> =
        deletions.filter(|(command, _)| commands.contains(command)).collect();
    let is_left = |command: &&String| !deletions.iter().any(|(deletion, _)| deletion == *command);
    let rest: Vec<String> = commands.iter().filter(is_left).cloned().collect();
    let mut delete_all = || {
        deletions.iter().try_for_each(|(_, rule)| nftables.delete(family, &rule.chain, rule.handle))
    };
    // A hook that is moved must not be missing in between; a chain can go only when nobody jumps to it.
    let is_moved = rest.iter().any(|command| command.starts_with("-I "));
    if !is_moved {
        delete_all()?;
    }
    if !rest.is_empty() {
        program.restore(&rest)?;
    }
    if is_moved {
        delete_all()?;
    }
    Ok(())
}

/// The rules of the other chains.
fn others(nftables: &mut Nftables, family: Family) -> Result<Vec<Rule>, FirewallError> {
    let mut rules = nftables.rules(family)?;
    rules.retain(|rule| rule.chain != CHAIN);
    Ok(rules)
}

/// A rule, in iptables' words as far as they matter.
fn words(rule: &Rule) -> String {
    let Rule { chain, handle, goes_to_ours } = rule;
    match goes_to_ours {
        Goes::Always => format!("-A {chain} -j {CHAIN}"),
        // A match nobody has, which names the rule.
        Goes::Sometimes => format!("-A {chain} -m handle --handle {handle} -j {CHAIN}"),
        Goes::Never => format!("-A {chain}"),
    }
}

/// `-A … -c packets bytes -j …`, as `iptables -v -S` prints it, into `[packets:bytes] -A … -j …`.
fn counter_in_front(line: &str) -> Option<String> {
    let (matches, rest) = line.rsplit_once(" -c ")?;
    let (packets, rest) = rest.split_once(' ')?;
    let (bytes, target) = rest.split_once(' ')?;
    line.starts_with("-A ").then(|| format!("[{packets}:{bytes}] {matches} {target}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_put_where_iptables_save_has_it() {
        let line = "-A tcptracker -s 192.0.2.7/32 -m comment --comment \"tcptracker@eth0\" -c 7 420 -j DROP";
        let expected = "[7:420] -A tcptracker -s 192.0.2.7/32 -m comment --comment \"tcptracker@eth0\" -j DROP";
        assert_eq!(counter_in_front(line).as_deref(), Some(expected));
        assert_eq!(counter_in_front("-N tcptracker"), None);
    }
}
