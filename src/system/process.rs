//! A program that is run to its end, with a deadline.
//!
//! Owns the child: its pipes, its end, and killing it. A program that does not end in time is killed together
//! with the programs that it has started, and reaped. Must not know what the program is for.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::system::reserve;
use crate::types::Moment;

/// How often the deadline is asked for again: it may come nearer.
const SLICE: Duration = Duration::from_millis(100);

/// How long a killed program may take to end. A program that the kernel does not let go is left behind.
const DEATH: Duration = Duration::from_secs(1);

/// Runs a program with this input, until the deadline, and returns what it prints. Fails with
/// [`ErrorKind::TimedOut`] after the deadline.
pub fn output_by(
    command: &mut Command,
    input: &str,
    deadline: &dyn Fn() -> Moment,
) -> Result<Output> {
    // A group of its own, so that its children can be killed, too.
    command.process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = reserve::spend(|| command.spawn())?;
    let pid = Pid::from_child(&child);
    let ended = reserve::spend(|| pidfd_open(pid, PidfdFlags::empty()));
    let result = match &ended {
        Ok(ended) => exchange(&mut child, ended, input, deadline),
        Err(error) => Err((*error).into()),
    };
    if result.is_err() {
        let _ = kill_process_group(pid, Signal::KILL);
        if let Ok(ended) = &ended {
            wait_for([(ended.as_fd(), PollFlags::IN)], Moment::now() + DEATH)?;
        }
        // Reaps it, if it has ended.
        let _ = child.try_wait();
    }
    let (stdout, stderr) = result?;
    Ok(Output { status: child.wait()?, stdout, stderr })
}

/// Passes input and output between this process and a child until the child has ended.
fn exchange(
    child: &mut Child,
    ended: &OwnedFd,
    input: &str,
    deadline: &dyn Fn() -> Moment,
) -> Result<(Vec<u8>, Vec<u8>)> {
    let (mut stdin, mut input) = (child.stdin.take(), input.as_bytes());
    for pipe in [
        stdin.as_ref().map(AsFd::as_fd),
        child.stdout.as_ref().map(AsFd::as_fd),
        child.stderr.as_ref().map(AsFd::as_fd),
    ] {
        pipe.map_or(Ok(()), |pipe| fcntl_setfl(pipe, OFlags::NONBLOCK))?;
    }
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        if input.is_empty() {
            // The child sees the end of its input.
            stdin = None;
        }
        let pipes = [
            stdin.as_ref().map(|stdin| (stdin.as_fd(), PollFlags::OUT)),
            child.stdout.as_ref().map(|stdout| (stdout.as_fd(), PollFlags::IN)),
            child.stderr.as_ref().map(|stderr| (stderr.as_fd(), PollFlags::IN)),
            Some((ended.as_fd(), PollFlags::IN)),
        ];
        let now = Moment::now();
        let end = deadline();
        if now >= end {
            return Err(ErrorKind::TimedOut.into());
        }
        wait_for(pipes.into_iter().flatten(), end.min(now + SLICE))?;
        // Before the output is read, which is complete then.
        let has_ended = child.try_wait()?.is_some();
        if let Some(pipe) = &mut stdin {
            match pipe.write(input) {
                Ok(written) => input = &input[written..],
                Err(error) if is_later(&error) => {}
                // A child that ends before it has read everything reports why.
                Err(_) => input = &[],
            }
        }
        drain(&mut child.stdout, &mut out)?;
        drain(&mut child.stderr, &mut err)?;
        // A program that it has left behind may still hold the pipes.
        if has_ended {
            return Ok((out, err));
        }
    }
}

/// Reads what a pipe holds, and drops the pipe at its end.
fn drain<P: Read>(pipe: &mut Option<P>, read: &mut Vec<u8>) -> Result<()> {
    let Some(reader) = pipe else { return Ok(()) };
    match reader.read_to_end(read) {
        Ok(_) => *pipe = None,
        Err(error) if is_later(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

fn is_later(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Waits for one of these descriptors, or for this moment.
fn wait_for<'a>(
    descriptors: impl IntoIterator<Item = (BorrowedFd<'a>, PollFlags)>,
    until: Moment,
) -> Result<()> {
    let polled = descriptors.into_iter().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags));
    let mut polled: Vec<PollFd<'_>> = polled.collect();
    let timeout = Timespec::try_from(until.since(Moment::now()));
    match poll(&mut polled, timeout.ok().as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "a test starts processes")]
    fn shell(script: &str, input: &str, limit: Duration) -> Result<Output> {
        let end = Moment::now() + limit;
        output_by(Command::new("sh").args(["-c", script]), input, &|| end)
    }

    #[test]
    fn output_and_status_are_returned_and_long_input_arrives() {
        let input = "line\n".repeat(100_000);
        let output =
            shell("wc -c; echo oops >&2; exit 3", &input, Duration::from_secs(60)).unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "500000");
        assert_eq!((output.status.code(), &output.stderr[..]), (Some(3), &b"oops\n"[..]));
    }

    #[test]
    fn program_that_does_not_end_is_killed_with_its_children() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let script = format!("sleep 1000 & echo $! >{}; wait", file.path().display());
        let hung = shell(&script, "", Duration::from_secs(1));
        assert_eq!(hung.unwrap_err().kind(), ErrorKind::TimedOut);
        let child = std::fs::read_to_string(file.path()).unwrap();
        // On a busy machine it needs a moment to end, and init to reap it.
        let runs = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.trim()));
            stat.is_ok_and(|stat| !stat.contains(") Z "))
        };
        let deadline = Moment::now() + Duration::from_secs(20);
        while runs() {
            assert!(Moment::now() < deadline, "the child's child still runs");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    #[test]
    fn program_that_leaves_a_child_behind_ends_with_its_own_end() {
        let output = shell("sleep 60 & echo done", "", Duration::from_secs(20)).unwrap();
        assert_eq!(output.stdout, b"done\n");
    }
}
