//! What a local user without privileges can do: call the bus, connect to the metrics port, bind
//! and fill abstract sockets. The numbers are rows of the review of 2026-11-30.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::arena::{Arena, Options};
use crate::bus::target;
use crate::namespace::Namespace;
use crate::observer::Demands;
use crate::raw_bus::{NOBODY, RawClient, Template, as_user};
use crate::suite::Attack;
use crate::tools::{Random, run};
use crate::unresponsive_polkit::UnresponsivePolkit;
use crate::users;

/// How long an attack goes on.
const ATTACK: Duration = Duration::from_secs(3);

/// Nearly the longest text that the bus transports: a message has at most 32 MiB.
const LONGEST: usize = (32 << 20) - 4096;

const METRICS: ([u8; 4], u16) = ([127, 0, 0, 1], 8081);
const REQUEST: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";

pub const ATTACKS: &[Attack] = &[
    Attack::new("control_characters_of_7_mb", control_characters_of_7_mb),
    Attack::new("quotation_marks_of_17_mb", quotation_marks_of_17_mb),
    Attack::new("longest_address", longest_address),
    Attack::new("longest_reason", longest_reason),
    Attack::new("longest_prefix_length", longest_prefix_length),
    Attack::new("longest_property", longest_property),
    Attack::new("why_without_reply", why_without_reply),
    Attack::new("list_without_reply", list_without_reply),
    Attack::new("unknown_method_without_reply", unknown_method_without_reply),
    Attack::new("four_floods_of_list", four_floods_of_list),
    Attack::new("four_floods_of_stats", four_floods_of_stats),
    Attack::new("four_floods_of_introspect", four_floods_of_introspect),
    Attack::new("four_floods_of_ping", four_floods_of_ping),
    Attack::new("four_floods_of_get_all", four_floods_of_get_all),
    Attack::new("why_of_60_kb", why_of_60_kb),
    Attack::new("four_floods_of_block_without_reply", four_floods_of_block_without_reply),
    Attack::new("four_floods_of_signals", four_floods_of_signals),
    Attack::new("floods_of_every_kind", floods_of_every_kind),
    Attack::new("calls_of_new_connections", calls_of_new_connections),
    Attack::new("odd_arguments", odd_arguments),
    Attack::new("polkit_never_answers", polkit_never_answers),
    Attack::new("callers_leave_open_questions", callers_leave_open_questions),
    Attack::new("forged_signals", forged_signals),
    Attack::new("foreign_bus_names", foreign_bus_names),
    Attack::new("metrics_slowloris", metrics_slowloris),
    Attack::new("metrics_idle", metrics_idle),
    Attack::new("metrics_endless_heads", metrics_endless_heads),
    Attack::new("metrics_pipelined", metrics_pipelined),
    Attack::new("metrics_reconnecting", metrics_reconnecting),
    Attack::new("metrics_odd_requests", metrics_odd_requests),
    Attack::new("metrics_with_few_descriptors", metrics_with_few_descriptors)
        .needing(|options| options.descriptors = Some(64)),
    Attack::new("lock_of_the_rules_taken", lock_of_the_rules_taken),
    Attack::new("lock_queue_filled", lock_queue_filled),
    Attack::new("lock_taken_before_the_start", lock_taken_before_the_start)
        .demanding(Demands::Afterwards),
    Attack::new("odd_reasons", odd_reasons),
    Attack::new("invisible_characters_in_reasons", invisible_characters_in_reasons),
];

pub fn options(random: &mut Random) -> Options {
    Options { balanced: random.below(2) == 0, blocks: 20_000, ..Options::default() }
}

/// 4, 5: the error echoes the text, five characters for each, and exceeds what the bus transports.
fn control_characters_of_7_mb(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    send_once(arena, &Template::tracker("Why", &"\u{1}".repeat(7_000_000)));
    Ok(())
}

/// 4: two characters for each.
fn quotation_marks_of_17_mb(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    send_once(arena, &Template::tracker("Why", &"\"".repeat(17_000_000)));
    Ok(())
}

/// 6: the longest address, of each method that takes one.
fn longest_address(arena: &mut Arena, random: &mut Random) -> Result<(), String> {
    let text = ["a", "1", ":", "\u{1}", "\"", "\u{2028}"][random.below(6)];
    let address = text.repeat(LONGEST / text.len());
    for template in [
        Template::tracker("Why", &address),
        Template::tracker("Unblock", &address),
        Template::tracker("Block", &(&address, 60_u64, "reason")),
    ] {
        send_once(arena, &template);
    }
    Ok(())
}

/// 6: the longest reason.
fn longest_reason(arena: &mut Arena, random: &mut Random) -> Result<(), String> {
    let text = ["a", "\u{1}", "\u{202e}"][random.below(3)];
    let reason = text.repeat(LONGEST / text.len());
    send_once(arena, &Template::tracker("Block", &("198.51.100.9", 60_u64, reason)));
    Ok(())
}

/// 6: an address with the longest prefix length.
fn longest_prefix_length(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    let address = format!("1.2.3.4/{}", "9".repeat(LONGEST - 8));
    send_once(arena, &Template::tracker("Why", &address));
    Ok(())
}

/// 6: the longest names and values of properties, and the longest interface name to ask for.
fn longest_property(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    let (properties, ours) = ("org.freedesktop.DBus.Properties", "org.tcptracker.Tracker1");
    let long = "\u{1}".repeat(LONGEST);
    for template in [
        Template::call(properties, "Get", &(ours, &long)),
        Template::call(properties, "GetAll", &(&long,)),
        Template::call(properties, "Set", &(ours, "State", zbus::Variant::from(&*long))),
    ] {
        send_once(arena, &template);
    }
    Ok(())
}

/// 7: the bus does not limit calls without a reply.
fn why_without_reply(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    flood(arena, 1, &Template::tracker("Why", &"198.51.100.1").without_reply());
    Ok(())
}

/// 7, 10: each list of 20,000 blocks is more than 1 MB.
fn list_without_reply(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    flood(arena, 1, &Template::tracker("List", &()).without_reply());
    Ok(())
}

/// 9: even calls of no method are queued.
fn unknown_method_without_reply(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    flood(arena, 3, &Template::tracker("Nothing", &()).without_reply());
    Ok(())
}

/// 7, 10: lists from four connections.
fn four_floods_of_list(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    flood(arena, 4, &Template::tracker("List", &()));
    Ok(())
}

/// 11: counters from four connections.
fn four_floods_of_stats(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    flood(arena, 4, &Template::tracker("Stats", &()));
    Ok(())
}

/// 9: descriptions of the interface, which the library answers.
fn four_floods_of_introspect(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    flood(arena, 4, &Template::call("org.freedesktop.DBus.Introspectable", "Introspect", &()));
    Ok(())
}

/// 9: pings, which the library answers.
fn four_floods_of_ping(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    flood(arena, 4, &Template::call("org.freedesktop.DBus.Peer", "Ping", &()).without_reply());
    Ok(())
}

/// 9: properties, which the library asks the service for.
fn four_floods_of_get_all(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    let ours = "org.tcptracker.Tracker1";
    let call = Template::call("org.freedesktop.DBus.Properties", "GetAll", &(ours,));
    flood(arena, 4, &call.without_reply());
    Ok(())
}

/// 11: many errors of moderate length.
fn why_of_60_kb(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    flood(arena, 2, &Template::tracker("Why", &"x".repeat(60_000)));
    Ok(())
}

/// Changes take effect without a reply, too.
fn four_floods_of_block_without_reply(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    let block = Template::tracker("Block", &("198.51.100.9", 60_u64, "reason"));
    flood(arena, 4, &block.without_reply());
    Ok(())
}

/// Signals that only the service gets.
fn four_floods_of_signals(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    flood(arena, 4, &Template::signal_to_tracker("NameOwnerChanged", &(":1.1", ":1.1", "")));
    Ok(())
}

/// Several kinds at once.
fn floods_of_every_kind(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    let ours = "org.tcptracker.Tracker1";
    let templates = [
        Template::tracker("List", &()),
        Template::tracker("Why", &"198.51.100.1"),
        Template::call("org.freedesktop.DBus.Introspectable", "Introspect", &()),
        Template::call("org.freedesktop.DBus.Properties", "GetAll", &(ours,)).without_reply(),
    ];
    std::thread::scope(|scope| {
        for template in &templates {
            let arena = &*arena;
            scope.spawn(move || flood(arena, 1, template));
        }
    });
    Ok(())
}

/// The service must learn which user each connection belongs to.
fn calls_of_new_connections(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    let (address, begun) = (arena.bus(), Instant::now());
    let call = Template::tracker("Stats", &());
    while begun.elapsed() < ATTACK {
        let mut clients: Vec<_> = (0..20).map(|_| RawClient::connect(&address, NOBODY)).collect();
        for client in &mut clients {
            client.flood(&call, 20, ATTACK);
        }
    }
    Ok(())
}

/// 3: wrong types, numbers and texts, and members that do not exist.
fn odd_arguments(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    let (properties, ours) = ("org.freedesktop.DBus.Properties", "org.tcptracker.Tracker1");
    let mut client = RawClient::connect(&arena.bus(), NOBODY);
    let mut templates = vec![
        Template::tracker("Block", &()),
        Template::tracker("Block", &(1_u8, "x", vec![1.5])),
        Template::tracker("Block", &("198.51.100.9", u64::MAX, "reason")),
        Template::tracker("Block", &("198.51.100.9", -1_i64, "reason")),
        Template::tracker("Block", &("198.51.100.9", 60_u64, "reason", "more")),
        Template::tracker("List", &"argument"),
        Template::tracker("Reload", &7_u32),
        Template::tracker("Nothing", &()),
        Template::call("org.freedesktop.DBus.ObjectManager", "GetManagedObjects", &()),
        Template::call(properties, "Get", &(ours, "Nothing")),
        Template::call(properties, "Set", &(ours, "State", zbus::Variant::from("x"))),
        Template::call(properties, "GetAll", &("org.example.Nothing",)),
    ];
    for address in ["", "\n", "0.0.0.0/0", "::/0", "fe80::1%eth0", "1.2.3", "1.2.3.4/33", "é"] {
        templates.push(Template::tracker("Why", &address));
        templates.push(Template::tracker("Block", &(address, 0_u64, "")));
    }
    for template in &templates {
        client.flood(template, 200, ATTACK);
    }
    Ok(())
}

/// 12: many users ask for a change, and polkit never answers. Root does not wait.
fn polkit_never_answers(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    let _polkit = UnresponsivePolkit::on(&arena.lab.bus);
    let call = Template::tracker("Block", &("198.51.100.9", 60_u64, "reason"));
    let users = existing_users().into_iter().take(17);
    let mut clients: Vec<_> = users.map(|user| RawClient::connect(&arena.bus(), user)).collect();
    for client in &mut clients {
        client.flood(&call, 20, ATTACK);
    }
    std::thread::sleep(Duration::from_secs(1));
    Ok(())
}

/// 13: the questions of callers that have left end. Afterwards the same user's question reaches
/// polkit again.
fn callers_leave_open_questions(arena: &mut Arena, random: &mut Random) -> Result<(), String> {
    let polkit = UnresponsivePolkit::on(&arena.lab.bus);
    let call = Template::tracker("Block", &("198.51.100.9", 60_u64, "reason"));
    let users = existing_users();
    let user = users[random.below(users.len())];
    let mut client = RawClient::connect(&arena.bus(), user);
    // One after the other: after a flood the service takes only two calls at a time.
    for _ in 0..8 {
        client.send(&call);
        polkit.await_requests(1);
    }
    drop(client);
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        let begun = Instant::now();
        let mut call = users::as_user(user, &[], "busctl");
        call.arg(format!("--address={}", arena.bus())).args(["--timeout=1", "call"]);
        call.args(target("eth0")).args(["Block", "sts", "198.51.100.9", "60", "reason"]);
        run(&mut call);
        // A question that polkit has received is not answered; one too many is refused at once.
        if begun.elapsed() > Duration::from_millis(900) {
            return Ok(());
        }
    }
    Err("a user who left with open questions cannot ask again".to_owned())
}

/// 14: signals that look like the service's reach no client of it.
fn forged_signals(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    let mut watch = arena.lab.client("watch").stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let mut client = RawClient::connect(&arena.bus(), NOBODY);
    for template in [
        Template::signal("ScanDetected", &("198.51.100.66", &[1_u16, 2, 3, 4][..], "vertical")),
        Template::signal("Blocked", &("198.51.100.66", 0_u64, "forged")),
        Template::signal("Unblocked", &("198.51.100.66", "manual")),
        Template::signal("StateChanged", &"forged"),
    ] {
        client.flood(&template, 50, ATTACK);
    }
    std::thread::sleep(Duration::from_millis(500));
    let _ = watch.kill();
    let shown = watch.wait_with_output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    if shown.contains("198.51.100.66") || shown.contains("forged") {
        return Err(format!("watch shows forged signals: {shown}"));
    }
    Ok(())
}

/// 2: the bus's policy denies our names.
fn foreign_bus_names(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    arena.lab.bus.assert_nobody_cannot_own_name();
    let mut client = RawClient::connect(&arena.bus(), NOBODY);
    let name = "org.tcptracker.Tracker1.eth0";
    // Replacing the owner is asked for, too.
    client.flood(&Template::to_the_bus("RequestName", &(name, 7_u32)), 200, ATTACK);
    client.flood(&Template::to_the_bus("ReleaseName", &name), 200, ATTACK);
    Ok(())
}

/// 16: a thousand clients that send a byte from time to time.
fn metrics_slowloris(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    inside_victim(arena, || {
        let mut clients: Vec<_> = (0..1000).filter_map(|_| connect()).collect();
        let begun = Instant::now();
        let mut sent = 0;
        while begun.elapsed() < ATTACK {
            for client in &mut clients {
                let _ = client.write(&REQUEST[sent % 16..=sent % 16]);
            }
            sent += 1;
            std::thread::sleep(Duration::from_millis(200));
        }
    })
}

/// 17: a thousand clients that send nothing.
fn metrics_idle(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    inside_victim(arena, || {
        let clients: Vec<_> = (0..1000).filter_map(|_| connect()).collect();
        std::thread::sleep(ATTACK);
        drop(clients);
    })
}

/// 18: request heads without an end.
fn metrics_endless_heads(arena: &mut Arena, random: &mut Random) -> Result<(), String> {
    let line: &[u8] = [&b"x"[..], b"x: y\r\n", b"GET /metrics HTTP/1.1\r\n"][random.below(3)];
    repeat_requests(arena, &line.repeat(65_536 / line.len()))
}

/// 19: requests without reading the replies.
fn metrics_pipelined(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    repeat_requests(arena, &REQUEST.repeat(1000))
}

/// 20: connect, ask, and close, as fast as possible.
fn metrics_reconnecting(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    inside_victim(arena, || {
        let begun = Instant::now();
        while begun.elapsed() < ATTACK {
            if let Some(mut client) = connect() {
                let _ = client.write_all(REQUEST);
            }
        }
    })
}

/// 15: requests that no browser makes.
fn metrics_odd_requests(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    let requests: [&[u8]; 12] = [
        b"\0\0\0\0\r\n\r\n",
        b"GET /metrics HTTP/9.9\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nContent-Length: 1152921504606846976\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /metrics HTTP/1.1\n\n",
        b"GET /metrics HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET /\xff\xfe\x00 HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ];
    inside_victim(arena, || {
        for _ in 0..20 {
            for request in requests {
                let Some(mut client) = connect() else { continue };
                let _ = client.write_all(request);
                client.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
                let _ = client.read(&mut [0; 1024]);
            }
        }
    })
}

/// 55: connections take the descriptors that a repair needs.
fn metrics_with_few_descriptors(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    let clients: Vec<_> = arena.lab.victim.inside(|| (0..100).filter_map(|_| connect()).collect());
    arena.flush_input();
    let repaired = arena.await_hooks(Duration::from_secs(4));
    drop(clients);
    repaired
}

/// 21: a user owns the socket that instances lock while they change rules.
fn lock_of_the_rules_taken(arena: &mut Arena, random: &mut Random) -> Result<(), String> {
    let listener = bind_abstract(&arena.lab.victim, "tcptracker-rules");
    arena.flush_input();
    let repaired = arena.await_hooks(Duration::from_secs(5));
    if random.below(2) == 0 {
        std::thread::sleep(Duration::from_secs(1));
    }
    drop(listener);
    repaired
}

/// 21: a user owns the instance's lock before it starts. The start must not fail.
fn lock_taken_before_the_start(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    arena.stop(Duration::from_secs(10))?;
    let listener = bind_abstract(&arena.lab.victim, "tcptracker@eth0");
    let begun = Instant::now();
    arena.start();
    let took = begun.elapsed();
    drop(listener);
    if took > Duration::from_secs(5) {
        return Err(format!("the start took {took:?}"));
    }
    Ok(())
}

/// 22: a user fills the queue of the instance's lock. A second instance must not start.
fn lock_queue_filled(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    allow_many_descriptors();
    let clients = arena.lab.victim.inside(|| {
        let address = UnixAddr::from_abstract_name("tcptracker@eth0").unwrap();
        as_user(NOBODY, || {
            // The queue blocks when it is full, and a thread cannot be ended.
            let mut clients = Vec::new();
            for _ in 0..4097 {
                match connect_without_waiting(&address) {
                    Some(client) => clients.push(client),
                    None => break,
                }
            }
            clients
        })
    });
    arena.lab.configure("[bus]\nenabled = false\n[metrics]\nlisten = \"off\"\n");
    let mut second = arena.service().command(&arena.lab);
    let mut second = second.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + ATTACK;
    let mut status = None;
    while status.is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
        status = second.try_wait().unwrap();
    }
    let _ = second.kill();
    let _ = second.wait();
    arena.lab.configure("");
    drop(clients);
    match status {
        Some(status) if !status.success() => Ok(()),
        Some(status) => Err(format!("a second instance ended with {status}")),
        None => Err("a second instance runs beside the first".to_owned()),
    }
}

/// 23: reasons that are not one line of plain text are refused.
fn odd_reasons(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    must_refuse(arena, &["a\nb", "\u{1b}[31m", "a\u{85}b", "\u{7f}", &"x".repeat(201)])
}

/// 24: also characters that change how the others are shown.
fn invisible_characters_in_reasons(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    must_refuse(arena, &["a\u{2028}b", "a\u{202e}b", "a\u{200b}b", "a\u{e0041}b"])
}

fn must_refuse(arena: &Arena, reasons: &[&str]) -> Result<(), String> {
    for reason in reasons {
        let answer = arena.lab.bus.call("eth0", &["Block", "sts", "198.51.100.8", "1", reason]);
        if answer.code == Some(0) {
            return Err(format!("the reason {reason:?} is accepted"));
        }
    }
    Ok(())
}

/// Sends one message as nobody, and waits until the service has had time for it.
fn send_once(arena: &Arena, template: &Template) {
    let mut client = RawClient::connect(&arena.bus(), NOBODY);
    client.send(template);
    std::thread::sleep(Duration::from_millis(700));
}

/// Sends 100,000 calls as nobody from each of several connections, or as many as the bus takes.
fn flood(arena: &Arena, connections: usize, template: &Template) {
    let address = arena.bus();
    std::thread::scope(|scope| {
        for _ in 0..connections {
            scope.spawn(|| {
                let mut client = RawClient::connect(&address, NOBODY);
                client.flood(template, 100_000, ATTACK);
                // The bus may have more to deliver than the service has answered.
                std::thread::sleep(Duration::from_secs(1));
            });
        }
    });
}

fn connect() -> Option<TcpStream> {
    TcpStream::connect_timeout(&SocketAddr::from(METRICS), Duration::from_millis(300)).ok()
}

/// Writes the same bytes again and again over two connections, without reading.
fn repeat_requests(arena: &Arena, bytes: &[u8]) -> Result<(), String> {
    inside_victim(arena, || {
        let begun = Instant::now();
        let mut clients = [None, None];
        while begun.elapsed() < ATTACK {
            for client in &mut clients {
                if client.is_none() {
                    *client = connect();
                }
                let Some(connected) = client else { continue };
                connected.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
                if connected.write_all(bytes).is_err() {
                    *client = None;
                }
            }
        }
    })
}

fn inside_victim(arena: &Arena, work: impl FnOnce() + Send) -> Result<(), String> {
    allow_many_descriptors();
    arena.lab.victim.inside(work);
    Ok(())
}

/// Listens on an abstract socket as nobody.
fn bind_abstract(victim: &Namespace, name: &str) -> UnixListener {
    victim.inside(|| {
        let address = UnixAddr::from_abstract_name(name).unwrap();
        as_user(NOBODY, || UnixListener::bind_addr(&address).unwrap())
    })
}

/// Connects to an abstract socket. Returns nothing if its queue is full.
fn connect_without_waiting(address: &UnixAddr) -> Option<UnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let name = address.as_abstract_name()?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
    let address = SocketAddrUnix::new_abstract_name(name).ok()?;
    rustix::net::connect(&socket, &address).ok()?;
    Some(socket.into())
}

/// Returns the users of this machine except root. The bus refuses users that it does not find.
pub fn existing_users() -> Vec<u32> {
    let listed = std::fs::read_to_string("/etc/passwd").unwrap();
    let users = listed.lines().filter_map(|line| line.split(':').nth(2)?.parse().ok());
    users.filter(|user| *user != 0).collect()
}

fn allow_many_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let current = limit.maximum.map_or(Some(65_536), |most| Some(most.min(65_536)));
    setrlimit(Resource::Nofile, Rlimit { current, ..limit }).unwrap();
}
