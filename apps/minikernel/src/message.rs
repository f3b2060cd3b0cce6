//! The wire format of Jupyter messages: signed frames to and from JSON. And the connection file, which has the key.
//!
//! <https://jupyter-client.readthedocs.io/en/stable/messaging.html>

use std::num::NonZeroU16;
use std::sync::LazyLock;
use std::time::Instant;

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use microio::{CloseScope, Failure, WorkGuard};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;
use zeromq::ZmqMessage;

pub(crate) const PROTOCOL: &str = "5.3";
static SESSION: LazyLock<Uuid> = LazyLock::new(Uuid::new_v4);
const DELIMITER: &[u8] = b"<IDS|MSG>";

/// The connection file: where clients find the kernel, and the key that they share with it.
#[derive(Clone, Deserialize)]
pub(crate) struct Connection {
    transport: String,
    ip: String,
    key: String,
    #[serde(default)]
    #[expect(dead_code, reason = "there is but one, and reading it has seen to that")]
    signature_scheme: Scheme,
    pub(crate) shell_port: NonZeroU16,
    pub(crate) control_port: NonZeroU16,
    pub(crate) iopub_port: NonZeroU16,
    pub(crate) stdin_port: NonZeroU16,
    pub(crate) hb_port: NonZeroU16,
}

#[derive(Clone, Default, Deserialize)]
enum Scheme {
    #[default]
    #[serde(rename = "hmac-sha256")]
    HmacSha256,
}

impl Connection {
    pub(crate) fn endpoint(&self, port: NonZeroU16) -> String {
        let separator = if self.transport == "ipc" { '-' } else { ':' };
        let ip = if self.ip == "*" { "0.0.0.0" } else { &self.ip };
        format!("{}://{ip}{separator}{port}", self.transport)
    }

    pub(crate) fn wire(&self) -> Wire {
        Wire((!self.key.is_empty()).then(|| Hmac::new_from_slice(self.key.as_bytes()).expect("takes any length")))
    }
}

/// What a client has sent.
pub(crate) struct Request {
    /// The frames that lead back to the client. The first is its identity.
    pub(crate) identities: Vec<Bytes>,
    pub(crate) header: Value,
    pub(crate) content: Value,
    pub(crate) arrived: Instant,
    /// Closed when the connection that it came by has ended.
    pub(crate) connection: CloseScope,
}

impl Request {
    /// The message type, without its `_request`.
    pub(crate) fn kind(&self) -> &str {
        let kind = self.header["msg_type"].as_str().unwrap_or_default();
        kind.strip_suffix("_request").unwrap_or(kind)
    }

    pub(crate) fn reply(&self, content: Value) -> Message {
        self.message(self.identities.clone(), format!("{}_reply", self.kind()), content)
    }

    /// A message to all clients, on iopub, where the first frame is a topic.
    pub(crate) fn publish(&self, kind: &'static str, content: Value) -> Message {
        self.message(vec![kind.into()], kind, content)
    }

    /// To all clients: whether the kernel works on this request.
    pub(crate) fn status(&self, state: &str) -> Message {
        self.publish("status", json!({ "execution_state": state }))
    }

    /// A message that comes of this request.
    pub(crate) fn message(&self, identities: Vec<Bytes>, kind: impl Into<String>, content: Value) -> Message {
        Message { identities, kind: kind.into(), parent: self.header.clone(), content }
    }
}

/// What the kernel sends.
pub(crate) struct Message {
    pub(crate) identities: Vec<Bytes>,
    kind: String,
    parent: Value,
    content: Value,
}

/// Turns frames into requests and messages into frames, with the key that signs them, if there is one.
#[derive(Clone)]
pub(crate) struct Wire(Option<Hmac<sha2::Sha256>>);

impl Wire {
    pub(crate) fn read(&self, frames: ZmqMessage) -> Result<Request, Failure> {
        let mut identities = frames.into_vec();
        let delimiter = identities.iter().position(|frame| frame == DELIMITER);
        let rest = identities.split_off(delimiter.ok_or_else(|| Failure::msg("malformed message: no delimiter"))?);
        let [_, signature, parts @ ..] = rest.as_slice() else {
            return Err(Failure::msg("malformed message: cut off"));
        };
        let Some([header, _parent, _metadata, content]) = parts.first_chunk() else {
            return Err(Failure::msg("malformed message: frames are missing"));
        };
        if let Some(key) = &self.0 {
            let signed = parts[..4].iter().fold(key.clone(), Mac::chain_update);
            let signature = hex::decode(signature).unwrap_or_default();
            signed.verify_slice(&signature).map_err(|_| Failure::msg("bad signature"))?;
        }
        let object = |frame: &Bytes| match serde_json::from_slice(frame) {
            Ok(object @ Value::Object(_)) => Ok(object),
            _ => Err(Failure::msg("malformed message: a part of it is no JSON object")),
        };
        let (header, content) = (object(header)?, object(content)?);
        if !header["msg_type"].is_string() {
            return Err(Failure::msg("malformed message: no type"));
        }
        Ok(Request { identities, header, content, arrived: Instant::now(), connection: CloseScope::new() })
    }

    /// The guard is dropped with the last copy of the frames.
    pub(crate) fn write(&self, message: &Message, unwritten: WorkGuard) -> ZmqMessage {
        let header = json!({
            "msg_id": Uuid::new_v4(), "session": *SESSION, "username": "kernel", "version": PROTOCOL,
            "date": jiff::Timestamp::now(), "msg_type": message.kind,
        });
        let parts = [&header, &message.parent, &json!({}), &message.content].map(|part| part.to_string());
        let signature = self.0.as_ref().map(|key| parts.iter().fold(key.clone(), Mac::chain_update).finalize());
        let signature = signature.map_or_else(String::new, |signature| hex::encode(signature.into_bytes()));
        let [header, parent, metadata, content] = parts;
        let content = Bytes::from_owner(Tracked(content, unwritten));
        let frames = [DELIMITER.into(), signature.into(), header.into(), parent.into(), metadata.into(), content];
        let frames = Vec::from_iter(message.identities.iter().cloned().chain(frames));
        ZmqMessage::try_from(frames).expect("there are frames")
    }
}

/// A frame that is work in progress until it is dropped.
struct Tracked(String, #[expect(dead_code, reason = "held for its drop")] WorkGuard);

impl AsRef<[u8]> for Tracked {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}
