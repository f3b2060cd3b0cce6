//! Who owns what: the services of the kernel, how they start, and how they end.

use std::thread;
use std::time::{Duration, Instant};

use microio::{Failure, ScopeGroup, Sender, Service, ServiceGroup, TrySendError, channel};
use serde_json::json;
use tracing::{debug, info};

use crate::control::{control, signals};
use crate::input::stdin;
use crate::message::{Connection, Message, Request};
use crate::session::interpreter;
use crate::sockets::{Handler, heartbeat, publisher, router};

/// How long what was sent along with something else may be on its way: with a cell that fails, or before the end.
pub(crate) const SETTLE: Duration = Duration::from_millis(20);
/// How long a start may take.
const START: Duration = Duration::from_secs(10);
/// How long what is cancelled at the deadline may take to end; and then the services, all together.
const MOMENT: Duration = Duration::from_millis(50);

/// Runs the kernel until a client, a signal or a failure ends it. Then what is queued may run on, for as long as `drain`.
///
/// # Errors
/// What did not start, what failed, or what was stuck when the time was up.
pub(crate) fn run(connection: &Connection, drain: Duration) -> Result<(), Failure> {
    let mut services = ServiceGroup::new("minikernel");
    let end = services.scope().clone(); // closed by whoever ends the kernel
    let cells = ScopeGroup::new(); // the cell that runs, if one does
    let (iopub, published) = channel();
    let (requests, queue) = channel();
    let (stdin, input) = stdin(connection);
    let (replies, outbox) = channel();
    let shell = Shell { requests: requests.clone(), replies: replies.clone(), iopub: iopub.clone() };
    let shell = router("shell", connection, connection.shell_port, outbox, shell);
    let control = control(connection, end.clone(), requests.clone(), cells.clone(), iopub.clone());
    let signals = signals(end, cells.clone());
    let interrupters = [control.handle(), signals.handle()];
    let interpreter = interpreter(queue, cells.clone(), interrupters, input, iopub, replies);

    // In this order: who is started later may use those who are there.
    services.add(signals).add(heartbeat(connection)).add(publisher(connection, published));
    services.add(stdin).add(interpreter.clone()).add(shell).add(control);
    services.start_all(Some(START))?;
    let why = services.scope().wait_blocking(None)?;
    info!("ending: {why}");

    if !requests.is_closed() {
        thread::sleep(SETTLE);
        requests.close(); // what is queued is done, and then the interpreter ends
    }
    let drain = drain.saturating_sub(SETTLE);
    let time_is_up = Instant::now() + drain + 2 * MOMENT;
    if interpreter.join(Some(drain)).is_err() {
        cells.cancel_latched("the kernel ends");
        let _named_below = interpreter.join(Some(MOMENT));
    }
    let report = services.stop_join(why, Some(time_is_up.saturating_duration_since(Instant::now())));
    if !report.stuck.is_empty() {
        return Err(Failure::msg(format!("stuck: {}", report.stuck.join(", "))));
    }
    report.errors.into_iter().next().map_or(Ok(()), |error| Err(error.into()))
}

/// Takes requests, and passes them on: while a cell runs, they are queued.
struct Shell {
    requests: Sender<Request>,
    replies: Sender<Message>,
    iopub: Sender<Message>,
}

impl Handler for Shell {
    async fn on_request(&mut self, request: Request) {
        if let Err(TrySendError::Closed(late) | TrySendError::Full(late)) = self.requests.try_send(request) {
            send(&self.iopub, late.status("busy"));
            send(&self.replies, late.reply(json!({ "status": "aborted" })));
            send(&self.iopub, late.status("idle"));
        }
    }
}

/// Puts a message into the outbox of a service. When that has ended, so does the kernel, and nobody reads the message.
pub(crate) fn send(outbox: &Sender<Message>, message: Message) {
    if outbox.try_send(message).is_err() {
        debug!("a message came too late to be sent");
    }
}
