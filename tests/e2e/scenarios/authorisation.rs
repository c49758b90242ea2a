//! Authorization: root, group `tcptracker` and users that polkit authorizes may change blocks. The
//! tests use real users, a real bus with the shipped policy, and a real polkit with the shipped
//! action.

use std::process::{Child, Stdio};

use crate::lab::{BINARY, Lab};
use crate::service::Start;
use crate::tools::run;
use crate::users::{
    MEMBER, Polkit, SERVICE, TRUSTED, UNTRUSTED, as_user, busctl, gdbus, python,
    with_unit_privileges,
};

const BLOCK: [&str; 5] = ["Block", "sts", "198.51.100.1", "0", "seen by all"];
const UNBLOCK: [&str; 3] = ["Unblock", "s", "198.51.100.1"];

/// Asserts that a user may call the read-only members.
fn assert_can_read(lab: &Lab, user: u32) {
    for read in [&["List"][..], &["Stats"], &["Why", "s", "10.77.0.2"]] {
        busctl(lab, user, &[], read).ok();
    }
    gdbus(lab, user, &[], "List", &[]).ok();
    python(lab, user, &[], "Why('10.77.0.2')['exempt']").ok();
}

#[test]
fn without_polkit_only_root_and_group_members_may_change_blocks() {
    let lab = Lab::with_users();
    let mut service = lab.start();
    assert_can_read(&lab, UNTRUSTED);
    for user in [UNTRUSTED, TRUSTED] {
        for change in [&BLOCK[..], &["Block", "sts", "10.77.0.2", "0", ""], &UNBLOCK, &["Reload"]] {
            let denied = busctl(&lab, user, &[], change);
            assert_eq!(denied.code, Some(1), "{denied:?}");
            assert!(denied.err.contains("Access denied"), "{denied:?}");
        }
        let denied = gdbus(&lab, user, &[], "Unblock", &["198.51.100.1"]);
        let message =
            "org.freedesktop.DBus.Error.AccessDenied: only root and members of group tcptracker";
        assert!(denied.err.contains(message), "{denied:?}");
        let denied = python(&lab, user, &[], "Reload()");
        assert_eq!(denied.err.trim(), "org.freedesktop.DBus.Error.AccessDenied");
    }
    service.await_line(&format!(
        "refused to block 198.51.100.1 for untrusted (uid {UNTRUSTED}): only root"
    ));
    service
        .await_line(&format!("refused to reload the configuration for trusted (uid {TRUSTED}): "));
    assert_eq!(lab.bus.list(), []);

    // The groups of the connecting process count, not the member list in /etc/group.
    busctl(&lab, MEMBER, &[SERVICE], &BLOCK).ok();
    service.await_line(&format!(
        "blocked 198.51.100.1 by member (uid {MEMBER}) until unblocked: seen by all"
    ));
    gdbus(&lab, MEMBER, &[SERVICE], "Unblock", &["198.51.100.1"]).ok();
    service.await_line(&format!("unblocked 198.51.100.1: by member (uid {MEMBER})"));
    python(&lab, MEMBER, &[SERVICE], "Reload()").ok();
    service.await_line(&format!("configuration reloaded by member (uid {MEMBER}): no changes"));
    lab.bus.call("eth0", &BLOCK).ok();
    service.await_line("blocked 198.51.100.1 by root (uid 0) until unblocked: seen by all");
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn polkit_authorizes_other_users() {
    let lab = Lab::with_users();
    let _polkit = Polkit::start(&lab);
    let mut service = lab.start();
    assert_can_read(&lab, UNTRUSTED);
    busctl(&lab, TRUSTED, &[], &BLOCK).ok();
    service.await_line(&format!(
        "blocked 198.51.100.1 by trusted (uid {TRUSTED}) until unblocked: seen by all"
    ));
    gdbus(&lab, TRUSTED, &[], "Unblock", &["198.51.100.1"]).ok();
    python(&lab, TRUSTED, &[], "Reload()").ok();

    for change in [&BLOCK[..], &UNBLOCK, &["Reload"]] {
        let denied = busctl(&lab, UNTRUSTED, &[], change);
        assert!(denied.err.contains("Access denied"), "{denied:?}");
    }
    let denied = gdbus(&lab, UNTRUSTED, &[], "Reload", &[]);
    let message = "org.freedesktop.DBus.Error.AccessDenied: polkit does not authorize this user";
    assert!(denied.err.contains(message), "{denied:?}");
    // Without a matching rule, polkit asks for a password if the caller allows interaction.
    let nobody = 65_534;
    let denied = python(&lab, nobody, &[], "Reload()");
    assert_eq!(denied.err.trim(), "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired");
    let denied = busctl(&lab, nobody, &[], &["Reload"]);
    assert!(denied.err.contains("Access denied"), "{denied:?}");
    // Root and group members do not need polkit.
    busctl(&lab, MEMBER, &[SERVICE], &BLOCK).ok();
    lab.bus.call("eth0", &UNBLOCK).ok();
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// The service runs as in the unit. Polkit answers an unprivileged service only about actions that
/// the service owns.
#[test]
fn polkit_answers_an_unprivileged_service() {
    let lab = Lab::with_users();
    let _polkit = Polkit::start(&lab);
    let binary = lab.path("tcptracker");
    run(std::process::Command::new("cp").arg(BINARY).arg(&binary)).ok();
    lab.chown_state(SERVICE);
    let mut service =
        Start::on("eth0").binary(binary).through(with_unit_privileges()).begin(&lab).await_ready();
    busctl(&lab, TRUSTED, &[], &BLOCK).ok();
    let denied = busctl(&lab, UNTRUSTED, &[], &UNBLOCK);
    assert!(denied.err.contains("Access denied"), "{denied:?}");
    busctl(&lab, MEMBER, &[SERVICE], &UNBLOCK).ok();
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn pending_password_prompt_does_not_delay_other_callers() {
    let lab = Lab::with_users();
    let polkit = crate::unresponsive_polkit::UnresponsivePolkit::on(&lab.bus);
    let mut service = lab.start();
    let users = [UNTRUSTED, TRUSTED].into_iter().flat_map(|user| [user; 8]);
    let waiting: Vec<_> = users.map(|user| call_by(&lab, user)).collect();
    polkit.await_requests(16);
    lab.bus.call("eth0", &["Block", "sts", "203.0.113.5", "0", "meanwhile"]).ok();
    busctl(&lab, MEMBER, &[SERVICE], &["Reload"]).ok();
    busctl(&lab, UNTRUSTED, &[], &["Stats"]).ok();
    assert_eq!(lab.bus.list().len(), 1);
    for mut caller in waiting {
        assert_eq!(caller.try_wait().unwrap(), None, "the call returned before polkit answered");
        end(caller);
    }
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// The bus limits the pending calls of a service. One user must not use up the limit.
#[test]
fn one_user_cannot_exhaust_polkit_requests() {
    let lab = Lab::with_users();
    let polkit = crate::unresponsive_polkit::UnresponsivePolkit::on(&lab.bus);
    let mut service = lab.start();
    let waiting: Vec<_> = (0..8).map(|_| call_by(&lab, UNTRUSTED)).collect();
    polkit.await_requests(8);
    let refused = gdbus(&lab, UNTRUSTED, &[], "Unblock", &["198.51.100.1"]);
    let message = "org.freedesktop.DBus.Error.LimitsExceeded: 8 requests of this user are waiting";
    assert!(refused.err.contains(message), "{refused:?}");
    service.await_line(&format!(
        "refused to unblock 198.51.100.1 for untrusted (uid {UNTRUSTED}): 8 requests"
    ));
    let other = call_by(&lab, TRUSTED);
    polkit.await_requests(1);
    // Answered requests no longer count.
    drop(polkit);
    for mut caller in waiting {
        assert_eq!(caller.wait().unwrap().code(), Some(1));
    }
    let denied = gdbus(&lab, UNTRUSTED, &[], "Unblock", &["198.51.100.1"]);
    assert!(denied.err.contains("AccessDenied: only root and members of group"), "{denied:?}");
    end(other);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// A caller that leaves cancels its questions, which no longer count.
#[test]
fn questions_of_a_caller_that_left_are_cancelled() {
    let lab = Lab::with_users();
    let polkit = crate::unresponsive_polkit::UnresponsivePolkit::on(&lab.bus);
    let mut service = lab.start();
    for _ in 0..3 {
        let waiting: Vec<_> = (0..8).map(|_| call_by(&lab, UNTRUSTED)).collect();
        let mut asked = polkit.await_requests(8);
        waiting.into_iter().for_each(end);
        let mut cancelled = polkit.await_cancellations(8);
        asked.sort();
        cancelled.sort();
        assert_eq!(asked, cancelled);
        asked.dedup();
        assert_eq!(asked.len(), 8);
    }
    // The caller that left is not told, nor is the journal.
    assert_eq!(service.lines_with("refused to block"), Vec::<String>::new());
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// When polkit dies, a waiting caller is refused at once.
#[test]
fn dead_polkit_authorizes_no_caller() {
    let lab = Lab::with_users();
    let polkit = crate::unresponsive_polkit::UnresponsivePolkit::on(&lab.bus);
    let mut service = lab.start();
    let waiting = call_by(&lab, UNTRUSTED);
    polkit.await_requests(1);
    drop(polkit);
    let answer = waiting.wait_with_output().unwrap();
    assert_eq!(answer.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&answer.stderr).contains("Access denied"), "{answer:?}");
    service.await_line(&format!(
        "refused to block 198.51.100.1 for untrusted (uid {UNTRUSTED}): polkit failed ("
    ));
    assert_eq!(lab.bus.list(), []);
    let denied = gdbus(&lab, UNTRUSTED, &[], "Reload", &[]);
    assert!(
        denied.err.contains("; polkit is not running; use sudo, or add yourself to group"),
        "{denied:?}"
    );
    // The service uses a polkit that starts later.
    let _polkit = Polkit::start(&lab);
    busctl(&lab, TRUSTED, &[], &BLOCK).ok();
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// Starts a `Block` call with a timeout of 1 h.
fn call_by(lab: &Lab, user: u32) -> Child {
    let mut command = as_user(user, &[], "busctl");
    command.arg(format!("--address={}", lab.bus.address())).args(["--timeout=3600", "call"]);
    command.args(crate::bus::target("eth0")).args(BLOCK);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn end(mut caller: Child) {
    caller.kill().unwrap();
    caller.wait().unwrap();
}
