//! `/metrics` and `/health`, from a thread of their own.
//!
//! Owns the HTTP listener. Only reads; nothing else in the service waits for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;
use tiny_http::{Header, Method, Request, Response, Server};

use super::Metrics;
use crate::crew::Pulse;
use crate::state::{State, StateBoard};

/// How long the thread waits at most before it shows that it is alive.
const TICK: Duration = Duration::from_millis(500);

const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

/// Why the metrics are not served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics on {address}: {error}")]
pub struct ServeError {
    address: SocketAddr,
    error: String,
}

/// The listener.
pub struct MetricsServer {
    server: Arc<Server>,
    address: SocketAddr,
    stopping: Arc<AtomicBool>,
}

/// Asks the metrics thread to end.
pub struct MetricsStop {
    server: Arc<Server>,
    stopping: Arc<AtomicBool>,
}

impl MetricsStop {
    /// Ends it at once.
    pub fn raise(&self) {
        self.stopping.store(true, Ordering::Release);
        self.server.unblock();
    }
}

impl MetricsServer {
    /// Listens.
    pub fn listen(address: SocketAddr) -> Result<Self, ServeError> {
        let server = Server::http(address)
            .map_err(|error| ServeError { address, error: error.to_string() })?;
        Ok(Self { server: Arc::new(server), address, stopping: Arc::default() })
    }

    /// What ends [`Self::run`].
    pub fn stop(&self) -> MetricsStop {
        MetricsStop { server: Arc::clone(&self.server), stopping: Arc::clone(&self.stopping) }
    }

    /// Serves until told to stop.
    pub fn run(
        &self,
        metrics: &Metrics,
        board: &StateBoard,
        pulse: &Pulse,
    ) -> Result<(), ServeError> {
        while !self.stopping.load(Ordering::Acquire) {
            pulse.beat();
            match self.server.recv_timeout(TICK) {
                Ok(Some(request)) => answer(request, metrics, board),
                Ok(None) => {}
                Err(error) => {
                    return Err(ServeError { address: self.address, error: error.to_string() });
                }
            }
        }
        Ok(())
    }
}

/// The original's words, letter for letter.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Health<'a> {
    message: &'a str,
    status_text: &'a str,
    status_code: u16,
}

fn answer(request: Request, metrics: &Metrics, board: &StateBoard) {
    let path = request.url().split('?').next().unwrap_or_default();
    let (code, kind, body) = match (request.method(), path) {
        (Method::Get | Method::Head, "/metrics") => match metrics.render() {
            Ok(text) => (200, PROMETHEUS, text),
            Err(error) => (500, "text/plain", error.to_string().into_bytes()),
        },
        (Method::Get | Method::Head, "/health") => {
            let (state, reason) = board.current();
            let health = if state == State::Degraded {
                let message = reason.as_deref().unwrap_or("degraded");
                Health { message, status_text: "Service Unavailable", status_code: 503 }
            } else {
                Health { message: "healthy", status_text: "OK", status_code: 200 }
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
    // Whoever asked may have hung up.
    let _ = request.respond(response);
}
