//! A polkit that never answers, as during a password prompt.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use zbus::interface;

use crate::bus::Bus;
use crate::fake_service::FakeService;
use crate::tools::TIMEOUT;

/// A polkit that never answers. Disconnects from the bus on drop.
pub struct UnresponsivePolkit {
    requests: Receiver<String>,
    cancellations: Receiver<String>,
    _service: FakeService,
}

/// Sends the name of each request, and the names of those that end.
struct Authority(Mutex<[Sender<String>; 2]>);

#[interface(name = "org.freedesktop.PolicyKit1.Authority")]
impl Authority {
    async fn check_authorization(
        &self,
        subject: (String, std::collections::HashMap<String, zbus::OwnedVariant>),
        action: String,
        details: std::collections::HashMap<String, String>,
        flags: u32,
        cancellation: String,
    ) -> (bool, bool, std::collections::HashMap<String, String>) {
        let _ = (subject, action, details, flags);
        // The test may have ended.
        let _ = self.0.lock().unwrap()[0].send(cancellation);
        std::future::pending().await
    }

    fn cancel_check_authorization(&self, cancellation: String) {
        let _ = self.0.lock().unwrap()[1].send(cancellation);
    }
}

impl UnresponsivePolkit {
    pub fn on(bus: &Bus) -> Self {
        let (sender, requests) = channel();
        let (of_cancelled, cancellations) = channel();
        let service = FakeService::start(bus, |builder| {
            let authority = Authority(Mutex::new([sender, of_cancelled]));
            builder
                .serve_at("/org/freedesktop/PolicyKit1/Authority", authority)
                .name("org.freedesktop.PolicyKit1")
        });
        Self { requests, cancellations, _service: service }
    }

    /// Waits for this number of authorization requests and returns their names.
    #[track_caller]
    pub fn await_requests(&self, count: usize) -> Vec<String> {
        let next = || self.requests.recv_timeout(TIMEOUT).expect("an authorization request");
        (0..count).map(|_| next()).collect()
    }

    /// Waits for the end of this number of requests and returns their names.
    #[track_caller]
    pub fn await_cancellations(&self, count: usize) -> Vec<String> {
        let next = || self.cancellations.recv_timeout(TIMEOUT).expect("a cancellation");
        (0..count).map(|_| next()).collect()
    }
}
