//! Checks the configuration: the common file, and the files of single interfaces.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::cli::doctor::Finding;
use crate::cli::interfaces::{is_present, listed, present};
use crate::config::{Config, Effective, Sources};
use crate::types::IfName;

const CHECK: &str = "configuration";

/// Returns the findings, and the configuration for all interfaces.
pub fn examine(sources: &Sources) -> (Vec<Finding>, Config) {
    let failed = |problems: Vec<String>| {
        let remedy = "correct the file; `tcptracker config` checks it again";
        Finding::failed(CHECK, problems.join("\n"), remedy)
    };
    let effective = match Effective::load(sources) {
        Ok(effective) => effective,
        Err(error) => return (vec![failed(error.0)], Config::default()),
    };
    let beside = sources.beside();
    let problems: Vec<String> = beside
        .iter()
        .filter_map(|(_, sources)| Effective::load(sources).err())
        .flat_map(|error| error.0)
        .collect();
    let is_valid = problems.is_empty();
    let mut findings = vec![if is_valid { Finding::ok(CHECK, "valid") } else { failed(problems) }];
    let unread = beside.iter().filter(|(file, _)| !is_read_here(file)).map(|(file, _)| {
        let found = format!("{}: this host has no such interface", file.display());
        let remedy = format!("rename the file; the interfaces are: {}", listed(&present()));
        Finding::warning(CHECK, found, remedy)
    });
    findings.extend(unread);
    if let Some(service) = Reader::service() {
        findings.extend(sources.usual_files().iter().filter_map(|file| service.is_kept_from(file)));
    }
    (findings, effective.config)
}

/// Tells whether a file has the name of an interface of this host.
fn is_read_here(file: &Path) -> bool {
    let name = file.file_stem().and_then(|name| name.to_str());
    let interface = name.and_then(|name| name.parse::<IfName>().ok());
    interface.is_some_and(|interface| is_present(&interface))
}

/// A user and its group.
struct Reader {
    user: u32,
    group: u32,
}

impl Reader {
    /// The user that the unit runs the service as.
    fn service() -> Option<Self> {
        let users = std::fs::read_to_string("/etc/passwd").ok()?;
        let mut fields =
            users.lines().find(|line| line.starts_with("tcptracker:"))?.split(':').skip(2);
        let mut number = || fields.next()?.parse().ok();
        Some(Self { user: number()?, group: number()? })
    }

    /// Returns how to make a file readable, if the user cannot read it or enter its directory.
    fn is_kept_from(&self, file: &Path) -> Option<Finding> {
        let directory = file.parent().map(PathBuf::from)?;
        let wrong = [(directory, 0o1, "x"), (file.to_owned(), 0o4, "r")]
            .into_iter()
            .find(|(path, needed, _)| !self.may(path, *needed))?;
        let (path, _, letters) = wrong;
        let found = format!("the service (user tcptracker) cannot read {}", path.display());
        Some(Finding::failed(CHECK, found, format!("chmod a+{letters} {}", path.display())))
    }

    fn may(&self, path: &Path, needed: u32) -> bool {
        // Loading the configuration has reported such a file already.
        let Ok(metadata) = path.metadata() else { return true };
        let bits = metadata.mode();
        let granted = if metadata.uid() == self.user {
            bits >> 6
        } else if metadata.gid() == self.group {
            bits >> 3
        } else {
            bits
        };
        granted & needed == needed
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::cli::doctor::Verdict;
    use crate::config::Flags;

    fn findings(files: &[(&str, &str)]) -> Vec<(Verdict, String)> {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let sources = Sources::within(directory.path(), None, None, [], Flags::default());
        let found = examine(&sources).0.into_iter();
        found.map(|finding| (finding.result, finding.found)).collect()
    }

    #[test]
    fn files_of_single_interfaces_are_checked() {
        let valid = ("lo.toml", "[detection]\nports = 5\n");
        let [(Verdict::Ok, _)] = &findings(&[valid])[..] else { panic!("not ok") };
        let wrong = findings(&[valid, ("any.toml", "[detection]\nports = 0\n")]);
        let [(Verdict::Failed, found)] = &wrong[..] else { panic!("{wrong:?}") };
        assert!(found.contains("any.toml:2: detection.ports: expected"), "{found}");
        let unread = findings(&[("nowhere9.toml", "")]);
        let [(Verdict::Ok, _), (Verdict::Warning, found)] = &unread[..] else {
            panic!("{unread:?}")
        };
        assert!(found.ends_with("nowhere9.toml: this host has no such interface"), "{found}");
        // A problem in the common file is reported once.
        let both = findings(&[("tcptracker.toml", "[log]\nrate = 0\n"), valid]);
        assert_eq!(both.len(), 1, "{both:?}");
    }

    #[test]
    fn unreadable_files_are_reported() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("tcptracker.toml");
        std::fs::write(&file, "").unwrap();
        let owner = file.metadata().unwrap();
        let stranger = Reader { user: owner.uid() + 1, group: owner.gid() + 1 };
        let member = Reader { group: owner.gid(), ..stranger };
        let set = |path: &Path, mode| {
            std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        };
        let remedy =
            |reader: &Reader| reader.is_kept_from(&file).and_then(|finding| finding.remedy);
        set(directory.path(), 0o755);
        set(&file, 0o644);
        assert_eq!((remedy(&stranger), remedy(&member)), (None, None));
        set(&file, 0o640);
        assert_eq!(remedy(&stranger), Some(format!("chmod a+r {}", file.display())));
        assert_eq!(remedy(&member), None);
        set(directory.path(), 0o700);
        assert_eq!(remedy(&member), Some(format!("chmod a+x {}", directory.path().display())));
    }
}
