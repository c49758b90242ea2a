//! `tcptracker block` and `tcptracker unblock`

use ipnet::IpNet;

use super::client::{ClientError, Instance, instances};
use super::output::print;
use super::{Block, CliError, Unblock};
use crate::clock::HumanDuration;
use crate::network::{parse_network, show_network};

pub(super) fn block(arguments: &Block) -> Result<(), CliError> {
    let network = parse_network(&arguments.address).map_err(ClientError::from)?;
    let seconds = arguments.duration.map_or(0, |duration| duration.as_secs());
    let span = arguments.duration.map_or_else(
        || "until unblocked".to_owned(),
        |duration| format!("for {}", HumanDuration(duration)),
    );
    zbus::block_on(async {
        for instance in instances(arguments.interface.as_ref()).await? {
            instance.block(network, seconds, &arguments.reason).await?;
            // Said at once: what was done is done, whatever becomes of the next instance.
            let address = show_network(&network);
            print(&format!("blocked {address} on {} {span}\n", instance.interface))?;
        }
        Ok(())
    })
}

pub(super) fn unblock(arguments: &Unblock) -> Result<(), CliError> {
    let wanted = arguments.address.as_deref().map(parse_network);
    let wanted = wanted.transpose().map_err(ClientError::from)?;
    let any = zbus::block_on(async {
        let mut any = false;
        for instance in instances(arguments.interface.as_ref()).await? {
            let networks = match wanted {
                Some(network) => vec![network],
                None => everything(&instance).await?,
            };
            for network in networks {
                if instance.unblock(network).await? {
                    any = true;
                    let address = show_network(&network);
                    print(&format!("unblocked {address} on {}\n", instance.interface))?;
                }
            }
        }
        Ok::<_, CliError>(any)
    })?;
    match wanted {
        _ if any => Ok(()),
        Some(network) => Err(ClientError::NotBlocked(network).into()),
        None => print("nothing is blocked\n"),
    }
}

async fn everything(instance: &Instance) -> Result<Vec<IpNet>, ClientError> {
    let blocks = instance.list().await?;
    Ok(blocks.iter().map(|(address, ..)| parse_network(address)).collect::<Result<_, _>>()?)
}
