//! Reboot after a shutdown and after a power cut.

use super::UNIT;
use crate::site::{SCANNER, Site};

/// At boot the service starts before the interface exists.
pub fn boot_waits_for_the_interface(site: &mut Site) {
    site.machine.shut_down();
    site.switch_on_unconnected();
    site.machine.journal().await_words(UNIT, "there is no interface eth0 on this host");
    site.connect_down();
    site.machine.journal().await_words(UNIT, "degraded: eth0 is down");
    site.machine.network().ip("link set eth0 up");
    site.machine.journal().await_words(UNIT, "enforcing: no problems");
    site.assert_active(UNIT);
    assert_eq!(site.blocked("eth0"), [SCANNER.to_string()]);
    site.assert_shut_out();
}

pub fn power_cut_keeps_blocks(site: &mut Site) {
    site.machine.cut_power();
    site.switch_on();
    site.assert_active(UNIT);
    assert_eq!(site.blocked("eth0"), [SCANNER.to_string()]);
    site.assert_shut_out();
}
