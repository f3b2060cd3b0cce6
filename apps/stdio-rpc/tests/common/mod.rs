//! Drives the program as its user does: words, signals, exit code, and the two outputs.
//!
//! Invariant: nothing here sleeps or asks again. A test waits for a line or for an end, with a limit that only a
//! broken program reaches.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

const LIMIT: Duration = Duration::from_secs(60);

/// Lines that arrive, and then an end.
pub(crate) struct Lines(Receiver<String>);

impl Lines {
    pub(crate) fn of(source: impl FnOnce() -> Box<dyn Read> + Send + 'static) -> Self {
        let (sender, receiver) = channel();
        thread::spawn(move || {
            BufReader::new(source()).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self(receiver)
    }

    /// The next line that begins with `start`.
    pub(crate) fn until(&self, start: &str) -> String {
        let mut seen = Vec::new();
        loop {
            match self.0.recv_timeout(LIMIT) {
                Ok(line) if line.starts_with(start) => return line,
                Ok(line) => seen.push(line),
                Err(error) => panic!("no line {start:?}: {error} after {seen:?}"),
            }
        }
    }

    /// What is left, when it has ended.
    pub(crate) fn rest(&self) -> Vec<String> {
        let mut seen = Vec::new();
        loop {
            match self.0.recv_timeout(LIMIT) {
                Ok(line) => seen.push(line),
                Err(RecvTimeoutError::Disconnected) => return seen,
                Err(RecvTimeoutError::Timeout) => panic!("it is still held open, after {seen:?}"),
            }
        }
    }
}

/// The program at work.
pub(crate) struct Run {
    child: Child,
    pub(crate) stdout: Lines,
    stderr: Lines,
}

impl Run {
    pub(crate) fn new<W: AsRef<OsStr>>(words: impl IntoIterator<Item = W>, variables: &[(&str, &OsStr)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stdio-rpc"));
        command.args(words).env_remove("STDIO_RPC_PYTHON").envs(variables.iter().copied());
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program");
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        Self { child, stdout: Lines::of(|| Box::new(stdout)), stderr: Lines::of(|| Box::new(stderr)) }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Exit code, the rest of stdout, and all of stderr.
    pub(crate) fn end(mut self) -> (i32, Vec<String>, Vec<String>) {
        let (stdout, stderr) = (self.stdout.rest(), self.stderr.rest());
        (self.child.wait().unwrap().code().expect("an exit code, not a signal"), stdout, stderr)
    }

    /// It failed with this exit code and one line, which is returned without its beginning.
    pub(crate) fn error(self, code: i32) -> String {
        let (actual, _, stderr) = self.end();
        let [line] = &stderr[..] else { panic!("not one line: {stderr:?}") };
        assert_eq!(actual, code, "{line}");
        line.strip_prefix("stdio-rpc: error: ").expect("the error's beginning").to_owned()
    }
}

/// The server that misbehaves. `cargo test` builds the examples, but with `--test` it does not: an old one is refused.
pub(crate) fn misbehave() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_stdio-rpc")).with_file_name("examples").join("misbehave");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/misbehave.rs");
    let age = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    assert!(age(&program) >= age(&source), "not built: `cargo test -p stdio-rpc` without --test builds the examples");
    program
}

/// A directory with a named pipe, which a misbehaving server and all that it starts hold open.
pub(crate) struct Log {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) path: PathBuf,
    pub(crate) lines: Lines,
}

impl Log {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let pipe = path.clone();
        Self { directory, path, lines: Lines::of(|| Box::new(File::open(pipe).unwrap())) }
    }
}
