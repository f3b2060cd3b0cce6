//! The connection, driven from inside: what becomes of replies, requests and the process when somebody gives up.

mod common;

use std::ffi::OsString;
use std::future::{Future, poll_fn};
use std::task::Poll;
use std::time::Duration;

use common::{Log, misbehave};
use microio::CloseScope;
use serde_json::json;
use stdio_rpc::message::Dialect;
use stdio_rpc::rpc::{Connection, End, Error, Server};
use stdio_rpc::{dap, lsp};

/// `env` hands the log to a server that is started from here.
fn server(mode: &str, dialect: Dialect, log: &Log) -> Server {
    let variable = |name: &str, value: OsString| {
        let mut word = OsString::from(format!("{name}="));
        word.push(value);
        word
    };
    let log = variable("MISBEHAVE_LOG", log.path.clone().into());
    Server {
        command: vec!["env".into(), log, misbehave().into(), mode.into()],
        dialect,
        answer: if dialect == Dialect::JsonRpc { lsp::answer } else { dap::answer },
        timeout: Duration::from_secs(60),
        grace: Duration::from_secs(60),
        verbose: false,
        stop: CloseScope::new(),
    }
}

/// Sends it and stops waiting for it.
async fn send_and_drop(connection: &Connection, method: &str) {
    let mut request = Box::pin(connection.request(method, json!({})));
    poll_fn(|cx| {
        assert!(request.as_mut().poll(cx).is_pending());
        Poll::Ready(())
    })
    .await;
    assert_eq!(connection.pending(), 1);
    drop(request);
    assert_eq!(connection.pending(), 0);
}

#[tokio::test]
async fn a_late_reply_harms_nobody() {
    let log = Log::new();
    let outcome = server("late", Dialect::JsonRpc, &log).run(async |connection, _| {
        send_and_drop(connection, "slow").await;
        let echo = connection.request("echo", json!({ "n": 1 })).await?;
        assert_eq!(echo, json!({ "n": 1 }), "the late reply to the other one came before");
        connection.request("shutdown", json!(null)).await?;
        connection.notify("exit", json!(null));
        Ok(())
    });
    outcome.await.unwrap();
    assert_eq!(log.lines.rest(), ["slow", "$/cancelRequest 1", "echo", "shutdown", "exit"]);
}

#[tokio::test]
async fn an_adapter_is_told_of_a_cancel_if_it_understands() {
    let log = Log::new();
    let outcome = server("good", Dialect::Dap, &log).run(async |connection, _| {
        send_and_drop(connection, "threads").await;
        dap::initialize(connection).await?;
        send_and_drop(connection, "threads").await;
        dap::leave(connection).await;
        Ok(())
    });
    outcome.await.unwrap();
    // The first "threads" was given up before the adapter had said what it understands.
    assert_eq!(log.lines.rest(), ["threads", "initialize", "threads", "cancel 4", "disconnect", "end of file"]);
}

#[tokio::test]
async fn a_connection_that_is_dropped_takes_its_processes_along() {
    let log = Log::new();
    let mut running = Box::pin(
        server("stubborn", Dialect::JsonRpc, &log)
            .run(async |connection, _| connection.request("initialize", json!({})).await),
    );
    let started = tokio::task::spawn_blocking(move || {
        log.lines.until("sleeping");
        log
    });
    let log = tokio::select! {
        outcome = &mut running => panic!("{outcome:?}"),
        log = started => log.unwrap(),
    };
    drop(running);
    assert!(tokio::task::spawn_blocking(move || log.lines.rest()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_connection_that_was_stopped_before_it_began_ends_at_once() {
    let log = Log::new();
    let server = server("stubborn", Dialect::JsonRpc, &log);
    server.stop.close("enough");
    let outcome = server.run(async |connection, _| connection.request("initialize", json!({})).await);
    let Err(Error::Ended(cause)) = outcome.await else { panic!() };
    assert!(matches!(cause.downcast_ref(), Some(End::Killed(_))), "{cause}");
}
