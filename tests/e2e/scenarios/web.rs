//! `/metrics` and `/health`.

use std::net::TcpListener;

use crate::lab::{ATTACKER, Lab, OPEN_PORT, VICTIM};
use crate::service::Start;

#[test]
fn health_answers_in_the_words_of_the_original() {
    let lab = Lab::new();
    let mut service = lab.start();
    let healthy = r#"{"message":"healthy","statusText":"OK","statusCode":200}"#;
    assert_eq!(lab.victim.http_get(8081, "/health"), (200, healthy.to_owned()));
    assert_eq!(lab.victim.http_get(8081, "/elsewhere").0, 404);
    assert_eq!(lab.metric("tcptracker_new_connections"), 0);
    assert_eq!(lab.metric(r#"tcptracker_state{state="enforcing"}"#), 1);
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(lab.metric(&format!("tcptracker_build_info{{version=\"{version}\"}}")), 1);
    assert_eq!(service.stop().code(), Some(0));
}

/// A web server in its place is no reason not to block scanners.
#[test]
fn a_taken_port_is_told_and_endured() {
    let lab = Lab::new();
    let taken = lab.victim.inside(|| TcpListener::bind("127.0.0.1:8081").unwrap());
    let mut service = lab.start();
    let told = service.await_line("cannot serve metrics on 127.0.0.1:8081: ");
    assert!(
        told.ends_with("; going on without (choose another with metrics.listen, or \"off\")"),
        "{told}"
    );
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER}"));
    lab.attacker.assert_shut_out(VICTIM, OPEN_PORT);
    assert_eq!(service.stop().code(), Some(0));
    drop(taken);
    lab.assert_untouched();
}

#[test]
fn metrics_are_where_they_are_wanted_and_nowhere_else() {
    let lab = Lab::new();
    let listen = |address: &str| Start::on("eth0").env("TCPTRACKER_METRICS__LISTEN", address);
    let mut service = listen("127.0.0.1:9100").begin(&lab).await_ready();
    assert_eq!(lab.victim.http_get(9100, "/health").0, 200);
    lab.victim.inside(|| TcpListener::bind("127.0.0.1:8081").unwrap());
    assert_eq!(service.stop().code(), Some(0));

    let mut service = listen("off").begin(&lab).await_ready();
    lab.victim.inside(|| TcpListener::bind("127.0.0.1:8081").unwrap());
    assert_eq!(service.lines_with("metrics"), Vec::<String>::new());
    assert_eq!(service.stop().code(), Some(0));
}
