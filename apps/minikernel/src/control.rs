//! What is heard while a cell runs: interrupts, and the call to end. By message and by signal.

use std::env;
use std::future::pending;
use std::pin::pin;

use microio::{CloseScope, Failure, LoopServiceThread, ScopeGroup, Sender, channel, sleep};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::{Value as Json, json};
use tokio::io::unix::AsyncFd;
use tokio::select;
use tokio::signal::unix::{SignalKind, signal};
use tracing::warn;

use crate::kernel::{SETTLE, send};
use crate::message::{Connection, Message, PROTOCOL, Request};
use crate::sockets::{Handler, router};

pub(crate) fn control(
    connection: &Connection,
    end: CloseScope,
    requests: Sender<Request>,
    cells: ScopeGroup,
    iopub: Sender<Message>,
) -> LoopServiceThread {
    let (replies, outbox) = channel();
    router("control", connection, connection.control_port, outbox, Control { end, requests, cells, iopub, replies })
}

struct Control {
    end: CloseScope,
    requests: Sender<Request>,
    cells: ScopeGroup,
    iopub: Sender<Message>,
    replies: Sender<Message>,
}

impl Handler for Control {
    async fn on_request(&mut self, request: Request) {
        send(&self.iopub, request.status("busy"));
        match request.kind() {
            "kernel_info" => send(&self.replies, request.reply(kernel_info())),
            "interrupt" => {
                self.cells.cancel("interrupted by a client");
                send(&self.replies, request.reply(json!({ "status": "ok" })));
            }
            "shutdown" => {
                sleep(SETTLE).await;
                self.requests.close(); // before the reply: what is sent after that is refused
                let content = json!({ "status": "ok", "restart": request.content["restart"] == true });
                send(&self.replies, request.reply(content.clone()));
                send(&self.iopub, request.publish("shutdown_reply", content));
                self.end.close("shut down by a client");
            }
            unknown => warn!("control: ignored a message of type {unknown:?}"),
        }
        send(&self.iopub, request.status("idle"));
    }
}

/// SIGINT interrupts. SIGTERM, and the end of the process that started the kernel, end it.
pub(crate) fn signals(end: CloseScope, cells: ScopeGroup) -> LoopServiceThread {
    LoopServiceThread::new("signals", |cx| async move {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let mut parent = pin!(parent_gone());
        cx.started();
        loop {
            select! {
                _ = interrupt.recv() => {
                    cells.cancel("interrupted by SIGINT");
                }
                _ = terminate.recv() => {
                    end.close("SIGTERM");
                }
                gone = &mut parent => {
                    end.close("the process that started the kernel is gone");
                    return gone;
                }
            }
        }
    })
}

/// Waits for the end of the process that Jupyter's launcher names; for ever if there is none that can be watched.
async fn parent_gone() -> Result<(), Failure> {
    let pid = env::var("JPY_PARENT_PID").ok().and_then(|pid| Pid::from_raw(pid.parse().ok()?));
    match pid.map(|pid| pidfd_open(pid, PidfdFlags::NONBLOCK)) {
        Some(Ok(process)) => {
            #[allow(deprecated, reason = "sound for an OwnedFd, which stays open as long as this")]
            let _ended = AsyncFd::new(process)?.readable().await?;
            Ok(())
        }
        Some(Err(Errno::SRCH)) => Ok(()),
        _ => pending().await,
    }
}

pub(crate) fn kernel_info() -> Json {
    let version = env!("CARGO_PKG_VERSION");
    json!({
        "status": "ok", "protocol_version": PROTOCOL, "implementation": "minikernel", "implementation_version": version,
        "language_info": { "name": "mini", "version": version, "mimetype": "text/plain", "file_extension": ".mini" },
        "banner": "minikernel: a small Jupyter kernel, built on microio", "help_links": [],
    })
}
