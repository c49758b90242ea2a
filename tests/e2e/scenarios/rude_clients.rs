//! What any local user can do to the metrics port is no concern of those who are scanned, nor of the host's
//! memory; and whoever asks politely is answered all the same.

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

/// What all connections together may cost, and more than what they do.
const MEMORY: u64 = 8 << 20;

/// Blocks a scanner, answers, shows that it is alive and stays small, while clients are rude and afterwards.
#[track_caller]
fn endures<T>(start: Start, be_rude: impl FnOnce(&Lab) -> T) {
    let lab = Lab::new();
    let mut service = start.env("WATCHDOG_USEC", "3000000").begin(&lab).await_ready();
    assert_eq!(lab.metric(r#"tcptracker_blocks_total{cause="scan"}"#), 0);
    let before = service.resident_bytes();

    let rude = be_rude(&lab);
    lives_on(&lab, &mut service, before);
    drop(rude);
    assert_eq!(lab.metric(r#"tcptracker_blocks_total{cause="scan"}"#), 1);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[track_caller]
fn lives_on(lab: &Lab, service: &mut Service, before: u64) {
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER}"));
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    await_that("metrics that answer", || lab.victim.serves(8081));
    let fed = service.notifications().iter().filter(|notice| *notice == "WATCHDOG=1").count();
    service.await_notifications("WATCHDOG=1", fed + 3);
    let grown = service.resident_bytes().saturating_sub(before);
    assert!(grown < MEMORY, "{grown} bytes more than before");
}

fn as_usual() -> Start {
    Start::on("eth0")
}

fn with_files(limit: u32) -> Start {
    as_usual().through(["sh", "-ec", &format!("ulimit -n {limit}; exec \"$@\""), "sh"])
}

/// For more connections than a process usually has.
fn allow_many_files() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

/// Nobody waits for ever for a service that does not hear. One that is slow to accept leaves a SYN
/// unanswered, which comes again after a second.
fn connect() -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&SocketAddr::from(METRICS), TIMEOUT)
}

fn idle(lab: &Lab, count: usize) -> Vec<TcpStream> {
    lab.victim.inside(|| (0..count).map(|_| connect().unwrap()).collect())
}

#[test]
fn thousands_that_say_nothing() {
    allow_many_files();
    endures(as_usual(), |lab| idle(lab, 3000));
}

/// There is a descriptor for some of them only.
#[test]
fn every_descriptor_is_taken() {
    endures(with_files(48), |lab| idle(lab, 400));
}

#[test]
fn they_hang_up_as_soon_as_they_have_asked() {
    endures(as_usual(), |lab| {
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
fn they_ask_for_more_than_any_buffer_holds_and_read_nothing() {
    endures(as_usual(), |lab| {
        let ask = || {
            let mut client = connect().unwrap();
            client.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
            while client.write(&REQUEST.repeat(1000)).is_ok() {}
            client
        };
        lab.victim.inside(|| (0..3).map(|_| ask()).collect::<Vec<_>>())
    });
}

#[test]
fn heads_have_no_end() {
    endures(as_usual(), |lab| {
        let ask = |line: &[u8]| {
            let mut client = connect().unwrap();
            client.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
            // A hundred megabytes, or as much as anybody listens to.
            let sent =
                (0..100).map_while(|_| client.write_all(&line.repeat(1_000_000 / line.len())).ok());
            let _ = sent.count();
            client
        };
        let lines: [&[u8]; 3] = [b"x", b"x: y\r\n", b"GET /metrics HTTP/1.1\r\n"];
        lab.victim.inside(|| lines.map(ask))
    });
}

/// tiny_http itself makes room for the whole of a body that it skips, and aborts where there is none.
#[test]
fn they_announce_a_body_larger_than_any_memory() {
    endures(as_usual(), |lab| {
        lab.victim.inside(|| {
            for length in ["5000000000", "1000000000000000", "18446744073709551615"] {
                let mut client = connect().unwrap();
                let head = format!("POST /metrics HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
                client.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
                client.write_all(head.as_bytes()).unwrap();
                let mut answer = String::new();
                // Whether the service is alive will show.
                let _ = client.read_to_string(&mut answer);
            }
        });
    });
}

/// As many at a time as can, all the time.
#[test]
fn a_crowd_that_does_all_of_it_does_not_rest() {
    let lab = Lab::new();
    let mut service = as_usual().env("WATCHDOG_USEC", "3000000").begin(&lab).await_ready();
    await_that("metrics that answer", || lab.victim.serves(8081));
    let before = service.resident_bytes();
    let enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (bytes, resets) in
            [(&b""[..], false), (REQUEST, true), (b"GET /metrics HTTP/1.1\r\nX: ", false)]
        {
            let (lab, enough) = (&lab, &enough);
            scope.spawn(move || {
                lab.victim.inside(|| {
                    let mut held = std::collections::VecDeque::new();
                    while !enough.load(Ordering::Relaxed) {
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
        let watched = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            lives_on(&lab, &mut service, before);
        }));
        enough.store(true, Ordering::Relaxed);
        watched.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert_eq!(lab.metric(r#"tcptracker_blocks_total{cause="scan"}"#), 1);
    assert_eq!(service.stop().code(), Some(0));
}
