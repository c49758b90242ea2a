//! The life of a server, from the first `apt install` to `apt purge`.

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

/// The main unit under test.
const UNIT: &str = "tcptracker@eth0.service";

/// Message IDs, as listed in the README.
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
    users::create(&site);
    let files = package::files(&site);

    package::install_an_earlier_version(&site);
    blocking::enable_and_start(&site);
    readme::bus_examples_print_what_is_shown(&site);
    blocking::scanner_is_blocked(&mut site);
    package::upgrade_keeps_blocks(&mut site);
    blocking::block_is_reported(&mut site);
    blocking::bus_call_unblocks(&mut site);

    life::reload_applies_a_changed_configuration(&mut site);
    life::reload_refuses_an_invalid_configuration(&mut site);
    life::make_sandbox_violations_fatal(&site);
    life::restart_keeps_blocks(&mut site);
    life::stop_removes_everything(&site);
    life::restarts_after_sigkill(&mut site);
    life::restarts_after_sigstop(&mut site);
    life::limits_are_in_force(&site);
    life::metrics_are_local_unless_allowed(&site);
    users::only_group_members_may_unblock(&mut site);
    instances::each_interface_has_an_instance(&mut site);
    instances::unescaped_name_is_refused_with_the_escaped_name(&mut site);
    firewalls::iptables_legacy_works(&mut site);
    life::sandbox_denied_nothing(&site);

    boots::boot_waits_for_the_interface(&mut site);
    boots::power_cut_keeps_blocks(&mut site);
    life::sandbox_denied_nothing(&site);

    package::remove_leaves_no_rule(&mut site);
    package::remove_of_a_half_installed_package_leaves_no_rule(&site);
    package::purge_leaves_no_file(&site, &files);
}

impl Site {
    /// Returns a property of a unit.
    #[track_caller]
    fn property(&self, unit: &str, property: &str) -> String {
        let value = self.machine.sh(&format!("systemctl show --value -p {property} '{unit}'"));
        value.trim_end().to_owned()
    }

    #[track_caller]
    fn assert_active(&self, unit: &str) {
        assert_eq!(self.property(unit, "ActiveState"), "active", "{}", self.status(unit));
    }

    /// The output of `systemctl status`, for failure messages.
    fn status(&self, unit: &str) -> String {
        self.machine.run(&format!("systemctl status --no-pager --full '{unit}'")).out
    }

    /// The blocked addresses according to `tcptracker list`.
    #[track_caller]
    fn blocked(&self, interface: &str) -> Vec<String> {
        let listed = self.machine.sh(&format!("tcptracker list -i {interface}"));
        listed.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
    }

    /// Marks the journal: the next wait considers only later entries.
    #[track_caller]
    fn mark_journal(&mut self) {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let marker = format!("tests-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.machine.sh(&format!("echo {marker} | systemd-cat"));
        self.machine.journal().skip_past(&marker);
    }

    /// Waits for a journal entry of this kind with these fields.
    #[track_caller]
    fn await_message(&mut self, kind: &str, fields: &[(&str, &str)]) {
        self.machine.journal().await_entry(&[&[("MESSAGE_ID", kind)], fields].concat());
    }

    /// Waits until a new process of an instance has started.
    #[track_caller]
    fn await_start_after(&mut self, interface: &str, before: &str) {
        self.machine.journal().await_that(&format!("{interface} after {before}"), |entry| {
            let started = [("MESSAGE_ID", message::STARTED), ("TCPTRACKER_INTERFACE", interface)];
            entry.has(&started) && entry.get("_PID") != before
        });
    }
}
