//! `CloseScope` and `WorkTracker`: the core's, with the attributes that Python programs read.

use std::pin::pin;
use std::sync::Mutex;

use pyo3::exceptions::{PyBaseException, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple, PyType};
use pyo3::{PyTraverseError, PyVisit, intern};

use crate::awaitable::{Awaitable, Primitive, Waiting};
use crate::errors::{Raised, broken, closed, text};
use crate::number::Seconds;
use crate::once::Once;
use crate::raw::{call, call_method};
use crate::wake::{Born, Tasks, before, block, deferring, lock, no_arguments};

/// The durable end of a service: open, then closed with a reason or failed with an exception, once and for good.
///
/// It says that a service is over, and why; it stops nothing by itself. Every method may be called from any thread, and from a
/// signal handler that interrupted another one of the same object.
#[pyclass(frozen, subclass, dict, weakref, module = "microio")]
pub(crate) struct CloseScope {
    core: microio::CloseScope,
    why: Mutex<Why>,
    tasks: Tasks,
    born: Born,
}

impl Primitive for CloseScope {
    const WHAT: &'static str = "CloseScope";
    fn born(&self) -> Born {
        self.born
    }
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

#[derive(Default)]
struct Why {
    reason: Option<Py<PyAny>>,
    exc: Option<Py<PyAny>>,
}

impl CloseScope {
    fn ended(&self, py: Python<'_>) -> (Option<Py<PyAny>>, Option<Py<PyAny>>) {
        let why = lock(&self.why);
        (why.reason.as_ref().map(|reason| reason.clone_ref(py)), why.exc.as_ref().map(|exc| exc.clone_ref(py)))
    }

    fn end(&self, reason: Option<Py<PyAny>>, exc: Option<Py<PyAny>>) -> bool {
        let mut why = lock(&self.why);
        if self.core.is_closed() {
            drop(why);
            return false;
        }
        let assigned = std::mem::replace(&mut *why, Why { reason, exc });
        drop(why);
        let first = self.core.close("closed");
        drop(assigned);
        first
    }
}

#[pymethods]
impl CloseScope {
    #[new]
    #[classmethod]
    #[pyo3(signature = (*args, **kwargs), text_signature = "()")]
    fn new(class: &Bound<'_, PyType>, args: &Bound<'_, PyTuple>, kwargs: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        no_arguments(class, args, kwargs)?;
        Ok(CloseScope {
            core: microio::CloseScope::new(),
            why: Mutex::default(),
            tasks: Tasks::default(),
            born: Born::now(),
        })
    }

    /// Why it was closed; None while it is open, or when no reason was given.
    #[getter]
    fn reason(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.ended(py).0
    }

    #[setter]
    fn set_reason(&self, reason: Option<Py<PyAny>>) {
        let replaced = std::mem::replace(&mut lock(&self.why).reason, reason);
        drop(replaced);
    }

    /// The exception that it failed with, if it did.
    #[getter]
    fn exc(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.ended(py).1
    }

    #[setter]
    fn set_exc(&self, exc: Option<Py<PyAny>>) {
        let replaced = std::mem::replace(&mut lock(&self.why).exc, exc);
        drop(replaced);
    }

    /// Whether it is over.
    #[getter]
    fn closed(&self) -> bool {
        self.core.is_closed()
    }

    /// Whether it has an exception.
    #[getter]
    fn failed(&self) -> bool {
        lock(&self.why).exc.is_some()
    }

    /// Closes it. True for the call that did; later ones change nothing and return False.
    #[pyo3(signature = (reason=None, exc=None))]
    fn close(&self, reason: Option<Py<PyAny>>, exc: Option<Py<PyBaseException>>) -> bool {
        self.end(reason, exc.map(Py::into_any))
    }

    /// Closes it with an exception; the reason is the exception's text unless given. True for the call that did.
    #[pyo3(signature = (exc, reason=None))]
    fn fail(slf: &Bound<'_, Self>, exc: &Bound<'_, PyBaseException>, reason: Option<Py<PyAny>>) -> PyResult<bool> {
        let py = slf.py();
        if slf.get().core.is_closed() {
            return Ok(false);
        }
        let reason = match reason {
            Some(reason) => reason,
            None => PyString::new(py, &text(exc)).into_any().unbind(),
        };
        if slf.is_exact_instance_of::<Self>() {
            return Ok(slf.get().end(Some(reason), Some(exc.clone().into_any().unbind())));
        }
        call_method(intern!(py, "close"), [slf, reason.bind(py), exc], None)?.is_truthy()
    }

    /// Blocks until it is over, for at most `timeout` seconds (None: for ever). Whether it is.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<Seconds>) -> PyResult<bool> {
        self.born.check(Self::WHAT)?;
        if self.core.is_closed() {
            return Ok(true);
        }
        Ok(block(py, self.core.closed(), timeout.and_then(Seconds::timeout))?.is_some())
    }

    /// Blocks until it or `other` is over, for at most `timeout` seconds (None: for ever). Whether one of them is.
    fn _wait_either(&self, py: Python<'_>, other: &Bound<'_, Self>, timeout: Option<Seconds>) -> PyResult<bool> {
        self.born.check(Self::WHAT)?;
        let (this, other) = (self.core.closed(), other.get().core.closed());
        let either = async { before(pin!(this), other).await };
        Ok(block(py, either, timeout.and_then(Seconds::timeout))?.is_some())
    }

    /// Waits until it is over; returns True. Cancelling the wait leaves nothing behind.
    fn wait_async(slf: Py<Self>) -> Awaitable {
        let closed = slf.get().core.closed();
        let wait = async move {
            closed.await;
            Ok(Python::attach(|py| true.into_pyobject(py).map(|value| value.to_owned().into_any().unbind()))?)
        };
        Awaitable::new("wait_async", Waiting::new(slf, wait))
    }

    /// Raises BrokenResourceError from the exception, or ClosedResourceError with the reason, if it is over.
    fn raise_if_closed(&self, py: Python<'_>) -> PyResult<()> {
        if !self.core.is_closed() {
            return Ok(());
        }
        let (reason, exc) = self.ended(py);
        let reason = match reason {
            Some(reason) => Some(text(reason.bind(py))).filter(|reason| !reason.is_empty()),
            None => None,
        };
        let Some(exc) = exc else {
            return Err(closed(py, reason.as_deref().unwrap_or("closed"), None));
        };
        let exc = exc.bind(py);
        let text = match reason {
            Some(reason) => reason,
            None => text(exc),
        };
        let cause = exc.cast::<PyBaseException>().ok().map(|exc| Raised::new(exc).map(|raised| raised.raise(py)));
        Err(broken(py, &text, cause.transpose()?))
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let py = slf.py();
        let name = slf.get_type().name()?;
        if !slf.get().core.is_closed() {
            return Ok(format!("<{name} open>"));
        }
        let (reason, exc) = slf.get().ended(py);
        let mut text = format!("<{name} {}", if exc.is_some() { "failed" } else { "closed" });
        if let Some(reason) = reason {
            text += &format!(" reason={}", reason.bind(py).repr()?);
        }
        if let Some(exc) = exc {
            text += &format!(" exc={}", exc.bind(py).repr()?);
        }
        Ok(text + ">")
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if !self.born.exists() {
            return Ok(());
        }
        self.tasks.visit(&visit)?;
        let Ok(why) = self.why.try_lock() else { return Ok(()) };
        visit.call(&why.reason)?;
        visit.call(&why.exc)
    }

    fn __clear__(&self) {
        let why = std::mem::take(&mut *lock(&self.why));
        drop(why);
    }
}

/// Counts work in progress, and can be waited for until there is none.
#[pyclass(frozen, subclass, dict, weakref, module = "microio")]
pub(crate) struct WorkTracker {
    core: microio::WorkTracker,
    /// One for each piece of work.
    guards: Mutex<Vec<microio::WorkGuard>>,
    busy: Mutex<Option<Py<PyAny>>>,
    tasks: Tasks,
    born: Born,
}

impl Primitive for WorkTracker {
    const WHAT: &'static str = "WorkTracker";
    fn born(&self) -> Born {
        self.born
    }
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

#[pymethods]
impl WorkTracker {
    #[new]
    #[classmethod]
    #[pyo3(signature = (*args, **kwargs), text_signature = "()")]
    fn new(class: &Bound<'_, PyType>, args: &Bound<'_, PyTuple>, kwargs: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        no_arguments(class, args, kwargs)?;
        Ok(WorkTracker {
            core: microio::WorkTracker::new(),
            guards: Mutex::default(),
            busy: Mutex::default(),
            tasks: Tasks::default(),
            born: Born::now(),
        })
    }

    /// How much work is in progress.
    #[getter]
    fn count(&self) -> usize {
        self.core.count()
    }

    /// A `threading.Event` that is set while there is work. It follows the count: it cannot be set or cleared.
    #[getter]
    fn busy(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let this = slf.get();
        let kept = || lock(&this.busy).as_ref().map(|busy| busy.clone_ref(py));
        if let Some(busy) = kept() {
            return Ok(busy);
        }
        static TYPE: Once<Py<PyAny>> = Once::new();
        let work = Work { core: this.core.clone(), born: this.born };
        let work = Bound::new(py, work)?;
        let made = call(TYPE.import(py, "microio._scope", "Busy")?, [work.as_any()])?.unbind();
        // A signal handler may have been here meanwhile: the first is everybody's.
        let mut busy = lock(&this.busy);
        if busy.is_none() {
            *busy = Some(made.clone_ref(py));
        }
        drop(busy);
        Ok(kept().unwrap_or(made))
    }

    /// One more piece of work.
    fn add(&self) {
        // Who is woken by the count finds the guard in its place.
        deferring(|| {
            let guard = self.core.track();
            lock(&self.guards).push(guard);
        });
    }

    /// One piece of work less. ValueError if there is none.
    fn done(&self) -> PyResult<()> {
        let guard = lock(&self.guards).pop();
        match guard {
            Some(guard) => drop(guard),
            None => return Err(PyValueError::new_err("done() without add(): there is no work in progress")),
        }
        Ok(())
    }

    /// Counts the body of a `with` as a piece of work.
    fn track(slf: Py<Self>) -> Track {
        Track { tracker: slf }
    }

    /// Blocks until there is no work, for at most `timeout` seconds (None: for ever). Whether there is none.
    #[pyo3(signature = (timeout=None))]
    fn wait_idle(&self, py: Python<'_>, timeout: Option<Seconds>) -> PyResult<bool> {
        self.born.check(WorkTracker::WHAT)?;
        if !self.core.is_busy() {
            return Ok(true);
        }
        Ok(block(py, self.core.idle(), timeout.and_then(Seconds::timeout))?.is_some())
    }

    /// Waits until there is no work. Cancelling the wait leaves nothing behind.
    fn idle(slf: Py<Self>) -> Awaitable {
        let idle = slf.get().core.idle();
        let wait = async move {
            idle.await;
            Ok(Python::attach(|py| py.None()))
        };
        Awaitable::new("idle", Waiting::new(slf, wait))
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        Ok(format!("<{} count={}>", slf.get_type().name()?, slf.get().core.count()))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if !self.born.exists() {
            return Ok(());
        }
        self.tasks.visit(&visit)?;
        let Ok(busy) = self.busy.try_lock() else { return Ok(()) };
        visit.call(&*busy)
    }

    fn __clear__(&self) {
        let busy = lock(&self.busy).take();
        drop(busy);
    }
}

/// What `WorkTracker.track()` returns.
#[pyclass(frozen, weakref, module = "microio._microio")]
pub(crate) struct Track {
    tracker: Py<WorkTracker>,
}

#[pymethods]
impl Track {
    fn __enter__(&self, py: Python<'_>) -> PyResult<()> {
        let tracker = self.tracker.bind(py);
        if tracker.is_exact_instance_of::<WorkTracker>() {
            tracker.get().add();
            return Ok(());
        }
        call_method(intern!(py, "add"), [tracker], None).map(drop)
    }

    #[pyo3(signature = (*_exc))]
    fn __exit__(&self, py: Python<'_>, _exc: &Bound<'_, PyTuple>) -> PyResult<()> {
        let tracker = self.tracker.bind(py);
        if tracker.is_exact_instance_of::<WorkTracker>() {
            return tracker.get().done();
        }
        call_method(intern!(py, "done"), [tracker], None).map(drop)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.tracker)
    }
}

/// The count as `WorkTracker.busy` sees it.
#[pyclass(frozen, module = "microio._microio")]
pub(crate) struct Work {
    core: microio::WorkTracker,
    born: Born,
}

#[pymethods]
impl Work {
    fn is_set(&self) -> bool {
        self.core.is_busy()
    }

    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<Seconds>) -> PyResult<bool> {
        self.born.check(WorkTracker::WHAT)?;
        if self.core.is_busy() {
            return Ok(true);
        }
        Ok(block(py, self.core.busy(), timeout.and_then(Seconds::timeout))?.is_some())
    }
}
