//! A client of a language server: opens one document, prints its symbols and diagnostics.
//!
//! Invariant: positions are printed from 1 and kept from 0, as the protocol has them; paths are compared
//! decoded, because every server spells URIs its own way.

use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use microio::fail_after;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use serde_json::{Value, json};

use crate::message::Refusal;
use crate::process::regular_file;
use crate::rpc::{Connection, Error, Events};

/// What RFC 3986 lets stand in a path.
const NOT_IN_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// LSP 3.17, SymbolKind, from 1.
#[rustfmt::skip]
const KINDS: [&str; 26] = [
    "file", "module", "namespace", "package", "class", "method", "property", "field", "constructor", "enum",
    "interface", "function", "variable", "constant", "string", "number", "boolean", "array", "object", "key",
    "null", "enum member", "struct", "event", "operator", "type parameter",
];
const SEVERITIES: [&str; 4] = ["error", "warning", "info", "hint"];

/// A file as the server gets to see it.
#[derive(Debug)]
pub struct Document {
    path: PathBuf,
    text: String,
}

impl Document {
    /// # Errors
    /// When there is no such file, or it is not text.
    pub fn open(path: &Path) -> io::Result<Self> {
        let path = regular_file(path)?;
        Ok(Self { text: fs::read_to_string(&path)?, path })
    }

    fn language(&self) -> &str {
        let extension = self.path.extension().and_then(|extension| extension.to_str()).unwrap_or("plaintext");
        match extension {
            "py" | "pyi" => "python",
            "rs" => "rust",
            "js" | "mjs" | "cjs" => "javascript",
            "jsx" => "javascriptreact",
            "ts" | "mts" | "cts" => "typescript",
            "tsx" => "typescriptreact",
            "h" => "c",
            "cc" | "cxx" | "hpp" | "hh" => "cpp",
            "cs" => "csharp",
            "rb" => "ruby",
            "sh" | "bash" => "shellscript",
            "md" => "markdown",
            "yml" => "yaml",
            same => same,
        }
    }
}

/// The path's URI. Bytes that are no UTF-8 are kept too.
pub fn uri(path: &Path) -> String {
    format!("file://{}", percent_encode(path.as_os_str().as_bytes(), NOT_IN_PATH))
}

/// How a server's own requests are answered: what it must be told is that there is no such setting, or `null` for
/// what it only announces.
pub fn answer(method: &str, params: &Value) -> Result<Value, Refusal> {
    match method {
        "workspace/configuration" => {
            Ok(params["items"].as_array().map_or(0, Vec::len)).map(|n| json!(vec![Value::Null; n]))
        }
        "workspace/workspaceFolders"
        | "client/registerCapability"
        | "client/unregisterCapability"
        | "window/workDoneProgress/create"
        | "window/showMessageRequest" => Ok(Value::Null),
        "workspace/applyEdit" => Ok(json!({ "applied": false })),
        "window/showDocument" => Ok(json!({ "success": false })),
        _ => Err(Refusal::unknown_method(method)),
    }
}

/// Introduces both sides to each other.
pub async fn initialize(connection: &Connection, root: &Path) -> Result<(), Error> {
    let client = json!({
        "processId": std::process::id(),
        "clientInfo": { "name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION") },
        "rootUri": uri(root),
        "workspaceFolders": [{ "uri": uri(root), "name": "root" }],
        "capabilities": {
            "workspace": { "configuration": true, "workspaceFolders": true },
            "window": { "workDoneProgress": true },
            "textDocument": {
                "synchronization": {},
                "documentSymbol": { "hierarchicalDocumentSymbolSupport": true },
                "publishDiagnostics": {},
                "diagnostic": {},
            },
        },
    });
    let mut reply = connection.request("initialize", client).await?;
    connection.set_capabilities(reply["capabilities"].take());
    connection.notify("initialized", json!({}));
    Ok(())
}

/// Prints the document's symbols, then its diagnostics.
///
/// # Errors
/// Those of a request; a server that publishes no diagnostics is only noted.
pub async fn inspect(
    connection: &Connection,
    events: &mut Events,
    document: &Document,
    out: &mut impl Write,
) -> Result<(), Error> {
    let root = document.path.parent().unwrap_or(&document.path);
    initialize(connection, root).await?;
    let identifier = json!({ "uri": uri(&document.path) });
    connection.notify(
        "textDocument/didOpen",
        json!({ "textDocument": {
        "uri": identifier["uri"], "languageId": document.language(), "version": 1, "text": document.text,
    } }),
    );
    let about = json!({ "textDocument": identifier });
    let offers = |what: &str| {
        connection.capabilities().is_some_and(|all| !matches!(all[what], Value::Null | Value::Bool(false)))
    };
    if offers("documentSymbolProvider") {
        let symbols = connection.request("textDocument/documentSymbol", about.clone()).await?;
        print_symbols(&symbols, out)?;
    } else {
        writeln!(out, "no symbols: the server does not offer them")?;
    }
    // A server that can be asked does not tell by itself.
    let diagnostics = if offers("diagnosticProvider") {
        Some(connection.request("textDocument/diagnostic", about).await?["items"].take())
    } else {
        let limit = connection.server().timeout;
        fail_after(limit, published(events, &document.path)).await.ok().transpose()?
    };
    match diagnostics.as_ref().map(Value::as_array) {
        Some(items) => items.into_iter().flatten().try_for_each(|item| print_diagnostic(item, out))?,
        None => writeln!(out, "no diagnostics were published within {:?}", connection.server().timeout)?,
    }
    Ok(out.flush()?)
}

/// Asks the server to go. Nobody is left to be told what goes wrong here: how the connection ends tells.
pub async fn leave(connection: &Connection) {
    connection.expect_end();
    // Before its first reply a server takes no other request.
    if connection.capabilities().is_some() {
        let limit = connection.server().timeout.min(connection.server().grace);
        let _ = connection.request_within(limit, "shutdown", Value::Null).await;
    }
    connection.notify("exit", Value::Null);
}

async fn published(events: &mut Events, path: &Path) -> Result<Value, Error> {
    loop {
        let mut event = events.next().await?;
        if event.method == "textDocument/publishDiagnostics" && is_uri_of(&event.params["uri"], path) {
            return Ok(event.params["diagnostics"].take());
        }
    }
}

fn is_uri_of(uri: &Value, path: &Path) -> bool {
    let rest = uri.as_str().and_then(|uri| uri.strip_prefix("file://"));
    // The host is empty or "localhost".
    let encoded = rest.and_then(|rest| rest.find('/').map(|slash| &rest[slash..]));
    encoded.is_some_and(|encoded| percent_decode_str(encoded).eq(path.as_os_str().as_bytes().iter().copied()))
}

/// Both shapes of the reply: a tree, or a flat list whose tree is in its ranges.
fn print_symbols(symbols: &Value, out: &mut impl Write) -> io::Result<()> {
    let symbols = symbols.as_array().map_or(&[][..], Vec::as_slice);
    if symbols.iter().all(|symbol| symbol["location"].is_null()) {
        return symbols.iter().try_for_each(|symbol| print_tree(symbol, 1, out));
    }
    let mut symbols: Vec<_> = symbols.iter().map(|symbol| (span(&symbol["location"]["range"]), symbol)).collect();
    // Of two that start together the longer one is the outer one.
    symbols.sort_by_key(|&((start, end), _)| (start, std::cmp::Reverse(end)));
    let mut ends: Vec<Position> = Vec::new();
    for ((start, end), symbol) in symbols {
        ends.retain(|outer| *outer > start);
        ends.push(end);
        print_symbol(symbol, start, ends.len(), out)?;
    }
    Ok(())
}

fn print_tree(symbol: &Value, depth: usize, out: &mut impl Write) -> io::Result<()> {
    print_symbol(symbol, span(&symbol["selectionRange"]).0, depth, out)?;
    let children = symbol["children"].as_array();
    children.into_iter().flatten().try_for_each(|child| print_tree(child, depth + 1, out))
}

fn print_symbol(symbol: &Value, (line, column): Position, depth: usize, out: &mut impl Write) -> io::Result<()> {
    let kind = symbol["kind"].as_u64().and_then(|kind| KINDS.get(usize::try_from(kind).ok()?.checked_sub(1)?));
    let (indent, kind, name) = ("  ".repeat(depth), kind.unwrap_or(&"symbol"), one_line(&symbol["name"]));
    writeln!(out, "{indent}{}:{}  {kind}  {name}", line + 1, column + 1)
}

fn print_diagnostic(diagnostic: &Value, out: &mut impl Write) -> io::Result<()> {
    let ((line, column), _) = span(&diagnostic["range"]);
    let severity =
        diagnostic["severity"].as_u64().and_then(|n| SEVERITIES.get(usize::try_from(n).ok()?.checked_sub(1)?));
    write!(out, "{}:{} {}", line + 1, column + 1, severity.unwrap_or(&"error"))?;
    match &diagnostic["code"] {
        Value::Null => {}
        code => write!(out, " {}", one_line(code))?,
    }
    write!(out, " {}", one_line(&diagnostic["message"]))?;
    match &diagnostic["source"] {
        Value::Null => writeln!(out),
        source => writeln!(out, " ({})", one_line(source)),
    }
}

type Position = (u64, u64);

fn span(range: &Value) -> (Position, Position) {
    let at = |end: &Value| (end["line"].as_u64().unwrap_or(0), end["character"].as_u64().unwrap_or(0));
    (at(&range["start"]), at(&range["end"]))
}

fn one_line(text: &Value) -> String {
    let text = text.as_str().map_or_else(|| text.to_string(), str::to_owned);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    fn printed(print: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        print(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn range(start: Position, end: Position) -> Value {
        let at = |(line, character)| json!({ "line": line, "character": character });
        json!({ "start": at(start), "end": at(end) })
    }

    #[test]
    fn a_uri_is_the_path_again_however_it_is_spelt() {
        let path = Path::new(OsStr::from_bytes(b"/a b/\xc3\xa4#?%[1]:\xff~.py"));
        let own = uri(path);
        assert_eq!(own, "file:///a%20b/%C3%A4%23%3F%25%5B1%5D%3A%FF~.py");
        for spelling in [own.as_str(), "file://localhost/a%20b/%c3%a4%23%3F%25[1]:%ff~.py"] {
            assert!(is_uri_of(&json!(spelling), path), "{spelling}");
        }
        for other in [json!("file:///a b/x.py"), json!("http://a/b"), json!("file://"), json!(null)] {
            assert!(!is_uri_of(&other, path), "{other}");
        }
    }

    #[test]
    fn a_tree_of_symbols_is_printed_as_one() {
        let leaf =
            json!({ "name": "x", "kind": 13, "range": range((2, 0), (2, 9)), "selectionRange": range((2, 4), (2, 5)) });
        let mut root =
            json!({ "name": "f", "kind": 12, "range": range((1, 0), (3, 0)), "selectionRange": range((1, 4), (1, 5)) });
        root["children"] = json!([leaf]);
        let text = printed(|out| print_symbols(&json!([root]), out));
        assert_eq!(text, "  2:5  function  f\n    3:5  variable  x\n");
    }

    #[test]
    fn a_flat_list_is_nested_by_its_ranges() {
        let symbol =
            |name, kind, start, end| json!({ "name": name, "kind": kind, "location": { "range": range(start, end) } });
        let flat = json!([
            symbol("after", 13, (9, 0), (9, 5)),
            symbol("method", 6, (2, 4), (4, 0)),
            symbol("Class", 5, (1, 0), (5, 0)),
            symbol("odd", 99, (3, 8), (3, 9)),
        ]);
        let text = printed(|out| print_symbols(&flat, out));
        assert_eq!(
            text,
            "  2:1  class  Class\n    3:5  method  method\n      4:9  symbol  odd\n  10:1  variable  after\n"
        );
        assert_eq!(printed(|out| print_symbols(&Value::Null, out)), "", "a server may answer null");
    }

    #[test]
    fn a_diagnostic_is_one_line_with_what_there_is() {
        let mut diagnostic = json!({ "range": range((2, 0), (2, 1)), "message": "not\n  this way" });
        assert_eq!(printed(|out| print_diagnostic(&diagnostic, out)), "3:1 error not this way\n");
        diagnostic["severity"] = json!(2);
        diagnostic["code"] = json!(501);
        diagnostic["source"] = json!("lint");
        assert_eq!(printed(|out| print_diagnostic(&diagnostic, out)), "3:1 warning 501 not this way (lint)\n");
    }

    #[test]
    fn a_server_is_answered_as_many_settings_as_it_asked_for() {
        let asked = json!({ "items": [{}, {}] });
        assert_eq!(answer("workspace/configuration", &asked), Ok(json!([null, null])));
        assert_eq!(answer("client/registerCapability", &json!({})), Ok(Value::Null));
        assert_eq!(answer("my/own", &json!({})).unwrap_err().code, Some(-32601));
    }
}
