//! `/metrics` and `/health` over HTTP, in one thread.
//!
//! Owns the answers. Only reads; no thread of the service waits for it. A client meets the relay, and
//! tiny_http parses what the relay passes on.

use std::io::{Cursor, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tiny_http::{Header, Method, Request, Response};

use crate::api::metrics::Metrics;
use crate::api::metrics::private_server::PrivateServer;
use crate::api::metrics::relay::Relay;
use crate::handles::{Health, StopFlag};
use crate::types::{Heartbeat, Moment, State, Status};

/// The shortest time between two starts of tiny_http. Each start costs five threads.
const RESTART_EVERY: Duration = Duration::from_secs(1);

/// The metrics server, which listens.
pub struct MetricsServer {
    relay: Relay,
    inner: PrivateServer,
    stop: Arc<StopFlag>,
}

/// Whether the host does not have an address yet.
pub fn is_missing(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_err_and(|error| error.kind() == ErrorKind::AddrNotAvailable)
}

impl MetricsServer {
    /// Listens on an address. Raising the flag ends [`Self::run`].
    pub fn listen(address: SocketAddr) -> std::io::Result<(Self, Arc<StopFlag>)> {
        let (relay, inner) = (Relay::listen(address)?, PrivateServer::start()?);
        let stop = Arc::new(StopFlag::new()?);
        Ok((Self { relay, inner, stop: Arc::clone(&stop) }, stop))
    }

    /// Serves until the thread has to stop.
    pub fn run(
        self,
        metrics: &Metrics,
        health: &Health,
        heartbeat: &Heartbeat,
    ) -> std::io::Result<()> {
        let Self { mut relay, mut inner, stop } = self;
        let mut started = Moment::now();
        while relay.wait(&stop)? {
            heartbeat.tick();
            let now = Moment::now();
            relay.serve(now, |head| {
                let exchanged = inner.exchange(head, |request| answer(request, metrics, health));
                // Without descriptors, tiny_http stops accepting connections for good.
                if exchanged.is_err() && now.since(started) >= RESTART_EVERY {
                    (inner, started) = (PrivateServer::start()?, now);
                }
                exchanged
            });
        }
        Ok(())
    }
}

fn answer(request: &Request, metrics: &Metrics, health: &Health) -> Response<Cursor<Vec<u8>>> {
    let path = request.url().split('?').next().unwrap_or_default();
    let (code, kind, body) = match path {
        _ if !matches!(request.method(), Method::Get | Method::Head) => text(405, "only GET\n"),
        "/metrics" => match metrics.render(&health.status()) {
            Ok(body) => (200, "text/plain; version=0.0.4; charset=utf-8", body),
            Err(error) => text(500, &error.to_string()),
        },
        "/health" => health_answer(&health.status()),
        _ => text(404, "try /metrics or /health\n"),
    };
    let response = Response::from_data(body).with_status_code(code);
    match Header::from_bytes(b"Content-Type", kind.as_bytes()) {
        Ok(header) => response.with_header(header),
        Err(()) => response,
    }
}

fn text(code: u16, text: &str) -> (u16, &'static str, Vec<u8>) {
    (code, "text/plain", text.as_bytes().to_vec())
}

/// Scripts rely on the names and their order.
fn health_answer(status: &Status) -> (u16, &'static str, Vec<u8>) {
    let (code, text, message) = match status.state {
        State::Starting | State::Degraded => (503, "Service Unavailable", status.reason.as_deref()),
        State::Enforcing | State::Observing => (200, "OK", Some("healthy")),
    };
    let message = serde_json::Value::from(message.unwrap_or(status.state.as_str()));
    let body = format!(r#"{{"message":{message},"statusText":"{text}","statusCode":{code}}}"#);
    (code, "application/json", body.into_bytes())
}
