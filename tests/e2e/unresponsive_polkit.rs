//! A polkit that never answers, as during a password prompt.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use zbus::interface;

use crate::bus::Bus;
use crate::fake_service::FakeService;
use crate::tools::TIMEOUT;

/// A polkit that never answers. Disconnects from the bus on drop.
pub struct UnresponsivePolkit {
    requests: Receiver<()>,
    _service: FakeService,
}

struct Authority(Mutex<Sender<()>>);

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
        let _ = (subject, action, details, flags, cancellation);
        self.0.lock().unwrap().send(()).unwrap();
        std::future::pending().await
    }
}

impl UnresponsivePolkit {
    pub fn on(bus: &Bus) -> Self {
        let (sender, requests) = channel();
        let service = FakeService::start(bus, |builder| {
            let authority = Authority(Mutex::new(sender));
            builder
                .serve_at("/org/freedesktop/PolicyKit1/Authority", authority)
                .name("org.freedesktop.PolicyKit1")
        });
        Self { requests, _service: service }
    }

    /// Waits for this number of authorization requests.
    #[track_caller]
    pub fn await_requests(&self, count: usize) {
        for _ in 0..count {
            self.requests.recv_timeout(TIMEOUT).expect("an authorization request");
        }
    }
}
