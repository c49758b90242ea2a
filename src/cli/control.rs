//! `tcptracker block` and `tcptracker unblock`

use super::client::{ClientError, instances};
use super::output::print;
use super::{Block, CliError, Unblock};
use crate::clock::HumanDuration;
use crate::network::{parse_network, show_network};

pub(super) fn block(arguments: &Block) -> Result<(), CliError> {
    let network = parse_network(&arguments.address).map_err(ClientError::from)?;
    let seconds = arguments.duration.map_or(0, |duration| duration.as_secs());
    let done = zbus::block_on(async {
        let mut done = String::new();
        for instance in instances(arguments.interface.as_ref()).await? {
            instance.block(network, seconds, &arguments.reason).await?;
            let span = arguments.duration.map_or_else(
                || "until unblocked".to_owned(),
                |duration| format!("for {}", HumanDuration(duration)),
            );
            let address = show_network(&network);
            done += &format!("blocked {address} on {} {span}\n", instance.interface);
        }
        Ok::<_, CliError>(done)
    })?;
    print(&done)
}

pub(super) fn unblock(arguments: &Unblock) -> Result<(), CliError> {
    let wanted = arguments.address.as_deref().map(parse_network);
    let wanted = wanted.transpose().map_err(ClientError::from)?;
    let done = zbus::block_on(async {
        let mut done = String::new();
        for instance in instances(arguments.interface.as_ref()).await? {
            let networks = match wanted {
                Some(network) => vec![network],
                None => instance
                    .list()
                    .await?
                    .iter()
                    .map(|(address, ..)| parse_network(address))
                    .collect::<Result<_, _>>()
                    .map_err(ClientError::from)?,
            };
            for network in networks {
                if instance.unblock(network).await? {
                    let address = show_network(&network);
                    done += &format!("unblocked {address} on {}\n", instance.interface);
                }
            }
        }
        Ok::<_, CliError>(done)
    })?;
    match wanted {
        Some(network) if done.is_empty() => Err(ClientError::NotBlocked(network).into()),
        None if done.is_empty() => print("nothing is blocked\n"),
        _ => print(&done),
    }
}
