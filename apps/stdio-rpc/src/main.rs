//! The command line: words, signals, exit codes.
//!
//! Invariant: whatever happens, there is at most one line that begins with "stdio-rpc: error:", an exit code that
//! says what it was, and no process left behind. The first Ctrl-C cancels the piece of work (a [`ScopeGroup`]) and
//! leaves the goodbye alone; the second one stops the server (a [`CloseScope`]).

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use clap::{Parser, Subcommand};
use microio::{CloseScope, Failure, ScopeGroup, TaskStatus, task_group};
use stdio_rpc::message::Dialect;
use stdio_rpc::rpc::{Connection, Error, Events, Server};
use stdio_rpc::{dap, lsp};
use tokio::signal::unix::{SignalKind, signal};

const GRACE: Duration = Duration::from_secs(3);
const FAILED: u8 = 1;
const INTERRUPTED: u8 = 130;
const TERMINATED: u8 = 143;

const AFTER_HELP: &str = "\
Ctrl-C cancels the running request, tells the server, and ends in good order; a second one kills the server.

Exit codes:
    0  fine
    1  the server or the protocol failed, or a file cannot be read
    2  the command line is wrong
  130  interrupted by Ctrl-C
  143  terminated by SIGTERM or SIGHUP";

#[derive(Debug, Parser)]
#[command(version, about, after_help = AFTER_HELP)]
struct Arguments {
    /// Seconds that each answer of the server may take
    #[arg(long, global = true, default_value = "30", value_name = "SECONDS", value_parser = seconds)]
    timeout: Duration,
    /// Copy the server's stderr to ours
    #[arg(long, short, global = true)]
    verbose: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print a document's symbols and diagnostics, as a language server sees them
    Lsp {
        file: PathBuf,
        /// The language server and its arguments: all the words that follow
        #[arg(long, value_name = "CMD", num_args = 1.., allow_hyphen_values = true, default_value = "pylsp")]
        server: Vec<OsString>,
    },
    /// Run a Python script under debugpy; print where it stopped, its local variables and its exit code
    Dap {
        script: PathBuf,
        /// The line to stop at
        #[arg(long = "break", value_name = "LINE", value_parser = clap::value_parser!(u32).range(1..))]
        line: u32,
        /// A Python that has debugpy
        #[arg(long, env = "STDIO_RPC_PYTHON", default_value = "python3")]
        python: OsString,
    },
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if !(number.is_finite() && number > 0.0) {
        return Err("must be finite and more than 0".into());
    }
    Duration::try_from_secs_f64(number).map_err(|error| error.to_string())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (work, stop, code) = (ScopeGroup::new(), CloseScope::new(), Arc::new(AtomicU8::new(FAILED)));
    let outcome = task_group(async |group| {
        // Ready before there is a server, so that no signal leaves one behind.
        let signals = |ready| watch_signals(ready, work.clone(), stop.clone(), code.clone());
        group.start("signals", signals).await?;
        let outcome = run(arguments, &work, &stop).await;
        group.cancel("the work is done");
        Ok(outcome)
    });
    let Err(error) = outcome.await.unwrap_or_else(|error| Err(error.into())) else { return ExitCode::SUCCESS };
    let line: String = error.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    // Who has closed our stderr does not want to be told.
    let _ = writeln!(io::stderr(), "stdio-rpc: error: {line}");
    ExitCode::from(code.load(Ordering::Relaxed))
}

/// Leaves the exit code of the last signal in `code`.
async fn watch_signals(
    ready: TaskStatus<()>,
    work: ScopeGroup,
    stop: CloseScope,
    code: Arc<AtomicU8>,
) -> Result<(), Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (mut terminate, mut hangup) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    ready.started(());
    let terminated = async {
        tokio::select! { end = terminate.recv() => end, end = hangup.recv() => end }
    };
    let interrupted_twice = async {
        interrupt.recv().await;
        code.store(INTERRUPTED, Ordering::Relaxed);
        work.cancel_latched("interrupted");
        interrupt.recv().await;
    };
    tokio::select! {
        () = interrupted_twice => stop.close("interrupted twice"),
        _ = terminated => {
            code.store(TERMINATED, Ordering::Relaxed);
            stop.close("terminated")
        }
    };
    Ok(())
}

async fn run(arguments: Arguments, work: &ScopeGroup, stop: &CloseScope) -> Result<(), Error> {
    let Arguments { timeout, verbose, command } = arguments;
    let (stop, mut out) = (stop.clone(), io::stdout());
    match command {
        Command::Lsp { file, server: command } => {
            let document = lsp::Document::open(&file).map_err(|error| Error::File { file, error })?;
            let (dialect, answer) = (Dialect::JsonRpc, lsp::answer);
            let server = Server { command, dialect, answer, timeout, grace: GRACE, verbose, stop };
            let talk = async |connection: &Connection, events: &mut Events| {
                let done = work.scope().run(lsp::inspect(connection, events, &document, &mut out)).await;
                lsp::leave(connection).await;
                done.unwrap_or_else(|cancelled| Err(Error::Cancelled(cancelled)))
            };
            server.run(talk).await
        }
        Command::Dap { script: file, line, python } => {
            let script = dap::Script::new(&file, line).map_err(|error| Error::File { file, error })?;
            let command = vec![python, "-m".into(), "debugpy.adapter".into()];
            let (dialect, answer) = (Dialect::Dap, dap::answer);
            let server = Server { command, dialect, answer, timeout, grace: GRACE, verbose, stop };
            let talk = async |connection: &Connection, events: &mut Events| {
                let done = work.scope().run(dap::debug(connection, events, &script, &mut out)).await;
                dap::leave(connection).await;
                done.unwrap_or_else(|cancelled| Err(Error::Cancelled(cancelled)))
            };
            server.run(talk).await
        }
    }
}
