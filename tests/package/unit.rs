//! The unit: valid for every interface name, and sandboxed as README.md says.

use std::path::Path;
use std::process::Command;

use crate::{output, read};

const BINARY: &str = env!("CARGO_BIN_EXE_tcptracker");

/// The maximum exposure level of `systemd-analyze security`, on a scale to 10.
const EXPOSURE: f64 = 2.0;

/// Writes the unit under an instance name, with the path of the built program.
fn instance(directory: &Path, name: &str) -> std::path::PathBuf {
    let text = read("systemd/tcptracker@.service").replace("/usr/bin/tcptracker", BINARY);
    let file = directory.join(format!("tcptracker@{name}.service"));
    std::fs::write(&file, text).unwrap();
    file
}

#[test]
fn unit_is_valid_for_every_interface_name() {
    let directory = tempfile::tempdir().unwrap();
    for interface in ["eth0", "eth0.100", "wg-0", "any"] {
        let escaped = output(Command::new("systemd-escape").arg(interface));
        let unit = instance(directory.path(), escaped.trim());
        let verified = Command::new("systemd-analyze")
            .args(["verify", "--man=no", "--recursive-errors=no"])
            .arg(unit)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&verified.stderr);
        assert!(verified.status.success() && stderr.is_empty(), "{interface}: {stderr}");
    }
}

#[test]
fn sandbox_exposure_is_at_most_the_limit() {
    let directory = tempfile::tempdir().unwrap();
    let unit = instance(directory.path(), "eth0");
    let table =
        output(Command::new("systemd-analyze").args(["security", "--offline=true"]).arg(unit));
    let overall = table.lines().find(|line| line.contains("Overall exposure level")).unwrap();
    let exposure = overall.rsplit(": ").next().unwrap().split(' ').next().unwrap();
    assert!(exposure.parse::<f64>().unwrap() <= EXPOSURE, "{table}");
}

/// systemd unescapes `wg-0` to `wg/0`, which is never an interface, so the unit must not restart.
#[test]
fn unescaped_name_is_refused_with_the_escaped_name() {
    let unescaped = output(Command::new("systemd-escape").args(["--unescape", "wg-0"]));
    let refused = Command::new(BINARY).args(["run", "-i", unescaped.trim()]).output().unwrap();
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(stderr.contains("tcptracker@$(systemd-escape wg-0)"), "{stderr}");
    let unit = read("systemd/tcptracker@.service");
    let prevented_codes =
        unit.lines().find_map(|line| line.strip_prefix("RestartPreventExitStatus=")).unwrap();
    let code = refused.status.code().unwrap().to_string();
    assert!(
        prevented_codes.split(' ').any(|prevented| prevented == code),
        "{code}: {prevented_codes}"
    );
}
