//! `create_channel`: from any thread into a loop, on the core's channel.
//!
//! Several tasks may wait in `receive()`: see `line`.
//!
//! | send finds | `late_send="raise"` | `"drop"` |
//! |---|---|---|
//! | open | queued: the running count | the same |
//! | full | `asyncio.QueueFull`; `await send()` waits | the same |
//! | closed, failed | ClosedResourceError (from the failure) | None, counted as dropped |
//! | the loop that it is bound to is closed | BrokenResourceError | None, counted as dropped |

use std::future::{Future, ready};
use std::num::NonZeroUsize;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use microio::{Sender, TrySendError};
use pyo3::exceptions::{PyBaseException, PyRuntimeError, PyStopAsyncIteration, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyList, PyType};
use pyo3::{PyTraverseError, PyVisit, intern};

use crate::awaitable::{Awaitable, Operation, Primitive, Step, Waiting};
use crate::entry::check;
use crate::errors::{Raised, broken, closed, end_of_stream, queue_full};
use crate::event_loop::{end_of, is_closed, need_running_loop, runs_here};
use crate::line::{End, Line, Look, Ticket};
use crate::number::{Count, expected};
use crate::once::Once;
use crate::raw::{call, is_last};
use crate::wake::{Born, Tasks, before, lock};

pub(crate) type Item = Py<PyAny>;

/// What both endpoints refer to; the one owner of the queue, as the garbage collector sees it.
#[pyclass(frozen, weakref, module = "microio._microio")]
pub(crate) struct Channel {
    sender: Sender<Item>,
    pub(crate) line: Line,
    /// The loop that it is bound to; and the one that it was bound to again, when that was closed.
    first_bound: OnceLock<Py<PyAny>>,
    rebound: Mutex<Option<Py<PyAny>>>,
    is_rebound: AtomicBool,
    /// Of a bounded one: over once it is bound.
    unbound: Option<microio::CloseScope>,
    cause: Mutex<Option<Raised>>,
    drop_late: bool,
    count: AtomicU64,
    /// Sends that found the loop closed; the core counts those that found the channel closed.
    refused: AtomicU64,
    /// What `receive()` and `async for` return, when nobody else holds them.
    spares: [OnceLock<Py<Awaitable>>; 2],
    /// In `send()`; those in `receive()` stand in the line.
    tasks: Tasks,
    born: Born,
}

impl Primitive for Channel {
    const WHAT: &'static str = "a channel";
    fn born(&self) -> Born {
        self.born
    }
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

impl Channel {
    fn bound(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        if self.is_rebound.load(Ordering::Acquire) {
            return lock(&self.rebound).as_ref().map(|loop_| loop_.clone_ref(py));
        }
        self.first_bound.get().map(|loop_| loop_.clone_ref(py))
    }

    /// The loop that it is bound to, which must be the running one.
    ///
    /// # Errors
    /// RuntimeError on another loop, unless the bound one is closed.
    pub(crate) fn enter(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.born.check(Self::WHAT)?;
        match self.bound(py) {
            Some(bound) if runs_here(bound.bind(py))? => return Ok(bound),
            Some(bound) if !is_closed(bound.bind(py))? => {
                need_running_loop(py)?;
                return Err(PyRuntimeError::new_err("this channel is bound to another event loop"));
            }
            _ => {}
        }
        let running = need_running_loop(py)?.unbind();
        self.bind(py, running.clone_ref(py))?;
        Ok(running)
    }

    fn bind(&self, py: Python<'_>, loop_: Py<PyAny>) -> PyResult<()> {
        let Some(bound) = self.bound(py) else {
            let _second = self.first_bound.set(loop_);
            if let Some(unbound) = &self.unbound {
                unbound.close("bound");
            }
            return Ok(());
        };
        if is_closed(bound.bind(py))? {
            let replaced = lock(&self.rebound).replace(loop_);
            self.is_rebound.store(true, Ordering::Release);
            drop(replaced);
            self.line.restart();
        }
        Ok(())
    }

    /// The error of a receive after the end.
    pub(crate) fn end(&self, py: Python<'_>, end: End) -> PyErr {
        let cause = lock(&self.cause).as_ref().map(|cause| cause.clone_ref(py));
        match (end, cause) {
            (End::Failed, Some(cause)) => cause.raise(py),
            _ => end_of_stream(py),
        }
    }

    /// Counts a send; the GIL keeps others from doing so at the same time.
    fn count_one(&self) -> u64 {
        let count = self.count.load(Ordering::Relaxed) + 1;
        self.count.store(count, Ordering::Relaxed);
        count
    }

    fn late(&self, py: Python<'_>) -> PyResult<Option<u64>> {
        if self.drop_late {
            return Ok(None);
        }
        let cause = lock(&self.cause).as_ref().map(|cause| cause.clone_ref(py));
        Err(closed(py, "send on closed channel", cause.map(|cause| cause.raise(py))))
    }

    /// Whether the bound loop is gone: nobody would receive what is sent now.
    fn is_orphaned(&self, py: Python<'_>) -> PyResult<bool> {
        match self.bound(py) {
            Some(loop_) => is_closed(loop_.bind(py)),
            None => Ok(false),
        }
    }

    fn orphaned(&self, py: Python<'_>) -> PyResult<Option<u64>> {
        self.refused.fetch_add(1, Ordering::Relaxed);
        if self.drop_late {
            return Ok(None);
        }
        Err(broken(py, "the receiver's event loop is closed", None))
    }

    /// The end of the bound loop, for who waits on another one: who waits on that loop ends with it.
    fn foreign_end(&self, py: Python<'_>) -> PyResult<Option<microio::CloseScope>> {
        match self.bound(py) {
            Some(loop_) if !runs_here(loop_.bind(py))? => end_of(loop_.bind(py)).map(Some),
            _ => Ok(None),
        }
    }

    fn send_nowait(&self, py: Python<'_>, item: Item) -> PyResult<Option<u64>> {
        if self.is_orphaned(py)? && !self.sender.is_closed() {
            return self.orphaned(py);
        }
        match self.sender.try_send(item) {
            Ok(()) => Ok(Some(self.count_one())),
            Err(TrySendError::Closed(_)) => self.late(py),
            Err(TrySendError::Full(_)) => Err(queue_full(py)),
        }
    }

    fn fail(&self, exc: &Bound<'_, PyBaseException>) -> PyResult<bool> {
        let raised = Raised::new(exc)?;
        if self.sender.is_closed() {
            return Ok(false);
        }
        let replaced = lock(&self.cause).replace(raised);
        drop(replaced);
        Ok(self.sender.fail(microio::Failure::msg("failed")))
    }

    pub(crate) fn drain(&self, max_items: Option<Count>) -> Vec<Item> {
        self.line.with_inbox(|inbox| inbox.receiver.drain(max_items.map(Count::get)))
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        static TYPE: Once<Py<PyAny>> = Once::new();
        let stats = self.sender.stats();
        let dropped = stats.dropped + self.refused.load(Ordering::Relaxed);
        let numbers = [stats.sent, stats.received, dropped, stats.queued].map(|number| number.into_pyobject(py));
        let [sent, received, dropped, queued] = numbers.map(|Ok(number)| number);
        let closed = PyBool::new(py, stats.closed);
        call(TYPE.import(py, "microio._channel", "ChannelStats")?, [&sent, &received, &dropped, &queued, &closed])
    }

    fn describe(&self, what: &Bound<'_, PyAny>) -> PyResult<String> {
        let name = what.get_type().name()?;
        let stats = self.sender.stats();
        let state = match (stats.closed, lock(&self.cause).is_some()) {
            (_, true) => "failed",
            (true, false) => "closed",
            (false, false) => "open",
        };
        Ok(format!("<{name} {state} queued={}>", stats.queued))
    }
}

#[pymethods]
impl Channel {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(self.first_bound.get())?;
        if let Ok(rebound) = self.rebound.try_lock() {
            visit.call(&*rebound)?;
        }
        self.spares.iter().try_for_each(|spare| visit.call(spare.get()))?;
        if let Some(Some(cause)) = self.cause.try_lock().ok().as_deref() {
            cause.visit(&visit)?;
        }
        self.tasks.visit(&visit)?;
        self.line.visit(&visit)
    }

    fn __clear__(&self) {
        let cleared = (lock(&self.cause).take(), self.drain(None));
        drop(cleared);
    }
}

/// The sending end. Every method may be called from any thread, and from signal handlers.
#[pyclass(frozen, subclass, dict, weakref, module = "microio")]
pub(crate) struct ObjectSendChannel {
    channel: Py<Channel>,
    born: Born,
}

#[pymethods]
impl ObjectSendChannel {
    #[classmethod]
    fn __class_getitem__(class: &Bound<'_, PyType>, item: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        generic(class, item)
    }

    /// Sends without waiting. Returns how many have been sent, or None if it was too late and `late_send` is "drop".
    ///
    /// Raises ClosedResourceError after close() or fail(), BrokenResourceError when the receiver's loop is closed, and
    /// asyncio.QueueFull when a bounded channel is full.
    fn send_nowait(&self, py: Python<'_>, item: Py<PyAny>) -> PyResult<Option<u64>> {
        self.channel.get().send_nowait(py, item)
    }

    /// Sends when there is a place; tasks that wait are served in their order. Returns or raises what `send_nowait()` does,
    /// also if the channel or the receiver's loop is closed meanwhile.
    ///
    /// A send that is cancelled has not sent.
    fn send(&self, py: Python<'_>, item: Py<PyAny>) -> PyResult<Awaitable> {
        let channel = self.channel.clone_ref(py);
        let sender = self.channel.get().sender.clone();
        let wait = async move {
            let orphaned = Python::attach(|py| channel.get().is_orphaned(py))?;
            if orphaned && !sender.is_closed() {
                return Python::attach(|py| Ok(channel.get().orphaned(py)?.into_pyobject(py)?.unbind()));
            }
            let Some(sent) = send_or_end(channel.get(), pin!(sender.send(item))).await? else {
                return Python::attach(|py| Ok(channel.get().orphaned(py)?.into_pyobject(py)?.unbind()));
            };
            Python::attach(|py| {
                let channel = channel.get();
                let count = match sent {
                    Ok(()) => Some(channel.count_one()),
                    Err(_) => channel.late(py)?,
                };
                Ok(count.into_pyobject(py)?.unbind())
            })
        };
        Ok(Awaitable::new("send", Waiting::new(self.channel.clone_ref(py), wait)))
    }

    /// Ends the stream: what was sent is still received, then comes EndOfStream. True for the call that did.
    fn close(&self) -> bool {
        self.channel.get().sender.close()
    }

    /// Ends the stream with an exception: what was sent is still received, then it is raised. True for the call that did.
    fn fail(&self, exc: &Bound<'_, PyBaseException>) -> PyResult<bool> {
        self.channel.get().fail(exc)
    }

    /// Whether it was closed or failed.
    #[getter]
    fn closed(&self) -> bool {
        self.channel.get().sender.is_closed()
    }

    /// What the channel has seen until now.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.channel.get().stats(py)
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        slf.get().channel.get().describe(slf.as_any())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if !self.born.exists() {
            return Ok(());
        }
        visit.call(&self.channel)
    }
}

/// The receiving end: for tasks of one loop, the one that it is bound to.
#[pyclass(frozen, subclass, dict, weakref, module = "microio")]
pub(crate) struct ObjectReceiveChannel {
    pub(crate) channel: Py<Channel>,
    born: Born,
}

#[pymethods]
impl ObjectReceiveChannel {
    #[classmethod]
    fn __class_getitem__(class: &Bound<'_, PyType>, item: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        generic(class, item)
    }

    /// Binds it to a loop, the running one if None. Again: no effect, unless that loop is closed; then what is queued moves
    /// along. The first `receive()` binds too.
    #[pyo3(signature = (r#loop=None))]
    fn bind(&self, py: Python<'_>, r#loop: Option<Bound<'_, PyAny>>) -> PyResult<()> {
        let loop_ = match r#loop {
            Some(loop_) if loop_.hasattr(intern!(py, "call_soon_threadsafe"))? => loop_,
            Some(other) => return Err(expected("an event loop", &other)),
            None => need_running_loop(py)?,
        };
        self.channel.get().bind(py, loop_.unbind())
    }

    /// Waits for the next item. Tasks that wait are served in their order.
    ///
    /// Raises EndOfStream after close(), the exception after fail(), CancelledError in a cancelled scope; RuntimeError on
    /// another loop. A receive that is cancelled loses no item.
    fn receive(&self, py: Python<'_>) -> PyResult<Py<Awaitable>> {
        awaitable(&self.channel, py, false)
    }

    fn __aiter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __anext__(&self, py: Python<'_>) -> PyResult<Py<Awaitable>> {
        awaitable(&self.channel, py, true)
    }

    /// Takes what is queued now, at most `max_items`, without waiting. From any thread, bound or not.
    #[pyo3(signature = (max_items=None))]
    fn drain_nowait<'py>(&self, py: Python<'py>, max_items: Option<Count>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.channel.get().drain(max_items))
    }

    /// The same as the sender's.
    fn close(&self) -> bool {
        self.channel.get().sender.close()
    }

    /// The same as the sender's.
    fn fail(&self, exc: &Bound<'_, PyBaseException>) -> PyResult<bool> {
        self.channel.get().fail(exc)
    }

    /// Whether it was closed or failed.
    #[getter]
    fn closed(&self) -> bool {
        self.channel.get().sender.is_closed()
    }

    /// What the channel has seen until now.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.channel.get().stats(py)
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        slf.get().channel.get().describe(slf.as_any())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if !self.born.exists() {
            return Ok(());
        }
        visit.call(&self.channel)
    }
}

/// What comes of `sending`; None if the receiver's loop, once there is one, is closed before.
async fn send_or_end<T>(channel: &Channel, mut sending: Pin<&mut impl Future<Output = T>>) -> PyResult<Option<T>> {
    if let Some(sent) = before(sending.as_mut(), ready(())).await {
        return Ok(Some(sent));
    }
    if let Some(unbound) = &channel.unbound {
        if let Some(sent) = before(sending.as_mut(), unbound.closed()).await {
            return Ok(Some(sent));
        }
    }
    match Python::attach(|py| channel.foreign_end(py))? {
        Some(end) => Ok(before(sending, end.closed()).await),
        None => Ok(Some(sending.await)),
    }
}

/// `Class[item]`, for annotations.
pub(crate) fn generic(class: &Bound<'_, PyType>, item: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
    static ALIAS: Once<Py<PyAny>> = Once::new();
    ALIAS.import(class.py(), "types", "GenericAlias")?.call1((class, item)).map(Bound::unbind)
}

/// A receive to be awaited: the spare one, if nobody else holds it.
fn awaitable(channel: &Py<Channel>, py: Python<'_>, iterates: bool) -> PyResult<Py<Awaitable>> {
    let spares = &channel.get().spares;
    for abandoned in spares.iter().filter_map(OnceLock::get).filter(|spare| is_last(spare, py)) {
        abandoned.borrow_mut(py).give_up(py);
    }
    let spare = &spares[usize::from(iterates)];
    if let Some(spare) = spare.get().filter(|spare| is_last(spare, py)) {
        spare.borrow_mut(py).renew(py, channel.clone_ref(py).into_any());
        return Ok(spare.clone_ref(py));
    }
    let name = if iterates { "__anext__" } else { "receive" };
    let receive = Receive { channel: Some(channel.clone_ref(py)), ticket: Ticket::default(), iterates };
    let awaitable = Py::new(py, Awaitable::new(name, receive))?;
    let _taken = spare.set(awaitable.clone_ref(py));
    Ok(awaitable)
}

/// A receive in progress.
struct Receive {
    /// None when it is over: the channel's spare one does not keep the channel alive.
    channel: Option<Py<Channel>>,
    ticket: Ticket,
    /// For `async for`, to which the end is StopAsyncIteration.
    iterates: bool,
}

impl Operation for Receive {
    fn step(&mut self, py: Python<'_>) -> PyResult<Step> {
        let Some(channel) = &self.channel else { return Err(PyRuntimeError::new_err("awaited after its end")) };
        let this = channel.get();
        let loop_ = this.enter(py)?;
        loop {
            check(py)?;
            let seen = match this.line.look(&mut self.ticket) {
                Look::Item(item) => {
                    self.channel = None;
                    return Ok(Step::Return(item));
                }
                Look::Pass => return Ok(Step::Pass),
                Look::Ended(End::Closed) if self.iterates => return Err(PyStopAsyncIteration::new_err(())),
                Look::Ended(end) => return Err(this.end(py, end)),
                Look::Wait(seen) => seen,
            };
            if let Some(step) = this.line.stand(py, &loop_, &mut self.ticket, seen)? {
                return Ok(step);
            }
        }
    }

    fn leave(&mut self, _py: Python<'_>) {
        if let Some(channel) = self.channel.take() {
            channel.get().line.leave(&mut self.ticket, false);
        }
    }

    fn renew(&mut self, py: Python<'_>, channel: Py<PyAny>) {
        self.channel = channel.into_bound(py).cast_into().ok().map(Bound::unbind);
    }

    fn visit(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.channel)
    }
}

/// A channel: `(send, receive)`. `late_send` says what a send after the end does: "raise" or "drop". With a `capacity`,
/// `send_nowait()` raises asyncio.QueueFull when that many are queued, and `await send()` waits for a place.
#[pyfunction]
#[pyo3(signature = (*, late_send="raise", capacity=None))]
pub(crate) fn create_channel(
    py: Python<'_>,
    late_send: &str,
    capacity: Option<Count>,
) -> PyResult<(ObjectSendChannel, ObjectReceiveChannel)> {
    let drop_late = match late_send {
        "raise" => false,
        "drop" => true,
        other => {
            let text = format!("late_send must be \"raise\" or \"drop\", not {}", other.into_pyobject(py)?.repr()?);
            return Err(PyValueError::new_err(text));
        }
    };
    let (sender, receiver) = match capacity.map(|capacity| NonZeroUsize::new(capacity.get())) {
        None => microio::channel(),
        Some(Some(capacity)) => microio::bounded(capacity),
        Some(None) => return Err(PyValueError::new_err("capacity must be at least 1, or None for no bound")),
    };
    let channel = Channel {
        sender,
        line: Line::new(receiver, capacity.is_some()),
        first_bound: OnceLock::new(),
        rebound: Mutex::default(),
        is_rebound: AtomicBool::new(false),
        unbound: capacity.map(|_| microio::CloseScope::new()),
        cause: Mutex::default(),
        drop_late,
        count: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        spares: Default::default(),
        tasks: Tasks::default(),
        born: Born::now(),
    };
    let channel = Py::new(py, channel)?;
    let born = Born::now();
    Ok((ObjectSendChannel { channel: channel.clone_ref(py), born }, ObjectReceiveChannel { channel, born }))
}
