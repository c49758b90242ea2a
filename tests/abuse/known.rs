//! Attacks that break the service today, each with its cause in the review of 2026-11-30 and with
//! what the suite saw.
//!
//! The suite skips them. Delete the entries of a cause when you repair it.

/// The name of an attack, and its cause.
pub const KNOWN: &[(&str, &str)] = &[
    // An unprivileged user.
    ("lock_of_the_rules_taken", "S5: root waits 0.9 s for a repair, on a busy machine longer"),
    ("metrics_with_few_descriptors", "S17: no descriptor is left for a repair"),
    ("lock_queue_filled", "S9: a second instance runs beside the first"),
    ("invisible_characters_in_reasons", "S13: they are accepted"),
    // A hostile network.
    ("forged_scanners", "S4: the limit on blocks is used up, no scan is blocked"),
    ("scans_of_impossible_sources", "S15: 0.0.0.0, 224.0.0.5 and others are blocked"),
    ("idle_connection_to_port_22", "S3: the scan is not blocked"),
    ("answers_forged_before_a_scan", "S7: the scan is not blocked"),
    // Failing helpers.
    ("iptables_hangs", "S5: no scan is blocked, root waits, the watchdog is not fed"),
    ("iptables_takes_6_s", "S5: no scan is blocked, root waits, the watchdog is not fed"),
    ("xtables_lock_held", "S5: no scan is blocked, root waits, the watchdog is not fed"),
    ("rules_flushed_again_and_again", "S5: root waits 1.1 s for repairs"),
    ("iptables_hangs_at_the_stop", "S5: the service does not stop, its blocks stay"),
    ("iptables_fails_once_at_the_stop", "S6b: its blocks stay"),
    ("iptables_is_slow_at_the_start", "S8: healthy without hooks"),
    ("foreign_rules_of_our_names_at_the_start", "S18: the service does not start"),
    ("bus_stopped_during_many_scans", "S4, S6: the watchdog is not fed"),
    ("journal_does_not_read", "S6: the watchdog is not fed"),
    ("stderr_is_not_read", "S6: the watchdog is not fed"),
    ("stderr_is_not_read_at_the_stop", "S6: the service does not stop"),
];
