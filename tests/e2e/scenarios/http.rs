//! The HTTP server: `/metrics` and `/health`.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use crate::lab::{ATTACKER, Lab, OPEN_PORT, VICTIM};
use crate::service::Start;
use crate::tools::TIMEOUT;

#[test]
fn health_body_is_that_of_the_original() {
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

/// Blocking works without the metrics port.
#[test]
fn occupied_port_is_reported_and_does_not_stop_the_service() {
    let lab = Lab::new();
    let taken = lab.victim.inside(|| TcpListener::bind("127.0.0.1:8081").unwrap());
    let mut service = lab.start();
    let told = service.await_line("cannot serve metrics on 127.0.0.1:8081: ");
    assert!(told.ends_with("; choose another address with metrics.listen, or \"off\""), "{told}");
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER}"));
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    lab.cli("reload").ok();
    service.await_line("configuration reloaded");
    assert_eq!(service.lines_with("cannot serve metrics").len(), 2, "one message per attempt");
    // When the port is free again, a reload is enough.
    drop(taken);
    lab.cli("reload").ok();
    assert_eq!(lab.victim.http_get(8081, "/health").0, 200);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// At boot the service may start before the network is configured.
#[test]
fn waits_for_the_listen_address_to_appear() {
    let lab = Lab::new();
    for (address, written) in [("10.77.0.5", "10.77.0.5:8081"), ("fd77::5", "[fd77::5]:8081")] {
        let start = Start::on("eth0").env("TCPTRACKER_METRICS__LISTEN", written);
        let mut service = start.begin(&lab).await_ready();
        let told = service.await_line("is not an address of this host yet");
        assert!(told.contains(&format!("WARN {address} ")), "{told}");
        let options = if address.contains(':') { "nodad" } else { "" };
        lab.victim.ip(&format!("addr add {address} dev lo {options}"));
        let answer = lab.victim.inside(|| {
            let mut stream = TcpStream::connect(written).unwrap();
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        assert!(
            answer.starts_with("HTTP/1.1 200") || answer.starts_with("HTTP/1.0 200"),
            "{answer}"
        );
        assert_eq!(service.stop().code(), Some(0));
    }
}

#[test]
fn listens_only_on_the_configured_address() {
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

#[test]
fn connection_ends_after_one_request() {
    let lab = Lab::new();
    let mut service = lab.start();
    lab.victim.inside(|| {
        let mut client = TcpStream::connect(("127.0.0.1", 8081)).unwrap();
        client.set_read_timeout(Some(TIMEOUT)).unwrap();
        // The request arrives in pieces, and a second one before the reply.
        for piece in ["GET /heal", "th HTTP/1.1\r\nHost: localhost\r\n", "\r\nGET /health HTTP/1.1"]
        {
            client.write_all(piece.as_bytes()).unwrap();
        }
        client.write_all(b"\r\n\r\n").unwrap();
        let mut answers = String::new();
        client.read_to_string(&mut answers).unwrap();
        assert_eq!(
            answers.matches("HTTP/1.1 200 OK\r\nConnection: close\r\n").count(),
            1,
            "{answers}"
        );
        assert_eq!(answers.matches("healthy").count(), 1, "{answers}");
    });
    assert_eq!(service.stop().code(), Some(0));
}

#[test]
fn malformed_requests_get_an_error_status() {
    let lab = Lab::new();
    let mut service = lab.start();
    let answer_to = |request: &[u8]| {
        lab.victim.inside(|| {
            let mut client = TcpStream::connect(("127.0.0.1", 8081)).unwrap();
            client.set_read_timeout(Some(TIMEOUT)).unwrap();
            client.write_all(request).unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            answer.lines().next().unwrap().to_owned()
        })
    };
    assert_eq!(answer_to(b"nonsense\r\n\r\n"), "HTTP/1.1 400 Bad Request");
    assert_eq!(
        answer_to("x".repeat(20_000).as_bytes()),
        "HTTP/1.1 431 Request Header Fields Too Large"
    );
    assert_eq!(answer_to(b"GET / HTTP/2.0\r\n\r\n"), "HTTP/1.1 505 HTTP Version Not Supported");
    let with_body = b"POST /metrics HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody";
    assert_eq!(answer_to(with_body), "HTTP/1.1 405 Method Not Allowed");
    assert_eq!(answer_to(b"GET /metrics HTTP/1.0\r\n\r\n"), "HTTP/1.0 200 OK");
    assert_eq!(service.stop().code(), Some(0));
}
