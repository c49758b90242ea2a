//! The rules thread: it looks after hooks, chain and rules, which take programs.
//!
//! Owns the rules, and is the only thread that runs programs while the service runs. A program may be slow or
//! hang, so that no thread waits for this one, except a back end without sets, for a limited time. Therefore
//! its heartbeat does not feed the watchdog.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender};
use std::time::Duration;

use ipnet::IpNet;
use tracing::debug;

use crate::block::backend::ipset::netlink::Element;
use crate::block::backend::rulebook::{RuleBook, RulePlan};
use crate::block::backend::rules_handle::{RulesCommand, RulesHandle};
use crate::block::backend::{FirewallError, Refused};
use crate::block::reconcile::{Fault, Reconciler, list_of};
use crate::handles::{Command, Component, EventSink, FirewallHandle, Health, Notification};
use crate::service::Context;
use crate::service::firewall::{START_PATIENCE, TICK};
use crate::service::supervisor::Supervisor;
use crate::types::{Event, Family, Moment};

/// The pause between two attempts to remove the rules at the stop.
const STOP_PAUSE: Duration = Duration::from_millis(250);

/// Finds the programs for a plan, and changes nothing yet.
pub type ConnectRules =
    Box<dyn FnMut(&RulePlan) -> Result<Box<dyn RuleBook + Send>, FirewallError> + Send>;

/// What the thread has to do at the start.
pub enum AtStart {
    /// The rules of this plan come into force.
    Install(RulePlan),
    /// The service only observes: what a crashed instance has left is removed.
    Remove(RulePlan),
    /// The service only observes, and cannot look at the firewall.
    Nothing,
}

/// Starts the rules thread.
pub fn spawn(
    threads: &mut Supervisor,
    context: &Context,
    (handle, commands): (RulesHandle, Receiver<RulesCommand>),
    firewall: &FirewallHandle,
    at_start: AtStart,
) -> std::io::Result<()> {
    let activity = Arc::clone(handle.activity());
    let connect: ConnectRules = Box::new(move |plan| {
        let rules = plan.connect(&activity)?;
        Ok(Box::new(rules))
    });
    let Context { events, health, .. } = context.clone();
    let to_others = (events, health, firewall.clone(), threads.notifications());
    let thread = RulesThread::new(handle, connect, at_start, to_others);
    threads.start("rules", move |heartbeat| {
        thread.handle.activity().set_heartbeat(heartbeat.clone());
        thread.run(&commands, || heartbeat.tick())
    })
}

pub struct RulesThread {
    handle: RulesHandle,
    connect: ConnectRules,
    /// None while there should be no rules.
    book: Option<Box<dyn RuleBook + Send>>,
    /// What is to be done before the start is over.
    at_start: Option<AtStart>,
    begun: Moment,
    /// What other programs have left in the chain is gone.
    is_cleared: bool,
    /// The networks that should have a rule are known, if each has one.
    is_adopted: bool,
    reconciler: Reconciler,
    events: EventSink,
    health: Arc<Health>,
    firewall: FirewallHandle,
    notifications: Sender<Notification>,
}

impl RulesThread {
    pub fn new(
        handle: RulesHandle,
        connect: ConnectRules,
        at_start: AtStart,
        (events, health, firewall, notifications): (
            EventSink,
            Arc<Health>,
            FirewallHandle,
            Sender<Notification>,
        ),
    ) -> Self {
        Self {
            handle,
            connect,
            book: None,
            at_start: Some(at_start),
            begun: Moment::now(),
            is_cleared: false,
            is_adopted: false,
            reconciler: Reconciler::default(),
            events,
            health,
            firewall,
            notifications,
        }
    }

    /// Runs until the command to stop. Ends with an error if the rules cannot be made at the start.
    fn run(
        mut self,
        commands: &Receiver<RulesCommand>,
        tick: impl Fn(),
    ) -> Result<(), FirewallError> {
        let mut looked = Moment::default();
        loop {
            tick();
            let pause = (looked + TICK).since(Moment::now());
            match commands.recv_timeout(pause) {
                Ok(RulesCommand::Stop { reply }) => {
                    let removed = self.remove();
                    // The firewall thread reports the failure.
                    let _ = reply.send(removed);
                    return Ok(());
                }
                Ok(command) => self.handle(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            looked = Moment::now();
            self.look(looked)?;
        }
    }

    /// Compares the rules with what they should be, and repairs them. Fails if the start has failed.
    pub fn look(&mut self, now: Moment) -> Result<(), FirewallError> {
        let asked = self.handle.asked();
        let result = if self.at_start.is_some() { self.start(now) } else { self.reconcile(now) };
        match result {
            // What an administrator has to change first is tried no longer, nor is what takes too long.
            Err(error)
                if self.at_start.is_some()
                    && (!error.is_transient() || now.since(self.begun) >= START_PATIENCE) =>
            {
                return Err(error);
            }
            Err(error) => {
                let reason = format!("cannot look after the firewall rules: {error}");
                self.health.set_degraded(Component::Rules, reason);
            }
            Ok(()) => self.show_trouble(),
        }
        self.publish();
        self.handle.set_answered(asked);
        Ok(())
    }

    /// Takes the next step of the start.
    fn start(&mut self, now: Moment) -> Result<(), FirewallError> {
        match self.at_start.take() {
            Some(AtStart::Remove(plan)) => {
                let removed = (self.connect)(&plan).and_then(|mut book| book.remove());
                if removed.as_ref().is_err_and(FirewallError::is_transient) {
                    self.at_start = Some(AtStart::Remove(plan));
                    return removed;
                }
                // A process that may not change rules cannot have left any.
            }
            Some(AtStart::Install(plan)) => {
                let is_in_force = self.install_step(&plan, now);
                if !matches!(is_in_force, Ok(true)) {
                    self.at_start = Some(AtStart::Install(plan));
                    return is_in_force.map(drop);
                }
            }
            Some(AtStart::Nothing) | None => {}
        }
        self.publish();
        self.health.clear(Component::Rules);
        if self.health.set_in_force(Component::Rules) {
            let _ = self.notifications.send(Notification::InForce);
        }
        Ok(())
    }

    /// Returns whether the rules of a plan are in force. They are not before the firewall thread has made
    /// their sets.
    fn install_step(&mut self, plan: &RulePlan, now: Moment) -> Result<bool, FirewallError> {
        if self.book.is_none() {
            let book = (self.connect)(plan)?;
            self.handle.set_counters(book.counters());
            self.book = Some(book);
            self.is_adopted = plan.has_sets;
        }
        let Some(book) = &mut self.book else { return Ok(false) };
        if !self.is_cleared {
            book.clear_chain()?;
            self.is_cleared = true;
            self.handle.set_outside(book.outside());
        }
        if !self.is_adopted {
            return Ok(false);
        }
        if book.check(now)?.is_empty() {
            return Ok(true);
        }
        book.repair()?;
        Ok(book.check(now)?.is_empty())
    }

    fn reconcile(&mut self, now: Moment) -> Result<(), FirewallError> {
        let Some(book) = &mut self.book else { return Ok(()) };
        let faults = self.reconciler.due(book.check(now)?, now);
        if faults.is_empty() {
            return Ok(());
        }
        // Visible during the repair, which may take seconds.
        self.publish();
        self.show_trouble();
        let Some(book) = &mut self.book else { return Ok(()) };
        let found = list_of(&faults);
        debug!(found, "repairing the firewall rules");
        let left = book.repair().and_then(|()| book.check(now));
        if self.reconciler.repaired(&faults, &left, now) {
            self.publish();
            self.events.emit(Event::Repaired { found });
        }
        Ok(())
    }

    /// Passes on what the last check has found.
    fn publish(&self) {
        for family in Family::ALL {
            let book = self.book.as_ref();
            self.health.set_intact(family, book.is_some_and(|book| book.is_intact(family)));
            self.handle.set_held(family, book.map_or(0, |book| book.held(family)));
        }
        // For a stop that finds this thread hanging.
        self.handle.set_to_type(self.book.as_ref().map(|book| book.to_type()).unwrap_or_default());
    }

    fn show_trouble(&self) {
        match self.reconciler.trouble() {
            Some(trouble) => self.health.set_degraded(Component::Rules, trouble.to_owned()),
            None => self.health.clear(Component::Rules),
        }
    }

    pub fn handle(&mut self, command: RulesCommand) {
        match command {
            RulesCommand::Adopt(reply) => {
                let _ = reply.send(self.adopt());
            }
            RulesCommand::Add(networks, reply) => self.add(&networks, &reply),
            RulesCommand::Delete(networks, reply) => self.delete(&networks, &reply),
            RulesCommand::Replace(networks, reply) => {
                let _ = reply.send(self.replace(&networks));
            }
            RulesCommand::Matched(network, reply) => {
                let book = self.book.as_mut();
                let _ = reply.send(book.map_or(Ok(0), |book| book.matched_by(network)));
            }
            RulesCommand::Install { plan, networks } => {
                let installed = self.install(plan.as_ref(), &networks);
                let installed = installed.map_err(|error| error.to_string());
                // The firewall thread waits for no answer of this thread, so this one may wait for it.
                let _ = self.firewall.send(Command::RulesInstalled(installed));
            }
            // The loop looks after each command, and handles the other one.
            RulesCommand::Look | RulesCommand::Stop { .. } => {}
        }
        self.publish();
    }

    fn adopt(&mut self) -> Result<Option<Vec<Element>>, FirewallError> {
        if !self.is_cleared
            && let Some(AtStart::Install(plan)) = &self.at_start
        {
            let plan = plan.clone();
            self.install_step(&plan, Moment::now())?;
        }
        let adopted = self.book.as_mut().map_or(Ok(None), |book| book.adopt())?;
        self.is_adopted = true;
        Ok(adopted)
    }

    fn add(&mut self, networks: &[IpNet], reply: &SyncSender<Refused>) {
        let Some(book) = &mut self.book else { return };
        let new: Vec<IpNet> = networks.iter().copied().filter(|n| !book.has_rule(*n)).collect();
        let refused = book.add(networks);
        if reply.send(refused).is_err() {
            // The caller has given up, and has said that they are not blocked.
            debug!(?new, "removing rules that came too late");
            drop(book.delete(&new));
        }
    }

    fn delete(&mut self, networks: &[IpNet], reply: &SyncSender<Refused>) {
        let Some(book) = &mut self.book else { return };
        let old: Vec<IpNet> = networks.iter().copied().filter(|n| book.has_rule(*n)).collect();
        let refused = book.delete(networks);
        if reply.send(refused).is_err() {
            debug!(?old, "making rules again that were deleted too late");
            drop(book.add(&old));
        }
    }

    fn replace(&mut self, networks: &BTreeSet<IpNet>) -> Result<(), FirewallError> {
        let Some(book) = &mut self.book else { return Ok(()) };
        book.set_networks(networks);
        book.repair()
    }

    /// Puts the rules of another configuration in the place of the present ones. After an error the present
    /// ones are in force.
    fn install(
        &mut self,
        plan: Option<&RulePlan>,
        networks: &BTreeSet<IpNet>,
    ) -> Result<(), FirewallError> {
        let new = match plan {
            None => None,
            Some(plan) => {
                let mut book = (self.connect)(plan)?;
                book.set_networks(networks);
                Some(book)
            }
        };
        let changed = self.change_to(new);
        if changed.is_err()
            && let Some(old) = &mut self.book
        {
            // What cannot be corrected now is a fault at the next look.
            let _ = old.repair();
        }
        changed
    }

    fn change_to(&mut self, new: Option<Box<dyn RuleBook + Send>>) -> Result<(), FirewallError> {
        self.handle.update_dropped();
        let Some(mut new) = new else {
            self.book.as_mut().map_or(Ok(()), |book| book.remove())?;
            self.book = None;
            self.reconciler = Reconciler::default();
            return Ok(());
        };
        if self.book.is_none() {
            new.clear_chain()?;
        }
        new.repair()?;
        // The first check learns where the counters start.
        let left = new.check(Moment::now())?;
        if left.iter().any(Fault::breaks_all) {
            return Err(FirewallError::NoAnswer(list_of(&left)));
        }
        self.handle.set_counters(new.counters());
        self.book = Some(new);
        self.is_adopted = true;
        Ok(())
    }

    /// Removes the rules. Tries again until the service has to end.
    pub fn remove(&mut self) -> Result<(), FirewallError> {
        if self.book.is_none()
            && let Some(AtStart::Install(plan) | AtStart::Remove(plan)) = &self.at_start
        {
            // Programs that could not be found have made nothing.
            self.book = (self.connect)(plan).ok();
        }
        let Some(book) = &mut self.book else { return Ok(()) };
        loop {
            let Err(error) = book.remove() else { return Ok(()) };
            let left = self.handle.activity().remaining(Moment::now());
            if left <= STOP_PAUSE {
                return Err(FirewallError::RulesStay {
                    error: error.to_string(),
                    commands: book.to_type().join("; "),
                });
            }
            std::thread::park_timeout(STOP_PAUSE);
        }
    }
}
