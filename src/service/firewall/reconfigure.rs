//! Applying another configuration, in two steps: what takes netlink is done at once; then the rules thread
//! changes the rules, which may take long, while blocks go on; its answer completes or undoes the change.

use std::sync::mpsc::SyncSender;

use crate::block::backend::rulebook::RulePlan;
use crate::block::backend::rules_handle::RulesCommand;
use crate::block::backend::select::Selected;
use crate::block::backend::{Backend, FirewallError};
use crate::config::Config;
use crate::service::firewall::FirewallThread;
use crate::types::{BackendNote, Event, WallClock, Warning};

/// How main learns the result: a note on the back end, or why the kernel does not accept the configuration.
pub type Answer = SyncSender<Result<Option<BackendNote>, String>>;

/// A configuration that waits for its rules.
pub struct Pending {
    /// The one to return to.
    old: Config,
    reply: Answer,
    note: Option<BackendNote>,
    change: Change,
}

/// What becomes of the blocks when the rules are in force.
enum Change {
    /// Only the rules change.
    Rules,
    /// This back end takes the place of the present one.
    Replace(Box<dyn Backend + Send>),
    /// The service has begun to block.
    Resume,
    /// The service stops blocking.
    Suspend,
}

impl FirewallThread {
    /// Applies another configuration. If the kernel refuses, the present one stays in force.
    pub fn reconfigure(&mut self, new: Config, reply: Answer, clock: &WallClock) {
        let old = std::mem::replace(&mut self.config, new);
        // Before anything is blocked again, because something may be exempt by now.
        self.policy.configure(&self.config);
        match self.begin_change(&old, clock) {
            Ok(None) => {
                self.complete(clock);
                let _ = reply.try_send(Ok(None));
            }
            Ok(Some((change, note))) => {
                self.pending = Some(Pending { old, reply, note, change });
            }
            Err(error) => {
                self.return_to(old);
                self.kernel_failed(&error);
                let _ = reply.try_send(Err(error.to_string()));
            }
        }
    }

    /// Returns what has to be done when the rules are in force, or nothing if they do not change.
    fn begin_change(
        &mut self,
        old: &Config,
        clock: &WallClock,
    ) -> Result<Option<(Change, Option<BackendNote>)>, FirewallError> {
        let (was_enabled, is_enabled) = (old.block.enabled, self.config.block.enabled);
        let have_rules_changed = self.config.firewall != old.firewall
            || self.config.block.established != old.block.established;
        if !is_enabled {
            if !was_enabled {
                return Ok(None);
            }
            self.change_rules(None)?;
            return Ok(Some((Change::Suspend, None)));
        }
        if was_enabled && !have_rules_changed {
            return Ok(None);
        }
        let Selected { backend, plan, note, .. } = (self.open_backend)(&self.config)?;
        // A back end without rules of iptables has rules of its own.
        let is_replaced = backend.name() != self.blocklist.backend_name() || plan.is_none();
        let mut backend = Some(backend);
        let change = if !was_enabled {
            self.left_over.clear();
            if let Err(error) = self.restore(&mut backend, clock, &mut |_, _| {}) {
                // It may have installed a part.
                self.left_over.extend(backend);
                return Err(error);
            }
            Change::Resume
        } else if let Some(mut backend) = backend.filter(|_| is_replaced) {
            if let Err(error) = self.blocklist.prepare(&mut *backend, clock.now()) {
                self.undo(Change::Replace(backend));
                return Err(error);
            }
            Change::Replace(backend)
        } else {
            Change::Rules
        };
        if let Err(error) = self.change_rules(plan) {
            self.undo(change);
            return Err(error);
        }
        Ok(Some((change, note)))
    }

    fn change_rules(&self, plan: Option<RulePlan>) -> Result<(), FirewallError> {
        let networks = self.blocklist.networks();
        self.rules().send(RulesCommand::Install { plan, networks })
    }

    /// Completes the change, or undoes it because the rules could not be made.
    pub fn finish_reconfigure(&mut self, result: Result<(), String>, clock: &WallClock) {
        let Some(Pending { old, reply, note, change }) = self.pending.take() else { return };
        let result = result.map_err(FirewallError::NoAnswer);
        let result = match (result, change) {
            (Err(error), change) => {
                self.undo(change);
                Err(error)
            }
            (Ok(()), Change::Replace(backend)) => {
                self.left_over.extend(self.blocklist.replace_backend(backend, clock.now()));
                Ok(())
            }
            (Ok(()), Change::Suspend) => self.suspend(),
            (Ok(()), Change::Rules | Change::Resume) => Ok(()),
        };
        let answer = match result {
            Ok(()) => {
                self.complete(clock);
                Ok(note)
            }
            Err(error) => {
                self.return_to(old);
                self.kernel_failed(&error);
                Err(error.to_string())
            }
        };
        let _ = reply.try_send(answer);
    }

    fn complete(&mut self, clock: &WallClock) {
        if self.config.block.enabled {
            self.blocklist.set_established(self.config.block.established);
        }
        self.health.set_backend(self.blocklist.backend_name());
        self.exemptions_changed(clock);
        self.report();
        self.rules().wake();
    }

    fn return_to(&mut self, old: Config) {
        self.config = old;
        self.policy.configure(&self.config);
        self.report();
    }

    fn undo(&mut self, change: Change) {
        match change {
            // Its sets, if it has any, have no rule. What it leaves does no harm, and the next start removes it.
            Change::Replace(mut backend) if !backend.needs_rules() => drop(backend.remove()),
            Change::Replace(_) | Change::Rules | Change::Suspend => {}
            Change::Resume => {
                if self.blocklist.suspend().is_err() {
                    self.unfinished = true;
                }
            }
        }
    }

    fn suspend(&mut self) -> Result<(), FirewallError> {
        let count = self.blocklist.suspend().inspect_err(|_| self.unfinished = true)?;
        self.events.emit(Event::Warning(Warning::BlocksSuspended { count }));
        Ok(())
    }
}
