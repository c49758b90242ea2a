//! Names of users, for people who read the journal.
//!
//! Reads only `/etc/passwd`: a lookup in a directory service could block, and needs foreign code.

/// Returns the name of a local user.
pub fn name_of(uid: u32) -> Option<String> {
    let users = std::fs::read("/etc/passwd").ok()?;
    find_name(uid, &String::from_utf8_lossy(&users))
}

/// Finds a user in the text of passwd(5): `name:password:uid:...`.
fn find_name(uid: u32, users: &str) -> Option<String> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_is_found_by_uid() {
        let users = "root:x:0:0:root:/root:/bin/sh\n# no user\nalice:x:1000:0::/home/alice:\n";
        assert_eq!(find_name(1000, users).as_deref(), Some("alice"));
        assert_eq!(find_name(0, users).as_deref(), Some("root"));
        assert_eq!(find_name(100, users), None);
    }
}
