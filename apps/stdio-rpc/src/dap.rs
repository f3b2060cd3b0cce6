//! A client of a debug adapter: runs a script to a breakpoint, prints what is there, lets it go on.
//!
//! Invariant: requests have deadlines, the script has none; it takes the time it takes, and Ctrl-C ends it.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use microio::fail_after;
use serde_json::{Value, json};

use crate::message::{Event, Refusal};
use crate::process::regular_file;
use crate::rpc::{Connection, Error, Events};

/// What to run and where to stop it.
#[derive(Debug)]
pub struct Script {
    path: PathBuf,
    line: u32,
}

impl Script {
    /// # Errors
    /// When there is no such file.
    pub fn new(path: &Path, line: u32) -> io::Result<Self> {
        Ok(Self { path: regular_file(path)?, line })
    }
}

/// No reverse request is supported: they are for clients that own a terminal or run several sessions.
pub fn answer(method: &str, _params: &Value) -> Result<Value, Refusal> {
    Err(Refusal::unknown_method(method))
}

/// Introduces both sides to each other.
pub async fn initialize(connection: &Connection) -> Result<(), Error> {
    let client = json!({
        "clientID": env!("CARGO_PKG_NAME"),
        "adapterID": "debugpy",
        "pathFormat": "path",
        "linesStartAt1": true,
        "columnsStartAt1": true,
        "supportsVariableType": true,
    });
    connection.set_capabilities(connection.request("initialize", client).await?);
    Ok(())
}

/// Runs the script: prints each stop at the breakpoint with its local variables, the script's output line by line,
/// and its exit code.
pub async fn debug(
    connection: &Connection,
    events: &mut Events,
    script: &Script,
    out: &mut impl Write,
) -> Result<(), Error> {
    initialize(connection).await?;
    let launch = json!({
        "program": script.path,
        "console": "internalConsole",
        "justMyCode": true,
        "variablePresentation": { "special": "hide", "function": "hide", "class": "hide" },
    });
    let mut session = Session { connection, events, out, unfinished: BTreeMap::new() };
    // The adapter answers "launch" when the configuration is done, which it asks for by "initialized".
    let (_, doubt) = tokio::try_join!(connection.request("launch", launch), session.configure(script))?;

    let (mut hit, mut code) = (false, None);
    loop {
        let Event { method, params } = session.next().await?;
        match method.as_str() {
            "stopped" => {
                hit |= params["reason"] == "breakpoint";
                session.print_stop(&params).await?;
                connection.request("continue", json!({ "threadId": params["threadId"] })).await?;
            }
            "exited" => code = params["exitCode"].as_i64(),
            "terminated" => break,
            _ => {}
        }
    }
    session.print_unfinished()?;
    if !hit {
        writeln!(out, "breakpoint at {}:{} was never hit{doubt}", script.path.display(), script.line)?;
    }
    match code {
        Some(code) => writeln!(out, "exit code {code}")?,
        None => writeln!(out, "exit code unknown")?,
    }
    Ok(out.flush()?)
}

/// Ends the script if it still runs, then the session. How the connection ends tells what goes wrong here.
pub async fn leave(connection: &Connection) {
    connection.expect_end();
    if connection.capabilities().is_some() {
        let limit = connection.server().timeout.min(connection.server().grace);
        let _ = connection.request_within(limit, "disconnect", json!({ "terminateDebuggee": true })).await;
    }
}

struct Session<'a, W> {
    connection: &'a Connection,
    events: &'a mut Events,
    out: &'a mut W,
    /// What the script has printed since its last line end, for each of its streams.
    unfinished: BTreeMap<String, String>,
}

impl<W: Write> Session<'_, W> {
    /// Says why the breakpoint may never be hit, if the adapter has its doubts.
    async fn configure(&mut self, script: &Script) -> Result<String, Error> {
        let limit = self.connection.server().timeout;
        let initialized = fail_after(limit, async {
            while self.next().await?.method != "initialized" {}
            Ok(())
        })
        .await;
        initialized.unwrap_or_else(|_| Err(Error::Deadline { what: "event \"initialized\"".into(), after: limit }))?;
        let breakpoints = json!({ "source": { "path": script.path }, "breakpoints": [{ "line": script.line }] });
        let reply = self.connection.request("setBreakpoints", breakpoints).await?;
        self.connection.request("configurationDone", json!({})).await?;
        let doubt = reply["breakpoints"][0]["message"].as_str().map(|message| format!(" ({message})"));
        Ok(doubt.unwrap_or_default())
    }

    /// The next event that is not output, which is printed on the way.
    async fn next(&mut self) -> Result<Event, Error> {
        loop {
            let event = self.events.next().await?;
            if event.method != "output" {
                return Ok(event);
            }
            self.print_output(&event.params)?;
        }
    }

    async fn print_stop(&mut self, stop: &Value) -> Result<(), Error> {
        let thread = &stop["threadId"];
        let threads = self.connection.request("threads", Value::Null).await?;
        let stack = json!({ "threadId": thread, "levels": 1 });
        let frame = self.connection.request("stackTrace", stack).await?["stackFrames"][0].take();
        let scopes = self.connection.request("scopes", json!({ "frameId": frame["id"] })).await?;

        let (file, function) = (text(&frame["source"]["path"]), text(&frame["name"]));
        write!(self.out, "stopped at {file}:{} in {function} ({})", frame["line"], text(&stop["reason"]))?;
        let threads = threads["threads"].as_array().map_or(&[][..], Vec::as_slice);
        match threads.iter().find(|candidate| candidate["id"] == *thread) {
            Some(named) if threads.len() > 1 => writeln!(self.out, " in thread {}", text(&named["name"]))?,
            _ => writeln!(self.out)?,
        }
        let mut scopes = scopes["scopes"].as_array().into_iter().flatten();
        let Some(locals) = scopes.find(|scope| scope["presentationHint"] == "locals" || scope["name"] == "Locals")
        else {
            return Ok(());
        };
        let reference = json!({ "variablesReference": locals["variablesReference"] });
        let variables = self.connection.request("variables", reference).await?;
        for variable in variables["variables"].as_array().into_iter().flatten() {
            let (name, value, kind) = (text(&variable["name"]), text(&variable["value"]), text(&variable["type"]));
            writeln!(self.out, "  {name} = {value} ({kind})")?;
        }
        Ok(())
    }

    fn print_output(&mut self, output: &Value) -> io::Result<()> {
        let stream = output["category"].as_str().unwrap_or("console");
        if stream == "telemetry" {
            return Ok(());
        }
        let unfinished = self.unfinished.entry(stream.to_owned()).or_default();
        unfinished.push_str(output["output"].as_str().unwrap_or_default());
        while let Some(end) = unfinished.find('\n') {
            let line: String = unfinished.drain(..=end).collect();
            writeln!(self.out, "{stream}: {}", line.trim_end())?;
        }
        Ok(())
    }

    fn print_unfinished(&mut self) -> io::Result<()> {
        let last = std::mem::take(&mut self.unfinished).into_iter().filter(|(_, line)| !line.is_empty());
        last.into_iter().try_for_each(|(stream, line)| writeln!(self.out, "{stream}: {line}"))
    }
}

/// What an adapter says is printed on one line, whatever it is.
fn text(value: &Value) -> String {
    value.as_str().unwrap_or("?").replace(['\n', '\r'], " ")
}
