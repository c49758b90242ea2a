//! Where the log goes: journald, or standard error.
//!
//! Owns how long a write may take, and counts what is lost in it. The journal thread waits in it, and no
//! other one once the service runs: journald can keep the thread waiting without end, since tracing-journald
//! shows neither its socket nor its errors.

use std::io::{self, ErrorKind, Write};
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;
use std::time::Duration;

use errno::{Errno, errno, set_errno};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno as SystemError, retry_on_intr, write};
use tracing::Subscriber;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use crate::api::log_filter::LogQueue;

/// How long a reader of standard error may keep an entry waiting.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// The most that a pipe which is ready for writing takes without waiting (pipe(7), `PIPE_BUF`).
const AT_ONCE: usize = 4096;

/// journald's socket (systemd.io/JOURNAL_NATIVE_PROTOCOL).
const SOCKET: &str = "/run/systemd/journal/socket";

/// Standard error, without the lock of the standard library, which a write that waits would keep. It is not
/// set to be non-blocking, because other processes may share it.
pub struct Stderr;

impl Write for Stderr {
    /// Writes as much as is possible at once. Waits for room, for a limited time.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stderr = io::stderr();
        let patience = Timespec::try_from(PATIENCE).unwrap_or_default();
        let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
        if retry_on_intr(|| poll(&mut fds, Some(&patience)))? == 0 {
            return Err(ErrorKind::TimedOut.into());
        }
        Ok(retry_on_intr(|| write(&stderr, &bytes[..bytes.len().min(AT_ONCE)]))?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Standard error as a place for entries. An entry that cannot be written is lost and counted.
pub struct LogStderr(pub LogQueue);

impl Write for LogStderr {
    fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
        if Stderr.write_all(entry).is_err() {
            self.0.count_lost();
        }
        Ok(entry.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// journald as a place for entries. An entry that cannot be sent is lost and counted.
pub struct Journald {
    /// Made with the first entry, because tracing-journald tests journald's socket then, and may wait.
    layer: OnceLock<tracing_journald::Layer>,
    losses: LogQueue,
}

impl Journald {
    pub fn new(losses: LogQueue) -> Self {
        Self { layer: OnceLock::new(), losses }
    }

    /// Whether journald listens. It may be too busy to receive.
    pub fn is_there() -> bool {
        let sent = UnixDatagram::unbound().and_then(|socket| {
            socket.set_nonblocking(true)?;
            // journald ignores an empty entry.
            socket.send_to(&[], SOCKET)
        });
        sent.map_or_else(|error| error.kind() == ErrorKind::WouldBlock, |_| true)
    }

    fn layer(&self) -> io::Result<&tracing_journald::Layer> {
        if let Some(layer) = self.layer.get() {
            return Ok(layer);
        }
        let priorities =
            PriorityMappings { info: Priority::Informational, ..PriorityMappings::new() };
        let layer = tracing_journald::layer()?
            // With a prefix MESSAGE_ID would not be one.
            .with_field_prefix(None)
            .with_syslog_identifier("tcptracker".to_owned())
            .with_priority_mappings(priorities);
        Ok(self.layer.get_or_init(|| layer))
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Journald {
    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        let Ok(layer) = self.layer() else { return self.losses.count_lost() };
        // tracing-journald drops the error of its last system call, but the C library still has it.
        set_errno(Errno(0));
        layer.on_event(event, context);
        // An entry that is too long for a datagram is sent in another way.
        if ![0, SystemError::MSGSIZE.raw_os_error()].contains(&errno().0) {
            self.losses.count_lost();
        }
    }
}
