//! What other programs change in the table, as the kernel reports it.
//!
//! Owns the subscription to the events of nf_tables. Must not look at anything else: it only says that a look
//! at the table is necessary.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::netlink::NETFILTER;

use crate::block::backend::nft::messages;
use crate::system::netlink::{NetlinkError, NetlinkSocket};
use crate::types::IfName;

/// `NFNLGRP_NFTABLES` (7) as a bit mask.
const GROUP: u32 = 1 << (7 - 1);

pub struct Events(NetlinkSocket);

impl Events {
    pub fn subscribe() -> Result<Self, NetlinkError> {
        Ok(Self(NetlinkSocket::open(Some(NETFILTER), GROUP)?))
    }

    /// Reads the events that have arrived. Returns whether the members of an instance's sets may have been
    /// changed through another socket than the one with this address.
    pub fn has_changed_members(
        &mut self,
        interface: &IfName,
        own: u32,
    ) -> Result<bool, NetlinkError> {
        self.any(|port, kind, body| port != own && messages::changes_members(kind, body, interface))
    }

    /// Reads the events that have arrived. Returns whether anything in the table may have been changed.
    pub fn has_changed_table(&mut self) -> Result<bool, NetlinkError> {
        self.any(|_, _, body| messages::concerns_table(body))
    }

    fn any(&mut self, is_it: impl Fn(u32, u16, &[u8]) -> bool) -> Result<bool, NetlinkError> {
        let mut found = false;
        let is_complete =
            self.0.for_each_notification(|port, kind, body| found |= is_it(port, kind, body))?;
        Ok(found || !is_complete)
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
