//! The metrics thread: answers `/metrics` and `/health`.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::api::metrics::http::{MetricsServer, is_missing};
use crate::handles::StopFlag;
use crate::service::Context;
use crate::service::supervisor::Supervisor;
use crate::types::{Event, Warning};

/// Starts the metrics thread if an address is configured and free. A port in use is no reason not to
/// block scanners, so that it leads to a warning only.
pub fn spawn(
    threads: &mut Supervisor,
    context: &Context,
    listen: Option<SocketAddr>,
) -> std::io::Result<Option<Arc<StopFlag>>> {
    let Some(address) = listen else { return Ok(None) };
    let (server, stop) = match MetricsServer::listen(address) {
        Ok(listening) => listening,
        Err(error) => {
            let error = error.to_string();
            let warning = Warning::MetricsUnavailable { address, error };
            context.events.emit(Event::Warning(warning));
            return Ok(None);
        }
    };
    if is_missing(address.ip()) {
        let warning = Warning::MetricsAddressMissing { address: address.ip() };
        context.events.emit(Event::Warning(warning));
    }
    let (metrics, health) = (Arc::clone(&context.metrics), Arc::clone(&context.health));
    threads.start("metrics", move |heartbeat| server.run(&metrics, &health, heartbeat))?;
    Ok(Some(stop))
}
