//! Abuse of the metrics port by local users affects neither blocking nor the memory of the host,
//! and well-behaved clients are still served.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::lab::{ATTACKER, Lab, OPEN_PORT, VICTIM};
use crate::namespace::ANSWER_TIMEOUT;
use crate::service::{Service, Start};
use crate::tools::{TIMEOUT, await_that};

const METRICS: ([u8; 4], u16) = ([127, 0, 0, 1], 8081);
const REQUEST: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// The most memory that all connections together may cost, in bytes.
const MEMORY: u64 = 8 << 20;

/// Asserts that the service blocks a scanner, answers, feeds the watchdog and stays small during
/// and after the abuse.
#[track_caller]
fn assert_survives<T>(start: Start, abuse: impl FnOnce(&Lab) -> T) {
    let lab = Lab::new();
    let mut service = start.env("WATCHDOG_USEC", "3000000").begin(&lab).await_ready();
    assert_eq!(lab.metric(r#"tcptracker_blocks_total{cause="scan"}"#), 0);
    let before = service.resident_bytes();

    let clients = abuse(&lab);
    assert_works(&lab, &mut service, before);
    drop(clients);
    assert_eq!(lab.metric(r#"tcptracker_blocks_total{cause="scan"}"#), 1);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[track_caller]
fn assert_works(lab: &Lab, service: &mut Service, before: u64) {
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER}"));
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    await_that("metrics that answer", || lab.victim.serves(8081));
    let fed = service.notifications().iter().filter(|notice| *notice == "WATCHDOG=1").count();
    service.await_notifications("WATCHDOG=1", fed + 3);
    let grown = service.resident_bytes().saturating_sub(before);
    assert!(grown < MEMORY, "{grown} bytes more than before");
}

fn usual_start() -> Start {
    Start::on("eth0")
}

fn start_with_descriptors(limit: u32) -> Start {
    usual_start().through(["sh", "-ec", &format!("ulimit -n {limit}; exec \"$@\""), "sh"])
}

/// Raises the descriptor limit of the test.
fn allow_many_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

/// Connects with a time limit. If the service is slow to accept, the kernel drops the SYN and the
/// client repeats it after 1 s.
fn connect() -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&SocketAddr::from(METRICS), TIMEOUT)
}

fn connect_idle(lab: &Lab, count: usize) -> Vec<TcpStream> {
    lab.victim.inside(|| (0..count).map(|_| connect().unwrap()).collect())
}

#[test]
fn idle_connections() {
    allow_many_descriptors();
    assert_survives(usual_start(), |lab| connect_idle(lab, 3000));
}

/// The service has fewer descriptors than there are clients.
#[test]
fn descriptor_exhaustion() {
    assert_survives(start_with_descriptors(72), |lab| connect_idle(lab, 400));
}

#[test]
fn resets_after_the_request() {
    assert_survives(usual_start(), |lab| {
        lab.victim.inside(|| {
            for _ in 0..2000 {
                let Ok(mut client) = connect() else { continue };
                set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
                let _ = client.write_all(REQUEST);
            }
        });
    });
}

#[test]
fn pipelined_requests_without_reading() {
    assert_survives(usual_start(), |lab| {
        let send = || {
            let mut client = connect().unwrap();
            client.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
            while client.write(&REQUEST.repeat(1000)).is_ok() {}
            client
        };
        lab.victim.inside(|| (0..3).map(|_| send()).collect::<Vec<_>>())
    });
}

#[test]
fn endless_request_heads() {
    assert_survives(usual_start(), |lab| {
        let send = |line: &[u8]| {
            let mut client = connect().unwrap();
            client.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
            // 100 MB, or as much as the service reads.
            let sent =
                (0..100).map_while(|_| client.write_all(&line.repeat(1_000_000 / line.len())).ok());
            let _ = sent.count();
            client
        };
        let lines: [&[u8]; 3] = [b"x", b"x: y\r\n", b"GET /metrics HTTP/1.1\r\n"];
        lab.victim.inside(|| lines.map(send))
    });
}

/// A server that allocated the announced length would abort.
#[test]
fn huge_content_length() {
    assert_survives(usual_start(), |lab| {
        lab.victim.inside(|| {
            for length in ["5000000000", "1000000000000000", "18446744073709551615"] {
                let mut client = connect().unwrap();
                let head = format!("POST /metrics HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
                client.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
                client.write_all(head.as_bytes()).unwrap();
                let mut answer = String::new();
                // The reply does not matter; `assert_works` shows whether the service survived.
                let _ = client.read_to_string(&mut answer);
            }
        });
    });
}

/// Several kinds of abuse at once, without a pause.
#[test]
fn concurrent_mixed_abuse() {
    let lab = Lab::new();
    let mut service = usual_start().env("WATCHDOG_USEC", "3000000").begin(&lab).await_ready();
    await_that("metrics that answer", || lab.victim.serves(8081));
    let before = service.resident_bytes();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (bytes, resets) in
            [(&b""[..], false), (REQUEST, true), (b"GET /metrics HTTP/1.1\r\nX: ", false)]
        {
            let (lab, stop) = (&lab, &stop);
            scope.spawn(move || {
                lab.victim.inside(|| {
                    let mut held = std::collections::VecDeque::new();
                    while !stop.load(Ordering::Relaxed) {
                        let Ok(mut client) = connect() else { continue };
                        if resets {
                            set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
                        }
                        match client.write_all(bytes) {
                            Ok(()) => held.push_back(client),
                            Err(error) => assert_ne!(error.kind(), ErrorKind::WouldBlock),
                        }
                        if held.len() > 100 {
                            held.pop_front();
                        }
                    }
                });
            });
        }
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            assert_works(&lab, &mut service, before);
        }));
        stop.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert_eq!(lab.metric(r#"tcptracker_blocks_total{cause="scan"}"#), 1);
    assert_eq!(service.stop().code(), Some(0));
}
