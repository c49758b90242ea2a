//! `tcptracker block`, `tcptracker unblock` and `tcptracker reload`.
//!
//! Every address is tried on every instance. Must not stop at an address that the service refuses.

use std::time::Duration;

use ipnet::IpNet;

use crate::cli::CliError;
use crate::cli::arguments::{Block, Reload, Unblock};
use crate::cli::client::{Answers, ClientError, Instance, Purpose, ask_each, instances};
use crate::cli::output::print;
use crate::system::progress::Progress;
use crate::types::{HumanDuration, IfName, overlap, parse_network, show_network};

/// Commands on fewer addresses than this take no time.
const SHOW_PROGRESS_AFTER: Duration = Duration::from_millis(500);

/// What an instance has done, as the ends of output lines, and what it has refused.
#[derive(Default)]
struct Changes {
    lines: Vec<String>,
    /// The requested addresses that were blocked.
    found: Vec<IpNet>,
    failures: Vec<ClientError>,
}

impl Changes {
    /// Ends the work on an instance that does not answer, or does not allow changes.
    fn stopped_by(mut self, failure: ClientError) -> Result<Self, ClientError> {
        if self.lines.is_empty() && self.failures.is_empty() {
            return Err(failure);
        }
        self.failures.push(failure);
        Ok(self)
    }
}

pub fn block(arguments: &Block) -> Result<(), CliError> {
    let seconds = arguments.duration.get().map_or(0, |duration| duration.as_secs());
    let span = match arguments.duration.get() {
        None => "until unblocked".to_owned(),
        Some(duration) => format!("for {}", HumanDuration(duration)),
    };
    let answers = change(arguments.interface.as_ref(), async |instance| {
        let mut changes = Changes::default();
        for network in &arguments.addresses {
            match instance.block(*network, seconds, &arguments.reason).await {
                Ok(()) => {
                    let (network, interface) = (show_network(network), instance.interface());
                    changes.lines.push(format!("blocked {network} on {interface} {span}\n"));
                }
                Err(failure) if failure.is_of_one_request() => changes.failures.push(failure),
                Err(failure) => return changes.stopped_by(failure),
            }
        }
        Ok(changes)
    })?;
    let asked = answers.asked;
    let (_, failures) = print_changes(answers)?;
    CliError::of_all(failures, asked)
}

pub fn unblock(arguments: &Unblock) -> Result<(), CliError> {
    let wanted = &arguments.addresses;
    let answers = change(arguments.interface.as_ref(), async |instance| {
        if arguments.all {
            unblock_all(instance).await
        } else {
            unblock_these(instance, wanted).await
        }
    })?;
    let asked = answers.asked;
    let is_done = answers.answered.iter().any(|(_, changes)| !changes.lines.is_empty());
    let (found, mut failures) = print_changes(answers)?;
    if arguments.all && !is_done && failures.is_empty() {
        print("nothing is blocked\n")?;
    }
    if failures.is_empty() {
        // It is enough if one instance had the block.
        let missing = wanted.iter().filter(|network| !found.contains(network));
        failures.extend(missing.map(|network| ClientError::NotBlocked(*network)));
        return CliError::of_all(failures, 1);
    }
    CliError::of_all(failures, asked)
}

async fn unblock_these(instance: &Instance, wanted: &[IpNet]) -> Result<Changes, ClientError> {
    // Without the list, the output cannot name the other blocks that end.
    let blocked = blocked_by(instance).await.unwrap_or_default();
    let mut changes = Changes::default();
    let mut ended: Vec<IpNet> = Vec::new();
    for network in wanted {
        let of_network = || blocked.iter().filter(|blocked| overlap(blocked, network));
        match instance.unblock(*network).await {
            Ok(true) => {
                let new: Vec<IpNet> =
                    of_network().filter(|one| !ended.contains(one)).copied().collect();
                changes.lines.extend(unblocked_lines(*network, &new, instance.interface()));
                changes.found.push(*network);
                ended.extend(new);
            }
            // An earlier address of this command may have ended the block.
            Ok(false) if of_network().any(|one| ended.contains(one)) => {
                changes.found.push(*network);
            }
            Ok(false) => {}
            Err(failure) if failure.is_of_one_request() => changes.failures.push(failure),
            Err(failure) => return changes.stopped_by(failure),
        }
    }
    Ok(changes)
}

/// Unblocking ends all blocks in the network, and the block that contains it.
fn unblocked_lines(asked: IpNet, ended: &[IpNet], interface: &IfName) -> Vec<String> {
    let asked_text = show_network(&asked);
    let line = |network: &IpNet| match show_network(network) {
        text if *network != asked && network.contains(&asked) => {
            format!("unblocked {text} (contains {asked_text}) on {interface}\n")
        }
        text => format!("unblocked {text} on {interface}\n"),
    };
    if ended.is_empty() { vec![line(&asked)] } else { ended.iter().map(line).collect() }
}

/// Unblocks one address after the other, so that each gets its grace time.
async fn unblock_all(instance: &Instance) -> Result<Changes, ClientError> {
    let blocked = blocked_by(instance).await?;
    let interface = instance.interface();
    let mut progress = Progress::after(SHOW_PROGRESS_AFTER);
    let mut changes = Changes::default();
    for (done, network) in blocked.iter().enumerate() {
        progress.show(|| format!("{interface}: unblocked {done} of {}", blocked.len()));
        match instance.unblock(*network).await {
            Ok(true) => changes.lines.extend(unblocked_lines(*network, &[], interface)),
            // The block has expired meanwhile.
            Ok(false) => {}
            Err(failure) => return changes.stopped_by(failure),
        }
    }
    Ok(changes)
}

async fn blocked_by(instance: &Instance) -> Result<Vec<IpNet>, ClientError> {
    let blocks = instance.list().await?;
    Ok(blocks.iter().filter_map(|(address, ..)| parse_network(address).ok()).collect())
}

pub fn reload(arguments: &Reload) -> Result<(), CliError> {
    let answers = change(arguments.interface.as_ref(), async |instance| {
        instance.reload().await?;
        let line = format!("reloaded the configuration of {}\n", instance.interface());
        Ok(Changes { lines: vec![line], ..Changes::default() })
    })?;
    let asked = answers.asked;
    let (_, failures) = print_changes(answers)?;
    CliError::of_all(failures, asked)
}

fn change(
    only: Option<&IfName>,
    ask: impl AsyncFn(&Instance) -> Result<Changes, ClientError>,
) -> Result<Answers<Changes>, CliError> {
    zbus::block_on(async {
        let instances = instances(only, Purpose::Change).await?;
        Ok(ask_each(&instances, ask).await)
    })
}

/// Prints what was done. Returns the addresses that were found, and all failures.
fn print_changes(answers: Answers<Changes>) -> Result<(Vec<IpNet>, Vec<ClientError>), CliError> {
    let (mut found, mut failures) = (Vec::new(), answers.failures);
    for (_, changes) in answers.answered {
        if !changes.lines.is_empty() {
            print(&changes.lines.concat())?;
        }
        found.extend(changes.found);
        failures.extend(changes.failures);
    }
    Ok((found, failures))
}
