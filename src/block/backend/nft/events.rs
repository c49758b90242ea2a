//! What other programs change in the table, as the kernel reports it.
//!
//! Owns the subscription to the events of nf_tables. Must not look at anything else: it only says that a look
//! is worth while.

use rustix::net::netlink::NETFILTER;

use crate::block::backend::nft::messages;
use crate::system::netlink::{NetlinkError, NetlinkSocket};
use crate::types::IfName;

/// `NFNLGRP_NFTABLES` (7) as a bit mask.
const GROUP: u32 = 1 << (7 - 1);

pub struct Events {
    socket: NetlinkSocket,
    /// The address of the socket whose changes are the service's own.
    own: u32,
}

impl Events {
    /// Subscribes to the changes that others make, which do not have this address.
    pub fn open(own: u32) -> Result<Self, NetlinkError> {
        Ok(Self { socket: NetlinkSocket::open(Some(NETFILTER), GROUP)?, own })
    }

    /// Reads the events that have arrived. Returns whether another program may have changed members of an
    /// instance's sets.
    pub fn drain(&mut self, interface: &IfName) -> Result<bool, NetlinkError> {
        let own = self.own;
        let mut is_touched = false;
        let is_complete = self.socket.for_each_notification(|port, kind, body| {
            is_touched |= port != own && messages::changes_members(kind, body, interface);
        })?;
        Ok(is_touched || !is_complete)
    }
}
