//! The connection: a child process, the four supervised children that serve it, and requests on top.
//!
//! ```text
//! task_group ─┬─ "exit"    owns the process and its session; says with which status it went
//!             ├─ "reader"  stdout -> replies (RequestRegistry), events (channel), answers to the server
//!             ├─ "writer"  frames (channel) -> stdin, which it closes when there will be no more
//!             ├─ "stderr"  the server's last words
//!             └─ the body  requests, events
//! ```
//!
//! Invariants:
//! 1. One [`CloseScope`] holds why the connection ended. Whoever learns it first says so, with one exception:
//!    an end of file or a broken pipe is mostly what a death looks like from far away, so it waits `LAST_WORDS`
//!    for "exit" to give the better cause.
//! 2. Registry and events end with that scope's cause, so every wait does. The children never fail the group for it:
//!    the body is not cut off, it gets the cause as an error and may say goodbye.
//! 3. [`Server::run`] returns when the process has been waited for and what was left of its session is killed.
//! 4. Who stops waiting for a reply tells the server, whether by deadline, cancel or drop.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use microio::{
    CancelScope, Cancelled, CloseScope, Failure, GroupError, Receiver, RequestRegistry, Sender, TaskStatus, WorkGuard,
    WorkTracker, channel, fail_after, move_on_after, task_group,
};
use serde_json::Value;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};

use crate::framing::{self, Decoder};
use crate::message::{Dialect, Event, Message, Refusal};
use crate::process;

/// How long a symptom waits for its cause: an end of file for the exit, an exit for the rest of the output.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How many bytes of stderr are kept for the error.
const LAST_BYTES: usize = 400;

/// Why a connection ended: what its [`CloseScope`] holds.
#[derive(Debug, Error)]
pub enum End {
    #[error("cannot start \"{command}\": {error}")]
    Spawn { command: String, error: io::Error },
    #[error("server exited: {status}{}", quoted(stderr))]
    Exited { status: ExitStatus, stderr: String },
    #[error("server killed: {0}")]
    Killed(String),
    #[error("end of file: the server closed its output")]
    EndOfFile,
    #[error("cannot talk to the server: {0}")]
    Io(#[from] io::Error),
}

fn quoted(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(" (stderr: {stderr})") }
}

/// Why a piece of work on a connection failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The connection is over; the cause is shared with everyone who waited on it.
    #[error("{0}")]
    Ended(Failure),
    #[error("{what}: deadline passed: nothing came within {after:?}")]
    Deadline { what: String, after: Duration },
    #[error("{method}: refused: {refusal}")]
    Refused { method: String, refusal: Refusal },
    #[error("cancelled: {}", .0.reason)]
    Cancelled(Cancelled),
    #[error("cannot open {}: {error}", file.display())]
    File { file: PathBuf, error: io::Error },
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
    #[error("a part of the client failed: {0}")]
    Client(#[from] GroupError),
}

/// How to start a server, and how to treat it.
#[derive(Clone, Debug)]
pub struct Server {
    pub command: Vec<OsString>,
    pub dialect: Dialect,
    /// How requests of the server are answered.
    pub answer: fn(&str, &Value) -> Result<Value, Refusal>,
    /// What one request may take.
    pub timeout: Duration,
    /// What the server may take to go when asked to.
    pub grace: Duration,
    /// Copy its stderr to ours.
    pub verbose: bool,
    /// Closing it kills the server at once.
    pub stop: CloseScope,
}

/// A running server, as its body sees it.
#[derive(Clone, Debug)]
pub struct Connection {
    shared: Arc<Shared>,
    pid: i32,
}

/// The events of a server, in their order.
#[derive(Debug)]
pub struct Events(Receiver<Event>);

#[derive(Debug)]
struct Shared {
    server: Server,
    scope: CloseScope,
    frames: Sender<Value>,
    replies: RequestRegistry<i64, Result<Value, Refusal>>,
    capabilities: OnceLock<Value>,
    last_id: AtomicI64,
    stderr: Mutex<Vec<u8>>,
    /// Closed when the server is told to go: from then on its end is expected.
    leaving: CloseScope,
    /// Busy while stdout or stderr may hold unread bytes.
    output: WorkTracker,
}

/// The process's streams; the output is watched from before the process can be seen to end.
struct Streams {
    pid: i32,
    stdin: ChildStdin,
    stdout: (ChildStdout, WorkGuard),
    stderr: (ChildStderr, WorkGuard),
}

impl Server {
    /// Starts the server, runs `body` with it, and ends it, in good order if it can.
    ///
    /// # Errors
    /// The body's own; else why the server did not start, or did not go when it should.
    pub async fn run<R, B>(self, body: B) -> Result<R, Error>
    where
        B: AsyncFnOnce(&Connection, &mut Events) -> Result<R, Error>,
    {
        let (scope, kill) = (CloseScope::new(), CancelScope::new());
        self.stop.link(&kill);
        let (frames, outgoing) = channel();
        let (events, incoming) = channel();
        let replies = RequestRegistry::bound_to(&scope);
        let grace = self.grace;
        let shared = Arc::new(Shared {
            server: self,
            scope: scope.clone(),
            frames: frames.clone(),
            replies,
            capabilities: OnceLock::new(),
            last_id: AtomicI64::new(0),
            stderr: Mutex::default(),
            leaving: CloseScope::new(),
            output: WorkTracker::new(),
        });
        task_group(async |group| {
            let exit = |ready| watch_exit(shared.clone(), kill.clone(), ready);
            let streams = match group.start("exit", exit).await {
                Ok(streams) => streams,
                Err(error) => return Ok(Err(Error::Ended(error.into_failure()))),
            };
            group.start_soon("stderr", keep_last_words(shared.clone(), streams.stderr));
            group.start_soon("writer", write(shared.clone(), outgoing, streams.stdin));
            group.start_soon("reader", read(shared.clone(), streams.stdout, events));

            let connection = Connection { shared, pid: streams.pid };
            let outcome = body(&connection, &mut Events(incoming)).await;

            connection.expect_end();
            frames.close();
            if scope.is_closed() {
                kill.cancel("the connection is over");
            } else if move_on_after(grace, scope.closed()).await.is_none() {
                kill.cancel(format!("it did not exit within {grace:?}"));
                scope.closed().await;
            }
            let untoward = scope.cause().map(Error::Ended);
            Ok(outcome.and_then(|value| untoward.map_or(Ok(value), Err)))
        })
        .await?
    }
}

impl Connection {
    /// Sends a request and waits for its reply, as long as the server's timeout allows.
    ///
    /// # Errors
    /// `Refused`, `Deadline`, or `Ended` with the connection's cause (at once when it is over already).
    ///
    /// # Cancel safety
    /// Dropped while it waits, it leaves nothing behind and tells the server.
    pub async fn request(&self, method: &str, params: Value) -> Result<Value, Error> {
        self.request_within(self.shared.server.timeout, method, params).await
    }

    /// `request` with a deadline of its own.
    pub async fn request_within(&self, limit: Duration, method: &str, params: Value) -> Result<Value, Error> {
        let shared = &*self.shared;
        let id = self.next_id();
        let frame = shared.server.dialect.request(id, method, params);
        let mut unanswered = Unanswered { connection: self, id: Some(id) };
        let reply = fail_after(limit, shared.replies.request(id, |_| shared.frames.try_send(frame))).await;
        let Ok(reply) = reply else { return Err(Error::Deadline { what: method.into(), after: limit }) };
        unanswered.id = None;
        match reply {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(refusal)) => Err(Error::Refused { method: method.into(), refusal }),
            Err(error) => Err(Error::Ended(error.into_failure())),
        }
    }

    /// Sends what wants no answer. When the connection is over, that is for the next request to tell.
    pub fn notify(&self, method: &str, params: Value) {
        self.send(self.shared.server.dialect.notification(self.next_id(), method, params));
    }

    /// Keeps what the server said it can do.
    pub fn set_capabilities(&self, capabilities: Value) {
        let _ = self.shared.capabilities.set(capabilities);
    }

    /// What the server said it can do; `None` before its first reply.
    pub fn capabilities(&self) -> Option<&Value> {
        self.shared.capabilities.get()
    }

    pub fn server(&self) -> &Server {
        &self.shared.server
    }

    pub fn scope(&self) -> &CloseScope {
        &self.shared.scope
    }

    /// How many requests wait for their reply.
    pub fn pending(&self) -> usize {
        self.shared.replies.len()
    }

    /// The server's process id, which is its session's too.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The server is about to be told to go.
    pub fn expect_end(&self) {
        self.shared.leaving.close("the server was told to go");
    }

    fn next_id(&self) -> i64 {
        self.shared.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn send(&self, frame: Value) {
        let _ = self.shared.frames.try_send(frame);
    }
}

impl Events {
    /// The next event.
    ///
    /// # Errors
    /// `Ended`, after the last one.
    pub async fn next(&mut self) -> Result<Event, Error> {
        self.0.recv().await.map_err(|error| Error::Ended(error.into_failure()))
    }
}

/// A request whose reply is still wanted; dropped with its id, it takes the request back.
struct Unanswered<'a> {
    connection: &'a Connection,
    id: Option<i64>,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        let Some(unwanted) = self.id else { return };
        let (connection, id) = (self.connection, self.connection.next_id());
        if let Some(frame) = connection.shared.server.dialect.cancel(id, unwanted, connection.capabilities()) {
            connection.send(frame);
        }
    }
}

impl Shared {
    /// Ends the connection with what may only be a symptom, unless the exit explains it soon (invariant 1).
    async fn fail_unless_exited(&self, symptom: impl Into<Failure>) {
        // When the end is expected, whoever expects it watches the clock.
        let patience = if self.leaving.is_closed() { self.server.grace + LAST_WORDS } else { LAST_WORDS };
        if move_on_after(patience, self.scope.closed()).await.is_none() {
            self.scope.fail(symptom);
        }
    }

    async fn until_closed<F: Future>(&self, work: F) -> Option<F::Output> {
        let serving = CancelScope::new();
        self.scope.link(&serving);
        serving.run(work).await.ok()
    }

    fn keep(&self, bytes: &[u8]) {
        let mut last = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        last.extend_from_slice(bytes);
        let excess = last.len().saturating_sub(LAST_BYTES);
        last.drain(..excess);
    }

    fn last_words(&self) -> String {
        let last = self.stderr.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let text = String::from_utf8_lossy(&last);
        let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(3)..];
        last.join(" | ")
    }
}

async fn watch_exit(shared: Arc<Shared>, kill: CancelScope, ready: TaskStatus<Streams>) -> Result<(), Failure> {
    let command = &shared.server.command;
    let (mut child, session) = process::spawn(command).map_err(|error| {
        let name = command.first().map(|word| word.to_string_lossy().into_owned());
        End::Spawn { command: name.unwrap_or_default(), error }
    })?;
    let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        unreachable!("all three are piped");
    };
    ready.started(Streams {
        pid: session.leader(),
        stdin,
        stdout: (stdout, shared.output.track()),
        stderr: (stderr, shared.output.track()),
    });

    let waited = kill.run(child.wait()).await;
    // What it started goes with it; also where the server went by itself, or its output would never end.
    drop(session);
    match waited {
        Ok(status) => {
            let status = status?;
            move_on_after(LAST_WORDS, shared.output.idle()).await;
            if shared.leaving.is_closed() && shared.server.dialect.is_orderly(status) {
                shared.scope.close(format!("server exited: {status}"));
            } else {
                shared.scope.fail(End::Exited { status, stderr: shared.last_words() });
            }
        }
        Err(cancelled) => {
            child.wait().await?;
            shared.scope.fail(End::Killed(cancelled.reason.to_string()));
        }
    }
    Ok(())
}

async fn read(
    shared: Arc<Shared>,
    (mut stdout, unread): (ChildStdout, WorkGuard),
    events: Sender<Event>,
) -> Result<(), Failure> {
    let end = shared.until_closed(read_messages(&shared, &mut stdout, &events)).await;
    drop(unread);
    match end {
        Some(Ok(symptom)) => shared.fail_unless_exited(symptom).await,
        Some(Err(cause)) => drop(shared.scope.fail(cause)),
        None => {}
    }
    match shared.scope.cause() {
        Some(cause) => events.fail(cause),
        None => events.close(),
    };
    Ok(())
}

/// `Ok` is the end of the file, a symptom; `Err` is a cause.
async fn read_messages(shared: &Shared, stdout: &mut ChildStdout, events: &Sender<Event>) -> Result<Failure, Failure> {
    let (mut decoder, mut chunk) = (Decoder::new(), vec![0; 64 * 1024]);
    loop {
        let count = stdout.read(&mut chunk).await.map_err(End::Io)?;
        if count == 0 {
            return Ok(decoder.finish().map_or_else(Failure::from, |()| End::EndOfFile.into()));
        }
        decoder.push(&chunk[..count]);
        while let Some(message) = decoder.next_message()? {
            match shared.server.dialect.parse(message)? {
                // A reply that nobody waits for any more came late: its deadline has been reported.
                Message::Reply { id, outcome } => drop(shared.replies.resolve(&id, outcome)),
                Message::Event(event) => drop(events.try_send(event)),
                Message::Request { id, method, params } => {
                    let outcome = (shared.server.answer)(&method, &params);
                    let number = shared.last_id.fetch_add(1, Ordering::Relaxed) + 1;
                    let _ = shared.frames.try_send(shared.server.dialect.answer(number, id, &method, outcome));
                }
            }
        }
    }
}

async fn write(shared: Arc<Shared>, mut frames: Receiver<Value>, mut stdin: ChildStdin) -> Result<(), Failure> {
    let written = shared.until_closed(async {
        while let Ok(frame) = frames.recv().await {
            stdin.write_all(&framing::encode(&frame)).await?;
        }
        Ok(())
    });
    let written = written.await;
    drop(stdin);
    if let Some(Err(error)) = written {
        shared.fail_unless_exited(End::Io(error)).await;
    }
    Ok(())
}

async fn keep_last_words(shared: Arc<Shared>, (mut stderr, unread): (ChildStderr, WorkGuard)) -> Result<(), Failure> {
    let copied = shared.until_closed(async {
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = stderr.read(&mut chunk).await {
            shared.keep(&chunk[..count]);
            if shared.server.verbose {
                // Our own stderr may be closed; that is no reason to leave the server's unread.
                let mut ours = tokio::io::stderr();
                let _ = ours.write_all(&chunk[..count]).await;
                let _ = ours.flush().await;
            }
        }
    });
    let _ = copied.await;
    drop(unread);
    Ok(())
}
