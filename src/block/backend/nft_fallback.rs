//! The table `filter` after nft(8) has added rules that iptables cannot express: then iptables shows
//! none of the table's rules and deletes none in the chains that hold such rules.
//!
//! Owns the way around it. What nf_tables reports is written in the words of `iptables-save`, so that
//! `ruleset.rs` reads both; jumps to the chain `tcptracker` are deleted by their handles. iptables makes
//! all other changes, because that chain holds only rules that iptables knows.

use crate::block::backend::FirewallError;
use crate::block::backend::nftables::Nftables;
use crate::block::backend::program::Program;
use crate::block::backend::ruleset::{CHAIN, deletion};

/// Returns the part of the table that concerns the chain `tcptracker`, as `iptables-save` prints it.
pub fn save(program: &Program, nftables: &mut Nftables) -> Result<String, FirewallError> {
    let mut lines = Vec::new();
    if nftables.has_chain()? {
        lines.push(format!(":{CHAIN} - [0:0]"));
        lines.extend(program.list_chain(CHAIN)?.lines().filter_map(move_counters));
    }
    lines.extend(
        nftables.rules_of_other_chains()?.iter().map(|rule| format!("[0:0] {}", rule.text)),
    );
    Ok(lines.join("\n"))
}

/// Carries out commands of `iptables-restore` that follow from [`save`].
pub fn restore(
    program: &Program,
    nftables: &mut Nftables,
    commands: &[String],
) -> Result<(), FirewallError> {
    let mut jumps = nftables.rules_of_other_chains()?;
    jumps.retain(|rule| commands.contains(&deletion(&rule.text)));
    let is_for_iptables =
        |command: &&String| !jumps.iter().any(|rule| deletion(&rule.text) == **command);
    let rest: Vec<String> = commands.iter().filter(is_for_iptables).cloned().collect();
    // While a hook moves to the first position there must be one; a chain can only be deleted after the
    // jumps to it.
    let moves_hook = rest.iter().any(|command| command.starts_with("-I "));
    if !moves_hook {
        nftables.delete_all(&jumps)?;
    }
    if !rest.is_empty() {
        program.restore(&rest)?;
    }
    if moves_hook {
        nftables.delete_all(&jumps)?;
    }
    Ok(())
}

/// Turns `-A … -c packets bytes -j …`, which `iptables -v -S` prints, into `[packets:bytes] -A … -j …`.
fn move_counters(line: &str) -> Option<String> {
    let (matches, rest) = line.rsplit_once(" -c ")?;
    let (packets, rest) = rest.split_once(' ')?;
    let (bytes, target) = rest.split_once(' ')?;
    line.starts_with("-A ").then(|| format!("[{packets}:{bytes}] {matches} {target}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_move_to_where_iptables_save_prints_them() {
        let line = "-A tcptracker -s 192.0.2.7/32 -m comment --comment \"tcptracker@eth0\" -c 7 420 -j DROP";
        let expected = "[7:420] -A tcptracker -s 192.0.2.7/32 -m comment --comment \"tcptracker@eth0\" -j DROP";
        assert_eq!(move_counters(line).as_deref(), Some(expected));
        assert_eq!(move_counters("-N tcptracker"), None);
    }
}
