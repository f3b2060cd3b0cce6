//! `Content-Length` framing, the layer that language servers and debug adapters share: a few header
//! lines, a blank line, one JSON text.
//!
//! Invariant: input is hostile until it is decoded. A header and a body have a limit that is checked
//! before anything is kept for them, and every error quotes a bounded piece of what came instead.
//! The decoder does no I/O, so bytes may come in any pieces.

use serde_json::Value;
use thiserror::Error;

/// Longest header, in bytes, all its lines together.
pub const MAX_HEADER: usize = 8 * 1024;
/// Longest body, in bytes.
pub const MAX_BODY: usize = 64 * 1024 * 1024;
/// Longest quotation of foreign bytes in an error.
const EXCERPT: usize = 60;

/// What a peer sent instead of a frame.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    #[error("bad header: \"{0}\" is not of the form \"name: value\"")]
    NotAHeader(String),
    #[error("bad header: longer than {MAX_HEADER} bytes: \"{0}\"")]
    HeaderTooLong(String),
    #[error("bad header: it has no Content-Length")]
    NoLength,
    #[error("bad header: more than one Content-Length")]
    TwoLengths,
    #[error("bad header: Content-Length is \"{0}\"")]
    BadLength(String),
    #[error("bad header: Content-Length {0} is over the limit of {MAX_BODY} bytes")]
    TooLarge(String),
    #[error("bad body: not UTF-8 from byte {at} on: \"{excerpt}\"")]
    NotUtf8 { at: usize, excerpt: String },
    #[error("bad body: {error}: \"{excerpt}\"")]
    NotJson { error: String, excerpt: String },
    #[error("end of file within a message, after \"{0}\"")]
    Truncated(String),
}

/// Makes messages out of bytes. An error is final: what follows it in the stream means nothing.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    taken: usize,
    header: usize,
    length: Option<usize>,
    in_body: bool,
}

impl Decoder {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message; `None` when more bytes are needed.
    ///
    /// # Errors
    /// As soon as the bytes at hand cannot become a message any more, whatever follows.
    pub fn next_message(&mut self) -> Result<Option<Value>, FrameError> {
        while !self.in_body {
            let Some(line) = self.take_line()? else { return Ok(None) };
            if !line.is_empty() {
                self.header_line(&line)?;
            } else if self.length.is_none() {
                return Err(FrameError::NoLength);
            } else {
                self.in_body = true;
            }
        }
        let length = self.length.unwrap_or_default();
        let rest = &self.bytes[self.taken..];
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let message = parse(body)?;
        *self = Self { taken: self.taken + length, bytes: std::mem::take(&mut self.bytes), ..Self::default() };
        Ok(Some(message))
    }

    /// Whether the stream may end here.
    ///
    /// # Errors
    /// `Truncated` in the middle of a message.
    pub fn finish(&self) -> Result<(), FrameError> {
        let rest = &self.bytes[self.taken..];
        if rest.is_empty() && self.header == 0 { Ok(()) } else { Err(FrameError::Truncated(excerpt(rest))) }
    }

    fn take_line(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        let rest = &self.bytes[self.taken..];
        let end = rest.iter().position(|&byte| byte == b'\n');
        self.header += end.map_or(0, |end| end + 1);
        if self.header + end.map_or(rest.len(), |_| 0) > MAX_HEADER {
            return Err(FrameError::HeaderTooLong(excerpt(rest)));
        }
        let Some(end) = end else { return Ok(None) };
        self.taken += end + 1;
        let line = &rest[..end];
        Ok(Some(line.strip_suffix(b"\r").unwrap_or(line).to_vec()))
    }

    fn header_line(&mut self, line: &[u8]) -> Result<(), FrameError> {
        let text = std::str::from_utf8(line).ok().and_then(|text| text.split_once(':'));
        let Some((name, value)) = text else { return Err(FrameError::NotAHeader(excerpt(line))) };
        // Content-Type and what a future version may add mean nothing to this decoder.
        if !name.trim().eq_ignore_ascii_case("content-length") {
            return Ok(());
        }
        if self.length.is_some() {
            return Err(FrameError::TwoLengths);
        }
        let value = value.trim();
        let quoted = || excerpt(value.as_bytes());
        // `parse` alone would take a sign.
        if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(FrameError::BadLength(quoted()));
        }
        let length = value.parse().ok().filter(|&length| length <= MAX_BODY);
        self.length = Some(length.ok_or_else(|| FrameError::TooLarge(quoted()))?);
        Ok(())
    }
}

/// The bytes of one message.
pub fn encode(message: &Value) -> Vec<u8> {
    let body = message.to_string();
    format!("Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn parse(body: &[u8]) -> Result<Value, FrameError> {
    let text = std::str::from_utf8(body)
        .map_err(|error| FrameError::NotUtf8 { at: error.valid_up_to(), excerpt: excerpt(body) })?;
    serde_json::from_str(text).map_err(|error| FrameError::NotJson { error: error.to_string(), excerpt: excerpt(body) })
}

/// At most `EXCERPT` bytes on one line, whatever they are.
fn excerpt(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(EXCERPT)];
    let dots = if cut.len() < bytes.len() { "..." } else { "" };
    format!("{}{dots}", String::from_utf8_lossy(cut).escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn decode(bytes: &[u8]) -> Result<Option<Value>, FrameError> {
        let mut decoder = Decoder::new();
        decoder.push(bytes);
        decoder.next_message()
    }

    fn refused(bytes: &[u8]) -> FrameError {
        decode(bytes).expect_err("a frame error")
    }

    #[test]
    fn a_stream_may_be_split_at_every_byte_boundary() {
        let messages = [json!({"id": 1, "text": "ä\r\n\r\n€"}), json!(null), json!([])];
        let stream: Vec<u8> = messages.iter().flat_map(encode).collect();
        for cut in 0..=stream.len() {
            let (mut decoder, mut seen) = (Decoder::new(), Vec::new());
            for part in [&stream[..cut], &stream[cut..]] {
                decoder.push(part);
                while let Some(message) = decoder.next_message().unwrap() {
                    seen.push(message);
                }
            }
            assert_eq!(seen, messages, "cut at {cut}");
            decoder.finish().unwrap();
        }
    }

    #[test]
    fn a_stream_may_come_byte_by_byte_and_keeps_nothing_behind() {
        let stream: Vec<u8> = (0..50).flat_map(|n| encode(&json!({ "n": n }))).collect();
        let (mut decoder, mut seen) = (Decoder::new(), 0);
        for byte in stream {
            decoder.push(&[byte]);
            seen += usize::from(decoder.next_message().unwrap().is_some());
            assert!(decoder.bytes.len() < 64, "what was decoded is given up");
        }
        assert_eq!(seen, 50);
    }

    #[test]
    fn header_names_have_no_case_and_other_headers_are_tolerated() {
        let type_first = b"Content-Type: application/vscode-jsonrpc; charset=utf-8\r\ncontent-LENGTH:2\r\n\r\n{}";
        assert_eq!(decode(type_first), Ok(Some(json!({}))));
        assert_eq!(decode(b"Content-Length: 2\n\n{}"), Ok(Some(json!({}))), "a bare line feed will do");
    }

    #[test]
    fn garbage_is_refused_at_its_first_line_and_quoted() {
        assert_eq!(
            refused(b"hello \x1b[1mworld\n").to_string(),
            r#"bad header: "hello \u{1b}[1mworld" is not of the form "name: value""#
        );
        assert!(matches!(refused(b"\xff\xfe: 1\n"), FrameError::NotAHeader(_)));
        assert_eq!(refused(b"\r\n{}"), FrameError::NoLength);
        assert_eq!(refused(b"Content-Type: x\r\n\r\n{}"), FrameError::NoLength);
    }

    #[test]
    fn lengths_are_plain_decimal_single_and_bounded() {
        for bad in ["", "-1", "+1", "1.0", "0x10", "1 2", "٣"] {
            let frame = format!("Content-Length: {bad}\r\n\r\n");
            assert!(matches!(refused(frame.as_bytes()), FrameError::BadLength(_)), "{bad:?}");
        }
        assert_eq!(refused(b"Content-Length: 2\r\ncontent-length: 2\r\n\r\n{}"), FrameError::TwoLengths);
        for absurd in [format!("{}", MAX_BODY + 1), "9".repeat(40)] {
            let frame = format!("Content-Length: {absurd}\r\n");
            assert_eq!(refused(frame.as_bytes()), FrameError::TooLarge(absurd));
        }
        assert_eq!(decode(format!("Content-Length: {MAX_BODY}\r\n\r\n").as_bytes()), Ok(None));
    }

    #[test]
    fn a_header_has_a_limit_over_one_line_and_over_all() {
        assert_eq!(decode(&[b'x'; MAX_HEADER]), Ok(None));
        let FrameError::HeaderTooLong(quoted) = refused(&[b'x'; MAX_HEADER + 1]) else { panic!() };
        assert_eq!(quoted, format!("{}...", "x".repeat(EXCERPT)));
        assert!(matches!(refused(&b"X-Pad: y\r\n".repeat(1000)), FrameError::HeaderTooLong(_)));
    }

    #[test]
    fn a_body_is_utf8_and_json() {
        let error = refused(b"Content-Length: 3\r\n\r\na\xff\xff");
        assert_eq!(error, FrameError::NotUtf8 { at: 1, excerpt: "a\u{fffd}\u{fffd}".into() });
        assert_eq!(
            refused(b"Content-Length: 4\r\n\r\nnope").to_string(),
            r#"bad body: expected ident at line 1 column 2: "nope""#
        );
        let deep = format!("Content-Length: 100000\r\n\r\n{}", "[".repeat(100_000));
        assert!(matches!(refused(deep.as_bytes()), FrameError::NotJson { .. }));
    }

    #[test]
    fn the_end_is_clean_only_between_messages() {
        let frame = encode(&json!({}));
        for cut in 0..=frame.len() {
            let mut decoder = Decoder::new();
            decoder.push(&frame[..cut]);
            decoder.next_message().unwrap();
            assert_eq!(decoder.finish().is_ok(), cut == 0 || cut == frame.len(), "cut at {cut}");
        }
    }
}
