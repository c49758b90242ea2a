//! Attacks that break the service today, each with its cause in the review of 2026-11-30 and with
//! what the suite saw.
//!
//! The suite skips them. Delete the entries of a cause when you repair it.

/// Not an attack: the check of the memory that remains after some attacks.
pub const MEMORY: &str = "memory_that_remains";

/// The name of an attack, and its cause.
pub const KNOWN: &[(&str, &str)] = &[
    (MEMORY, "S2: 6 to 13 MiB are not given back within a minute"),
    // An unprivileged user.
    ("control_characters_of_7_mb", "S1: the bus disconnects the service, which ends"),
    ("quotation_marks_of_17_mb", "S1: the bus disconnects the service, which ends"),
    ("longest_address", "S1, S2: errors echo the text; +350 MiB, root waits 7 s"),
    ("longest_prefix_length", "S1, S2: +32 MiB"),
    ("longest_reason", "S2: +32 MiB, which is the message itself"),
    ("longest_property", "S2: +190 MiB, root waits 1.7 s"),
    ("why_without_reply", "S2: +107 MiB, root waits 3 s"),
    ("list_without_reply", "S2: +89 MiB, a scan is blocked after 1.2 s"),
    ("unknown_method_without_reply", "S2: +53 MiB, root waits 6 s"),
    ("four_floods_of_list", "S2: root waits 3 s"),
    ("four_floods_of_stats", "S2: root waits 1.3 s"),
    ("four_floods_of_introspect", "S2: root waits 3 s"),
    ("four_floods_of_ping", "S2: root waits 4 s"),
    ("four_floods_of_get_all", "S2: root waits 5 s"),
    ("why_of_60_kb", "S2: +97 MiB, root waits 1.2 s"),
    ("lock_of_the_rules_taken", "S5: root waits 0.9 s for a repair, on a busy machine longer"),
    ("callers_leave_open_questions", "S12: questions of callers that left stay open"),
    ("metrics_with_few_descriptors", "S17: no descriptor is left for a repair"),
    ("lock_queue_filled", "S9: a second instance runs beside the first"),
    ("invisible_characters_in_reasons", "S13: they are accepted"),
    // A hostile network.
    ("scans_of_impossible_sources", "S15: 0.0.0.0, 224.0.0.5 and others are blocked"),
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
    ("bus_stopped_during_many_scans", "S6: the watchdog is not fed"),
    ("bus_killed", "S1: the service ends with the bus"),
    ("journal_does_not_read", "S6: the watchdog is not fed"),
    ("stderr_is_not_read", "S6: the watchdog is not fed"),
    ("stderr_is_not_read_at_the_stop", "S6: the service does not stop"),
];
