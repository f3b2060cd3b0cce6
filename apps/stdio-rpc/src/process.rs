//! The server's process, in a session of its own: no terminal's Ctrl-C reaches it before us.
//!
//! Invariant: while a [`Session`] is dropped, everything that lives in it is killed. That is more than the
//! child and its process group: debugpy's launcher moves the debuggee to a group of its own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{fs, io, process::Stdio};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use process_wrap::tokio::{ProcessSession, TokioCommandWrap};
use tokio::process::Child;

/// The session that a child leads.
#[derive(Debug)]
pub struct Session(Pid);

/// Starts a command with all three streams piped.
///
/// # Errors
/// The system's own, and an empty command.
pub fn spawn(command: &[OsString]) -> io::Result<(Child, Session)> {
    let [program, arguments @ ..] = command else { return Err(io::ErrorKind::InvalidInput.into()) };
    let mut wrap = TokioCommandWrap::with_new(program, |command| {
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    });
    let child = wrap.wrap(ProcessSession).spawn()?.into_inner();
    // A child that nobody has waited for still has its number, however fast it died.
    let leader = child.id().and_then(|id| i32::try_from(id).ok()).ok_or(io::ErrorKind::NotFound)?;
    Ok((child, Session(Pid::from_raw(leader))))
}

/// The whole path of a file that a server may be told to read: it will not wait there for ever, as in a pipe.
///
/// # Errors
/// When there is none.
pub fn regular_file(path: &Path) -> io::Result<PathBuf> {
    if path.metadata()?.is_file() { path.canonicalize() } else { Err(io::Error::other("not a file")) }
}

impl Session {
    pub fn leader(&self) -> i32 {
        self.0.as_raw()
    }

    pub fn kill(&self) {
        // Asked first: when the parent is gone, its children are still found by their session.
        let members = members(self.leader());
        let _ = killpg(self.0, Signal::SIGKILL);
        for member in members {
            let _ = kill(Pid::from_raw(member), Signal::SIGKILL);
        }
    }
}

/// The leader may have been waited for by then; its number cannot belong to another session yet unless the system
/// went through all its numbers in that instant.
impl Drop for Session {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The processes of a session, where the system has a `/proc` to tell (elsewhere: none, and only the group is killed).
pub fn members(leader: i32) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| session_of(*pid) == Some(leader)).collect()
}

fn session_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // "pid (name) state parent group session": a name may hold anything, also spaces and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    // A zombie is dead; that its parent has not asked how is nobody's matter here.
    if fields.next()? == "Z" { None } else { fields.nth(2)?.parse().ok() }
}
