//! A small in-process service, driven by a plain thread.
//!
//! The counter lives on its own loop thread and nowhere else. Requests travel to it through a channel, replies back through a
//! registry that closes with the service: when the service ends, nobody who waits for it is left behind.

use std::cell::Cell;
use std::time::Duration;

use microio::{
    CallError, CloseScope, Failure, LoopHandle, LoopServiceThread, Receiver, ReplyHandle, RequestError,
    RequestRegistry, Sender, Service, channel,
};

const SECOND: Option<Duration> = Some(Duration::from_secs(1));

struct Request {
    op: &'static str,
    amount: i64,
    reply: ReplyHandle<u64, i64>,
}

thread_local! {
    static TOTAL: Cell<i64> = const { Cell::new(0) };
}

/// The service's side, on the loop thread.
async fn serve(mut requests: Receiver<Request>) -> Result<(), Failure> {
    while let Ok(Request { op, amount, reply }) = requests.recv().await {
        match op {
            "add" => {
                TOTAL.set(TOTAL.get() + amount);
                let _ = reply.resolve(TOTAL.get());
            }
            "get" => {
                let _ = reply.resolve(TOTAL.get());
            }
            unknown => {
                reply.fail(Failure::msg(format!("unknown operation: {unknown}")));
            }
        }
    }
    Ok(())
}

/// The caller's side, on any thread.
struct Client {
    requests: Sender<Request>,
    waiting: RequestRegistry<u64, i64>,
    next: Cell<u64>,
    loop_handle: LoopHandle,
    closed: CloseScope,
}

impl Client {
    fn ask(&self, op: &'static str, amount: i64) -> Result<i64, RequestError> {
        let id = self.next.replace(self.next.get() + 1);
        let send = |reply| self.requests.try_send(Request { op, amount, reply }).map_err(|_| Failure::msg("closed"));
        self.waiting.ask_blocking(id, send, SECOND)
    }

    fn peek(&self) -> Result<i64, CallError> {
        self.loop_handle.call_sync(|| TOTAL.get(), SECOND)
    }
}

fn main() -> Result<(), Failure> {
    let (requests, receiver) = channel();
    let server = LoopServiceThread::new("counter", |cx| async move {
        cx.started();
        serve(receiver).await
    });
    let client = Client {
        requests,
        waiting: RequestRegistry::bound_to(server.scope()),
        next: Cell::new(1),
        loop_handle: server.handle(),
        closed: server.scope().clone(),
    };

    println!("starting server");
    server.start()?;
    server.wait_started(SECOND)?;
    println!("add 3 -> {}", client.ask("add", 3)?);
    println!("add 7 -> {}", client.ask("add", 7)?);
    println!("get -> {}", client.ask("get", 0)?);
    println!("loop-thread peek -> {}", client.peek()?);
    match client.ask("missing", 0) {
        Err(error) => println!("bad request -> {error}"),
        Ok(value) => println!("bad request -> answered {value}"),
    }
    server.stop("stop".into());
    println!("closed -> {}", client.closed.wait_blocking(SECOND)?);
    println!("joined -> {}", if server.join_or_log(SECOND) { "ok" } else { "timeout" });
    Ok(())
}
