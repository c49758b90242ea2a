//! A program on a lab's bus that stands in for a system service.

use std::sync::mpsc::channel;
use std::thread::JoinHandle;

use zbus::connection::Builder;

use crate::bus::Bus;
use crate::tools::TIMEOUT;

/// A connection to the bus that serves objects. Closed on drop.
pub struct FakeService {
    stop: Option<async_channel::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FakeService {
    /// Starts the service and waits until it is on the bus.
    pub fn start(
        bus: &Bus,
        add_objects: impl FnOnce(Builder<'_>) -> Builder<'_> + Send + 'static,
    ) -> Self {
        let (stop, stopped) = async_channel::bounded::<()>(1);
        let (signal_ready, ready) = channel();
        let address = bus.address().to_owned();
        let thread = std::thread::spawn(move || {
            zbus::block_on(async {
                let builder = add_objects(Builder::address(address.as_str()));
                let connection = builder.build().await.unwrap();
                signal_ready.send(()).unwrap();
                // Returns an error when `stop` is dropped.
                let _ = stopped.recv().await;
                // Pending calls would keep the connection open.
                let _ = connection.close().await;
            });
        });
        ready.recv_timeout(TIMEOUT).unwrap();
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for FakeService {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
