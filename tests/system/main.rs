//! Tests with a real systemd: the Debian package on Debian machines, from `apt install` to `apt
//! purge`.
//!
//! A machine is a root file system that systemd-nspawn boots in a network namespace. A scanner in
//! another namespace is connected to it by a veth. Each Debian release runs one sequence of
//! chapters, because a boot per test would take too long. `make test-system` makes the root file
//! systems and the package first.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that cannot go on fails; it starts processes and threads, and limits its waits"
)]

mod chapters;
mod journal;
mod machine;
#[path = "../e2e/namespace.rs"]
#[expect(dead_code, reason = "the end-to-end tests use more of it")]
mod namespace;
mod site;
#[path = "../e2e/tools.rs"]
#[expect(dead_code, reason = "the end-to-end tests use more tools")]
mod tools;

#[test]
fn bookworm() {
    chapters::story("bookworm");
}

#[test]
fn trixie() {
    chapters::story("trixie");
}
