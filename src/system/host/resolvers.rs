//! The name servers of this host, from resolv.conf(5).

use std::net::IpAddr;
use std::path::Path;

use crate::system::host::files::FileWatcher;

/// The servers that programs use, and those that systemd-resolved uses if programs use it.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// Returns the name servers, or nothing if a file exists and is unreadable.
pub fn read(files: &FileWatcher) -> Option<Vec<IpAddr>> {
    let mut found = Vec::new();
    for file in FILES {
        found.extend(nameservers_in(&files.read(Path::new(file)).ok()?.unwrap_or_default()));
    }
    Some(found)
}

/// Returns the addresses of the `nameserver` lines, without a zone after `%`.
fn nameservers_in(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.split_whitespace().next())
        .filter_map(|address| address.split('%').next()?.parse().ok())
        .map(|address: IpAddr| address.to_canonical())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read() {
        let text = "# nameserver 9.9.9.9\nnameserver 192.0.2.53\n nameserver fe80::1%eth0 # x\nsearch a.b\n";
        let expected: Vec<IpAddr> = vec!["192.0.2.53".parse().unwrap(), "fe80::1".parse().unwrap()];
        assert_eq!(nameservers_in(text), expected);
    }
}
