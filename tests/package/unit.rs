//! The unit: systemd takes it for every name of an interface, and its sandbox holds what README.md says.

use std::path::Path;
use std::process::Command;

use crate::{output, read};

const BINARY: &str = env!("CARGO_BIN_EXE_tcptracker");

/// The most that `systemd-analyze security` may say, of 10.
const EXPOSURE: f64 = 2.0;

/// The unit under the name of an instance, with the program that was built.
fn instance(directory: &Path, name: &str) -> std::path::PathBuf {
    let text = read("systemd/tcptracker@.service").replace("/usr/bin/tcptracker", BINARY);
    let file = directory.join(format!("tcptracker@{name}.service"));
    std::fs::write(&file, text).unwrap();
    file
}

#[test]
fn systemd_takes_it_for_every_interface() {
    let directory = tempfile::tempdir().unwrap();
    for interface in ["eth0", "eth0.100", "wg-0", "any"] {
        let escaped = output(Command::new("systemd-escape").arg(interface));
        let unit = instance(directory.path(), escaped.trim());
        let verified = Command::new("systemd-analyze")
            .args(["verify", "--man=no", "--recursive-errors=no"])
            .arg(unit)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&verified.stderr);
        assert!(verified.status.success() && told.is_empty(), "{interface}: {told}");
    }
}

#[test]
fn its_sandbox_is_as_tight_as_it_can_be() {
    let directory = tempfile::tempdir().unwrap();
    let unit = instance(directory.path(), "eth0");
    let table =
        output(Command::new("systemd-analyze").args(["security", "--offline=true"]).arg(unit));
    let overall = table.lines().find(|line| line.contains("Overall exposure level")).unwrap();
    let exposure = overall.rsplit(": ").next().unwrap().split(' ').next().unwrap();
    assert!(exposure.parse::<f64>().unwrap() <= EXPOSURE, "{table}");
}

/// `tcptracker@wg-0`: systemd makes wg/0 of it, and there is no use in trying that again.
#[test]
fn a_name_that_was_not_escaped_says_how_to_write_it() {
    let made_of_it = output(Command::new("systemd-escape").args(["--unescape", "wg-0"]));
    let refused = Command::new(BINARY).args(["run", "-i", made_of_it.trim()]).output().unwrap();
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(told.contains("tcptracker@$(systemd-escape wg-0)"), "{told}");
    let unit = read("systemd/tcptracker@.service");
    let never_again =
        unit.lines().find_map(|line| line.strip_prefix("RestartPreventExitStatus=")).unwrap();
    let code = refused.status.code().unwrap().to_string();
    assert!(never_again.split(' ').any(|prevented| prevented == code), "{code}: {never_again}");
}
