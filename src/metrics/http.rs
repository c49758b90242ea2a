//! `/metrics` and `/health`, from a thread of their own.
//!
//! Owns the HTTP listener and a few threads that answer. Only reads; nothing else in the service waits
//! for it, and no client of it can end or stall the service.

use std::io::Cursor;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde::Serialize;
use tiny_http::{Header, Method, Request, Response, Server};

use super::Metrics;
use crate::clock::Moment;
use crate::crew::Pulse;
use crate::state::{State, StateBoard};

/// How long the thread waits at most before it shows that it is alive.
const TICK: Duration = Duration::from_millis(500);

/// After so long without a request it is made sure that one would be heard.
const DOUBT_AFTER: Duration = Duration::from_secs(10);

const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

/// Why the metrics are not served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics on {address}: {error}")]
pub struct ServeError {
    address: SocketAddr,
    error: String,
}

/// Answers given at a time. A client that does not read its answer holds one of them back; when all are
/// held back, the others wait.
const ANSWERS_AT_ONCE: usize = 4;

/// The listener.
pub struct MetricsServer {
    address: SocketAddr,
    /// None while there is no room for a listener.
    server: Option<Server>,
    stopping: Arc<AtomicBool>,
}

/// Asks the metrics thread to end, within a tick.
pub struct MetricsStop(Arc<AtomicBool>);

impl MetricsStop {
    /// Ends it.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl MetricsServer {
    /// Listens.
    pub fn listen(address: SocketAddr) -> Result<Self, ServeError> {
        Ok(Self { address, server: Some(serve(address)?), stopping: Arc::default() })
    }

    /// What ends [`Self::run`].
    pub fn stop(&self) -> MetricsStop {
        MetricsStop(Arc::clone(&self.stopping))
    }

    /// Serves until told to stop.
    pub fn run(
        mut self,
        metrics: &Arc<Metrics>,
        board: &Arc<StateBoard>,
        pulse: &Pulse,
    ) -> std::io::Result<()> {
        let crew = Answerers::start(metrics, board)?;
        let mut one_is_free = false;
        let mut last_heard = Moment::now();
        while !self.stopping.load(Ordering::Acquire) {
            pulse.beat();
            if !one_is_free {
                one_is_free = crew.free.recv_timeout(TICK).is_ok();
                continue;
            }
            match self.server.as_ref().map(|server| server.recv_timeout(TICK)) {
                Some(Ok(Some(request))) => {
                    one_is_free = crew.requests.send(request).is_err();
                    last_heard = Moment::now();
                }
                Some(Ok(None)) if Moment::now().since(last_heard) < DOUBT_AFTER => {}
                Some(Ok(None)) => {
                    last_heard = Moment::now();
                    // Its listening thread can die without a word: then nobody is connected.
                    if TcpStream::connect_timeout(&self.address, TICK).is_err() {
                        self.server = None;
                    }
                }
                // Out of file descriptors, say: the listener does not survive that.
                Some(Err(_)) => self.server = None,
                None => {
                    thread::park_timeout(TICK);
                    self.server = serve(self.address).ok();
                }
            }
        }
        Ok(())
    }
}

fn serve(address: SocketAddr) -> Result<Server, ServeError> {
    Server::http(address).map_err(|error| ServeError { address, error: error.to_string() })
}

/// The threads that answer. They end with the process: one of them may be held back by its client.
struct Answerers {
    requests: Sender<Request>,
    /// A token for each that is free.
    free: Receiver<()>,
}

impl Answerers {
    fn start(metrics: &Arc<Metrics>, board: &Arc<StateBoard>) -> std::io::Result<Self> {
        let (requests, inbox) = channel::<Request>();
        let inbox = Arc::new(Mutex::new(inbox));
        let (tokens, free) = channel();
        for _ in 0..ANSWERS_AT_ONCE {
            let (inbox, tokens, metrics) =
                (Arc::clone(&inbox), tokens.clone(), Arc::clone(metrics));
            // Not to keep the board, and with it the journal, from ending.
            let board = Arc::downgrade(board);
            let next = move || inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
            thread::Builder::new().name("answer".to_owned()).spawn(move || {
                while tokens.send(()).is_ok() {
                    let Ok(request) = next() else { return };
                    let Some(board) = board.upgrade() else { return };
                    let response = answer(&request, &metrics, &board);
                    drop(board);
                    // Whoever asked may have hung up.
                    let _ = request.respond(response);
                }
            })?;
        }
        Ok(Self { requests, free })
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

fn answer(request: &Request, metrics: &Metrics, board: &StateBoard) -> Response<Cursor<Vec<u8>>> {
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
    response
}
