//! The program against servers that misbehave: what it says, what it returns, and that it leaves nobody behind.

mod common;

use common::{Log, Run, misbehave};
use nix::sys::signal::Signal;

/// `stdio-rpc lsp` with a server in that mode, and what that server got.
fn lsp(mode: &str, options: &[&str]) -> (Run, Log) {
    let log = Log::new();
    let file = log.directory.path().join("a.py");
    std::fs::write(&file, "x = 1\n").unwrap();
    let words = ["lsp".into(), file.into_os_string()].into_iter().chain(options.iter().map(Into::into));
    let words = words.chain(["--server".into(), misbehave().into_os_string(), mode.into()]);
    (Run::new(words, &[("MISBEHAVE_LOG", log.path.as_os_str())]), log)
}

#[test]
fn a_good_server_is_asked_everything_and_leaves_in_order() {
    let (run, log) = lsp("good", &[]);
    let (code, stdout, stderr) = run.end();
    assert_eq!((code, stderr), (0, vec![]));
    assert_eq!(stdout, ["  1:1  function  x", "    2:1  variable  y", "3:1 error E1 oh no (misbehave)"]);
    let mut seen = log.lines.rest();
    seen.retain(|line| !line.starts_with("textDocument/"));
    assert_eq!(seen.drain(..2).collect::<Vec<_>>(), ["initialize", "initialized"]);
    for reply in ["answered [null,null]", "refused -32601"] {
        let at = seen.iter().position(|line| line == reply).unwrap_or_else(|| panic!("{reply} in {seen:?}"));
        seen.remove(at);
    }
    assert_eq!(seen, ["shutdown", "exit"]);
}

#[test]
fn a_missing_server_is_named() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let error = Run::new(["lsp", file, "--server", "no-such-server", "--stdio"], &[]).error(1);
    assert_eq!(error, "cannot start \"no-such-server\": No such file or directory (os error 2)");
}

#[test]
fn a_file_that_cannot_be_read_is_named_before_anything_starts() {
    for words in [&["lsp", "no/such.py", "--server", "no-such-server"][..], &["dap", "no/such.py", "--break=1"]] {
        assert_eq!(Run::new(words, &[]).error(1), "cannot open no/such.py: No such file or directory (os error 2)");
    }
    for words in [&["lsp", "/"][..], &["dap", "/", "--break", "1"]] {
        assert_eq!(Run::new(words, &[]).error(1), "cannot open /: not a file");
    }
    let error = Run::new(["lsp", env!("CARGO_BIN_EXE_stdio-rpc")], &[]).error(1);
    assert!(error.starts_with("cannot open ") && error.ends_with("stream did not contain valid UTF-8"), "{error}");
}

#[test]
fn a_server_that_exits_at_once_is_quoted() {
    let (run, log) = lsp("status-3", &[]);
    assert_eq!(run.error(1), "server exited: exit status: 3 (stderr: starting | out of cheese)");
    log.lines.rest();
}

#[test]
fn a_verbose_run_shows_what_the_server_says() {
    let (run, log) = lsp("status-3", &["--verbose"]);
    let (code, _, stderr) = run.end();
    assert_eq!((code, &stderr[..3]), (1, &["starting".into(), "out of\tcheese".into(), String::new()][..]));
    assert!(stderr[3].starts_with("stdio-rpc: error: "), "{stderr:?}");
    log.lines.rest();
}

#[test]
fn garbage_is_quoted_and_its_server_is_killed() {
    let (run, log) = lsp("garbage", &[]);
    assert_eq!(run.error(1), r#"bad header: "hello, I am no server" is not of the form "name: value""#);
    log.lines.rest();
}

#[test]
fn a_server_that_never_answers_is_told_so_and_asked_to_go() {
    let (run, log) = lsp("silent", &["--timeout", "0.3"]);
    assert_eq!(run.error(1), "initialize: deadline passed: nothing came within 300ms");
    assert_eq!(log.lines.rest(), ["initialize", "$/cancelRequest 1", "exit"]);
}

#[test]
fn a_late_answer_is_no_answer() {
    let (run, log) = lsp("late", &["--timeout", "0.3"]);
    assert_eq!(run.error(1), "initialize: deadline passed: nothing came within 300ms");
    assert_eq!(log.lines.rest(), ["initialize", "$/cancelRequest 1", "exit"]);
}

#[test]
fn a_server_that_dies_in_mid_request_is_named_by_its_status() {
    let (run, log) = lsp("dies", &[]);
    assert_eq!(run.error(1), "server exited: exit status: 7");
    log.lines.rest();
}

#[test]
fn a_server_that_dies_in_mid_answer_is_named_by_its_status_too() {
    let (run, log) = lsp("half", &[]);
    assert_eq!(run.error(1), "server exited: exit status: 7");
    log.lines.rest();
}

#[test]
fn a_server_that_closes_its_output_and_lives_on_is_ended() {
    let (run, log) = lsp("no-output", &[]);
    assert_eq!(run.error(1), "end of file: the server closed its output");
    log.lines.rest();
}

#[test]
fn a_server_that_does_not_go_is_killed_with_all_it_started() {
    let (run, log) = lsp("stubborn", &["--timeout", "0.3"]);
    log.lines.until("sleeping");
    assert_eq!(run.error(1), "initialize: deadline passed: nothing came within 300ms");
    assert!(log.lines.rest().is_empty());
}

#[test]
fn a_refusal_is_an_error_and_the_server_is_still_asked_to_go() {
    let (run, log) = lsp("refuses", &[]);
    assert_eq!(run.error(1), "initialize: refused: error -32002: not now");
    assert_eq!(log.lines.rest(), ["initialize", "exit"]);
}

#[test]
fn a_server_without_diagnostics_is_only_noted() {
    let (run, log) = lsp("quiet", &["--timeout", "0.3"]);
    let (code, stdout, stderr) = run.end();
    assert_eq!((code, stderr), (0, vec![]));
    assert_eq!(stdout, ["no diagnostics were published within 300ms"]);
    log.lines.until("exit");
}

#[test]
fn the_first_interrupt_cancels_the_request_and_ends_in_good_order() {
    let (run, log) = lsp("deaf", &[]);
    log.lines.until("textDocument/documentSymbol");
    run.signal(Signal::SIGINT);
    assert_eq!(run.error(130), "cancelled: interrupted");
    let seen = log.lines.rest();
    let seen: Vec<_> =
        seen.iter().filter(|line| !line.starts_with("answered") && !line.starts_with("refused")).collect();
    assert_eq!(seen, ["$/cancelRequest 4", "shutdown", "exit"]);
}

#[test]
fn the_second_interrupt_kills() {
    let (run, log) = lsp("numb", &[]);
    log.lines.until("textDocument/documentSymbol");
    run.signal(Signal::SIGINT);
    log.lines.until("shutdown");
    run.signal(Signal::SIGINT);
    assert_eq!(run.error(130), "cancelled: interrupted");
    assert!(log.lines.rest().is_empty(), "nothing was said after the second one, not even goodbye");
}

#[test]
fn a_termination_kills_at_once() {
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let (run, log) = lsp("deaf", &[]);
        log.lines.until("textDocument/documentSymbol");
        run.signal(signal);
        assert_eq!(run.error(143), "server killed: terminated");
        assert!(!log.lines.rest().contains(&"shutdown".into()));
    }
}

#[test]
fn an_adapter_that_refuses_or_exits_is_named() {
    let (run, log) = dap("good");
    assert_eq!(run.error(1), "launch: refused: cannot launch");
    assert_eq!(log.lines.rest(), ["initialize", "launch", "disconnect", "end of file"]);
    let (run, log) = dap("status-3");
    assert_eq!(run.error(1), "server exited: exit status: 3 (stderr: starting | out of cheese)");
    log.lines.rest();
}

fn dap(mode: &str) -> (Run, Log) {
    let log = Log::new();
    let script = log.directory.path().join("a.py");
    std::fs::write(&script, "x = 1\n").unwrap();
    let words = ["dap".into(), script.into_os_string(), "--break".into(), "1".into()];
    let words = words.into_iter().chain(["--python".into(), misbehave().into_os_string()]);
    (Run::new(words, &[("MISBEHAVE_LOG", log.path.as_os_str()), ("MISBEHAVE", mode.as_ref())]), log)
}

#[test]
fn a_timeout_is_a_number_of_seconds_that_can_pass() {
    for bad in ["0", "-1", "nan", "inf", "1e300", "soon", ""] {
        let (code, _, stderr) = Run::new(["lsp", "a.py", &format!("--timeout={bad}")], &[]).end();
        assert_eq!(code, 2, "{bad}");
        assert!(stderr[0].starts_with(&format!("error: invalid value '{bad}' for '--timeout")), "{stderr:?}");
    }
    assert_eq!(Run::new(["dap", "a.py", "--break=0"], &[]).end().0, 2);
}
