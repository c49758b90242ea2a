//! The ways to running threads: what each can be asked, and where events and health are reported.

pub mod bus;
pub mod capture;
pub mod detector;
pub mod events;
pub mod firewall;
pub mod health;
pub mod notification;
pub mod reload;
pub mod stop_flag;
pub use bus::BusCommand;
pub use capture::{CaptureCommand, CaptureCommands, CaptureHandle, channel_to_capture};
pub use detector::DetectorCommand;
pub use events::{CountEvents, EventSink, Reader};
pub use firewall::{
    BlockExplanation, Command, Explanation, FirewallHandle, Listed, Reply, RequestError,
};
pub use health::{Component, Health};
pub use notification::{Notification, ReloadError, ReloadRequest};
pub use reload::Reloader;
pub use stop_flag::StopFlag;
