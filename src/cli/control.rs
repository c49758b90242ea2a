//! `tcptracker block`, `tcptracker unblock` and `tcptracker reload`

use std::time::Duration;

use ipnet::IpNet;

use crate::cli::CliError;
use crate::cli::arguments::{Block, Reload, Unblock};
use crate::cli::client::{ClientError, Instance, Purpose, ask_each, instances};
use crate::cli::output::print;
use crate::system::progress::Progress;
use crate::types::clock::HumanDuration;
use crate::types::network::{overlap, parse_network, show_network};

pub fn block(arguments: &Block) -> Result<(), CliError> {
    let network = arguments.address;
    let seconds = arguments.duration.map_or(0, |duration| duration.as_secs());
    let span = arguments.duration.map_or_else(
        || "until unblocked".to_owned(),
        |duration| format!("for {}", HumanDuration(duration)),
    );
    let answers = zbus::block_on(async {
        let instances = instances(arguments.interface.as_ref(), Purpose::Change).await?;
        let block =
            async |instance: &Instance| instance.block(network, seconds, &arguments.reason).await;
        Ok::<_, CliError>(ask_each(&instances, block).await)
    })?;
    for (interface, ()) in &answers.told {
        print(&format!("blocked {} on {interface} {span}\n", show_network(&network)))?;
    }
    CliError::of_all(answers.failures)
}

pub fn unblock(arguments: &Unblock) -> Result<(), CliError> {
    let wanted = arguments.address;
    let answers = zbus::block_on(async {
        let instances = instances(arguments.interface.as_ref(), Purpose::Change).await?;
        let unblock = async |instance: &Instance| match wanted {
            Some(network) => unblock_one(instance, network).await,
            None => unblock_all(instance).await,
        };
        Ok::<_, CliError>(ask_each(&instances, unblock).await)
    })?;
    let mut failures = answers.failures;
    let mut text = String::new();
    for (interface, Unblocked { lines, failure }) in answers.told {
        text.extend(lines.iter().map(|line| format!("unblocked {line} on {interface}\n")));
        failures.extend(failure);
    }
    match wanted {
        _ if !text.is_empty() => print(&text)?,
        _ if !failures.is_empty() => {}
        Some(network) => return Err(ClientError::NotBlocked(network).into()),
        None => print("nothing is blocked\n")?,
    }
    CliError::of_all(failures)
}

/// What an instance has let in, in words, and why it has not let in the rest.
struct Unblocked {
    lines: Vec<String>,
    failure: Option<ClientError>,
}

/// Lets in an address or network, and says whom that has let in: all that lies in it, and the network it
/// lies in.
async fn unblock_one(instance: &Instance, network: IpNet) -> Result<Unblocked, ClientError> {
    // Where the list cannot be had, it is not said what else was let in.
    let blocked = blocked_by(instance).await.unwrap_or_default();
    let mut lines = Vec::new();
    if instance.unblock(network).await? {
        let asked = show_network(&network);
        let unblocked = blocked.iter().filter(|blocked| overlap(blocked, &network));
        lines.extend(unblocked.map(|blocked| match show_network(blocked) {
            around if *blocked != network && blocked.contains(&network) => {
                format!("{around}, which held {asked},")
            }
            blocked => blocked,
        }));
        if lines.is_empty() {
            lines.push(asked);
        }
    }
    Ok(Unblocked { lines, failure: None })
}

/// Lets in everybody, one after the other: each is left alone for a while, and nobody else.
async fn unblock_all(instance: &Instance) -> Result<Unblocked, ClientError> {
    let blocked = blocked_by(instance).await?;
    let mut progress = Progress::after(Duration::from_millis(500));
    let mut lines = Vec::new();
    for (done, network) in blocked.iter().enumerate() {
        progress.show(|| format!("{}: {done} of {} let in", instance.interface, blocked.len()));
        match instance.unblock(*network).await {
            Ok(true) => lines.push(show_network(network)),
            // Its time was up in between.
            Ok(false) => {}
            Err(failure) => return Ok(Unblocked { lines, failure: Some(failure) }),
        }
    }
    Ok(Unblocked { lines, failure: None })
}

async fn blocked_by(instance: &Instance) -> Result<Vec<IpNet>, ClientError> {
    let blocks = instance.list().await?;
    // What the service has written is an address.
    Ok(blocks.iter().filter_map(|(address, ..)| parse_network(address).ok()).collect())
}

pub fn reload(arguments: &Reload) -> Result<(), CliError> {
    let answers = zbus::block_on(async {
        let instances = instances(arguments.interface.as_ref(), Purpose::Change).await?;
        Ok::<_, CliError>(ask_each(&instances, async |instance| instance.reload().await).await)
    })?;
    for (interface, ()) in &answers.told {
        print(&format!("reloaded the configuration of {interface}\n"))?;
    }
    CliError::of_all(answers.failures)
}
