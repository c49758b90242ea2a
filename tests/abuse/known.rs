//! Attacks that break the service today, each with its cause in the review of 2026-11-30.
//!
//! The suite skips them. Delete the entries of a cause with its repair.

/// The name of an attack, and its cause.
pub const KNOWN: &[(&str, &str)] = &[];
