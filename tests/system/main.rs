//! On a real systemd: the Debian package on Debian machines, from `apt install` to `apt purge`.
//!
//! A machine is a root of its own, booted by systemd-nspawn in a network namespace; a scanner in another
//! one is connected to it by a cable. Each release of Debian goes through one story, chapter by chapter,
//! because that is what happens to a server, and a boot for each test would take long. Machines' roots and
//! the package are made beforehand: `make test-system`.
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
#[expect(dead_code, reason = "the end-to-end tests do more with a namespace")]
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
