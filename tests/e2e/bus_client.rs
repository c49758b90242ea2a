//! Somebody on the bus who calls the service as fast as it answers: a connection, not a process a call.

use zbus::Connection;
use zbus::proxy::CacheProperties;

use crate::bus::{Block, Bus, target};

/// What became of a call.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply<T> {
    /// The service has answered.
    Told(T),
    /// It has refused, by this name.
    Refused(String),
    /// It will never be known: the service has gone.
    Unknown,
}

/// The caller.
pub struct BusClient(zbus::Proxy<'static>);

impl BusClient {
    /// Somebody on this bus, to talk with the instance on `eth0`.
    pub fn on(bus: &Bus) -> Self {
        let [name, object, interface] = target("eth0");
        let proxy = zbus::block_on(async {
            let connection: Connection =
                zbus::connection::Builder::address(bus.address()).build().await?;
            zbus::proxy::Builder::<zbus::Proxy<'static>>::new(&connection)
                .destination(name)
                .path(object)
                .interface(interface)
                .cache_properties(CacheProperties::No)
                .build()
                .await
        });
        Self(proxy.unwrap())
    }

    pub fn block(&self, address: &str, seconds: u64, reason: &str) -> Reply<()> {
        answer(zbus::block_on(self.0.call("Block", &(address, seconds, reason))))
    }

    pub fn unblock(&self, address: &str) -> Reply<()> {
        answer(zbus::block_on(self.0.call("Unblock", &(address,))))
    }

    pub fn list(&self) -> Reply<Vec<Block>> {
        let listed =
            zbus::block_on(self.0.call::<_, _, Vec<(String, u64, u64, u32, String)>>("List", &()));
        let wide = |(address, since, until, offences, reason)| -> Block {
            (address, since, until, u64::from(offences), reason)
        };
        answer(listed.map(|blocks| blocks.into_iter().map(wide).collect()))
    }
}

fn answer<T>(result: zbus::Result<T>) -> Reply<T> {
    match result {
        Ok(value) => Reply::Value(value),
        Err(zbus::Error::MethodError(name, ..)) if name.starts_with("org.tcptracker.") => {
            Reply::Error(name.to_string())
        }
        // The bus says so as soon as the service's connection is gone.
        Err(zbus::Error::MethodError(..) | zbus::Error::FDO(_)) => Reply::Unknown,
        Err(error) => panic!("the bus: {error}"),
    }
}

/// Somebody who asks and does not take the answers.
pub struct NonReadingClient(std::os::unix::net::UnixStream);

impl NonReadingClient {
    /// Connects by hand: a library would read.
    pub fn on(bus: &Bus) -> Self {
        use std::io::{Read, Write};
        let path = bus.address().strip_prefix("unix:path=").unwrap();
        let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
        // EXTERNAL, as root: "30" is "0".
        stream.write_all(b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n").unwrap();
        let mut said = [0; 3];
        stream.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"OK ");
        let hello = zbus::Message::method_call("/org/freedesktop/DBus", "Hello")
            .destination("org.freedesktop.DBus")
            .interface("org.freedesktop.DBus")
            .build(&())
            .unwrap();
        stream.write_all(hello.data()).unwrap();
        Self(stream)
    }

    /// Asks so often, or until nobody takes it any more.
    pub fn send_calls(&self, member: &str, count: u32) {
        use std::io::Write;
        self.0.set_nonblocking(true).unwrap();
        let [name, object, interface] = target("eth0");
        for _ in 0..count {
            let call = zbus::Message::method_call(object.as_str(), member)
                .destination(name.as_str())
                .interface(interface.as_str())
                .build(&())
                .unwrap();
            if (&self.0).write_all(call.data()).is_err() {
                return;
            }
        }
    }
}
