//! The story of a server, from the first `apt install` to `apt purge`.

mod blocking;
mod boots;
mod firewalls;
mod instances;
mod life;
mod package;
mod readme;
mod users;

use std::sync::atomic::{AtomicU32, Ordering};

use crate::site::Site;

/// The unit all the story is about.
const UNIT: &str = "tcptracker@eth0.service";

/// Kinds of messages, as the README lists them.
mod message {
    pub(super) const STARTED: &str = "fdb7f878f18d45e5ae664097c6d1c558";
    pub(super) const SCAN: &str = "5d0741d35f104cf2bc625c85c40f2775";
    pub(super) const BLOCKED: &str = "b39b4bac17384f029bb82ffb3b2b31d1";
    pub(super) const RESTORED: &str = "d673031de68746a09503610eba093578";
    pub(super) const UNBLOCKED: &str = "c86162991bca46138eff37cb5bb7453e";
    pub(super) const REFUSED: &str = "b863594ede9b4faab476bc0ebaa7f200";
    pub(super) const RELOADED: &str = "e2a78b3843a64828968f76a8c552930f";
}

pub fn story(release: &str) {
    let mut site = Site::new(release);
    site.switch_on();
    users::exist(&site);
    let files = package::files(&site);

    package::an_earlier_version_is_installed(&site);
    blocking::the_service_is_enabled_and_started(&site);
    readme::what_it_says_of_the_bus(&site);
    blocking::a_scanner_is_shut_out(&mut site);
    package::an_upgrade_goes_on_with_it(&mut site);
    blocking::who_looks_is_told(&mut site);
    blocking::it_is_unblocked_over_the_bus(&mut site);

    life::a_changed_configuration_is_taken_over(&mut site);
    life::a_wrong_one_is_not(&mut site);
    life::the_sandbox_may_kill_from_now_on(&site);
    life::a_restart_keeps_blocks(&mut site);
    life::a_stop_takes_everything_down(&site);
    life::killed_it_comes_back(&mut site);
    life::stopped_dead_it_is_started_anew(&mut site);
    life::metrics_are_for_whom_they_are_meant(&site);
    users::some_may_and_others_may_not(&mut site);
    instances::each_interface_has_its_own(&mut site);
    instances::a_name_that_is_not_escaped_says_how_to_write_it(&mut site);
    firewalls::iptables_of_old_does_as_well(&mut site);
    life::nothing_was_denied(&site);

    boots::it_waits_for_its_interface(&mut site);
    boots::a_power_cut_frees_nobody(&mut site);
    life::nothing_was_denied(&site);

    package::removed_it_leaves_no_rule(&mut site);
    package::removed_half_installed_it_leaves_no_rule(&site);
    package::purged_it_leaves_no_file(&site, &files);
}

impl Site {
    /// What systemd knows of an instance.
    #[track_caller]
    fn property(&self, unit: &str, property: &str) -> String {
        let value = self.machine.sh(&format!("systemctl show --value -p {property} '{unit}'"));
        value.trim_end().to_owned()
    }

    #[track_caller]
    fn assert_active(&self, unit: &str) {
        assert_eq!(self.property(unit, "ActiveState"), "active", "{}", self.status(unit));
    }

    /// What a person would look at.
    fn status(&self, unit: &str) -> String {
        self.machine.run(&format!("systemctl status --no-pager --full '{unit}'")).out
    }

    /// Who is blocked, as `tcptracker list` has it.
    #[track_caller]
    fn blocked(&self, interface: &str) -> Vec<String> {
        let listed = self.machine.sh(&format!("tcptracker list -i {interface}"));
        listed.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
    }

    /// What is awaited in the journal next has to come later.
    #[track_caller]
    fn forget(&mut self) {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let marker = format!("tests-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.machine.sh(&format!("echo {marker} | systemd-cat"));
        self.machine.journal().forget_until(&marker);
    }

    /// Waits for an event the service tells of.
    #[track_caller]
    fn await_message(&mut self, kind: &str, fields: &[(&str, &str)]) {
        self.machine.journal().await_entry(&[&[("MESSAGE_ID", kind)], fields].concat());
    }

    /// Waits until an instance has started that is not this process.
    #[track_caller]
    fn await_start_after(&mut self, interface: &str, before: &str) {
        self.machine.journal().await_that(&format!("{interface} after {before}"), |entry| {
            let started = [("MESSAGE_ID", message::STARTED), ("TCPTRACKER_INTERFACE", interface)];
            entry.has(&started) && entry.get("_PID") != before
        });
    }
}
