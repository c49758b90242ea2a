//! A polkit that never answers, as while somebody thinks of his password.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use zbus::interface;

use crate::bus::Bus;
use crate::tools::TIMEOUT;

/// It. Dropped, it leaves the bus.
pub struct UnresponsivePolkit {
    asked: Receiver<()>,
    leave: Option<async_channel::Sender<()>>,
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
        let (tell, asked) = channel();
        let (leave, left) = async_channel::bounded::<()>(1);
        let (say_ready, ready) = channel();
        let address = bus.address().to_owned();
        let thread = std::thread::spawn(move || {
            zbus::block_on(async {
                let connection = zbus::connection::Builder::address(address.as_str())
                    .serve_at("/org/freedesktop/PolicyKit1/Authority", Authority(Mutex::new(tell)))
                    .name("org.freedesktop.PolicyKit1")
                    .build()
                    .await;
                let connection = connection.unwrap();
                say_ready.send(()).unwrap();
                // Until nobody holds the other end.
                let _ = left.recv().await;
                // Those who wait hold it open.
                let _ = connection.close().await;
            });
        });
        ready.recv_timeout(TIMEOUT).unwrap();
        Self { asked, leave: Some(leave), thread: Some(thread) }
    }

    /// Waits until it was asked so often.
    #[track_caller]
    pub fn await_requests(&self, count: usize) {
        for _ in 0..count {
            self.asked.recv_timeout(TIMEOUT).expect("polkit is asked");
        }
    }
}

impl Drop for UnresponsivePolkit {
    fn drop(&mut self) {
        drop(self.leave.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
