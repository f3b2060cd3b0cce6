//! A client of language servers and debug adapters over stdio: the program that `microio` is for.
//!
//! Bottom up: [`framing`] makes messages of bytes, [`message`] knows what they mean in the two dialects,
//! [`process`] holds the server's process, [`rpc`] is the connection, [`lsp`] and [`dap`] are what is done with it.
//! Invariant: each knows those before it only.

pub mod dap;
pub mod framing;
pub mod lsp;
pub mod message;
pub mod process;
pub mod rpc;
