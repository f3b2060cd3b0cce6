//! `CancelScope`: level-triggered cancellation beside asyncio's own. `with scope` makes an [`Entry`], one for each task inside.
//!
//! # Rules
//!
//! 1. One `cancel()` wins: reason, flag, then a request for each entry. `__enter__` adds its entry, then reads the flag: in
//!    either order of the two each entry is asked at least once, and `issued` keeps it at one `Task.cancel()`.
//! 2. A running task is never cancelled: the request is a callback of the entry's loop, which finds the task suspended
//!    *inside* the scope, or the entry gone. So nothing is ever pending when a scope is left.
//! 3. Leaving takes back what we issued (`uncancel`); if the task is asked to cancel beyond what it was on entering, that is
//!    somebody else's request, and it wins.
//! 4. The outermost cancelled scope of a task catches.
//! 5. Checkpoints are level-triggered: they look at the chain of entries.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};

use pyo3::exceptions::{PyRuntimeError, PyTimeoutError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFloat, PyTuple, PyType};
use pyo3::{PyTraverseError, PyVisit, intern};
use slab::Slab;

use crate::entry::{Entry, LIVE, chain, innermost};
use crate::errors::cancelled_type;
use crate::event_loop::{call_soon, current_task, now, running_loop, running_task, runs_here};
use crate::number::Seconds;
use crate::raw::{call, call_method};
use crate::wake::{Born, block, lock};

/// A region of code that can be cancelled, by anybody, for a reason, or by a deadline.
///
/// `with scope:` enters it with the running task; several tasks may be in one scope. When it is cancelled, each task inside
/// gets one `Task.cancel()` at its next await, and every `checkpoint()`, `sleep()` and `receive()` raises CancelledError from
/// then on. The `with` swallows that CancelledError if nobody else asked the task to cancel and no enclosing scope of the task
/// is cancelled too.
///
/// `deadline` is on the loop's clock; `delay` in seconds sets it at each outermost enter.
#[pyclass(frozen, subclass, dict, weakref, module = "microio")]
pub(crate) struct CancelScope {
    state: Mutex<State>,
    /// A copy of `State::cancelled` for checkpoints.
    cancelled: AtomicBool,
    born: Born,
}

/// A handle of the loop's, and the loop.
type Timer = Option<(Py<PyAny>, Py<PyAny>)>;

#[derive(Default)]
struct State {
    deadline: Option<f64>,
    delay: Option<f64>,
    raise_timeout: bool,
    reason: Option<Py<PyAny>>,
    cancelled: bool,
    caught: bool,
    timed_out: bool,
    entries: Slab<Py<Entry>>,
    /// It counts in `LIVE`.
    counted: bool,
    /// The timer of the deadline.
    timer: Timer,
    /// For threads that wait for the cancel; made by the first, closed and taken by the cancel.
    waited_for: Option<microio::CloseScope>,
}

/// The cancel itself. Tasks of the loop `inline` are suspended, and cancelled at once.
fn end(
    scope: &CancelScope,
    py: Python<'_>,
    reason: Option<Py<PyAny>>,
    timed_out: bool,
    wake: bool,
    inline: Option<&Py<PyAny>>,
) -> PyResult<bool> {
    let mut state = lock(&scope.state);
    if state.cancelled {
        drop(state);
        return Ok(false);
    }
    let assigned = std::mem::replace(&mut state.reason, reason);
    state.timed_out = timed_out;
    state.cancelled = true;
    scope.cancelled.store(true, Ordering::Release);
    state.recount();
    let entries: Vec<_> = state.entries.iter().map(|(_, entry)| entry.clone_ref(py)).collect();
    let waited_for = state.waited_for.take();
    drop(state);
    drop(assigned);
    if let Some(waited_for) = waited_for {
        waited_for.close("cancelled");
    }
    for entry in entries {
        if inline.is_some_and(|loop_| loop_.is(&entry.get().loop_)) {
            entry.get().deliver(py)?;
        } else {
            Entry::request(entry.bind(py), wake)?;
        }
    }
    Ok(true)
}

/// A timer of the deadline has come, on this loop.
pub(crate) fn expire(scope: &CancelScope, py: Python<'_>, deadline: f64, loop_: &Py<PyAny>) -> PyResult<()> {
    // Not if it was overtaken by a new deadline in the moment that it came.
    let current = scope.get(|state| state.deadline == Some(deadline) && !state.entries.is_empty());
    if current {
        let reason = intern!(py, "deadline").clone().into_any().unbind();
        end(scope, py, Some(reason), true, false, Some(loop_))?;
    }
    Ok(())
}

/// Sets the timer for the deadline, in place of the one before; in the thread of the entry's loop.
fn arm(scope: &CancelScope, entry: &Bound<'_, Entry>) -> PyResult<()> {
    let py = entry.py();
    let loop_ = entry.get().loop_.bind(py);
    let deadline = scope.get(|state| state.deadline.filter(|_| !state.cancelled && !state.entries.is_empty()));
    let timer = match deadline.filter(|deadline| *deadline != f64::INFINITY) {
        None => None,
        Some(deadline) => {
            let at = PyFloat::new(py, deadline);
            let handle = if deadline <= now(loop_)? {
                // Before what the task does next: a timer would come after the callbacks that are ready.
                call_method(intern!(py, "call_soon"), [loop_, entry, &at], None)?
            } else {
                call_method(intern!(py, "call_at"), [loop_, &at, entry, &at], None)?
            };
            Some((handle.unbind(), loop_.clone().unbind()))
        }
    };
    let replaced = std::mem::replace(&mut lock(&scope.state).timer, timer);
    cancel_timer(py, replaced)
}

/// Takes an entry out of its scope and of the running context, which it may not be the innermost of. The timer is to be
/// cancelled: nobody is left.
fn leave(scope: &CancelScope, entry: &Bound<'_, Entry>) -> PyResult<Timer> {
    let py = entry.py();
    let entry_ = entry.get();
    entry_.live.store(false, Ordering::Release);
    let mut state = lock(&scope.state);
    let removed = entry_.key.get().and_then(|key| state.entries.try_remove(*key));
    state.recount();
    let timer = if state.entries.is_empty() { state.timer.take() } else { None };
    drop(state);
    drop(removed);
    if innermost(py)?.is_some_and(|innermost| innermost.is(entry)) {
        // Scopes that were left out of turn are skipped with it.
        let mut outer = entry_.outer(py);
        while let Some(dead) = outer.take_if(|outer| !outer.get().is_live()) {
            outer = dead.get().outer(py);
        }
        chain(py)?.call_method1(intern!(py, "set"), (outer,))?;
    }
    Ok(timer)
}

fn cancel_timer(py: Python<'_>, timer: Timer) -> PyResult<()> {
    let Some((timer, loop_)) = timer else { return Ok(()) };
    let here = runs_here(loop_.bind(py))?;
    let cancel = timer.bind(py).getattr(intern!(py, "cancel"))?;
    if here { call(&cancel, []).map(drop) } else { call_soon(loop_.bind(py), &cancel, false) }
}

impl State {
    /// Brings `LIVE` up to date.
    fn recount(&mut self) {
        let live = self.cancelled && !self.entries.is_empty();
        if live != self.counted {
            self.counted = live;
            match live {
                true => LIVE.fetch_add(1, Ordering::Release),
                false => LIVE.fetch_sub(1, Ordering::Release),
            };
        }
    }
}

impl CancelScope {
    fn set(&self, set: impl FnOnce(&mut State)) {
        set(&mut lock(&self.state));
    }

    fn get<T>(&self, get: impl FnOnce(&State) -> T) -> T {
        get(&lock(&self.state))
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    fn make(delay: Option<Seconds>, raise_timeout: bool) -> Self {
        let state = State { delay: delay.map(|delay| delay.0), raise_timeout, ..State::default() };
        CancelScope { state: Mutex::new(state), cancelled: AtomicBool::new(false), born: Born::now() }
    }
}

#[pymethods]
impl CancelScope {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs), text_signature = "(*, deadline=None, delay=None, raise_timeout=False)")]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        CancelScope::make(None, false)
    }

    #[pyo3(signature = (*, deadline=None, delay=None, raise_timeout=false))]
    fn __init__(&self, deadline: Option<Seconds>, delay: Option<Seconds>, raise_timeout: bool) {
        let (deadline, delay) = (deadline.map(|deadline| deadline.0), delay.map(|delay| delay.0));
        self.set(|state| (state.deadline, state.delay, state.raise_timeout) = (deadline, delay, raise_timeout));
    }

    /// When it will be cancelled, on the clock of the loop; None for never. It may be moved while the scope is active.
    #[getter]
    fn deadline(&self) -> Option<f64> {
        self.get(|state| state.deadline)
    }

    #[setter]
    fn set_deadline(slf: &Bound<'_, Self>, deadline: Option<Seconds>) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        this.set(|state| state.deadline = deadline.map(|deadline| deadline.0));
        let first = this.get(|state| state.entries.iter().next().map(|(_, entry)| entry.clone_ref(py)));
        let Some(entry) = first else { return Ok(()) };
        let loop_ = entry.get().loop_.bind(py);
        if runs_here(loop_)? {
            return arm(this, entry.bind(py));
        }
        // In the loop's thread, by way of its own context.
        let set = slf.getattr(intern!(py, "_arm"))?;
        call_soon(loop_, &set, false)
    }

    fn _arm(&self, py: Python<'_>) -> PyResult<()> {
        let first = self.get(|state| state.entries.iter().next().map(|(_, entry)| entry.clone_ref(py)));
        first.map_or(Ok(()), |entry| arm(self, entry.bind(py)))
    }

    /// Seconds from the outermost enter to the deadline.
    #[getter]
    fn delay(&self) -> Option<f64> {
        self.get(|state| state.delay)
    }

    #[setter]
    fn set_delay(&self, delay: Option<Seconds>) {
        self.set(|state| state.delay = delay.map(|delay| delay.0));
    }

    /// Whether the deadline raises TimeoutError where its cancel is caught.
    #[getter]
    fn raise_timeout(&self) -> bool {
        self.get(|state| state.raise_timeout)
    }

    #[setter]
    fn set_raise_timeout(&self, raise_timeout: bool) {
        self.set(|state| state.raise_timeout = raise_timeout);
    }

    /// Why it was cancelled.
    #[getter]
    fn reason(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.get(|state| state.reason.as_ref().map(|reason| reason.clone_ref(py)))
    }

    #[setter]
    fn set_reason(&self, reason: Option<Py<PyAny>>) {
        let replaced = std::mem::replace(&mut lock(&self.state).reason, reason);
        drop(replaced);
    }

    /// Whether it was cancelled, by a call or by its deadline.
    #[getter]
    fn cancel_called(&self) -> bool {
        self.is_cancelled()
    }

    #[setter]
    fn set_cancel_called(&self, cancelled: bool) {
        self.set(|state| {
            state.cancelled = cancelled;
            self.cancelled.store(cancelled, Ordering::Release);
            state.recount();
        });
    }

    /// The same as `cancel_called`; it stays True after the exit.
    #[getter]
    fn cancelled(&self) -> bool {
        self.cancel_called()
    }

    /// Whether a `with` of this scope has swallowed the CancelledError.
    #[getter]
    fn cancelled_caught(&self) -> bool {
        self.get(|state| state.caught)
    }

    #[setter]
    fn set_cancelled_caught(&self, caught: bool) {
        self.set(|state| state.caught = caught);
    }

    /// Whether it was the deadline.
    #[getter]
    fn timed_out(&self) -> bool {
        self.get(|state| state.timed_out)
    }

    #[setter]
    fn set_timed_out(&self, timed_out: bool) {
        self.set(|state| state.timed_out = timed_out);
    }

    /// Whether a task is in it.
    #[getter]
    fn active(&self) -> bool {
        self.get(|state| !state.entries.is_empty())
    }

    /// Cancels it. True for the call that did. From any thread and from signal handlers; `wake` says that the loop may be in
    /// its select although this thread seems to run a task.
    #[pyo3(signature = (reason=None, *, wake=false))]
    fn cancel(&self, py: Python<'_>, reason: Option<Py<PyAny>>, wake: bool) -> PyResult<bool> {
        end(self, py, reason, false, wake, None)
    }

    /// Blocks until it is cancelled, for at most `timeout` seconds (None: for ever). Whether it is. For code that blocks its
    /// thread, as a cell of an interpreter does. A deadline is the loop's: while that is blocked, none passes.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<Seconds>) -> PyResult<bool> {
        self.born.check("CancelScope")?;
        let mut state = lock(&self.state);
        if state.cancelled {
            return Ok(true);
        }
        let cancelled = state.waited_for.get_or_insert_default().closed();
        drop(state);
        Ok(block(py, cancelled, timeout.and_then(Seconds::timeout))?.is_some())
    }

    fn __enter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        let py = slf.py();
        let outer = innermost(py)?;
        let (loop_, task) = match &outer {
            // A child, or a scope inside another.
            Some(outer) if runs_here(outer.get().loop_.bind(py))? => {
                let loop_ = outer.get().loop_.bind(py).clone();
                let task = current_task(&loop_)?;
                (loop_, task)
            }
            _ => running_task(py)?,
        };
        let Some(task) = task else {
            return Err(PyRuntimeError::new_err("a CancelScope is entered by a task, and none is running here"));
        };
        let base = task.call_method0(intern!(py, "cancelling"))?.extract()?;
        let delay = slf.get().get(|state| state.delay.filter(|_| state.entries.is_empty()));
        let deadline = match delay {
            Some(delay) => Some(now(&loop_)? + delay),
            None => None,
        };
        let entry = Bound::new(
            py,
            Entry {
                scope: slf.clone().unbind(),
                task: task.unbind(),
                loop_: loop_.unbind(),
                base,
                issued: AtomicBool::new(false),
                live: AtomicBool::new(true),
                key: OnceLock::new(),
                outer: Mutex::new(outer),
            },
        )?;
        chain(py)?.call_method1(intern!(py, "set"), (&entry,))?;
        let mut state = lock(&slf.get().state);
        let outermost = state.entries.is_empty();
        let mut stale = None;
        if outermost && state.timed_out {
            // Entered again after its deadline: that was the last time's.
            state.timed_out = false;
            state.cancelled = false;
            slf.get().cancelled.store(false, Ordering::Release);
            stale = state.reason.take();
        }
        if outermost && deadline.is_some() {
            state.deadline = deadline;
        }
        let _set_once = entry.get().key.set(state.entries.insert(entry.clone().unbind()));
        state.recount();
        let (cancelled, timed) = (state.cancelled, outermost && state.deadline.is_some());
        drop(state);
        drop(stale);
        let begun = match (cancelled, timed) {
            (true, _) => Entry::request(&entry, false),
            (false, true) => arm(slf.get(), &entry),
            (false, false) => Ok(()),
        };
        if let Err(error) = begun {
            // A signal handler may raise in the middle of it.
            cancel_timer(py, leave(slf.get(), &entry)?)?;
            return Err(error);
        }
        Ok(slf)
    }

    fn __exit__(
        slf: &Bound<'_, Self>,
        kind: &Bound<'_, PyAny>,
        error: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        let py = slf.py();
        let mut found = innermost(py)?;
        while let Some(entry) = found.take_if(|entry| !(entry.get().is_live() && entry.get().scope.is(slf))) {
            found = entry.get().outer(py);
        }
        let is_running = |entry: &Entry| {
            let loop_ = entry.loop_.bind(py);
            Ok::<_, PyErr>(runs_here(loop_)? && current_task(loop_)?.is_some_and(|task| task.is(&entry.task)))
        };
        if let Some(entry) = found.take() {
            if is_running(entry.get())? {
                found = Some(entry);
            }
        }
        let is_idle = || Ok::<_, PyErr>(running_loop(py)?.is_none() || running_task(py)?.1.is_none());
        if found.is_none() && is_idle()? {
            // A coroutine that is closed after its loop has ended, or as garbage: its context is not the running one.
            found = slf.get().get(|state| state.entries.iter().next().map(|(_, entry)| entry.clone_ref(py)));
        }
        let Some(entry) = found else {
            return Err(PyRuntimeError::new_err(
                "a CancelScope is left by the task that entered it, in the same context",
            ));
        };
        let (cancelled, timed_out) = slf.get().get(|state| (state.cancelled, state.timed_out && state.raise_timeout));
        let timer = leave(slf.get(), entry.bind(py))?;
        let entry = entry.get();
        let is_cancel = !kind.is_none() && kind.cast::<PyType>()?.is_subclass(cancelled_type(py)?)?;
        let mut swallow = is_cancel && cancelled;
        let issued = entry.issued.load(Ordering::Acquire);
        if issued || swallow {
            let mut asked = entry.cancelling(py)?;
            if issued && asked > entry.base {
                asked = entry.task.call_method0(py, intern!(py, "uncancel"))?.extract(py)?;
            }
            let foreign = asked > entry.base;
            swallow = swallow && !foreign && !entry.has_cancelled_outer(py);
        }
        // What is ours is taken back by now, whatever this raises.
        cancel_timer(py, timer)?;
        if swallow {
            slf.get().set(|state| state.caught = true);
            if timed_out {
                let timeout = PyTimeoutError::new_err("operation timed out");
                timeout.set_cause(py, Some(PyErr::from_value(error.clone())));
                return Err(timeout);
            }
        }
        Ok(swallow)
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let py = slf.py();
        let this = slf.get();
        let mut text = format!("<{}", slf.get_type().name()?);
        text += if this.active() { " active" } else { "" };
        if this.cancel_called() {
            text += " cancelled";
            if let Some(reason) = this.reason(py) {
                text += &format!(" reason={}", reason.bind(py).repr()?);
            }
        }
        if let Some(deadline) = this.deadline() {
            text += &format!(" deadline={deadline:?}");
        }
        Ok(text + ">")
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if !self.born.exists() {
            return Ok(());
        }
        let Ok(state) = self.state.try_lock() else { return Ok(()) };
        visit.call(&state.reason)?;
        for (_, entry) in &state.entries {
            visit.call(entry)?;
        }
        match &state.timer {
            Some((timer, loop_)) => visit.call(timer).and_then(|()| visit.call(loop_)),
            None => Ok(()),
        }
    }

    fn __clear__(&self) {
        let mut state = lock(&self.state);
        let cleared = (state.reason.take(), std::mem::take(&mut state.entries), state.timer.take());
        state.recount();
        drop(state);
        drop(cleared);
    }
}

impl Drop for CancelScope {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        let entries = std::mem::take(&mut state.entries);
        state.recount();
        drop(state);
        drop(entries);
    }
}

/// A scope that is cancelled after `delay` seconds (None: never), and swallows that.
#[pyfunction]
#[pyo3(signature = (delay))]
pub(crate) fn move_on_after(delay: Option<Seconds>) -> CancelScope {
    CancelScope::make(delay, false)
}

/// A scope that is cancelled after `delay` seconds (None: never), and makes a TimeoutError of that.
#[pyfunction]
#[pyo3(signature = (delay))]
pub(crate) fn fail_after(delay: Option<Seconds>) -> CancelScope {
    CancelScope::make(delay, true)
}
