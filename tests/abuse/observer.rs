//! Watches what must hold at every moment: scans are blocked, root is served, the service lives.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pcap::{Active, Capture};
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use zbus::proxy::CacheProperties;

use crate::bus::target;
use crate::frames::{Wire, syn};
use crate::lab::{Lab, VICTIM, VICTIM_V6};
use crate::process::Process;

/// A scan must be blocked, and a call of root answered, within this time.
pub const LIMIT: Duration = Duration::from_secs(1);

/// How long to wait for what is late, to tell late from never.
const NEVER: Duration = Duration::from_secs(10);

/// Ports per scan. All are closed.
const PORTS: u16 = 40;

/// The address that root blocks and unblocks.
pub const OTHER: &str = "203.0.113.77";

/// So many frames of a scan that arrive must suffice.
const ENOUGH: u16 = 20;

/// Between two ports. A flood fills the kernel's queue of the wire for some milliseconds, and what
/// is lost there never reached the host.
const BETWEEN_PORTS: Duration = Duration::from_millis(2);

/// Between two scans, so that the limit on blocks (600 per minute) is not used up by us.
const BETWEEN_SCANS: Duration = Duration::from_millis(150);

const BETWEEN_CALLS: Duration = Duration::from_millis(50);

/// The interval of the service manager. The service must notify it more often than that.
pub const WATCHDOG: Duration = Duration::from_secs(5);

/// What was observed during one attack.
#[derive(Clone, Default)]
pub struct Findings {
    pub scans: u32,
    /// Scans of which too few frames reached the victim to be one.
    pub lost: u32,
    pub worst_scan: Duration,
    pub calls: u32,
    pub worst_call: Duration,
    pub peak: u64,
    pub broken: Vec<String>,
}

/// What must hold during an attack. After it, all of it must hold.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Demands {
    /// Blocks, answers to root, a process that lives and feeds the watchdog.
    All,
    /// As above, without answers to root: the bus is away.
    NoCalls,
    /// Nothing: the attack itself stops or restarts the service.
    Afterwards,
}

/// State that the observing threads share.
struct Shared {
    findings: Mutex<Findings>,
    scans_paused: AtomicBool,
    calls_paused: AtomicBool,
    life_paused: AtomicBool,
    /// Since when root waits, and for which call.
    waiting: Mutex<Option<(Instant, &'static str)>>,
    scanning: AtomicBool,
    ended: AtomicBool,
    /// For how many milliseconds this machine did not run a thread that was due.
    stalled: AtomicU64,
}

impl Shared {
    fn stalled(&self) -> Duration {
        Duration::from_millis(self.stalled.load(Ordering::SeqCst))
    }

    fn broken(&self, what: String) {
        let mut findings = self.findings.lock().unwrap();
        if findings.broken.len() < 10 {
            findings.broken.push(what);
        }
    }
}

/// The observing threads of one run of the service. They end on drop.
pub struct Observer(Arc<Shared>);

impl Observer {
    pub fn of(lab: &Lab, process: &Process) -> Self {
        let shared = Arc::new(Shared {
            findings: Mutex::default(),
            scans_paused: AtomicBool::new(false),
            calls_paused: AtomicBool::new(false),
            life_paused: AtomicBool::new(false),
            waiting: Mutex::default(),
            scanning: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            stalled: AtomicU64::new(0),
        });
        let scanner = Scanner {
            wire: Wire::of(&lab.bystander),
            set: SetReader::of(lab),
            witness: Witness::of(lab),
            hardware: lab.victim.hardware_address("eth0"),
        };
        let of_scanner = Arc::clone(&shared);
        std::thread::spawn(move || scanner.run(&of_scanner));
        let (of_root, address) = (Arc::clone(&shared), lab.bus.address().to_owned());
        std::thread::spawn(move || call_as_root(&of_root, &address));
        let (of_life, pid, fed) = (Arc::clone(&shared), process.pid(), process.watchdog());
        std::thread::spawn(move || watch_life(&of_life, pid, &fed));
        Self(shared)
    }

    /// Begins to collect findings.
    pub fn begin(&self, demands: Demands) {
        let off = demands == Demands::Afterwards;
        self.0.scans_paused.store(off, Ordering::SeqCst);
        self.0.life_paused.store(off, Ordering::SeqCst);
        self.0.calls_paused.store(demands != Demands::All, Ordering::SeqCst);
        let deadline = Instant::now() + NEVER;
        while Instant::now() < deadline
            && ((off && self.0.scanning.load(Ordering::SeqCst))
                || (demands != Demands::All && self.0.waiting.lock().unwrap().is_some()))
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        *self.0.findings.lock().unwrap() = Findings::default();
    }

    /// Ends the collection. Waits until at least one scan and one call began after the attack.
    pub fn finish(&self) -> Findings {
        for paused in [&self.0.scans_paused, &self.0.life_paused, &self.0.calls_paused] {
            paused.store(false, Ordering::SeqCst);
        }
        let (scans, calls) = {
            let findings = self.0.findings.lock().unwrap();
            (findings.scans, findings.calls)
        };
        let begun = Instant::now();
        loop {
            std::thread::sleep(Duration::from_millis(20));
            let findings = self.0.findings.lock().unwrap().clone();
            // What is broken needs no further proof.
            let is_broken = !findings.broken.is_empty() && begun.elapsed() > LIMIT;
            // One may have begun before the end of the attack.
            if is_broken || findings.scans >= scans + 2 && findings.calls >= calls + 2 {
                return findings;
            }
            let waiting = *self.0.waiting.lock().unwrap();
            if let Some((since, call)) = waiting.filter(|(since, _)| since.elapsed() > NEVER) {
                let waited = since.elapsed();
                self.0.broken(format!("root's {call} was not answered within {waited:.1?}"));
                return self.0.findings.lock().unwrap().clone();
            }
            if begun.elapsed() > 3 * NEVER {
                self.0.broken("the observer itself got too little time".to_owned());
                return self.0.findings.lock().unwrap().clone();
            }
        }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::SeqCst);
    }
}

/// Sends scans from fresh addresses and measures when the kernel's set contains each.
struct Scanner {
    wire: Wire,
    set: SetReader,
    witness: Witness,
    hardware: [u8; 6],
}

/// Counts the frames of scans that reach the victim. A flood that fills the kernel's queue of the
/// wire destroys frames before the victim gets them, and the service cannot block what it cannot
/// see.
struct Witness(Capture<Active>);

impl Witness {
    fn of(lab: &Lab) -> Self {
        let capture = lab.victim.inside(|| {
            let device = Capture::from_device("eth0").unwrap().immediate_mode(true).snaplen(96);
            device.open().unwrap().setnonblock().unwrap()
        });
        let mut witness = Self(capture);
        witness.0.filter("src net 172.16.0.0/12 or src net 2001:db8:ab::/48", true).unwrap();
        witness
    }

    /// Returns how many frames of this source have arrived since the last count.
    fn count(&mut self, source: IpAddr) -> u16 {
        let mut count = 0;
        while let Ok(packet) = self.0.next_packet() {
            count += u16::from(match source {
                IpAddr::V4(source) => packet.data.get(26..30) == Some(&source.octets()),
                IpAddr::V6(source) => packet.data.get(22..38) == Some(&source.octets()),
            });
        }
        count
    }
}

impl Scanner {
    fn run(mut self, shared: &Shared) {
        while !shared.ended.load(Ordering::SeqCst) {
            if shared.scans_paused.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
            shared.scanning.store(true, Ordering::SeqCst);
            self.scan(shared);
            shared.scanning.store(false, Ordering::SeqCst);
            std::thread::sleep(BETWEEN_SCANS);
        }
    }

    fn scan(&mut self, shared: &Shared) {
        let number = fresh_number();
        let source = fresh_source(number);
        let to = if source.is_ipv6() { VICTIM_V6 } else { VICTIM };
        let (begun, stalled) = (Instant::now(), shared.stalled());
        for port in 0..PORTS {
            self.wire.try_send(&syn(self.hardware, source, to, 20_000 + port * 7));
            std::thread::sleep(BETWEEN_PORTS);
        }
        let mut blocked = false;
        while !blocked && begun.elapsed() < NEVER && !shared.ended.load(Ordering::SeqCst) {
            blocked = self.set.contains(source);
            if !blocked {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        let took = begun.elapsed().saturating_sub(shared.stalled().saturating_sub(stalled));
        // An attack that stops the service pauses the scans first, and may have begun meanwhile.
        if shared.scans_paused.load(Ordering::SeqCst) || shared.ended.load(Ordering::SeqCst) {
            return;
        }
        let arrived = self.witness.count(source);
        let mut findings = shared.findings.lock().unwrap();
        findings.scans += 1;
        if arrived < ENOUGH && took > LIMIT {
            findings.lost += 1;
            return;
        }
        findings.worst_scan = findings.worst_scan.max(took);
        drop(findings);
        if !blocked {
            let what = format!("the scan from {source}, of which {arrived} frames arrived,");
            shared.broken(format!("{what} was not blocked within {NEVER:?}"));
        } else if took > LIMIT {
            shared.broken(format!("the scan from {source} was blocked only after {took:.1?}"));
        }
    }
}

fn fresh_number() -> u32 {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    COUNT.fetch_add(1, Ordering::Relaxed)
}

/// Returns an address that no scan came from before. Each fourth is of IPv6.
fn fresh_source(number: u32) -> IpAddr {
    if number.is_multiple_of(4) {
        let [.., a, b] = number.to_be_bytes();
        let low = u16::from_be_bytes([a, b]);
        Ipv6Addr::new(0x2001, 0xdb8, 0xab, low, 0, 0, 0, 1).into()
    } else {
        // 172.16.0.0/12
        Ipv4Addr::from(0xac10_0000 + number).into()
    }
}

/// Asks the kernel over netlink whether a set of the instance on `eth0` contains an address.
pub struct SetReader {
    socket: OwnedFd,
    sequence: u32,
}

impl SetReader {
    pub fn of(lab: &Lab) -> Self {
        let socket = lab.victim.inside(|| {
            let kind = (AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC);
            let socket = rustix::net::socket_with(kind.0, kind.1, kind.2, Some(NETFILTER)).unwrap();
            rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0)).unwrap();
            socket
        });
        Self { socket, sequence: 0 }
    }

    /// Returns whether the set contains the address or a network around it. False without a set.
    pub fn contains(&mut self, address: IpAddr) -> bool {
        /// `IPSET_CMD_TEST` of nfnetlink's subsystem ipset.
        const TEST: u16 = 6 << 8 | 0xb;
        const REQUEST_ACK: u16 = 0x05;
        const NESTED: u16 = 0x8000;
        const NET_BYTE_ORDER: u16 = 0x4000;
        const NLMSG_ERROR: u16 = 2;
        let (family, version, kind, octets) = match address {
            IpAddr::V4(address) => (2, "v4", 1, address.octets().to_vec()),
            IpAddr::V6(address) => (10, "v6", 2, address.octets().to_vec()),
        };
        let ip = attribute(1 | NESTED, &attribute(kind | NET_BYTE_ORDER, &octets));
        let prefix = attribute(3, &[u8::try_from(octets.len() * 8).unwrap()]);
        let name = format!("tcptracker-eth0-{version}\0");
        let body = [
            vec![family, 0, 0, 0],
            attribute(1, &[7]),
            attribute(2, name.as_bytes()),
            attribute(7 | NESTED, &[ip, prefix].concat()),
        ]
        .concat();
        self.sequence += 1;
        let mut message = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
        message.extend(TEST.to_ne_bytes());
        message.extend(REQUEST_ACK.to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(body);
        rustix::net::send(&self.socket, &message, SendFlags::empty()).unwrap();
        let mut answer = [0; 1024];
        let (length, _) =
            rustix::net::recv(&self.socket, &mut answer[..], RecvFlags::empty()).unwrap();
        assert!(length >= 20 && answer[4..6] == NLMSG_ERROR.to_ne_bytes());
        answer[16..20] == [0; 4]
    }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(4 + value.len()).unwrap().to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Calls the service as root, again and again.
fn call_as_root(shared: &Shared, address: &str) {
    let mut proxy = None;
    let mut number = 0;
    while !shared.ended.load(Ordering::SeqCst) {
        if shared.calls_paused.load(Ordering::SeqCst) {
            // The bus may be another afterwards.
            proxy = None;
            std::thread::sleep(Duration::from_millis(5));
            continue;
        }
        let call = ["Block", "Stats", "Unblock"][number % 3];
        *shared.waiting.lock().unwrap() = Some((Instant::now(), call));
        let (begun, stalled) = (Instant::now(), shared.stalled());
        let result = zbus::block_on(async {
            if proxy.is_none() {
                proxy = Some(connect(address).await?);
            }
            let Some(proxy) = &proxy else { return Ok(()) };
            match call {
                "Block" => proxy.call::<_, _, ()>(call, &(OTHER, 60_u64, "abuse suite")).await,
                "Unblock" => proxy.call::<_, _, ()>(call, &(OTHER,)).await,
                _ => {
                    let stats =
                        proxy.call::<_, _, std::collections::HashMap<String, u64>>(call, &());
                    stats.await.map(drop)
                }
            }
        });
        let took = begun.elapsed().saturating_sub(shared.stalled().saturating_sub(stalled));
        number += 1;
        *shared.waiting.lock().unwrap() = None;
        if shared.calls_paused.load(Ordering::SeqCst) {
            continue;
        }
        if let Err(error) = result {
            proxy = None;
            // Unblock fails if Block did.
            number = 0;
            if !shared.ended.load(Ordering::SeqCst) {
                shared.broken(format!("root's {call} failed: {error}"));
            }
        } else if took > LIMIT {
            shared.broken(format!("root's {call} was answered only after {took:.1?}"));
        }
        let mut findings = shared.findings.lock().unwrap();
        findings.calls += 1;
        findings.worst_call = findings.worst_call.max(took);
        drop(findings);
        std::thread::sleep(BETWEEN_CALLS);
    }
}

async fn connect(address: &str) -> zbus::Result<zbus::Proxy<'static>> {
    let connection = zbus::connection::Builder::address(address).build().await?;
    let [name, object, interface] = target("eth0");
    zbus::proxy::Builder::<zbus::Proxy<'static>>::new(&connection)
        .destination(name)
        .path(object)
        .interface(interface)
        .cache_properties(CacheProperties::No)
        .build()
        .await
}

/// Watches the process, its watchdog and its memory.
fn watch_life(shared: &Shared, pid: u32, fed: &impl Fn() -> Option<Instant>) {
    let mut told = false;
    let mut since = Instant::now();
    while !shared.ended.load(Ordering::SeqCst) {
        // A machine that does not run even this thread in time says nothing about the service.
        let slept = Instant::now();
        std::thread::sleep(Duration::from_millis(20));
        let stall = slept.elapsed().saturating_sub(Duration::from_millis(70)).as_millis();
        shared.stalled.fetch_add(u64::try_from(stall).unwrap(), Ordering::SeqCst);
        if shared.life_paused.load(Ordering::SeqCst) {
            since = Instant::now();
            continue;
        }
        let Some(bytes) = anonymous_bytes(pid) else {
            if !told {
                told = true;
                shared.broken("the process ended".to_owned());
            }
            continue;
        };
        let mut findings = shared.findings.lock().unwrap();
        findings.peak = findings.peak.max(bytes);
        drop(findings);
        let last = fed().map_or(since, |fed| fed.max(since));
        if !told && last.elapsed() > WATCHDOG {
            told = true;
            shared.broken(format!("the watchdog was not fed for {WATCHDOG:?}"));
        }
    }
}

/// Returns the memory that a process itself allocated; program and libraries do not count. Nothing
/// if the process has ended.
pub fn anonymous_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024)
}
