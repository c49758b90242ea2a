//! The vocabulary of all parts. Pure data: no I/O, no threads.

mod addresses;
mod block;
mod capture;
mod clock;
mod event;
mod heartbeat;
mod host;
mod ifname;
mod network;
mod pending;
mod rate_limit;
mod rule;
mod scan;
mod segment;
mod special;
mod state;
mod text;
mod words;
pub use addresses::{AddressSet, NetworkSet};
pub use block::{
    Block, BlockCause, BlockFailure, BlockReason, Evidence, ExemptReason, LONGEST_BLOCK,
    LONGEST_REASON, SkipReason, UnblockCause,
};
pub use capture::CaptureCounters;
pub use clock::{HumanDuration, Moment, WallClock, thread_time};
pub use event::{BackendNote, Event, Refusal, ReloadNote, Request, Suppressed, Warning};
pub use heartbeat::Heartbeat;
pub use host::{Host, PortSet, SshConnection, SshSessions, Sshd};
pub use ifname::IfName;
pub use network::{Family, InvalidAddress, overlap, parse_network, show_network};
pub use pending::{Decision, Judged, Pending, Progress};
pub use rate_limit::{RateLimit, Suppression};
pub use rule::Rule;
pub use scan::{Attempt, DECOYS_NAMED, Scan, ScanKind, Summary};
pub use segment::{Direction, Outcome, Port, Segment, SegmentKind};
pub use special::{
    has_spellings, impossible_around, impossible_source, link_local, loopback,
    overlap_in_any_spelling, shares_network_with_ipv4,
};
pub use state::{FamilyFigures, State, Status};
pub use text::{is_unprintable, printable, printable_lines, quotable};
