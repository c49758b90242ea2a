//! The machine is switched off, or its power fails, and it boots again.

use super::UNIT;
use crate::site::{SCANNER, Site};

/// The service is started before the network has settled.
pub fn it_waits_for_its_interface(site: &mut Site) {
    site.machine.shut_down();
    site.switch_on_unconnected();
    site.machine.journal().await_words(UNIT, "there is no interface eth0 on this host");
    site.connect_down();
    site.machine.journal().await_words(UNIT, "degraded: eth0 is down");
    site.machine.network().ip("link set eth0 up");
    site.machine.journal().await_words(UNIT, "enforcing: all is well again");
    site.assert_active(UNIT);
    assert_eq!(site.blocked("eth0"), [SCANNER.to_string()]);
    site.assert_shut_out();
}

pub fn a_power_cut_frees_nobody(site: &mut Site) {
    site.machine.cut_power();
    site.switch_on();
    site.assert_active(UNIT);
    assert_eq!(site.blocked("eth0"), [SCANNER.to_string()]);
    site.assert_shut_out();
}
