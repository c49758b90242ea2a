//! The start of the firewall thread.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use crate::block::backend::{Backend, select};
use crate::block::exemptions::AskSessions;
use crate::block::store::StorePath;
use crate::config::Config;
use crate::handles::{Command, DetectorCommand};
use crate::service::firewall::FirewallThread;
use crate::service::supervisor::Supervisor;
use crate::service::{Context, DaemonError};
use crate::system::host::ssh::Sessions;
use crate::system::progress::Progress;
use crate::system::service_manager;
use crate::types::{Host, WallClock};

/// Starts the firewall thread, and waits until its rules and blocks are in the kernel.
pub fn spawn(
    threads: &mut Supervisor,
    context: &Context,
    config: Config,
    (backend, host, store): (Option<Box<dyn Backend + Send>>, Arc<Host>, StorePath),
    detector: &SyncSender<DetectorCommand>,
    commands: Receiver<Command>,
) -> Result<(), DaemonError> {
    let Context { interface, events, metrics, health } = context.clone();
    let open_backend = Box::new(move |config: &Config| select::connect(&interface, config));
    let mut thread = FirewallThread::new(
        open_backend,
        config,
        (host, ask_for_sessions()),
        Some(store),
        (events, metrics, health),
        detector.clone(),
    );
    let (ready_in, ready) = sync_channel(1);
    threads.start("firewall", move |heartbeat| {
        let mut progress = Progress::after(Duration::ZERO);
        let installed = thread.install(backend, &WallClock::read(), &mut |done, all| {
            let status = format!("restoring blocks: {done} of {all}");
            service_manager::status(&status);
            progress.show(|| status);
            heartbeat.tick();
        });
        drop(progress);
        let failed = installed.is_err();
        // Main is waiting.
        let _ = ready_in.send(installed);
        if failed { Ok(()) } else { thread.run(&commands, || heartbeat.tick()) }
    })?;
    let ended =
        |_| DaemonError::ThreadEnded { thread: "firewall", reason: "at the start".to_owned() };
    ready.recv().map_err(ended)??;
    Ok(())
}

/// Returns how the firewall thread asks for the peers of SSH sessions.
fn ask_for_sessions() -> AskSessions {
    let mut sessions = Sessions::default();
    Box::new(move |ports| sessions.peers(ports))
}
