//! `/metrics` and `/health`.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;

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

const METRICS: (&str, u16) = ("127.0.0.1", 8081);
const REQUEST: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// What any local user can do to the metrics port is no concern of those who are scanned.
#[test]
fn rude_clients_neither_end_nor_stall_the_service() {
    let lab = Lab::new();
    let few_files = ["sh", "-ec", "ulimit -n 200; exec \"$@\"", "sh"];
    let start = Start::on("eth0").through(few_files).env("WATCHDOG_USEC", "3000000");
    let mut service = start.begin(&lab).await_ready();

    // They hang up with a reset as soon as they have asked.
    lab.victim.inside(|| {
        for _ in 0..2000 {
            let Ok(mut client) = TcpStream::connect(METRICS) else { continue };
            set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
            let _ = client.write_all(REQUEST);
        }
    });
    // They ask for more than any buffer holds and read nothing.
    let deaf: Vec<TcpStream> = lab.victim.inside(|| {
        let connect = || {
            let mut client = TcpStream::connect(METRICS).ok()?;
            client.set_nonblocking(true).unwrap();
            while client.write(&REQUEST.repeat(1000)).is_ok() {}
            Some(client)
        };
        (0..8).filter_map(|_| connect()).collect()
    });
    // They take every file descriptor there is and say nothing.
    let idle: Vec<TcpStream> =
        lab.victim.inside(|| (0..400).filter_map(|_| TcpStream::connect(METRICS).ok()).collect());

    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER}"));
    lab.attacker.assert_shut_out(VICTIM, OPEN_PORT);
    let fed = service.notices().iter().filter(|notice| *notice == "WATCHDOG=1").count();
    service.await_notices("WATCHDOG=1", fed + 3);

    drop((deaf, idle));
    service.await_until("metrics that answer again", |_| lab.victim.serves(8081).then_some(()));
    assert_eq!(lab.metric(r#"tcptracker_blocks_total{cause="scan"}"#), 1);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}
