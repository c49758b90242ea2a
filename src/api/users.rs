//! Local users and groups.
//!
//! Reads only `/etc/passwd` and `/etc/group`: a lookup in a directory service could block, and needs foreign
//! code.

/// Returns the name of a local user.
pub fn name_of(uid: u32) -> Option<String> {
    find("/etc/passwd", |_, number| number == uid).map(|(name, _)| name)
}

/// Returns the gid of a local group.
pub fn gid_of(group: &str) -> Option<u32> {
    find("/etc/group", |name, _| name == group).map(|(_, gid)| gid)
}

fn find(file: &str, is_wanted: impl Fn(&str, u32) -> bool) -> Option<(String, u32)> {
    find_in(&String::from_utf8_lossy(&std::fs::read(file).ok()?), is_wanted)
}

/// Finds a name and its number in the text of passwd(5) or group(5): `name:password:number:...`.
fn find_in(text: &str, is_wanted: impl Fn(&str, u32) -> bool) -> Option<(String, u32)> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?.parse().ok()?);
        is_wanted(name, number).then(|| (name.to_owned(), number))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_is_found_by_uid() {
        let users = "root:x:0:0:root:/root:/bin/sh\n# no user\nalice:x:1000:0::/home/alice:\n";
        let name_of = |uid| find_in(users, |_, number| number == uid).map(|(name, _)| name);
        assert_eq!(name_of(1000).as_deref(), Some("alice"));
        assert_eq!(name_of(0).as_deref(), Some("root"));
        assert_eq!(name_of(100), None);
    }

    #[test]
    fn group_is_found_by_its_whole_name() {
        let groups = "root:x:0:\ntcptrackers:x:7:\n# tcptracker:x:8:\ntcptracker:x:983:ann,ben\n";
        let gid_of = |group, text| find_in(text, |name, _| name == group).map(|(_, gid)| gid);
        assert_eq!(gid_of("tcptracker", groups), Some(983));
        assert_eq!(gid_of("tcp", groups), None);
        assert_eq!(gid_of("tcptracker", "tcptracker:x:"), None);
    }
}
