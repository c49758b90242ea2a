//! What the programs and services around tcptracker can do: hang, be slow, fail, not read, go
//! away. The numbers are rows of the review of 2026-11-30.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::arena::{Arena, Helper, Options};
use crate::frames::{SynTemplate, syn};
use crate::kernel::{Rules, wipe};
use crate::lab::{Lab, VICTIM};
use crate::observer::{Demands, WATCHDOG};
use crate::suite::Attack;
use crate::tools::{Random, await_that, run};
use crate::unprivileged_user::existing_users;
use crate::unresponsive_polkit::UnresponsivePolkit;

/// Longer than the interval of the watchdog, so that a thread that hangs is found.
const LONG: Duration = WATCHDOG.saturating_add(Duration::from_secs(2));

/// How long the service may take to stop, whatever hangs.
const STOP: Duration = Duration::from_secs(8);

const DAY: i64 = 86_400;

pub const ATTACKS: &[Attack] = &[
    Attack::new("iptables_hangs", iptables_hangs),
    Attack::new("iptables_takes_6_s", iptables_takes_6_s),
    Attack::new("iptables_fails_once", iptables_fails_once),
    Attack::new("iptables_fails_two_of_three_times", iptables_fails_two_of_three_times),
    Attack::new("xtables_lock_held", xtables_lock_held).needing(|options| options.legacy = true),
    Attack::new("iptables_is_slow_at_the_start", iptables_is_slow_at_the_start)
        .demanding(Demands::Afterwards),
    Attack::new("iptables_fails_once_at_the_stop", iptables_fails_once_at_the_stop)
        .demanding(Demands::Afterwards)
        .spoiling(),
    Attack::new("iptables_hangs_at_the_stop", iptables_hangs_at_the_stop)
        .demanding(Demands::Afterwards)
        .spoiling(),
    Attack::new("foreign_rules_of_our_names_at_the_start", foreign_rules_of_our_names_at_the_start)
        .demanding(Demands::Afterwards)
        .spoiling(),
    Attack::new("rules_flushed_again_and_again", rules_flushed_again_and_again),
    Attack::new("sets_flushed_or_swapped", sets_flushed_or_swapped),
    Attack::new("polkit_never_answers_and_goes", polkit_never_answers_and_goes),
    Attack::new("bus_stopped", bus_stopped).demanding(Demands::NoCalls),
    Attack::new("bus_stopped_during_many_scans", bus_stopped_during_many_scans)
        .demanding(Demands::NoCalls)
        .spoiling(),
    Attack::new("bus_killed", bus_killed).demanding(Demands::NoCalls).spoiling(),
    Attack::new("journal_does_not_read", journal_does_not_read)
        .needing(|options| options.journal = true),
    Attack::new("journal_goes_and_returns", journal_goes_and_returns)
        .needing(|options| options.journal = true),
    Attack::new("stderr_is_not_read", stderr_is_not_read)
        .needing(|options| (options.journal, options.full_stderr) = (false, false)),
    Attack::new("stderr_is_not_read_at_the_stop", stderr_is_not_read_at_the_stop)
        .needing(|options| (options.journal, options.full_stderr) = (false, false))
        .demanding(Demands::Afterwards)
        .spoiling(),
    Attack::new("stderr_reader_goes", stderr_reader_goes)
        .needing(|options| (options.journal, options.full_stderr) = (false, false))
        .spoiling(),
    Attack::new("stderr_is_full", stderr_is_full)
        .needing(|options| (options.journal, options.full_stderr) = (false, true)),
    Attack::new("disk_full", disk_full).needing(|options| options.disk = true),
    Attack::new("disk_read_only_from_the_start", disk_read_only_from_the_start)
        .needing(|options| options.disk = true)
        .demanding(Demands::Afterwards)
        .spoiling(),
    Attack::new("service_stopped_for_seconds", service_stopped_for_seconds)
        .demanding(Demands::Afterwards),
    Attack::new("wall_clock_steps", wall_clock_steps).needing(|options| options.clock = true),
    Attack::new("reloads_without_a_pause", reloads_without_a_pause),
];

pub fn options(random: &mut Random) -> Options {
    Options { journal: random.below(2) == 0, blocks: 1000, ..Options::default() }
}

/// 58: iptables-save hangs while a rule must be repaired.
fn iptables_hangs(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    arena.set_helper(Helper::Hangs);
    arena.flush_input();
    std::thread::sleep(LONG);
    arena.set_helper(Helper::Works);
    Ok(())
}

/// 60: each program takes 6 s while a rule must be repaired.
fn iptables_takes_6_s(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    arena.set_helper(Helper::Slow);
    arena.flush_input();
    std::thread::sleep(LONG);
    arena.set_helper(Helper::Works);
    // The calls that have begun take their time.
    arena.await_hooks(Duration::from_secs(20))
}

/// 61: the first call fails.
fn iptables_fails_once(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    arena.set_helper(Helper::FailsOnce);
    arena.flush_input();
    // Earlier failures lengthen the pauses between two attempts.
    let repaired = arena.await_hooks(Duration::from_secs(15));
    arena.set_helper(Helper::Works);
    repaired
}

/// 61: two of three calls fail for a while.
fn iptables_fails_two_of_three_times(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    arena.set_helper(Helper::FailsTwoOfThree);
    arena.flush_input();
    std::thread::sleep(LONG);
    arena.set_helper(Helper::Works);
    Ok(())
}

/// 59: another program holds the lock of iptables-legacy while a rule must be repaired.
fn xtables_lock_held(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    let lock = arena.lab.path("xtables.lock");
    // Without our lock file, because this iptables does not wait for it.
    arena.flush_input();
    let mut holder = Command::new("flock").arg(lock).args(["sleep", "1000"]).spawn().unwrap();
    std::thread::sleep(LONG);
    end(&mut holder);
    Ok(())
}

/// Ends flock(1) and the program that it started.
fn end(holder: &mut Child) {
    run(Command::new("pkill").args(["-KILL", "-P", &holder.id().to_string()]));
    let _ = holder.kill();
    let _ = holder.wait();
}

/// 60: nothing says "healthy" before the rules are in the kernel.
fn iptables_is_slow_at_the_start(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    arena.stop(STOP)?;
    arena.set_helper(Helper::SlowToShow);
    let process = arena.begin();
    let begun = Instant::now();
    let mut result = Ok(());
    while result.is_ok() && begun.elapsed() < Duration::from_secs(4) {
        let healthy =
            arena.lab.victim.serves(8081) && arena.lab.victim.http_get(8081, "/health").0 == 200;
        let missing = arena.missing_hooks();
        if healthy && !missing.is_empty() {
            result = Err(format!("healthy without {}", missing.join(", ")));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    arena.set_helper(Helper::Works);
    arena.adopt(process.await_ready());
    result
}

/// 62: a call that fails once must not leave anything in the kernel.
fn iptables_fails_once_at_the_stop(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    stop_with(arena, Helper::FailsOnce)
}

/// 58: a program that hangs does not hold up the stop.
fn iptables_hangs_at_the_stop(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    stop_with(arena, Helper::Hangs)
}

fn stop_with(arena: &mut Arena, helper: Helper) -> Result<(), String> {
    arena.set_helper(helper);
    let stopped = arena.stop(STOP);
    arena.set_helper(Helper::Works);
    // Rules may stay if iptables cannot remove them, but then they must match nothing.
    let left = Rules::of(&arena.lab.victim).sets;
    let members =
        left.lines().filter(|line| line.contains(" timeout ") && !line.contains(':')).count();
    wipe(&arena.lab.victim);
    if members > 0 {
        return Err(format!("{members} blocks stay in the kernel ({stopped:?})"));
    }
    if helper == Helper::Hangs && stopped.as_ref().is_err_and(|text| text.contains("did not stop"))
    {
        return stopped;
    }
    if helper == Helper::FailsOnce { stopped } else { Ok(()) }
}

/// 66: another's set and chain of our names, which use each other.
fn foreign_rules_of_our_names_at_the_start(
    arena: &mut Arena,
    _: &mut Random,
) -> Result<(), String> {
    arena.stop(STOP)?;
    arena.on_victim(
        "ipset create tcptracker-eth0-v4 hash:ip; iptables -N tcptracker; \
         iptables -A tcptracker -m set --match-set tcptracker-eth0-v4 src -j DROP",
    );
    let mut process = arena.begin();
    let deadline = Instant::now() + STOP;
    while !process.is_ready() && process.is_alive() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    if process.is_ready() {
        arena.adopt(process);
        return Ok(());
    }
    drop(process);
    wipe(&arena.lab.victim);
    Err("the service did not start".to_owned())
}

/// 61: another program flushes rules all the time.
fn rules_flushed_again_and_again(arena: &mut Arena, random: &mut Random) -> Result<(), String> {
    for _ in 0..10 {
        arena.flush_input();
        std::thread::sleep(Duration::from_millis(u64::try_from(random.below(500)).unwrap()));
    }
    Ok(())
}

/// 65: sets are flushed or swapped, and rules are gone as well.
fn sets_flushed_or_swapped(arena: &mut Arena, random: &mut Random) -> Result<(), String> {
    let lines = [
        "ipset flush tcptracker-eth0-v4",
        "ipset create other hash:net timeout 60; ipset swap other tcptracker-eth0-v4; ipset destroy other",
        "iptables -F INPUT; iptables -F FORWARD; iptables -F tcptracker; ipset flush",
    ];
    arena.on_victim(lines[random.below(lines.len())]);
    std::thread::sleep(Duration::from_millis(1500));
    Ok(())
}

/// 12, 13: polkit never answers, and is gone then.
fn polkit_never_answers_and_goes(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    let polkit = UnresponsivePolkit::on(&arena.lab.bus);
    let mut callers: Vec<Child> = (0..4)
        .map(|_| {
            let mut call = crate::users::as_user(existing_users()[0], &[], "busctl");
            call.arg(format!("--address={}", arena.bus())).arg("call");
            call.args(crate::bus::target("eth0")).args(["Block", "sts", "198.51.100.9", "9", ""]);
            call.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    polkit.await_requests(4);
    std::thread::sleep(Duration::from_secs(1));
    drop(polkit);
    for caller in &mut callers {
        let _ = caller.kill();
        let _ = caller.wait();
    }
    Ok(())
}

/// 67: the bus does nothing for some seconds.
fn bus_stopped(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    arena.lab.bus.signal(Signal::STOP);
    std::thread::sleep(Duration::from_secs(4));
    arena.lab.bus.signal(Signal::CONT);
    Ok(())
}

/// 68: the bus does nothing while signals fill its socket.
fn bus_stopped_during_many_scans(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    arena.lab.bus.signal(Signal::STOP);
    many_scans(&arena.lab, 250, Duration::from_secs(12));
    arena.lab.bus.signal(Signal::CONT);
    Ok(())
}

/// 69: the bus is killed and started again. The service must join it again.
fn bus_killed(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    arena.lab.bus.kill();
    std::thread::sleep(Duration::from_secs(2));
    arena.lab.restart_bus();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(10) {
        if !arena.service_process().is_alive() {
            return Err("the service ended with the bus".to_owned());
        }
        if arena.lab.bus.has("org.tcptracker.Tracker1.eth0") {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err("the service did not join the new bus".to_owned())
}

/// 70: journald does not read its socket.
fn journal_does_not_read(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    leave_log_unread(arena);
    Ok(())
}

/// 72: standard error is not read, and its buffer is small.
fn stderr_is_not_read(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    leave_log_unread(arena);
    Ok(())
}

fn leave_log_unread(arena: &Arena) {
    arena.log.pause(true);
    send_connections(&arena.lab, 400);
    std::thread::sleep(LONG);
    arena.log.pause(false);
}

/// 70, 72: a stop does not wait for a reader.
fn stderr_is_not_read_at_the_stop(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    arena.log.pause(true);
    send_connections(&arena.lab, 400);
    std::thread::sleep(Duration::from_secs(1));
    let stopped = arena.stop(STOP);
    wipe(&arena.lab.victim);
    stopped
}

/// 71: journald's socket is gone for a while.
fn journal_goes_and_returns(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    arena.log.close();
    arena.journal.as_ref().unwrap().remove();
    send_connections(&arena.lab, 100);
    std::thread::sleep(Duration::from_secs(2));
    arena.log = std::sync::Arc::default();
    arena.journal.as_ref().unwrap().listen(&arena.log);
    send_connections(&arena.lab, 100);
    Ok(())
}

/// 73: nothing has the other end of standard error open any more.
fn stderr_reader_goes(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    arena.log.close();
    std::thread::sleep(Duration::from_millis(100));
    send_connections(&arena.lab, 200);
    std::thread::sleep(Duration::from_secs(1));
    Ok(())
}

/// 73: standard error has no space left.
fn stderr_is_full(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    send_connections(&arena.lab, 200);
    std::thread::sleep(Duration::from_secs(1));
    Ok(())
}

/// 52: the disk of the state directory is full for a while.
fn disk_full(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    let disk = arena.disk.as_ref().unwrap();
    disk.fill();
    std::thread::sleep(Duration::from_secs(3));
    disk.free_space();
    Ok(())
}

/// 53: the state directory is read-only from the start.
fn disk_read_only_from_the_start(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    arena.stop(STOP)?;
    arena.disk.as_ref().unwrap().set_read_only(true);
    arena.start();
    Ok(())
}

/// 74: the service itself is stopped while its rules are removed. Afterwards all is in order.
fn service_stopped_for_seconds(arena: &mut Arena, random: &mut Random) -> Result<(), String> {
    arena.service_process().signal(Signal::STOP);
    arena.flush_input();
    std::thread::sleep(Duration::from_secs(1 + u64::try_from(random.below(3)).unwrap()));
    arena.service_process().signal(Signal::CONT);
    arena.await_hooks(Duration::from_secs(5))
}

/// 76: the wall clock steps by days.
fn wall_clock_steps(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    for ahead in [DAY, -365 * DAY, 30 * DAY, 0] {
        arena.set_clock(ahead);
        std::thread::sleep(Duration::from_millis(700));
    }
    Ok(())
}

/// 75: reloads without a pause, also of a wrong configuration.
fn reloads_without_a_pause(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    for number in 0..2000 {
        if number == 1000 {
            arena.lab.configure("[detection]\nports = \"many\"\n");
        }
        arena.service_process().signal(Signal::HUP);
    }
    std::thread::sleep(Duration::from_millis(500));
    arena.lab.configure("");
    arena.service_process().signal(Signal::HUP);
    Ok(())
}

/// Sends SYNs to one port from the bystander, each of which the log lists.
fn send_connections(lab: &Lab, count: u16) {
    let mut wire = crate::frames::Wire::of(&lab.bystander);
    let hardware = lab.victim.hardware_address("eth0");
    for number in 0..count {
        let source = std::net::Ipv4Addr::new(10, 77, 8, number.to_le_bytes()[0]);
        wire.try_send(&syn(hardware, source.into(), VICTIM, 80));
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sends scans of forged sources, four ports each.
fn many_scans(lab: &Lab, per_second: u32, span: Duration) {
    let mut template = SynTemplate::new(lab.victim.hardware_address("eth0"));
    let mut wire = crate::frames::Wire::of(&lab.attacker);
    let std::net::IpAddr::V4(victim) = VICTIM else { return };
    let begun = Instant::now();
    let mut number = 0;
    while begun.elapsed() < span {
        let source = std::net::Ipv4Addr::from(0x0c00_0000 + number);
        for port in 1..=4 {
            wire.try_send(template.syn(source, victim, port));
        }
        number += 1;
        std::thread::sleep(Duration::from_secs(1) / per_second);
    }
    await_that("the wire is free", || wire.try_send(template.syn([12, 0, 0, 1].into(), victim, 1)));
}
