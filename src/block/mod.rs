//! Blocking: who is blocked, for how long, and how the kernel enforces it.

pub mod backend;
pub mod blocklist;
pub mod exemptions;
pub mod ledger;
pub mod merge;
pub mod policy;
pub mod rate_limit;
pub mod reconcile;
pub mod store;
