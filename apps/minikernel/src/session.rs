//! What the interpreter's thread does with the requests of the shell channel, one after the other.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use microio::{LoopHandle, LoopServiceThread, Receiver, ScopeGroup, Sender, block_in_place, sleep};
use serde_json::{Value as Json, json};
use tracing::warn;
use wildmatch::WildMatch;

use crate::control::kernel_info;
use crate::input::Input;
use crate::kernel::{SETTLE, send};
use crate::language::{Completeness, Console, Error, Interpreter, Value, completeness};
use crate::message::{Message, Request};

/// The thread that cells run on: it belongs to blocking code, and what is not `Send` lives and dies on it.
pub(crate) fn interpreter(
    mut requests: Receiver<Request>,
    cells: ScopeGroup,
    interrupters: [LoopHandle; 2],
    input: Input,
    iopub: Sender<Message>,
    replies: Sender<Message>,
) -> LoopServiceThread {
    LoopServiceThread::new("interpreter", |cx| async move {
        let (interpreter, history, fences) = (Interpreter::new(), Vec::new(), HashMap::new());
        let mut session = Session { interpreter, cells, interrupters, input, iopub, history, count: 0, fences };
        cx.started();
        while let Ok(request) = requests.recv().await {
            send(&session.iopub, request.status("busy"));
            if let Some(reply) = session.reply(&request).await {
                send(&replies, request.reply(reply));
            }
            send(&session.iopub, request.status("idle"));
        }
        Ok(())
    })
}

struct Session {
    interpreter: Interpreter,
    cells: ScopeGroup,
    /// The loops that cancel what runs.
    interrupters: [LoopHandle; 2],
    input: Input,
    iopub: Sender<Message>,
    /// Number, input and result of each cell.
    history: Vec<(u64, String, Option<String>)>,
    count: u64,
    /// When each client's last cell failed. What had arrived by then is aborted.
    fences: HashMap<String, Instant>,
}

impl Session {
    async fn reply(&mut self, request: &Request) -> Option<Json> {
        let (content, kind) = (&request.content, request.kind());
        let cursor = content["cursor_pos"].as_u64().map_or(usize::MAX, |at| at as usize);
        Some(match (kind, content["code"].as_str()) {
            ("kernel_info", _) => kernel_info(),
            ("comm_info", _) => json!({ "status": "ok", "comms": {} }),
            ("execute", Some(code)) => self.execute(request, code).await,
            ("is_complete", Some(code)) => match completeness(code) {
                Completeness::Complete => json!({ "status": "complete" }),
                Completeness::Incomplete => json!({ "status": "incomplete", "indent": "" }),
                Completeness::Invalid => json!({ "status": "invalid" }),
            },
            ("complete", Some(code)) => {
                let (word, matches) = self.interpreter.complete(code, cursor);
                let (start, end) = (word.start, word.end);
                json!({ "status": "ok", "matches": matches, "cursor_start": start, "cursor_end": end, "metadata": {} })
            }
            ("inspect", Some(code)) => {
                let text = self.interpreter.inspect(code, cursor);
                let data = text.as_ref().map_or(json!({}), |text| json!({ "text/plain": text }));
                json!({ "status": "ok", "found": text.is_some(), "data": data, "metadata": {} })
            }
            ("history", _) if content["hist_access_type"].is_string() => {
                json!({ "status": "ok", "history": self.past(content) })
            }
            ("execute" | "is_complete" | "complete" | "inspect" | "history", _) => {
                warn!("shell: malformed message: a {kind} request that does not say of what");
                failure(&Error::new("ValueError", "the request does not say of what"))
            }
            _ => {
                warn!("shell: ignored a message of type {kind:?}");
                return None;
            }
        })
    }

    async fn execute(&mut self, request: &Request, code: &str) -> Json {
        let session = request.header["session"].as_str().unwrap_or_default();
        if self.fences.get(session).is_some_and(|fence| request.arrived < *fence) {
            return json!({ "status": "aborted", "execution_count": self.count });
        }
        let flag = |name: &str, default| request.content[name].as_bool().unwrap_or(default);
        let input = flag("allow_stdin", false).then_some(&self.input);
        let client = Client { request, iopub: &self.iopub, silent: flag("silent", false), input };
        let stored = flag("store_history", true) && !client.silent;
        self.count += u64::from(stored);
        let count = self.count;
        client.publish("execute_input", json!({ "code": code, "execution_count": count }));

        let (interpreter, extra) = (&mut self.interpreter, &request.content["user_expressions"]);
        for loop_ in &self.interrupters {
            let _went_round = loop_.ping().await; // an interrupt that came before this cell has its turn before it
        }
        let cell = self.cells.scope();
        // The cell blocks its thread. An interrupt cancels the scope, from another thread, and the cell sees that.
        let body = async { block_in_place(|| evaluate(interpreter, code, extra, &client)) };
        let ended = cell.run(body).await.unwrap_or_else(|cancelled| Err(cancelled.into()));
        let shown = ended.as_ref().map_or(None, |(shown, _)| shown.clone());
        if let Some(text) = &shown {
            let data = json!({ "text/plain": text });
            client.publish("execute_result", json!({ "data": data, "metadata": {}, "execution_count": count }));
        }
        if stored {
            self.history.push((count, code.to_owned(), shown));
        }
        let mut reply = match ended {
            Ok((_, values)) => json!({ "status": "ok", "user_expressions": values, "payload": [] }),
            Err(error) => {
                client.publish("error", failure(&error));
                if flag("stop_on_error", true) {
                    drop(cell);
                    // What was sent along with it is aborted; what is sent after the reply was seen is not.
                    let _cut_short = self.cells.scope().run(sleep(SETTLE)).await;
                    self.fences.insert(session.to_owned(), Instant::now());
                }
                failure(&error)
            }
        };
        reply["execution_count"] = count.into();
        reply
    }

    /// The cells that a history request asks for: the last ones, a range, or those that fit a pattern with `*` and `?`.
    fn past(&self, content: &Json) -> Json {
        let number = |name: &str| content[name].as_u64();
        let range = number("start").unwrap_or(1)..number("stop").unwrap_or(u64::MAX);
        let pattern = WildMatch::new(content["pattern"].as_str().unwrap_or("*"));
        let mut seen = HashSet::new();
        let asked = |(count, code, _): &&(u64, String, _)| match content["hist_access_type"].as_str() {
            Some("range") => range.contains(count) && number("session").unwrap_or(0) == 0,
            Some("search") => pattern.matches(code) && (content["unique"] != true || seen.insert(code.clone())),
            _ => true,
        };
        let most = if content["hist_access_type"] == "range" { None } else { number("n") };
        let cells = self.history.iter().rev().filter(asked).take(most.map_or(usize::MAX, |n| n as usize));
        let mut cells: Vec<_> = cells
            .map(|(count, code, shown)| match content["output"] == true {
                true => json!([0, count, [code, shown]]),
                false => json!([0, count, code]),
            })
            .collect();
        cells.reverse();
        cells.into()
    }
}

/// Runs a cell, then the expressions that its sender wants to know as well. Their errors are values.
fn evaluate(
    interpreter: &mut Interpreter,
    code: &str,
    extra: &Json,
    client: &Client<'_>,
) -> Result<(Option<String>, Json), Error> {
    let mut show = |code: &str| match interpreter.run(code, client)? {
        Value::Nothing => Ok(None),
        value => Ok(Some(value.to_string())),
    };
    let shown = show(code)?;
    let extra = extra.as_object().into_iter().flatten().map(|(name, code)| {
        let value = match show(code.as_str().unwrap_or_default()) {
            Ok(text) => json!({ "status": "ok", "data": { "text/plain": text.unwrap_or_default() }, "metadata": {} }),
            Err(error) => failure(&error),
        };
        (name.clone(), value)
    });
    Ok((shown, extra.collect()))
}

/// The client that a cell runs for.
struct Client<'a> {
    request: &'a Request,
    iopub: &'a Sender<Message>,
    silent: bool,
    input: Option<&'a Input>,
}

impl Client<'_> {
    fn publish(&self, kind: &'static str, content: Json) {
        if !self.silent {
            send(self.iopub, self.request.publish(kind, content));
        }
    }
}

impl Console for Client<'_> {
    fn print(&self, text: &str) {
        self.publish("stream", json!({ "name": "stdout", "text": text }));
    }

    fn warn(&self, text: &str) {
        self.publish("stream", json!({ "name": "stderr", "text": text }));
    }

    fn input(&self, prompt: &str) -> Result<String, Error> {
        let refused = || Error::new("StdinNotImplementedError", "this client takes no input requests");
        self.input.ok_or_else(refused)?.ask(self.request, prompt)
    }
}

fn failure(error: &Error) -> Json {
    let place = error.line.map(|line| format!("line {line}: ")).unwrap_or_default();
    json!({ "status": "error", "ename": error.name, "evalue": error.message, "traceback": [format!("{place}{error}")] })
}
