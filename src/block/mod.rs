//! Blocking: who is blocked, for how long, and how the kernel enforces it.

pub mod backend;
pub mod blocklist;
pub mod exemptions;
pub mod last_minute;
pub mod ledger;
pub mod logins;
pub mod merge;
pub mod policy;
pub mod reconcile;
pub mod store;
