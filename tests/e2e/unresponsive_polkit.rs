//! A polkit that never answers, as during a password prompt.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use zbus::interface;

use crate::bus::Bus;
use crate::tools::TIMEOUT;

/// A polkit that never answers. Disconnects from the bus on drop.
pub struct UnresponsivePolkit {
    requests: Receiver<()>,
    stop: Option<async_channel::Sender<()>>,
    thread: Option<JoinHandle<()>>,
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
        let (stop, stopped) = async_channel::bounded::<()>(1);
        let (signal_ready, ready) = channel();
        let address = bus.address().to_owned();
        let thread = std::thread::spawn(move || {
            zbus::block_on(async {
                let connection = zbus::connection::Builder::address(address.as_str())
                    .serve_at(
                        "/org/freedesktop/PolicyKit1/Authority",
                        Authority(Mutex::new(sender)),
                    )
                    .name("org.freedesktop.PolicyKit1")
                    .build()
                    .await;
                let connection = connection.unwrap();
                signal_ready.send(()).unwrap();
                // Returns an error when `stop` is dropped.
                let _ = stopped.recv().await;
                // Pending calls would keep the connection open.
                let _ = connection.close().await;
            });
        });
        ready.recv_timeout(TIMEOUT).unwrap();
        Self { requests, stop: Some(stop), thread: Some(thread) }
    }

    /// Waits for this number of authorization requests.
    #[track_caller]
    pub fn await_requests(&self, count: usize) {
        for _ in 0..count {
            self.requests.recv_timeout(TIMEOUT).expect("an authorization request");
        }
    }
}

impl Drop for UnresponsivePolkit {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
