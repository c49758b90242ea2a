//! Parses arbitrary netlink datagrams with every parser of the kernel's replies: ipset, nf_tables,
//! conntrack, rtnetlink and sock_diag.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tcptracker::internals::parse_netlink;

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

fuzz_target!(|bytes: &[u8]| {
    parse_netlink(bytes);
    // Also as one message of the right length, which the mutations rarely hit.
    let mut message = vec![0; HEADER];
    message[..4].copy_from_slice(&u32::try_from(HEADER + bytes.len()).unwrap_or(0).to_ne_bytes());
    message.extend(bytes);
    parse_netlink(&message);
});
