//! A bus client that makes many calls over one connection, without a process per call.

use zbus::Connection;
use zbus::proxy::CacheProperties;

use crate::bus::{Block, Bus, target};

/// The result of a call.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply<T> {
    /// The service returned a value.
    Value(T),
    /// The service returned an error of this name.
    Error(String),
    /// The service disconnected before it replied, so the call may have taken effect.
    Unknown,
}

/// A connection to the instance on `eth0`.
pub struct BusClient(zbus::Proxy<'static>);

impl BusClient {
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
        reply(zbus::block_on(self.0.call("Block", &(address, seconds, reason))))
    }

    pub fn unblock(&self, address: &str) -> Reply<()> {
        reply(zbus::block_on(self.0.call("Unblock", &(address,))))
    }

    pub fn list(&self) -> Reply<Vec<Block>> {
        let listed =
            zbus::block_on(self.0.call::<_, _, Vec<(String, u64, u64, u32, String)>>("List", &()));
        let wide = |(address, since, until, offences, reason)| -> Block {
            (address, since, until, u64::from(offences), reason)
        };
        reply(listed.map(|blocks| blocks.into_iter().map(wide).collect()))
    }

    /// Returns name and description of the error that a call fails with.
    pub fn error_of(
        &self,
        member: &str,
        arguments: &(impl serde::Serialize + zbus::DynamicType),
    ) -> (String, String) {
        match zbus::block_on(self.0.call_method(member, arguments)) {
            Err(zbus::Error::MethodError(name, description, _)) => {
                (name.to_string(), description.unwrap_or_default())
            }
            Err(zbus::Error::FDO(error)) => {
                let description = zbus::DBusError::description(&*error).unwrap_or_default();
                (zbus::DBusError::name(&*error).to_string(), description.to_owned())
            }
            other => panic!("{member}: {other:?}"),
        }
    }
}

fn reply<T>(result: zbus::Result<T>) -> Reply<T> {
    match result {
        Ok(value) => Reply::Value(value),
        Err(zbus::Error::MethodError(name, ..)) if name.starts_with("org.tcptracker.") => {
            Reply::Error(name.to_string())
        }
        // The bus returns these errors when the service disconnects.
        Err(zbus::Error::MethodError(..) | zbus::Error::FDO(_)) => Reply::Unknown,
        Err(error) => panic!("the bus: {error}"),
    }
}

/// A client that sends calls and never reads the replies.
pub struct NonReadingClient(std::os::unix::net::UnixStream);

impl NonReadingClient {
    /// Connects without a D-Bus library, because a library would read the replies.
    pub fn on(bus: &Bus) -> Self {
        use std::io::{Read, Write};
        let path = bus.address().strip_prefix("unix:path=").unwrap();
        let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
        // EXTERNAL authentication as uid 0: "30" is "0" in hexadecimal.
        stream.write_all(b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n").unwrap();
        let mut answer = [0; 3];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"OK ");
        let hello = zbus::Message::method_call("/org/freedesktop/DBus", "Hello")
            .destination("org.freedesktop.DBus")
            .interface("org.freedesktop.DBus")
            .build(&())
            .unwrap();
        stream.write_all(hello.data()).unwrap();
        Self(stream)
    }

    /// Sends `count` calls, or fewer if the socket buffer is full.
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
