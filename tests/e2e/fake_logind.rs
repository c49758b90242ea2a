//! A logind on a lab's bus that lists the sessions that a test wants.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use zbus::{OwnedObjectPath, interface};

use crate::bus::Bus;
use crate::fake_service::FakeService;

const SESSION: &str = "/org/freedesktop/login1/session/_31";

/// A logind with at most one session. Disconnects from the bus on drop.
pub struct FakeLogind {
    session: Shared,
    _service: FakeService,
}

/// The remote host of the session, and its state.
type Shared = Arc<Mutex<Option<(IpAddr, &'static str)>>>;

struct Manager(Shared);

#[interface(name = "org.freedesktop.login1.Manager")]
impl Manager {
    fn list_sessions(&self) -> Vec<(String, u32, String, String, OwnedObjectPath)> {
        let path = || OwnedObjectPath::try_from(SESSION).unwrap();
        let listed = |_: &_| ("1".to_owned(), 1000, "ada".to_owned(), String::new(), path());
        self.0.lock().unwrap().iter().map(listed).collect()
    }
}

struct Session(Shared);

#[interface(name = "org.freedesktop.login1.Session")]
impl Session {
    #[zbus(property)]
    fn remote_host(&self) -> String {
        self.0.lock().unwrap().map(|(host, _)| host.to_string()).unwrap_or_default()
    }

    #[zbus(property)]
    fn state(&self) -> String {
        self.0.lock().unwrap().map(|(_, state)| state.to_owned()).unwrap_or_default()
    }
}

impl FakeLogind {
    pub fn on(bus: &Bus) -> Self {
        let session = Shared::default();
        let objects = (Manager(Arc::clone(&session)), Session(Arc::clone(&session)));
        let service = FakeService::start(bus, |builder| {
            builder
                .serve_at("/org/freedesktop/login1", objects.0)
                .serve_at(SESSION, objects.1)
                .name("org.freedesktop.login1")
        });
        Self { session, _service: service }
    }

    pub fn log_in(&self, host: IpAddr) {
        *self.session.lock().unwrap() = Some((host, "active"));
    }

    /// The user has logged out, and a program of it still runs.
    pub fn close(&self) {
        if let Some((_, state)) = &mut *self.session.lock().unwrap() {
            *state = "closing";
        }
    }
}
