//! `/metrics` and `/health` over HTTP, in one thread.
//!
//! Owns the answers. Only reads; no thread of the service waits for it. A client meets the relay, and
//! tiny_http parses what the relay passes on.

use std::io::Cursor;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tiny_http::{Header, Method, Request, Response};

use crate::api::metrics::Metrics;
use crate::api::metrics::private_server::PrivateServer;
use crate::api::metrics::relay::Relay;
use crate::handles::health::{Health, Status};
use crate::handles::stop_flag::StopFlag;
use crate::types::clock::Moment;
use crate::types::heartbeat::Heartbeat;
use crate::types::state::State;

const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

/// How often tiny_http is started again at most. Each start costs five threads.
const RESTART_EVERY: Duration = Duration::from_secs(1);

/// The metrics server, which listens.
pub struct MetricsServer {
    relay: Relay,
    inner: PrivateServer,
    stop: Arc<StopFlag>,
}

/// Asks the metrics thread to end.
pub struct MetricsStop(Arc<StopFlag>);

impl MetricsStop {
    /// Ends the thread.
    pub fn raise(&self) {
        self.0.raise();
    }
}

impl MetricsServer {
    /// Listens on an address.
    pub fn listen(address: SocketAddr) -> std::io::Result<Self> {
        let (relay, inner) = (Relay::listen(address)?, PrivateServer::start()?);
        Ok(Self { relay, inner, stop: Arc::new(StopFlag::new()?) })
    }

    /// Whether the host does not have the address yet.
    pub const fn address_is_missing(&self) -> bool {
        self.relay.address_is_missing()
    }

    /// Returns what ends [`Self::run`].
    pub fn stop(&self) -> MetricsStop {
        MetricsStop(Arc::clone(&self.stop))
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
        heartbeat.tick();
        while relay.wait(&stop)? {
            heartbeat.tick();
            let now = Moment::now();
            relay.serve(now, |head| {
                let exchanged = inner.exchange(head, |request| answer(request, metrics, health));
                // Without descriptors, tiny_http stops to accept connections for good.
                if exchanged.is_err() && now.since(started) >= RESTART_EVERY {
                    (inner, started) = (PrivateServer::start()?, now);
                }
                exchanged
            });
        }
        Ok(())
    }
}

/// The body of `/health`. Scripts rely on these words.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HealthAnswer<'a> {
    message: &'a str,
    status_text: &'a str,
    status_code: u16,
}

fn answer(request: &Request, metrics: &Metrics, health: &Health) -> Response<Cursor<Vec<u8>>> {
    let path = request.url().split('?').next().unwrap_or_default();
    let (code, kind, body) = match (request.method(), path) {
        (Method::Get | Method::Head, "/metrics") => match metrics.render(&health.status()) {
            Ok(text) => (200, PROMETHEUS, text),
            Err(error) => (500, "text/plain", error.to_string().into_bytes()),
        },
        (Method::Get | Method::Head, "/health") => {
            let Status { state, reason, .. } = health.status();
            let health = if state == State::Degraded {
                let message = reason.as_deref().unwrap_or("degraded");
                HealthAnswer { message, status_text: "Service Unavailable", status_code: 503 }
            } else {
                HealthAnswer { message: "healthy", status_text: "OK", status_code: 200 }
            };
            (health.status_code, JSON, serde_json::to_vec(&health).unwrap_or_default())
        }
        (Method::Get | Method::Head, _) => {
            (404, "text/plain", b"there are /metrics and /health\n".to_vec())
        }
        _ => (405, "text/plain", b"only GET\n".to_vec()),
    };
    let mut response = Response::from_data(body).with_status_code(code);
    if let Ok(header) = Header::from_bytes(b"Content-Type", kind.as_bytes()) {
        response.add_header(header);
    }
    response
}
