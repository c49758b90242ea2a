//! `/metrics` and `/health`, from a thread of their own.
//!
//! Owns what is answered. Only reads; nothing else in the service waits for it, and no client of it can end
//! or stall the service: clients meet the door, the door asks tiny_http inside.

use crate::handles::health::Status;
use std::io::Cursor;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;
use tiny_http::{Header, Method, Request, Response};

use crate::api::metrics::Metrics;
use crate::api::metrics::door::Door;
use crate::api::metrics::head::Ask;
use crate::api::metrics::inside::Inside;
use crate::handles::health::Health;
use crate::handles::stop_flag::StopFlag;
use crate::types::clock::Moment;
use crate::types::heartbeat::Heartbeat;
use crate::types::state::State;

const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

/// Why the metrics are not served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics on {address}: {error}")]
pub struct ServeError {
    address: SocketAddr,
    error: std::io::Error,
}

/// The listener.
pub struct MetricsServer {
    door: Door,
    inside: Inside,
    stopping: Arc<StopFlag>,
}

/// Asks the metrics thread to end.
pub struct MetricsStop(Arc<StopFlag>);

impl MetricsStop {
    /// Ends it.
    pub fn raise(&self) {
        self.0.raise();
    }
}

impl MetricsServer {
    /// Listens.
    pub fn listen(address: SocketAddr) -> Result<Self, ServeError> {
        let begin = || {
            let (door, inside) = (Door::open(address)?, Inside::start()?);
            Ok(Self { door, inside, stopping: Arc::new(StopFlag::new()?) })
        };
        begin().map_err(|error| ServeError { address, error })
    }

    /// Whether nobody can be answered yet, as this host does not have the address.
    pub const fn awaits_its_address(&self) -> bool {
        self.door.awaits_its_address()
    }

    /// What ends [`Self::run`].
    pub fn stop(&self) -> MetricsStop {
        MetricsStop(Arc::clone(&self.stopping))
    }

    /// Serves until told to stop.
    pub fn run(
        mut self,
        metrics: &Metrics,
        health: &Health,
        heartbeat: &Heartbeat,
    ) -> std::io::Result<()> {
        heartbeat.tick();
        while self.door.wait(&self.stopping)? {
            heartbeat.tick();
            let inside = &mut self.inside;
            self.door.look(Moment::now(), |Ask { request, .. }| {
                let answered = inside.ask(request, |request| answer(request, metrics, health));
                if answered.is_err() {
                    *inside = Inside::start()?;
                }
                answered
            });
        }
        Ok(())
    }
}

/// The original's words, letter for letter.
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
