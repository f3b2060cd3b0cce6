//! A server for the tests, as good or bad as it is told to be: `misbehave MODE` speaks to a language client,
//! `MISBEHAVE=MODE misbehave -m debugpy.adapter` to a debug client.
//!
//! Invariant: it holds the file `MISBEHAVE_LOG` open for as long as it lives, and so does what it starts. The tests
//! make that a named pipe: each line is an event to wait for, and its end proves that nobody is left.

use std::env;
use std::fs::File;
use std::io::{self, Read, Write};
use std::process::{Command, exit};
use std::thread;

use serde_json::{Value, json};
use stdio_rpc::framing::{Decoder, encode};

fn main() -> io::Result<()> {
    let mode = env::args().nth(1).filter(|mode| mode != "-m").or_else(|| env::var("MISBEHAVE").ok());
    let mode = mode.unwrap_or_else(|| "good".into());
    let mut log = env::var_os("MISBEHAVE_LOG").map(|path| File::options().append(true).open(path)).transpose()?;
    let mut say = |line: &str| log.as_mut().map_or(Ok(()), |log| writeln!(log, "{line}"));
    match mode.as_str() {
        "status-3" => {
            eprintln!("starting\nout of\tcheese\n");
            exit(3);
        }
        "garbage" => {
            println!("hello, I am no server");
            forever();
        }
        "no-output" => nix::unistd::close(1)?,
        "sleeper" => {
            say("sleeping")?;
            forever();
        }
        "stubborn" => {
            Command::new(env::current_exe()?).arg("sleeper").spawn()?;
            forever();
        }
        _ => {}
    }
    serve(&mode, &mut say)?;
    say("end of file")
}

/// Deaf to everything but SIGKILL, and to the end of its input.
fn forever() -> ! {
    loop {
        thread::park();
    }
}

fn serve(mode: &str, say: &mut impl FnMut(&str) -> io::Result<()>) -> io::Result<()> {
    let (mut decoder, mut chunk, mut asked_to_go) = (Decoder::new(), [0; 4096], false);
    loop {
        let Some(message) = decoder.next_message().map_err(io::Error::other)? else {
            match io::stdin().read(&mut chunk)? {
                0 => return Ok(()),
                count => decoder.push(&chunk[..count]),
            }
            continue;
        };
        let method = message["method"].as_str().or(message["command"].as_str()).unwrap_or_default();
        let given_up = [&message["params"]["id"], &message["arguments"]["requestId"]];
        say(&match (method, given_up.into_iter().find(|id| !id.is_null())) {
            ("", _) if message["error"].is_null() => format!("answered {}", message["result"]),
            ("", _) => format!("refused {}", message["error"]["code"]),
            (_, Some(id)) => format!("{method} {id}"),
            (_, None) => method.to_owned(),
        })?;
        if message["type"] == "request" {
            if method != "threads" {
                send(&json!({
                    "type": "response", "request_seq": message["seq"], "command": method,
                    "success": method != "launch", "message": "cannot launch",
                    "body": { "supportsCancelRequest": true },
                }))?;
            }
            continue;
        }
        let id = &message["id"];
        match (mode, method) {
            ("no-output" | "silent" | "late", "initialize") => {}
            ("refuses", "initialize") => {
                send(&json!({ "id": id, "error": { "code": -32002, "message": "not\nnow" } }))?
            }
            (_, "initialize") => {
                let asked = if mode == "good" { json!({}) } else { Value::Null };
                let offers = json!({ "documentSymbolProvider": true, "diagnosticProvider": asked });
                send(&json!({ "id": id, "result": { "capabilities": offers } }))?;
            }
            (_, "initialized") => {
                send(&json!({ "id": "a", "method": "workspace/configuration", "params": { "items": [{}, {}] } }))?;
                send(&json!({ "id": 2, "method": "misbehave/own", "params": {} }))?;
            }
            ("late", "$/cancelRequest") => send(&json!({ "id": message["params"]["id"], "result": "late" }))?,
            ("deaf" | "numb", "textDocument/documentSymbol") | ("late", "slow") => {}
            ("dies", "textDocument/documentSymbol") => exit(7),
            ("half", "textDocument/documentSymbol") => {
                let frame = encode(&json!({ "id": id, "result": [] }));
                io::stdout().write_all(&frame[..frame.len() - 5])?;
                io::stdout().flush()?;
                exit(7);
            }
            ("quiet", "textDocument/documentSymbol") => send(&json!({ "id": id, "result": null }))?,
            (_, "textDocument/documentSymbol") => {
                let name = |line| json!({ "start": { "line": line, "character": 0 } });
                let child = json!({ "name": "y", "kind": 13, "selectionRange": name(1) });
                let symbol = json!({ "name": "x", "kind": 12, "selectionRange": name(0), "children": [child] });
                send(&json!({ "id": id, "result": [symbol] }))?;
            }
            (_, "textDocument/diagnostic") => {
                let at = json!({ "line": 2, "character": 0 });
                let says = json!({ "range": { "start": at }, "message": "oh no", "code": "E1", "source": "misbehave" });
                send(&json!({ "id": id, "result": { "kind": "full", "items": [says] } }))?;
            }
            ("numb", "shutdown") => {}
            (_, "shutdown") => {
                asked_to_go = true;
                send(&json!({ "id": id, "result": null }))?;
            }
            (_, "exit") => exit(i32::from(!asked_to_go)),
            (_, "echo") => send(&json!({ "id": id, "result": message["params"] }))?,
            _ => {}
        }
    }
}

fn send(message: &Value) -> io::Result<()> {
    io::stdout().write_all(&encode(message))?;
    io::stdout().flush()
}
