//! `tcptracker block`, `tcptracker unblock` and `tcptracker reload`

use ipnet::IpNet;

use super::CliError;
use super::arguments::{Block, Reload, Unblock};
use super::client::{ClientError, Instance, Purpose, ask_each, instances};
use super::output::print;
use crate::clock::HumanDuration;
use crate::network::{parse_network, show_network};

pub(super) fn block(arguments: &Block) -> Result<(), CliError> {
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

pub(super) fn unblock(arguments: &Unblock) -> Result<(), CliError> {
    let wanted = arguments.address;
    let answers = zbus::block_on(async {
        let instances = instances(arguments.interface.as_ref(), Purpose::Change).await?;
        let unblock = async |instance: &Instance| {
            let networks = match wanted {
                Some(network) => vec![network],
                None => everything(instance).await?,
            };
            let mut done = Vec::new();
            for network in networks {
                if instance.unblock(network).await? {
                    done.push(network);
                }
            }
            Ok(done)
        };
        Ok::<_, CliError>(ask_each(&instances, unblock).await)
    })?;
    let mut any = false;
    for (interface, done) in &answers.told {
        for network in done {
            any = true;
            print(&format!("unblocked {} on {interface}\n", show_network(network)))?;
        }
    }
    match wanted {
        _ if any || !answers.failures.is_empty() => CliError::of_all(answers.failures),
        Some(network) => Err(ClientError::NotBlocked(network).into()),
        None => print("nothing is blocked\n"),
    }
}

async fn everything(instance: &Instance) -> Result<Vec<IpNet>, ClientError> {
    let blocks = instance.list().await?;
    // What the service has written is an address.
    Ok(blocks.iter().filter_map(|(address, ..)| parse_network(address).ok()).collect())
}

pub(super) fn reload(arguments: &Reload) -> Result<(), CliError> {
    let answers = zbus::block_on(async {
        let instances = instances(arguments.interface.as_ref(), Purpose::Change).await?;
        Ok::<_, CliError>(ask_each(&instances, async |instance| instance.reload().await).await)
    })?;
    for (interface, ()) in &answers.told {
        print(&format!("reloaded the configuration of {interface}\n"))?;
    }
    CliError::of_all(answers.failures)
}
