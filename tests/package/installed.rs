//! `make install` and `make uninstall`, and the version in the package metadata.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::{output, read, tree};

/// The files that a package installs.
const FILES: [&str; 17] = [
    "etc/tcptracker/tcptracker.toml",
    "usr/bin/tcptracker",
    "usr/lib/sysusers.d/tcptracker.conf",
    "usr/lib/systemd/catalog/tcptracker.catalog",
    "usr/lib/systemd/system/tcptracker@.service",
    "usr/lib/tmpfiles.d/tcptracker.conf",
    "usr/share/bash-completion/completions/tcptracker",
    "usr/share/dbus-1/interfaces/org.tcptracker.Tracker1.xml",
    "usr/share/dbus-1/system.d/org.tcptracker.Tracker1.conf",
    "usr/share/fish/vendor_completions.d/tcptracker.fish",
    "usr/share/man/man1/tcptracker.1",
    "usr/share/man/man5/tcptracker.toml.5",
    "usr/share/polkit-1/actions/org.tcptracker.Tracker1.policy",
    "usr/share/tcptracker/grafana/tcptracker.json",
    "usr/share/tcptracker/prometheus/scrape.yml",
    "usr/share/tcptracker/prometheus/tcptracker.rules.yml",
    "usr/share/zsh/site-functions/_tcptracker",
];

/// D-Bus and polkit read nothing in /usr/local, and the configuration is always in /etc.
const NEVER_IN_USR_LOCAL: [(&str, &str); 3] = [
    ("etc/tcptracker/", "etc/tcptracker/"),
    ("usr/share/dbus-1/system.d/", "etc/dbus-1/system.d/"),
    ("usr/share/polkit-1/", "usr/share/polkit-1/"),
];

/// The generated files.
const DOCS: [&str; 5] =
    ["tcptracker.bash", "_tcptracker", "tcptracker.fish", "tcptracker.1", "tcptracker.toml.5"];

/// Runs `make` with placeholders as the built program and its documents.
fn make(target: &str, root: &Path, prefix: Option<&str>) {
    let built = root.with_extension("built");
    std::fs::create_dir_all(built.join("release")).unwrap();
    let program = built.join("release/tcptracker");
    std::fs::write(&program, "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::create_dir_all(built.join("docs")).unwrap();
    for name in DOCS {
        std::fs::write(built.join("docs").join(name), name).unwrap();
    }
    let mut make = Command::new("make");
    make.current_dir(tree()).arg(target).arg(format!("DESTDIR={}", root.display()));
    make.arg(format!("CARGO_TARGET_DIR={}", built.display()));
    make.args(prefix.map(|prefix| format!("PREFIX={prefix}")));
    for variable in ["MAKEFLAGS", "MAKEOVERRIDES", "PREFIX", "DESTDIR", "DOCS", "ZSH_COMPLETIONS"] {
        make.env_remove(variable);
    }
    output(&mut make);
}

fn files(root: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                assert!(path.metadata().unwrap().len() > 0, "{}", path.display());
                found.insert(path.strip_prefix(root).unwrap().display().to_string());
            }
        }
    }
    found
}

fn in_usr_local(file: &str) -> String {
    let there = NEVER_IN_USR_LOCAL.iter().find(|(package, _)| file.starts_with(package));
    match there {
        Some((package, place)) => file.replacen(package, place, 1),
        None => file.replacen("usr/", "usr/local/", 1),
    }
}

#[test]
fn uninstall_removes_every_installed_file() {
    let directory = tempfile::tempdir().unwrap();
    let (package, local) = (directory.path().join("package"), directory.path().join("local"));

    make("install", &package, Some("/usr"));
    assert_eq!(files(&package), FILES.iter().map(ToString::to_string).collect());
    make("uninstall", &package, Some("/usr"));
    assert_eq!(files(&package), BTreeSet::new());
    assert!(!package.join("usr/share/tcptracker").exists());

    make("install", &local, None);
    assert_eq!(files(&local), FILES.iter().map(|file| in_usr_local(file)).collect());
    let unit = local.join("usr/local/lib/systemd/system/tcptracker@.service");
    let unit = std::fs::read_to_string(unit).unwrap();
    assert!(unit.contains("\nExecStart=/usr/local/bin/tcptracker run"), "{unit}");
    make("uninstall", &local, None);
    assert_eq!(files(&local), BTreeSet::new());
}

#[test]
fn modified_configuration_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    make("install", &root, None);
    let file = root.join("etc/tcptracker/tcptracker.toml");
    std::fs::write(&file, "[detection]\nports = 10\n").unwrap();
    make("install", &root, None);
    make("uninstall", &root, None);
    assert_eq!(files(&root), BTreeSet::from(["etc/tcptracker/tcptracker.toml".to_owned()]));
    assert!(std::fs::read_to_string(file).unwrap().contains("ports = 10"));
}

#[test]
fn versions_are_consistent() {
    let version = env!("CARGO_PKG_VERSION");
    let changelog = read("debian/changelog");
    let newest = changelog.lines().next().unwrap();
    assert!(newest.starts_with(&format!("tcptracker ({version}) ")), "{newest}");
    let spec = read("packaging/rpm/tcptracker.spec");
    let spec_version = spec.lines().find_map(|line| line.strip_prefix("Version:")).unwrap();
    assert_eq!(spec_version.trim(), version);
    assert!(spec.contains(&format!(" - {version}-1\n")), "%changelog");
}
