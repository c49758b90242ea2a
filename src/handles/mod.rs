//! The ways to running threads: what each can be asked or told.

pub mod bus;
pub mod detector;
pub mod events;
pub mod firewall;
pub mod health;
pub mod notification;
pub mod reload;
pub mod stop_flag;
