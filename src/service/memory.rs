//! How much memory the service takes at most, and how much it may take.
//!
//! Owns the sum. The start fails if full tables do not fit the limit of the service manager, because the
//! kernel would end the service in the middle of an attack.

use crate::block::store;
use crate::config::Config;
use crate::detect;
use crate::system::cgroup;
use crate::types::IfName;

const MIB: u64 = 1 << 20;

/// The program and its libraries, the stacks of its threads, the cache of SQLite.
const PROGRAM: u64 = 24 * MIB;
/// The kernel's ring, and the one that replaces it when the preset changes.
const RINGS: u64 = 2 * 4 * MIB;
/// Batches of segments (18 of 4,096), events (2,048), signals and commands (1,024 each).
const QUEUES: u64 = 8 * MIB;
/// What calls on the bus and HTTP clients may take.
const CLIENTS: u64 = 20 * MIB;
/// Earlier offences and graces: 131,072 each.
const OFFENCES: u64 = 2 * 131_072 * 128;
/// A block in memory.
const BLOCK: u64 = 600;
/// The most blocks that the kernel holds: two sets.
const MOST_BLOCKS: u64 = 2 * 524_288;

/// Why the configuration does not fit.
#[derive(Debug, thiserror::Error)]
#[error(
    "full tables would need {} MiB of memory (detection.max_sources = {sources}, {blocks} blocks, \
     block.max_per_minute = {rate}), and the service may take {} MiB; lower these, or type `systemctl edit {}` \
     and add the lines [Service] and MemoryMax={}M",
    needed.div_ceil(MIB), limit / MIB, interface.unit(), needed.div_ceil(MIB)
)]
pub struct MemoryError {
    interface: IfName,
    sources: usize,
    blocks: u64,
    rate: u32,
    needed: u64,
    limit: u64,
}

/// Returns the most bytes that the service takes with this configuration, if it has so many blocks now and
/// adds those of an hour.
pub fn most_bytes(config: &Config, blocks: u64) -> u64 {
    let added = 60 * u64::from(config.block.max_per_minute.get());
    let blocks = (blocks + added).min(MOST_BLOCKS);
    PROGRAM
        + RINGS
        + QUEUES
        + CLIENTS
        + OFFENCES
        + blocks * BLOCK
        + detect::memory::most_bytes(&config.detection)
}

/// Fails if the service may not take what it needs with this configuration and so many blocks.
pub fn check(interface: &IfName, config: &Config, blocks: u64) -> Result<(), MemoryError> {
    fit(interface, config, blocks, cgroup::memory_limit())
}

/// Returns how many blocks the store of an instance holds.
pub fn blocks_in_store(interface: &IfName) -> u64 {
    let file = store::file_of(interface, std::env::var_os("STATE_DIRECTORY"));
    store::blocks_in(&file)
}

fn fit(
    interface: &IfName,
    config: &Config,
    blocks: u64,
    limit: Option<u64>,
) -> Result<(), MemoryError> {
    let needed = most_bytes(config, blocks);
    match limit.filter(|limit| needed > *limit) {
        None => Ok(()),
        Some(limit) => Err(MemoryError {
            interface: interface.clone(),
            sources: config.detection.max_sources.get(),
            blocks,
            rate: config.block.max_per_minute.get(),
            needed,
            limit,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Preset;

    /// `MemoryMax=` of the unit.
    const UNIT: u64 = 512 * MIB;

    #[test]
    fn unit_has_room_for_the_defaults_and_for_100_000_blocks() {
        let interface = "eth0".parse().unwrap();
        for preset in [Preset::Classic, Preset::Balanced] {
            let mut config = Config::default();
            config.detection.preset = preset;
            fit(&interface, &config, 100_000, Some(UNIT)).unwrap();
            fit(&interface, &config, 100_000, None).unwrap();
        }
        let unit = include_str!("../../systemd/tcptracker@.service");
        assert!(unit.lines().any(|line| line == "MemoryMax=512M"));
    }

    #[test]
    fn refusal_says_what_is_needed_and_what_to_type() {
        let mut config = Config::default();
        config.detection.max_sources = 2_000_000_u64.try_into().unwrap();
        let error = fit(&"eth0".parse().unwrap(), &config, 7, Some(UNIT)).unwrap_err();
        let needed = most_bytes(&config, 7).div_ceil(MIB);
        assert_eq!(
            error.to_string(),
            format!(
                "full tables would need {needed} MiB of memory (detection.max_sources = 2000000, 7 blocks, \
                 block.max_per_minute = 600), and the service may take 512 MiB; lower these, or type \
                 `systemctl edit tcptracker@eth0` and add the lines [Service] and MemoryMax={needed}M"
            )
        );
        fit(&"eth0".parse().unwrap(), &config, 7, Some(needed * MIB)).unwrap();
    }
}
