//! What a message means: requests, replies and events in the two dialects that share the framing,
//! JSON-RPC 2.0 (language servers) and the Debug Adapter Protocol.
//!
//! Invariant: the dialects differ here only. The connection counts, sends and matches messages
//! without knowing how they are spelt.

use std::process::ExitStatus;

use serde_json::{Value, json};
use thiserror::Error;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    JsonRpc,
    Dap,
}

/// A message from the server.
#[derive(Debug, PartialEq)]
pub enum Message {
    Reply { id: i64, outcome: Result<Value, Refusal> },
    Request { id: Value, method: String, params: Value },
    Event(Event),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub method: String,
    pub params: Value,
}

/// An error that was sent as the answer to a request: a legal reply, the connection stands.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{}{message}", code.map(|code| format!("error {code}: ")).unwrap_or_default())]
pub struct Refusal {
    pub code: Option<i64>,
    pub message: String,
}

/// JSON that is no message of the dialect.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("bad message: {what}: {excerpt}")]
pub struct Malformed {
    what: &'static str,
    excerpt: String,
}

impl Refusal {
    pub fn unknown_method(method: &str) -> Self {
        Self { code: Some(-32601), message: format!("method not found: {method}") }
    }

    fn from_error(error: &Value) -> Self {
        let message = error["message"].as_str().or(error["format"].as_str());
        Self { code: error["code"].as_i64(), message: message.unwrap_or("no reason given").into() }
    }
}

impl Dialect {
    pub fn request(self, id: i64, method: &str, params: Value) -> Value {
        match self {
            Self::JsonRpc => json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }),
            Self::Dap => json!({ "seq": id, "type": "request", "command": method, "arguments": params }),
        }
    }

    /// A message that wants no answer. Debug adapters know none from a client; `id` numbers what replaces it there.
    pub fn notification(self, id: i64, method: &str, params: Value) -> Value {
        match self {
            Self::JsonRpc => json!({ "jsonrpc": "2.0", "method": method, "params": params }),
            Self::Dap => self.request(id, method, params),
        }
    }

    /// Gives request `unwanted` up, where the peer understands that.
    pub fn cancel(self, id: i64, unwanted: i64, capabilities: Option<&Value>) -> Option<Value> {
        match self {
            Self::JsonRpc => Some(self.notification(id, "$/cancelRequest", json!({ "id": unwanted }))),
            Self::Dap => (capabilities?["supportsCancelRequest"] == true)
                .then(|| self.request(id, "cancel", json!({ "requestId": unwanted }))),
        }
    }

    pub fn answer(self, id: i64, request: Value, method: &str, outcome: Result<Value, Refusal>) -> Value {
        match (self, outcome) {
            (Self::JsonRpc, Ok(result)) => json!({ "jsonrpc": "2.0", "id": request, "result": result }),
            (Self::JsonRpc, Err(Refusal { code, message })) => {
                json!({ "jsonrpc": "2.0", "id": request, "error": { "code": code, "message": message } })
            }
            (Self::Dap, outcome) => {
                let mut reply = json!({ "seq": id, "type": "response", "request_seq": request, "command": method });
                reply["success"] = outcome.is_ok().into();
                match outcome {
                    Ok(body) => reply["body"] = body,
                    Err(refusal) => reply["message"] = refusal.message.into(),
                }
                reply
            }
        }
    }

    /// # Errors
    /// When `message` is none of the three kinds.
    pub fn parse(self, mut message: Value) -> Result<Message, Malformed> {
        let malformed =
            |what, message: &Value| Malformed { what, excerpt: message.to_string().chars().take(120).collect() };
        let text = |value: &Value| value.as_str().map(str::to_owned);
        match self {
            Self::JsonRpc => {
                let id = message.get("id").cloned();
                match (text(&message["method"]), id) {
                    (Some(method), None) => Ok(Message::Event(Event { method, params: message["params"].take() })),
                    (Some(method), Some(id)) => Ok(Message::Request { id, method, params: message["params"].take() }),
                    (None, Some(id)) => {
                        let id = id.as_i64().ok_or_else(|| malformed("a reply to no request of ours", &message))?;
                        let outcome = match message.get("error") {
                            Some(error) if !error.is_null() => Err(Refusal::from_error(error)),
                            _ => Ok(message["result"].take()),
                        };
                        Ok(Message::Reply { id, outcome })
                    }
                    (None, None) => Err(malformed("neither request, reply nor notification", &message)),
                }
            }
            Self::Dap => match (message["type"].as_str(), text(&message["command"]), text(&message["event"])) {
                (Some("response"), ..) => {
                    let id = message["request_seq"].as_i64();
                    let id = id.ok_or_else(|| malformed("a response without a request_seq", &message))?;
                    let outcome = match (&message["success"], &message["body"]["error"]) {
                        (Value::Bool(true), _) => Ok(message["body"].take()),
                        (_, error) if error.is_object() => Err(Refusal { code: None, ..Refusal::from_error(error) }),
                        _ => Err(Refusal { code: None, ..Refusal::from_error(&message) }),
                    };
                    Ok(Message::Reply { id, outcome })
                }
                (Some("request"), Some(method), _) => {
                    Ok(Message::Request { id: message["seq"].take(), method, params: message["arguments"].take() })
                }
                (Some("event"), _, Some(method)) => {
                    Ok(Message::Event(Event { method, params: message["body"].take() }))
                }
                _ => Err(malformed("neither request, response nor event", &message)),
            },
        }
    }

    /// Whether a server that was told to go went as it should. An adapter's exit status has no meaning in its
    /// protocol (debugpy's is 1 now and then), but a signal has.
    pub fn is_orderly(self, status: ExitStatus) -> bool {
        status.success() || self == Self::Dap && status.code().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_a_reply_and_a_null_result_is_no_error() {
        let reply = |value| match Dialect::JsonRpc.parse(value) {
            Ok(Message::Reply { id: 7, outcome }) => outcome,
            other => panic!("{other:?}"),
        };
        assert_eq!(reply(json!({ "id": 7, "result": null })), Ok(Value::Null));
        assert_eq!(reply(json!({ "id": 7, "result": 1, "error": null })), Ok(json!(1)));
        let refusal = reply(json!({ "id": 7, "error": { "code": -32601, "message": "no" } })).unwrap_err();
        assert_eq!(refusal.to_string(), "error -32601: no");
    }

    #[test]
    fn an_adapter_says_why_in_one_of_two_places() {
        let refusal = |value| match Dialect::Dap.parse(value) {
            Ok(Message::Reply { outcome: Err(refusal), .. }) => refusal.to_string(),
            other => panic!("{other:?}"),
        };
        let mut reply = json!({ "type": "response", "request_seq": 1, "success": false, "message": "short" });
        assert_eq!(refusal(reply.clone()), "short");
        reply["body"] = json!({ "error": { "id": 3, "format": "long" } });
        assert_eq!(refusal(reply), "long");
    }

    #[test]
    fn what_a_dialect_sends_it_can_read() {
        for dialect in [Dialect::JsonRpc, Dialect::Dap] {
            let request = dialect.parse(dialect.request(5, "m", json!({})));
            assert_eq!(request, Ok(Message::Request { id: json!(5), method: "m".into(), params: json!({}) }));
            let answer = dialect.parse(dialect.answer(9, json!(5), "m", Ok(json!([1]))));
            assert_eq!(answer, Ok(Message::Reply { id: 5, outcome: Ok(json!([1])) }));
            let refused = dialect.parse(dialect.answer(9, json!(5), "m", Err(Refusal::unknown_method("m"))));
            assert!(matches!(refused, Ok(Message::Reply { id: 5, outcome: Err(_) })));
        }
    }

    #[test]
    fn json_that_is_no_message_is_quoted() {
        for value in [json!(1), json!([]), json!({}), json!({ "type": 1 }), json!({ "id": null, "error": {} })] {
            for dialect in [Dialect::JsonRpc, Dialect::Dap] {
                let error = dialect.parse(value.clone()).unwrap_err().to_string();
                assert!(error.starts_with("bad message: ") && error.contains(&value.to_string()), "{error}");
            }
        }
    }
}
