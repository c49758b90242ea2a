//! `tcptracker stats`

use std::collections::{BTreeMap, BTreeSet};

use super::CliError;
use super::client::instances;
use super::output::{Table, print_json};
use crate::interface::InterfaceName;

pub(super) fn run(only: Option<&InterfaceName>, json: bool) -> Result<(), CliError> {
    let counted = zbus::block_on(async {
        let mut counted = BTreeMap::new();
        for instance in instances(only).await? {
            let counters: BTreeMap<String, u64> = instance.stats().await?.into_iter().collect();
            counted.insert(instance.interface.to_string(), counters);
        }
        Ok::<_, CliError>(counted)
    })?;
    if json {
        return print_json(&counted);
    }
    let heading = std::iter::once("COUNTER").chain(counted.keys().map(String::as_str));
    let mut table = Table::new(heading);
    let names: BTreeSet<&String> = counted.values().flat_map(BTreeMap::keys).collect();
    for name in names {
        let values = counted
            .values()
            .map(|counters| counters.get(name).map_or_else(|| "-".to_owned(), ToString::to_string));
        table.row(std::iter::once(name.clone()).chain(values).collect());
    }
    table.print()
}
