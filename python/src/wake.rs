//! The asyncio host, written once: how a waker of the core reaches a task of asyncio, or a blocked thread of Python.
//!
//! A task that has to wait yields a [`Parked`], which is to it what an `asyncio.Future` is. Its waker is a [`Turn`]: when woken
//! it has the loop run the task in the *next* turn of the loop, not in the one after it, as a future would. A blocked thread
//! releases the GIL; the main thread sleeps on a `_thread.lock`, which lets signal handlers (Ctrl-C) run.
//!
//! # Rules
//!
//! 1. No Python code runs under a lock of ours: no call, no drop of an object, no allocation of one (the garbage collector
//!    runs `__del__`). So no signal handler and no `__del__` can find a lock of ours held by its own thread, and nobody
//!    waits for a lock while the holder waits for the GIL. [`deferring`] holds back the wakes of a core call made under a lock.
//! 2. The garbage collector sees every cycle, and no task that can still be woken is garbage: what a turn refers to belongs to
//!    its `Parked`, which the primitive that is waited for keeps among its [`Tasks`].
//! 3. A loop that is closed is not woken: whoever waited on it is gone.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Wake, Waker};
use std::time::{Duration, Instant};

use microio::WaitError;
use microio::host::{Blocked, Park, block_on, block_on_with};
use pyo3::exceptions::{PyRuntimeError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple, PyType};
use pyo3::{PyTraverseError, PyVisit, intern};
use slab::Slab;

use crate::errors::{cancelled, invalid_state};
use crate::event_loop::{is_closed, schedule, thread_ident};
use crate::once::Once;

/// Locks. Nothing that can panic runs under one of ours.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `f` beside an exception that may be on its way: a wake may come from the drop of an object.
pub(crate) fn beside_exception(py: Python<'_>, f: impl FnOnce() -> PyResult<()>) {
    let raised = PyErr::take(py);
    if let Err(error) = f() {
        error.write_unraisable(py, None);
    }
    if let Some(raised) = raised {
        raised.restore(py);
    }
}

thread_local! {
    static HELD_BACK: RefCell<Option<Vec<Wakeable>>> = const { RefCell::new(None) };
}

enum Wakeable {
    Task(Arc<Turn>),
    Thread(Arc<Unlock>),
}

impl Wakeable {
    /// Wakes, unless that has to wait until `deferring` is through.
    fn wake(self) {
        let mut this = Some(self);
        HELD_BACK.with(|held| held.borrow_mut().as_mut().map(|held| held.extend(this.take())));
        // No interpreter any more: nobody to wake.
        let _ = Python::try_attach(|py| match this {
            Some(Wakeable::Task(turn)) => turn.resume(py),
            Some(Wakeable::Thread(thread)) => thread.release(py),
            None => {}
        });
    }
}

/// Runs `f`, which holds a lock of ours or leaves our books open while it calls into the core, and after it what it wakes.
pub(crate) fn deferring<R>(f: impl FnOnce() -> R) -> R {
    HELD_BACK.with(|held| *held.borrow_mut() = Some(Vec::new()));
    let output = f();
    let woken = HELD_BACK.with(|held| held.borrow_mut().take());
    woken.into_iter().flatten().for_each(Wakeable::wake);
    output
}

/// A task's next turn on its loop: the waker.
pub(crate) struct Turn {
    loop_: Py<PyAny>,
    state: Mutex<TurnState>,
}

enum TurnState {
    /// The task waits; what it wants called, once it has said so.
    Waiting(Option<Callback>),
    Woken,
    /// `Task.cancel` was here first, with this message.
    Cancelled(Py<PyAny>),
}

struct Callback {
    function: Py<PyAny>,
    context: Option<Py<PyAny>>,
}

impl Turn {
    /// Wakes the task, if nothing has before.
    pub(crate) fn resume(&self, py: Python<'_>) {
        let mut state = lock(&self.state);
        if !matches!(*state, TurnState::Waiting(_)) {
            return;
        }
        let TurnState::Waiting(callback) = std::mem::replace(&mut *state, TurnState::Woken) else { return };
        drop(state);
        if let Some(callback) = callback {
            beside_exception(py, || {
                static WOKEN: Once<Py<Woken>> = Once::new();
                let woken = WOKEN.get_or_make(py, || Py::new(py, Woken))?.bind(py);
                self.call(py, &callback, woken.as_any())
            });
        }
    }

    fn call(&self, py: Python<'_>, callback: &Callback, argument: &Bound<'_, PyAny>) -> PyResult<()> {
        let context = callback.context.as_ref().map(|context| context.bind(py));
        let loop_ = self.loop_.bind(py);
        match schedule(loop_, callback.function.bind(py), argument, context) {
            Err(_) if is_closed(loop_)? => Ok(()),
            result => result,
        }
    }
}

impl Wake for Turn {
    fn wake(self: Arc<Self>) {
        Wakeable::Task(self).wake();
    }
}

/// What a task that was woken is given in place of its future: it only asks for the result.
#[pyclass(frozen, module = "microio._microio")]
struct Woken;

#[pymethods]
impl Woken {
    fn result(&self) {}
}

/// What a waiting task yields: as much of an `asyncio.Future` as a task needs.
#[pyclass(frozen, weakref, module = "microio._microio")]
pub(crate) struct Parked {
    turn: Arc<Turn>,
    blocking: AtomicBool,
    /// A timer has woken it.
    expired: AtomicBool,
}

impl Parked {
    pub(crate) fn new(loop_: Py<PyAny>) -> Self {
        let turn = Turn { loop_, state: Mutex::new(TurnState::Waiting(None)) };
        Parked { turn: Arc::new(turn), blocking: AtomicBool::new(true), expired: AtomicBool::new(false) }
    }

    pub(crate) fn expired(&self) -> bool {
        self.expired.load(Ordering::Relaxed)
    }

    pub(crate) fn waker(&self) -> Waker {
        Waker::from(self.turn.clone())
    }
}

#[pymethods]
impl Parked {
    /// The time is up: timers call it.
    fn __call__(&self, py: Python<'_>) {
        self.expired.store(true, Ordering::Relaxed);
        self.turn.resume(py);
    }

    #[getter]
    fn _asyncio_future_blocking(&self) -> bool {
        self.blocking.load(Ordering::Relaxed)
    }

    #[setter(_asyncio_future_blocking)]
    fn set_future_blocking(&self, blocking: bool) {
        self.blocking.store(blocking, Ordering::Relaxed);
    }

    fn get_loop(&self, py: Python<'_>) -> Py<PyAny> {
        self.turn.loop_.clone_ref(py)
    }

    #[pyo3(signature = (function, *, context=None))]
    fn add_done_callback(
        slf: &Bound<'_, Self>,
        function: Bound<'_, PyAny>,
        context: Option<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let turn = &slf.get().turn;
        let callback = Callback { function: function.unbind(), context: context.map(Bound::unbind) };
        let mut state = lock(&turn.state);
        if let TurnState::Waiting(waiting) = &mut *state {
            let replaced = waiting.replace(callback);
            drop(state);
            drop(replaced);
            return Ok(());
        }
        drop(state);
        turn.call(slf.py(), &callback, slf.as_any())
    }

    fn remove_done_callback(&self, function: &Bound<'_, PyAny>) -> PyResult<usize> {
        let mut state = lock(&self.turn.state);
        let TurnState::Waiting(waiting) = &mut *state else { return Ok(0) };
        let taken = waiting.take();
        drop(state);
        let Some(callback) = taken else { return Ok(0) };
        if function.eq(&callback.function)? {
            return Ok(1);
        }
        if let TurnState::Waiting(waiting) = &mut *lock(&self.turn.state) {
            *waiting = Some(callback);
        }
        Ok(0)
    }

    #[pyo3(signature = (msg=None))]
    fn cancel(slf: &Bound<'_, Self>, msg: Option<Bound<'_, PyAny>>) -> PyResult<bool> {
        let py = slf.py();
        let turn = &slf.get().turn;
        let message = msg.map_or_else(|| py.None(), Bound::unbind);
        let mut state = lock(&turn.state);
        if !matches!(*state, TurnState::Waiting(_)) {
            drop(state);
            return Ok(false);
        }
        let TurnState::Waiting(callback) = std::mem::replace(&mut *state, TurnState::Cancelled(message)) else {
            return Ok(false);
        };
        drop(state);
        if let Some(callback) = callback {
            turn.call(py, &callback, slf.as_any())?;
        }
        Ok(true)
    }

    fn result(&self, py: Python<'_>) -> PyResult<()> {
        let message = match &*lock(&self.turn.state) {
            TurnState::Waiting(_) => return Err(invalid_state(py)),
            TurnState::Woken => return Ok(()),
            TurnState::Cancelled(message) => message.clone_ref(py),
        };
        Err(cancelled(py, Some(message.bind(py)).filter(|message| !message.is_none())))
    }

    fn exception(&self, py: Python<'_>) -> PyResult<()> {
        self.result(py)
    }

    fn done(&self) -> bool {
        !matches!(*lock(&self.turn.state), TurnState::Waiting(_))
    }

    fn cancelled(&self) -> bool {
        matches!(*lock(&self.turn.state), TurnState::Cancelled(_))
    }

    fn __repr__(&self) -> &'static str {
        if self.done() { "<microio wait, woken>" } else { "<microio wait>" }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.turn.loop_)?;
        let Ok(state) = self.turn.state.try_lock() else { return Ok(()) };
        match &*state {
            TurnState::Waiting(Some(callback)) => {
                visit.call(&callback.function)?;
                visit.call(&callback.context)
            }
            TurnState::Cancelled(message) => visit.call(message),
            _ => Ok(()),
        }
    }

    fn __clear__(&self) {
        let state = std::mem::replace(&mut *lock(&self.turn.state), TurnState::Woken);
        drop(state);
    }
}

/// The tasks that wait for a primitive, as the garbage collector sees them: the primitive keeps them alive, and a task that
/// nobody else refers to goes with it.
#[derive(Default)]
pub(crate) struct Tasks(Mutex<Slab<Py<Parked>>>);

impl Tasks {
    /// A task waits; `place` is where it stood until now.
    pub(crate) fn park(&self, place: &mut Option<usize>, parked: Py<Parked>) {
        let mut tasks = lock(&self.0);
        let replaced = match *place {
            Some(key) => Some(std::mem::replace(&mut tasks[key], parked)),
            None => {
                *place = Some(tasks.insert(parked));
                None
            }
        };
        drop(tasks);
        drop(replaced);
    }

    /// It does not wait any more.
    pub(crate) fn leave(&self, place: &mut Option<usize>) {
        let left = place.take().map(|key| lock(&self.0).remove(key));
        drop(left);
    }

    pub(crate) fn visit(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        let Ok(tasks) = self.0.try_lock() else { return Ok(()) };
        tasks.iter().try_for_each(|(_, parked)| visit.call(parked))
    }
}

/// Blocks this thread until the future is ready, for at most `timeout`; None when that has passed. The GIL is released.
///
/// On the main thread signal handlers run meanwhile; if one raises, the wait ends with that. Other threads get no signals, and
/// wait without Python: so they may be daemons that are still waiting when the interpreter ends.
pub(crate) fn block<F>(py: Python<'_>, future: F, timeout: Option<Duration>) -> PyResult<Option<F::Output>>
where
    F: Future<Output: Send> + Send,
{
    let mut future = pin!(future);
    if thread_ident(py)? != MAIN_THREAD.load(Ordering::Relaxed) {
        return match py.detach(|| block_on(future.as_mut(), timeout)) {
            Ok(output) => Ok(Some(output)),
            Err(WaitError::TimedOut) => Ok(None),
            Err(error) => Err(PyRuntimeError::new_err(error.to_string())),
        };
    }
    static ALLOCATE: Once<Py<PyAny>> = Once::new();
    let lock = ALLOCATE.import(py, "_thread", "allocate_lock")?.call0()?;
    lock.call_method0(intern!(py, "acquire"))?;
    let park = LockPark(Arc::new(Unlock { lock: lock.unbind(), woken: AtomicBool::new(false) }));
    match block_on_with(&park, future, timeout) {
        Ok(output) => Ok(Some(output)),
        Err(Blocked::TimedOut) => Ok(None),
        Err(Blocked::Stopped(error)) => Err(error),
        Err(Blocked::WouldBlock) => Err(PyRuntimeError::new_err("this thread must not block here")),
    }
}

/// What comes of `wait`; None if the end comes before.
pub(crate) async fn before<T>(mut wait: Pin<&mut impl Future<Output = T>>, end: impl Future) -> Option<T> {
    let mut end = pin!(end);
    poll_fn(|cx| match wait.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => end.as_mut().poll(cx).map(|_| None),
    })
    .await
}

/// The thread that runs signal handlers.
static MAIN_THREAD: AtomicU64 = AtomicU64::new(0);

/// A thread that sleeps on a lock of Python's.
struct LockPark(Arc<Unlock>);

struct Unlock {
    lock: Py<PyAny>,
    woken: AtomicBool,
}

impl Park for LockPark {
    type Stop = PyErr;

    fn waker(&self) -> Waker {
        Waker::from(self.0.clone())
    }

    fn park(&self, until: Option<Instant>) -> PyResult<()> {
        // The longest that a lock takes is some 292 years.
        const LONGEST: f64 = 9e9;
        let left = until.map(|until| until.saturating_duration_since(Instant::now()).as_secs_f64().min(LONGEST));
        Python::attach(|py| {
            let lock = self.0.lock.bind(py);
            if lock.call_method1(intern!(py, "acquire"), (true, left.unwrap_or(-1.0)))?.is_truthy()? {
                self.0.woken.store(false, Ordering::Release);
            }
            Ok(())
        })
    }
}

impl Wake for Unlock {
    fn wake(self: Arc<Self>) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            Wakeable::Thread(self).wake();
        }
    }
}

impl Unlock {
    fn release(&self, py: Python<'_>) {
        beside_exception(py, || self.lock.call_method0(py, intern!(py, "release")).map(drop));
    }
}

/// How many forks there have been, and one.
static FORKS: AtomicU32 = AtomicU32::new(1);

/// The process that an object was made in: who waited for it there does not exist in a forked child.
#[derive(Clone, Copy)]
pub(crate) struct Born(u32);

impl Born {
    pub(crate) fn now() -> Self {
        Born(FORKS.load(Ordering::Relaxed))
    }

    /// Whether the object is made. On 3.11 the garbage collector may come by when an object with a `__dict__` is still all
    /// zeros: `__traverse__` asks this first.
    pub(crate) fn exists(self) -> bool {
        self.0 != 0
    }

    /// # Errors
    /// RuntimeError in a child of the process that the object was made in.
    pub(crate) fn check(self, what: &str) -> PyResult<()> {
        if self.0 == FORKS.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(PyRuntimeError::new_err(format!("{what} used after fork: make a new one in the child process")))
    }
}

/// In the child: the thread that forked is its main thread.
#[pyfunction]
fn after_fork(py: Python<'_>) -> PyResult<()> {
    FORKS.fetch_add(1, Ordering::Relaxed);
    MAIN_THREAD.store(thread_ident(py)?, Ordering::Relaxed);
    Ok(())
}

/// Learns which thread is the main one, now and after each fork.
pub(crate) fn watch_forks(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let main = py.import("threading")?.call_method0("main_thread")?.getattr("ident")?;
    MAIN_THREAD.store(main.extract()?, Ordering::Relaxed);
    let Some(register) = py.import("os")?.getattr_opt("register_at_fork")? else { return Ok(()) };
    let kwargs = PyDict::new(py);
    kwargs.set_item("after_in_child", wrap_pyfunction!(after_fork, module)?)?;
    register.call(PyTuple::empty(py), Some(&kwargs))?;
    Ok(())
}

/// Refuses arguments to a constructor that takes none; those of a subclass are for its own `__init__`.
pub(crate) fn no_arguments(
    class: &Bound<'_, PyType>,
    args: &Bound<'_, PyTuple>,
    kwargs: Option<&Bound<'_, PyDict>>,
) -> PyResult<()> {
    let given = !args.is_empty() || kwargs.is_some_and(|kwargs| !kwargs.is_empty());
    let object = class.py().get_type::<PyAny>();
    if given && class.getattr(intern!(class.py(), "__init__"))?.is(object.getattr(intern!(class.py(), "__init__"))?) {
        return Err(PyTypeError::new_err(format!("{}() takes no arguments", class.name()?)));
    }
    Ok(())
}
