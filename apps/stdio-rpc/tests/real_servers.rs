//! Against the real `pylsp` and `debugpy`. `STDIO_RPC_PYTHON` names a Python that has both (`requirements.txt`);
//! without it each test says that it was skipped.

mod common;

use std::ffi::{OsStr, OsString};
use std::future::{Future, poll_fn};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use common::{Log, Run};
use microio::{CloseScope, Failure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use stdio_rpc::message::Dialect;
use stdio_rpc::rpc::{Connection, End, Error, Server};
use stdio_rpc::{dap, lsp, process};

fn python(test: &str) -> Option<OsString> {
    let python = std::env::var_os("STDIO_RPC_PYTHON");
    if python.is_none() {
        println!("SKIP {test}: STDIO_RPC_PYTHON is not set");
    }
    python
}

fn pylsp(python: &OsStr) -> Server {
    let command = [python, "-m".as_ref(), "pylsp".as_ref()].map(OsStr::to_owned).to_vec();
    Server {
        command,
        dialect: Dialect::JsonRpc,
        answer: lsp::answer,
        timeout: Duration::from_secs(60),
        grace: Duration::from_secs(60),
        verbose: false,
        stop: CloseScope::new(),
    }
}

fn debugpy(python: &OsStr) -> Server {
    let mut server = Server { dialect: Dialect::Dap, answer: dap::answer, ..pylsp(python) };
    server.command[2] = "debugpy.adapter".into();
    server
}

/// Both servers, each introduced.
async fn initialize(connection: &Connection) -> Result<(), Error> {
    match connection.server().dialect {
        Dialect::JsonRpc => lsp::initialize(connection, Path::new("/")).await,
        Dialect::Dap => dap::initialize(connection).await,
    }
}

async fn leave(connection: &Connection) {
    match connection.server().dialect {
        Dialect::JsonRpc => lsp::leave(connection).await,
        Dialect::Dap => dap::leave(connection).await,
    }
}

/// A stopped process answers nothing, however fast it is.
fn stop(connection: &Connection, signal: Signal) {
    kill(Pid::from_raw(connection.pid()), signal).unwrap();
}

type Pending<'a> = Pin<Box<dyn Future<Output = Result<Value, Error>> + 'a>>;

/// Sends them all: a request is sent by its first poll.
async fn send_all(requests: &mut [Pending<'_>]) {
    poll_fn(|cx| {
        assert!(requests.iter_mut().all(|request| request.as_mut().poll(cx).is_pending()));
        Poll::Ready(())
    })
    .await;
}

fn cause_of(outcome: Result<Value, Error>) -> Failure {
    match outcome {
        Err(Error::Ended(cause)) => cause,
        other => panic!("not ended: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_fails_all_that_is_in_flight_with_one_cause() {
    let Some(python) = python("a_killed_server_fails_all_that_is_in_flight_with_one_cause") else { return };
    for server in [pylsp(&python), debugpy(&python)] {
        let outcome = server.run(async |connection, events| {
            initialize(connection).await?;
            stop(connection, Signal::SIGSTOP);
            let mut requests: Vec<Pending<'_>> =
                (0..100).map(|_| Box::pin(connection.request("threads", json!({}))) as _).collect();
            send_all(&mut requests).await;
            assert_eq!(connection.pending(), 100);

            stop(connection, Signal::SIGKILL);
            let mut causes = Vec::new();
            for request in requests {
                causes.push(cause_of(request.await));
            }
            assert_eq!(causes.len(), 100);
            assert!(causes.iter().all(|cause| cause.ptr_eq(&causes[0])), "one shared cause");
            assert_eq!(causes[0].to_string(), "server exited: signal: 9 (SIGKILL)");
            assert!(matches!(causes[0].downcast_ref(), Some(End::Exited { .. })));
            assert_eq!(connection.pending(), 0);

            let mut late: Vec<Pending<'_>> = vec![Box::pin(connection.request("threads", json!({})))];
            let at_once = poll_fn(|cx| Poll::Ready(late[0].as_mut().poll(cx))).await;
            let Poll::Ready(outcome) = at_once else { panic!("a request after the end waits") };
            assert!(cause_of(outcome).ptr_eq(&causes[0]));
            assert_eq!(connection.pending(), 0);

            let end = loop {
                if let Err(end) = events.next().await {
                    break end;
                }
            };
            assert!(cause_of(Err(end)).ptr_eq(&causes[0]), "events end with the same cause");
            Ok(())
        });
        let error = outcome.await.expect_err("a killed server is no orderly end");
        assert_eq!(error.to_string(), "server exited: signal: 9 (SIGKILL)");
    }
}

#[tokio::test]
async fn who_gives_up_leaves_nothing_behind() {
    let Some(python) = python("who_gives_up_leaves_nothing_behind") else { return };
    for server in [pylsp(&python), debugpy(&python)] {
        let outcome = server.run(async |connection, _| {
            initialize(connection).await?;
            stop(connection, Signal::SIGSTOP);
            let late = connection.request_within(Duration::from_millis(1), "threads", json!({})).await;
            assert!(matches!(late, Err(Error::Deadline { .. })), "{late:?}");
            assert_eq!(connection.pending(), 0);

            let mut requests: Vec<Pending<'_>> =
                (0..10).map(|_| Box::pin(connection.request("threads", json!({}))) as _).collect();
            send_all(&mut requests).await;
            assert_eq!(connection.pending(), 10);
            drop(requests);
            assert_eq!(connection.pending(), 0);

            // The answers that come now belong to nobody; the connection is as good as before.
            stop(connection, Signal::SIGCONT);
            let refused = connection.request("no/such/method", json!({})).await;
            assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
            assert_eq!(connection.pending(), 0);
            leave(connection).await;
            Ok(())
        });
        outcome.await.unwrap();
    }
}

#[tokio::test]
async fn an_orderly_end_is_no_error_and_leaves_nobody() {
    let Some(python) = python("an_orderly_end_is_no_error_and_leaves_nobody") else { return };
    for server in [pylsp(&python), debugpy(&python)] {
        let is_lsp = server.dialect == Dialect::JsonRpc;
        let outcome = server.run(async |connection, _| {
            initialize(connection).await?;
            assert_eq!(process::members(connection.pid()), [connection.pid()]);
            leave(connection).await;
            Ok((connection.pid(), connection.scope().clone()))
        });
        let (pid, scope) = outcome.await.unwrap();
        assert!(process::members(pid).is_empty());
        assert!(scope.is_closed() && scope.cause().is_none(), "{:?}", scope.cause());
        let reason = scope.reason().unwrap().to_string();
        assert!(
            reason == "server exited: exit status: 0" || !is_lsp && reason.starts_with("server exited: exit status")
        );
    }
}

/// A directory with one Python file whose name needs care in a URI.
fn script(text: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().canonicalize().unwrap().join("ä b#1.py");
    std::fs::write(&path, text).unwrap();
    (directory, path)
}

fn lsp_run(path: &Path, python: &OsStr) -> Run {
    Run::new(["lsp".as_ref(), path.as_os_str(), "--server".as_ref(), python, "-m".as_ref(), "pylsp".as_ref()], &[])
}

fn dap_run(path: &Path, line: &str, python: &OsString) -> Run {
    Run::new(["dap".as_ref(), path.as_os_str(), "--break".as_ref(), line.as_ref()], &[("STDIO_RPC_PYTHON", python)])
}

#[test]
fn symbols_and_diagnostics_are_printed() {
    let Some(python) = python("symbols_and_diagnostics_are_printed") else { return };
    let (_directory, path) =
        script("class Tree:\n    def grow(self):\n        height = missing\n        return height\n");
    let (code, stdout, stderr) = lsp_run(&path, &python).end();
    assert_eq!((code, stderr), (0, vec![]));
    let expected = [
        "  1:1  class  Tree",
        "    2:5  method  grow",
        "      3:9  variable  height",
        "3:18 error undefined name 'missing' (pyflakes)",
    ];
    assert_eq!(stdout, expected);
}

#[test]
fn a_script_is_stopped_and_continued() {
    let Some(python) = python("a_script_is_stopped_and_continued") else { return };
    let text = "import sys\ndef double(n):\n    twice = 2 * n\n    return twice\nprint('got', double(21))\nprint('bad', file=sys.stderr)\nsys.exit(3)\n";
    let (_directory, path) = script(text);
    let (code, mut stdout, stderr) = dap_run(&path, "4", &python).end();
    assert_eq!((code, stderr), (0, vec![]));
    // The script's two streams reach the adapter on two ways.
    stdout[3..5].sort();
    let stopped = format!("stopped at {}:4 in double (breakpoint)", path.display());
    assert_eq!(
        stdout,
        [&stopped, "  n = 21 (int)", "  twice = 42 (int)", "stderr: bad", "stdout: got 42", "exit code 3"]
    );
}

#[test]
fn a_breakpoint_may_never_be_hit() {
    let Some(python) = python("a_breakpoint_may_never_be_hit") else { return };
    let (_directory, path) = script("if not print('here'):\n    pass\nelse:\n    print('there')\n");
    let (code, stdout, stderr) = dap_run(&path, "4", &python).end();
    assert_eq!((code, stderr), (0, vec![]));
    let never = format!("breakpoint at {}:4 was never hit", path.display());
    assert_eq!(stdout, ["stdout: here", &never, "exit code 0"]);
}

/// A script that never ends and holds the log open; with the number of its adapter, the session's leader.
fn endless(python: &OsString) -> (Run, Log, i32) {
    let log = Log::new();
    let script = log.directory.path().join("endless.py");
    let text = format!(
        "import os, signal\nlog = open({:?}, 'w')\nprint('session', os.getsid(0))\nwhile True:\n    signal.pause()\n",
        log.path.to_str().unwrap(),
    );
    std::fs::write(&script, text).unwrap();
    let run = dap_run(&script, "1000", python);
    let session = run.stdout.until("stdout: session ");
    (run, log, session.rsplit(' ').next().unwrap().parse().unwrap())
}

#[test]
fn the_first_interrupt_ends_the_script_too() {
    let Some(python) = python("the_first_interrupt_ends_the_script_too") else { return };
    let (run, log, _) = endless(&python);
    run.signal(Signal::SIGINT);
    assert_eq!(run.error(130), "cancelled: interrupted");
    log.lines.rest();
}

#[test]
fn a_termination_kills_the_script_too() {
    let Some(python) = python("a_termination_kills_the_script_too") else { return };
    let (run, log, _) = endless(&python);
    run.signal(Signal::SIGTERM);
    assert_eq!(run.error(143), "server killed: terminated");
    log.lines.rest();
}

#[test]
fn a_killed_adapter_takes_its_script_along() {
    let Some(python) = python("a_killed_adapter_takes_its_script_along") else { return };
    let (run, log, adapter) = endless(&python);
    kill(Pid::from_raw(adapter), Signal::SIGKILL).unwrap();
    assert_eq!(run.error(1), "server exited: signal: 9 (SIGKILL)");
    log.lines.rest();
}
