//! What is configured: for all interfaces, and in the files of single ones.

use std::path::Path;

use super::Finding;
use crate::config::{Config, Effective, Sources};
use crate::interface::InterfaceName;

const CHECK: &str = "configuration";

/// What was found, and what is configured for all.
pub(super) fn examine(sources: &Sources) -> (Vec<Finding>, Config) {
    let failed = |problems: Vec<String>| {
        let mend = "correct it; `tcptracker config` shows what is read";
        Finding::failed(CHECK, problems.join("\n"), mend)
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
        let found = format!("{} is for an interface that is not there", file.display());
        Finding::warning(CHECK, found, "`ip -brief link` lists those that are; rename it")
    });
    findings.extend(unread);
    (findings, effective.config)
}

/// Whether a file is called as an interface of this host.
fn is_read_here(file: &Path) -> bool {
    let name = file.file_stem().and_then(|name| name.to_str());
    let interface = name.and_then(|name| name.parse::<InterfaceName>().ok());
    interface.is_some_and(|interface| {
        interface.is_any() || Path::new("/sys/class/net").join(interface.as_str()).exists()
    })
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
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
    fn the_files_of_single_interfaces_are_read_as_well() {
        let valid = ("lo.toml", "[detection]\nports = 5\n");
        let [(Verdict::Ok, _)] = &findings(&[valid])[..] else { panic!("not ok") };
        let wrong = findings(&[valid, ("any.toml", "[detection]\nports = 0\n")]);
        let [(Verdict::Failed, found)] = &wrong[..] else { panic!("{wrong:?}") };
        assert!(found.contains("any.toml:2: detection.ports: expected"), "{found}");
        let unread = findings(&[("nowhere9.toml", "")]);
        let [(Verdict::Ok, _), (Verdict::Warning, found)] = &unread[..] else {
            panic!("{unread:?}")
        };
        assert!(found.ends_with("nowhere9.toml is for an interface that is not there"), "{found}");
        // What is wrong for all is told once.
        let both = findings(&[("tcptracker.toml", "[log]\nrate = 0\n"), valid]);
        assert_eq!(both.len(), 1, "{both:?}");
    }
}
