//! Attacks that break the service today, each with its cause in the review of 2026-11-30 and with
//! what the suite saw.
//!
//! The suite skips them. Delete the entries of a cause when you repair it.

/// The name of an attack, and its cause.
pub const KNOWN: &[(&str, &str)] = &[];
