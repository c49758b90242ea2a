//! Another configuration while running: nobody blocked is let in by it for a moment, unless it says so.
//!
//! Owns how one backend takes the place of another: the new one puts up all that is blocked before it
//! replaces the rule of the old one, in one step of the kernel's.

use crate::block::backend::none::NullBackend;
use crate::block::backend::{Backend, FirewallError};
use crate::block::ledger::Ledger;
use crate::block::reconcile::DesiredState;
use crate::config::Config;
use crate::service::firewall::FirewallThread;
use crate::types::clock::WallClock;
use crate::types::event::{BackendNote, Event, Warning};
use crate::types::network::Family;

impl FirewallThread {
    /// Goes on with another configuration, or, if the kernel refuses, with the present one.
    pub fn reconfigure(
        &mut self,
        new: Config,
        clock: &WallClock,
    ) -> Result<Option<BackendNote>, FirewallError> {
        let holds_otherwise = !self.config.enabled
            || new.firewall != self.firewall
            || new.block.established != self.config.established;
        let (mut backend, mut note) = (None, None);
        if new.block.enabled && holds_otherwise {
            let (chosen, known) = (self.open_backend)(&new)?;
            (backend, note) = (Some(chosen), known);
        }
        let before = std::mem::replace(&mut self.config, new.block);
        // Whom it may no longer block is known before anybody is blocked again.
        let exempt_before = self.exemptions.configure(new.exempt);
        let changed = match (before.enabled, self.config.enabled, backend) {
            (true, false, _) => self.begin_to_observe(),
            (false, true, Some(backend)) => self.begin_to_block(backend, clock),
            (true, true, Some(backend)) => self.replace_backend(backend, clock),
            _ => Ok(()),
        };
        if let Err(error) = changed {
            self.config = before;
            self.exemptions.configure(exempt_before);
            self.kernel_failed(&error);
            return Err(error);
        }
        self.firewall = new.firewall;
        self.health.set_backend(self.backend.name());
        self.rate_limit.set_limit(self.config.max_per_minute.0);
        self.unblock_exempt(clock);
        self.unblock_peers(clock);
        self.count();
        Ok(note)
    }

    /// Puts another backend in the present one's place, with all that is blocked.
    fn replace_backend(
        &mut self,
        mut new: Box<dyn Backend + Send>,
        clock: &WallClock,
    ) -> Result<(), FirewallError> {
        let blocked = Family::ALL.map(|family| self.ledger.count(family));
        let (room, most) = (new.capacity(), blocked[0].max(blocked[1]));
        if most > room {
            return Err(FirewallError::TooManyFor { backend: new.name(), blocked: most, room });
        }
        let former_longest = self.backend.longest();
        self.ledger.set_longest(new.longest(), clock.now());
        let desired = DesiredState::of(&self.ledger, clock.now());
        // Its last count; that something is wrong with it does not matter any more.
        let _ = self.backend.check(&desired);
        if let Err(error) = new.repair(&desired) {
            self.ledger.set_longest(former_longest, clock.now());
            // What it may have changed already.
            let desired = DesiredState::of(&self.ledger, clock.now());
            let _ = self.backend.repair(&desired);
            return Err(error);
        }
        // From here on it counts.
        let _ = new.check(&desired);
        self.reconciler.take_over_count(&*self.backend);
        self.backend = new;
        self.cut_as_configured();
        Ok(())
    }

    /// Takes everything down. Who is blocked stays in the database, as when the service is stopped, and is
    /// blocked again should the service block again.
    fn begin_to_observe(&mut self) -> Result<(), FirewallError> {
        if let Err(error) = self.backend.remove() {
            self.unfinished = true;
            return Err(error);
        }
        self.reconciler.take_over_count(&*self.backend);
        self.backend = Box::new(NullBackend::new(None));
        self.persister.pause();
        let count = self.ledger.blocks().len();
        self.ledger = Ledger::new(self.backend.longest());
        self.events.emit(Event::Warning(Warning::BlocksSuspended { count }));
        Ok(())
    }

    fn begin_to_block(
        &mut self,
        backend: Box<dyn Backend + Send>,
        clock: &WallClock,
    ) -> Result<(), FirewallError> {
        let observer = std::mem::replace(&mut self.backend, backend);
        self.ledger = Ledger::new(self.backend.longest());
        self.install(clock, &mut |_, _| {}).inspect_err(|_| {
            self.backend = observer;
            self.persister.pause();
            self.ledger = Ledger::new(self.backend.longest());
        })
    }
}
