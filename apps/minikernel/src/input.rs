//! Input requests, which travel back: from a cell, by the loop of the stdin service, to the client that has sent the cell.

use std::fmt::Display;

use bytes::Bytes;
use microio::{LoopHandle, LoopServiceThread, RequestRegistry, Sender, channel, current_cancel_scope};
use serde_json::json;
use tokio::select;
use tracing::{info, warn};

use crate::language::Error;
use crate::message::{Connection, Message, Request};
use crate::sockets::{Handler, router};

/// The way to a client's keyboard.
pub(crate) struct Input {
    stdin: LoopHandle,
    questions: Sender<Message>,
    /// Which clients are asked, by identity.
    asked: RequestRegistry<Bytes, String>,
}

pub(crate) fn stdin(connection: &Connection) -> (LoopServiceThread, Input) {
    let (asked, (questions, outbox)) = (RequestRegistry::new(), channel());
    let handler = Stdin { asked: asked.clone(), questions: questions.clone(), unsent: None };
    let service = router("stdin", connection, connection.stdin_port, outbox, handler);
    let input = Input { stdin: service.handle(), questions, asked };
    (service, input)
}

impl Input {
    /// Asks the client of this request. Blocks until it answers or is gone, or the cell is interrupted.
    pub(crate) fn ask(&self, request: &Request, prompt: &str) -> Result<String, Error> {
        let question = json!({ "prompt": prompt, "password": false });
        let question = request.message(request.identities.clone(), "input_request", question);
        let (asked, questions, client) = (self.asked.clone(), self.questions.clone(), request.identities[0].clone());
        let (cell, gone) = (current_cancel_scope().unwrap_or_default(), request.connection.closed());
        let failed = |why: &dyn Display| Error::new("EOFError", why.to_string());
        let answer = self.stdin.submit(async move {
            let answer = cell.run(async {
                select! {
                    answer = asked.request(client, |_| questions.try_send(question)) => answer.map_err(|why| failed(&why)),
                    why = gone => {
                        warn!("stdin: no answer: {why}");
                        Err(failed(&why))
                    }
                }
            });
            answer.await.unwrap_or_else(|interrupted| Err(interrupted.into()))
        });
        answer.wait_blocking(None).unwrap_or_else(|why| Err(failed(&why)))
    }
}

struct Stdin {
    asked: RequestRegistry<Bytes, String>,
    questions: Sender<Message>,
    /// A question to a client that has not connected yet: it was quick with its first cell.
    unsent: Option<Message>,
}

impl Handler for Stdin {
    async fn on_request(&mut self, answer: Request) {
        match answer.content["value"].as_str().map(|text| self.asked.resolve(&answer.identities[0], text.to_owned())) {
            Some(Ok(())) => {}
            Some(Err(_)) => info!("stdin: an answer that nobody waits for any more"),
            None => warn!("stdin: malformed message: an answer without a value"),
        }
    }

    fn on_unsent(&mut self, question: Message) {
        self.unsent = Some(question);
    }

    fn on_connect(&mut self, client: &[u8]) {
        let question = self.unsent.take_if(|question| question.identities[0] == client);
        if let Some(question) = question.filter(|question| self.asked.contains(&question.identities[0])) {
            let _stopping = self.questions.try_send(question);
        }
    }
}
