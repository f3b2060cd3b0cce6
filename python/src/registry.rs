//! `RequestRegistry`: who waits for which reply.
//!
//! Requests stand in a `dict`, whose `setdefault` and `pop` are single steps; keys are Python objects, whose `__hash__` and
//! `__eq__` are user code. The truth about one request is its [`Waiter`]:
//!
//! | a waiter is | `resolve`, `fail` | the wait | a timeout, a cancel |
//! |---|---|---|---|
//! | open | takes it, `True` | waits | abandoned |
//! | answered | `False` | gets it: closed | gets it |
//! | abandoned, or got | `False` | waits for what `put` brings | abandoned |
//!
//! # Invariants
//!
//! 1. A request leaves the dict before its waiter is answered: when the wait ends, its key is free.
//! 2. Closing, `fail_all` and `register` meet in one step: the dict is swapped for a new one, and who has registered in the
//!    old one meanwhile (a key's `__eq__` may call anything) finds that, and registers again.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pyo3::exceptions::{PyBaseException, PyKeyError, PyTimeoutError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple, PyType};
use pyo3::{PyTraverseError, PyVisit, intern};

use crate::awaitable::{Awaitable, Keep, Waiting};
use crate::channel::generic;
use crate::errors::{Raised, broken, closed};
use crate::number::Seconds;
use crate::raw::{call, call_method, get_item};
use crate::waiter::{Answer, Waiter, answered, not_negative, wait};
use crate::wake::{Born, beside_exception, lock, no_arguments};

/// Requests that wait for their replies, by key; any thread may register, answer and wait.
#[pyclass(frozen, subclass, dict, weakref, module = "microio")]
pub(crate) struct RequestRegistry {
    requests: Mutex<Option<Py<PyDict>>>,
    /// How often the dict was swapped. Read to see that it is still the same; the GIL keeps the two together.
    swaps: AtomicU32,
    closed: AtomicBool,
    cause: Mutex<Option<Raised>>,
    born: Born,
}

impl RequestRegistry {
    fn requests<'py>(&self, py: Python<'py>) -> Bound<'py, PyDict> {
        let requests = lock(&self.requests).as_ref().map(|requests| requests.clone_ref(py));
        requests.map_or_else(|| PyDict::new(py), |requests| requests.into_bound(py))
    }

    fn refuse_if_closed(&self, py: Python<'_>) -> PyResult<()> {
        if !self.closed.load(Ordering::Acquire) {
            return Ok(());
        }
        let cause = lock(&self.cause).as_ref().map(|cause| cause.clone_ref(py));
        Err(match cause.map(|cause| cause.raise(py)) {
            Some(cause) => broken(py, "request registry is closed", Some(cause)),
            None => closed(py, "request registry is closed", None),
        })
    }

    fn insert(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<Py<Waiter>> {
        self.born.check("RequestRegistry")?;
        let waiter = Py::new(py, Waiter::new())?;
        loop {
            self.refuse_if_closed(py)?;
            let swaps = self.swaps.load(Ordering::Acquire);
            let requests = self.requests(py);
            if !call_method(intern!(py, "setdefault"), [&requests, key, waiter.bind(py)], None)?.is(&waiter) {
                return Err(PyKeyError::new_err(format!("request already pending: {}", key.repr()?)));
            }
            if swaps == self.swaps.load(Ordering::Acquire) {
                return Ok(waiter);
            }
            // The key's code ran, and everything was failed meanwhile: with this one, or before it.
            if waiter.get().full() {
                return Ok(waiter);
            }
            pop(&requests, key)?;
        }
    }

    /// Takes the request out, if it is (still) this waiter's.
    fn remove(&self, py: Python<'_>, key: &Bound<'_, PyAny>, waiter: &Py<Waiter>) -> PyResult<bool> {
        let requests = self.requests(py);
        if !get_item(&requests, key)?.is_some_and(|found| found.is(waiter)) {
            return Ok(false);
        }
        let popped = pop(&requests, key)?;
        if popped.is(waiter) {
            return Ok(true);
        }
        if !popped.is_none() {
            // The key's code has put another request in its place between the two steps: that one stays.
            call_method(intern!(py, "setdefault"), [&requests, key, &popped], None)?;
        }
        Ok(false)
    }

    fn answer(&self, py: Python<'_>, key: &Bound<'_, PyAny>, answer: Answer) -> PyResult<bool> {
        let waiter = pop(&self.requests(py), key)?;
        Ok(waiter.cast::<Waiter>().is_ok_and(|waiter| waiter.get().answer(answer)))
    }

    fn wait_for(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        waiter: &Py<Waiter>,
        timeout: Option<Duration>,
    ) -> PyResult<Py<PyAny>> {
        let waited = wait(py, waiter, timeout);
        let answer = match &waited {
            Ok(Some(Answer::Value(_) | Answer::Failure(_))) => return finish(py, key, waited),
            Ok(Some(Answer::Put(_) | Answer::PutFailure(_))) => waited,
            // An answer may have come in the last moment: then it counts.
            Ok(None) => Ok(waiter.get().abandon()),
            Err(_) => {
                waiter.get().abandon();
                waited
            }
        };
        self.remove(py, key, waiter)?;
        finish(py, key, answer)
    }

    /// The timeout of a wait. If that cannot be, the request ends here: a key never leaks.
    fn timeout_or_remove(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        waiter: &Py<Waiter>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<Duration>> {
        let seconds = timeout.map(|timeout| timeout.extract()).transpose();
        let timeout = self.born.check("RequestRegistry").and_then(|()| not_negative(seconds?));
        if timeout.is_err() {
            waiter.get().abandon();
            self.remove(py, key, waiter)?;
        }
        timeout
    }

    /// Fails everything that is pending; how many that were.
    fn fail_pending(&self, py: Python<'_>, raised: &Raised) -> PyResult<usize> {
        let empty = PyDict::new(py).unbind();
        let Some(requests) = lock(&self.requests).replace(empty) else { return Ok(0) };
        self.swaps.fetch_add(1, Ordering::Release);
        let mut failed = 0;
        for waiter in requests.bind(py).values() {
            let answer = Answer::Failure(raised.clone_ref(py));
            failed += usize::from(waiter.cast::<Waiter>()?.get().answer(answer));
        }
        Ok(failed)
    }
}

/// Takes a key out of a dict, in one step; None if it is not there.
fn pop<'py>(requests: &Bound<'py, PyDict>, key: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = requests.py();
    call_method(intern!(py, "pop"), [requests, key, py.None().bind(py)], None)
}

fn finish(py: Python<'_>, key: &Bound<'_, PyAny>, answer: PyResult<Option<Answer>>) -> PyResult<Py<PyAny>> {
    match answer? {
        Some(answer) => answer.into_result(py),
        None => Err(PyTimeoutError::new_err(format!("timed out waiting for request {}", key.repr()?))),
    }
}

#[pymethods]
impl RequestRegistry {
    #[new]
    #[classmethod]
    #[pyo3(signature = (*args, **kwargs), text_signature = "()")]
    fn new(class: &Bound<'_, PyType>, args: &Bound<'_, PyTuple>, kwargs: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let py = class.py();
        no_arguments(class, args, kwargs)?;
        Ok(RequestRegistry {
            requests: Mutex::new(Some(PyDict::new(py).unbind())),
            swaps: AtomicU32::new(0),
            closed: AtomicBool::new(false),
            cause: Mutex::default(),
            born: Born::now(),
        })
    }

    #[classmethod]
    fn __class_getitem__(class: &Bound<'_, PyType>, item: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        generic(class, item)
    }

    fn __len__(&self, py: Python<'_>) -> usize {
        self.requests(py).len()
    }

    fn __contains__(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        Ok(get_item(&self.requests(py), key)?.is_some())
    }

    /// A copy: which keys are pending, and their waiters.
    #[getter]
    fn pending<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.requests(py).copy()
    }

    /// Makes a request pending. KeyError if that key is; BrokenResourceError or ClosedResourceError after close().
    fn register(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<Py<Waiter>> {
        self.insert(py, key)
    }

    /// Makes a request pending, and returns what can answer it. Raises what register() raises.
    fn reply(slf: &Bound<'_, Self>, key: Bound<'_, PyAny>) -> PyResult<ReplyHandle> {
        let waiter = slf.get().insert(slf.py(), &key)?;
        Ok(ReplyHandle {
            registry: slf.clone().into_any().unbind(),
            key: key.unbind(),
            waiter: waiter.into_any(),
            born: Born::now(),
        })
    }

    /// Takes a request out, unanswered; with a waiter, only if it is that one's. Its waiter, or None.
    #[pyo3(signature = (key, waiter=None))]
    fn pop(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        waiter: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Option<Py<PyAny>>> {
        let Some(waiter) = waiter else {
            let popped = pop(&self.requests(py), key)?;
            return Ok(Some(popped.unbind()).filter(|popped| !popped.is_none(py)));
        };
        match waiter.cast::<Waiter>() {
            Ok(own) if self.remove(py, key, own.as_unbound())? => Ok(Some(waiter.unbind())),
            _ => Ok(None),
        }
    }

    /// Answers a request. True means that its waiter gets the value; False that there is no such request any more.
    fn resolve(&self, py: Python<'_>, key: &Bound<'_, PyAny>, value: Py<PyAny>) -> PyResult<bool> {
        self.answer(py, key, Answer::Value(value))
    }

    /// Fails a request: its waiter raises this exception. False if there is no such request any more.
    fn fail(&self, py: Python<'_>, key: &Bound<'_, PyAny>, exc: &Bound<'_, PyBaseException>) -> PyResult<bool> {
        self.answer(py, key, Answer::Failure(Raised::new(exc)?))
    }

    /// Fails every request that is pending; how many. The registry stays usable.
    fn fail_all(&self, py: Python<'_>, exc: &Bound<'_, PyBaseException>) -> PyResult<usize> {
        self.fail_pending(py, &Raised::new(exc)?)
    }

    /// Closes it for good and fails every request that is pending; how many. From then on register(), reply() and request()
    /// raise BrokenResourceError from `exc`, or ClosedResourceError without one. Later calls change nothing and return 0.
    #[pyo3(signature = (exc=None))]
    fn close(&self, py: Python<'_>, exc: Option<&Bound<'_, PyBaseException>>) -> PyResult<usize> {
        let cause = exc.map(Raised::new).transpose()?;
        let raised = match &cause {
            Some(cause) => cause.clone_ref(py),
            None => Raised::new(closed(py, "request registry is closed", None).value(py))?,
        };
        {
            let mut kept = lock(&self.cause);
            if self.closed.swap(true, Ordering::AcqRel) {
                drop(kept);
                return Ok(0);
            }
            *kept = cause;
        }
        self.fail_pending(py, &raised)
    }

    /// Blocks until the request is answered, for at most `timeout` seconds (None: for ever). The value; raises the failure's
    /// exception, or TimeoutError. However it ends, the request is not pending any more.
    #[pyo3(signature = (key, waiter, timeout=None))]
    fn wait(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        waiter: Py<Waiter>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let timeout = self.timeout_or_remove(py, key, &waiter, timeout)?;
        self.wait_for(py, key, &waiter, timeout)
    }

    /// The same as wait(), for tasks. Cancelling the wait takes the request out.
    #[pyo3(signature = (key, waiter, timeout=None))]
    fn wait_async(
        slf: &Bound<'_, Self>,
        key: Py<PyAny>,
        waiter: Py<Waiter>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Awaitable> {
        let py = slf.py();
        let this = slf.get();
        let timeout = this.timeout_or_remove(py, key.bind(py), &waiter, timeout)?;
        let registry = slf.clone().unbind();
        let pending = Arc::new(Pending { registry, key, waiter: waiter.clone_ref(py) });
        let answered = answered(pending.clone());
        let answer = async move {
            let answer = answered.await;
            Python::attach(|py| answer.into_result(py))
        };
        let late = pending.clone();
        let expire = Box::new(move |py: Python<'_>| finish(py, late.key.bind(py), Ok(late.waiter.get().abandon())));
        let waiting = Waiting::new(waiter, answer).keeping(pending).with_timeout(timeout, expire);
        Ok(Awaitable::new("wait_async", waiting))
    }

    /// Registers, calls `send(reply)`, and blocks until the request is answered, for at most `timeout` seconds (None: for
    /// ever). The value; raises the failure's exception, or TimeoutError. However it ends, the request is not pending any more.
    #[pyo3(signature = (key, send, timeout=None))]
    fn request(
        slf: &Bound<'_, Self>,
        key: Bound<'_, PyAny>,
        send: &Bound<'_, PyAny>,
        timeout: Option<Seconds>,
    ) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let timeout = not_negative(timeout)?;
        let waiter = slf.get().insert(py, &key)?;
        let reply = ReplyHandle {
            registry: slf.clone().into_any().unbind(),
            key: key.clone().unbind(),
            waiter: waiter.clone_ref(py).into_any(),
            born: Born::now(),
        };
        if let Err(error) = call(send, [Bound::new(py, reply)?.as_any()]) {
            waiter.get().abandon();
            slf.get().remove(py, &key, &waiter)?;
            return Err(error);
        }
        slf.get().wait_for(py, &key, &waiter, timeout)
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let this = slf.get();
        let state = if this.closed.load(Ordering::Acquire) { "closed" } else { "open" };
        Ok(format!("<{} {state} pending={}>", slf.get_type().name()?, this.requests(slf.py()).len()))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if !self.born.exists() {
            return Ok(());
        }
        if let Ok(requests) = self.requests.try_lock() {
            visit.call(&*requests)?;
        }
        match self.cause.try_lock().ok().as_deref() {
            Some(Some(cause)) => cause.visit(&visit),
            _ => Ok(()),
        }
    }

    fn __clear__(&self) {
        let cleared = (lock(&self.requests).take(), lock(&self.cause).take());
        drop(cleared);
    }
}

/// A wait of a task: when it is over or given up, the request is not pending any more.
struct Pending {
    registry: Py<RequestRegistry>,
    key: Py<PyAny>,
    waiter: Py<Waiter>,
}

impl Deref for Pending {
    type Target = Waiter;
    fn deref(&self) -> &Waiter {
        self.waiter.get()
    }
}

impl Keep for Pending {
    fn visit(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.registry)?;
        visit.call(&self.key)?;
        visit.call(&self.waiter)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let _ = Python::try_attach(|py| {
            beside_exception(py, || {
                let _late = self.waiter.get().abandon();
                self.registry.get().remove(py, self.key.bind(py), &self.waiter).map(drop)
            });
        });
    }
}

/// The answer to one request, to be given by whoever holds it. It never answers a later request with the same key.
#[pyclass(frozen, subclass, dict, weakref, module = "microio")]
pub(crate) struct ReplyHandle {
    /// The registry.
    #[pyo3(get)]
    registry: Py<PyAny>,
    /// The request's key.
    #[pyo3(get)]
    key: Py<PyAny>,
    /// What waits for the reply.
    #[pyo3(get)]
    waiter: Py<PyAny>,
    born: Born,
}

impl ReplyHandle {
    fn parts<'a, 'py>(
        &'a self,
        py: Python<'py>,
    ) -> PyResult<(&'a Bound<'py, RequestRegistry>, &'a Bound<'py, PyAny>, &'a Bound<'py, Waiter>)> {
        Ok((self.registry.bind(py).cast()?, self.key.bind(py), self.waiter.bind(py).cast()?))
    }

    fn answer(&self, py: Python<'_>, answer: Answer) -> PyResult<bool> {
        let (registry, key, waiter) = self.parts(py)?;
        Ok(registry.get().remove(py, key, waiter.as_unbound())? && waiter.get().answer(answer))
    }
}

#[pymethods]
impl ReplyHandle {
    #[classmethod]
    fn __class_getitem__(class: &Bound<'_, PyType>, item: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        generic(class, item)
    }

    #[new]
    fn new(registry: Py<RequestRegistry>, key: Py<PyAny>, waiter: Py<Waiter>) -> Self {
        ReplyHandle { registry: registry.into_any(), key, waiter: waiter.into_any(), born: Born::now() }
    }

    /// Answers the request. True means that its waiter gets the value.
    fn resolve(&self, py: Python<'_>, value: Py<PyAny>) -> PyResult<bool> {
        self.answer(py, Answer::Value(value))
    }

    /// Fails the request: its waiter raises this exception.
    fn fail(&self, py: Python<'_>, exc: &Bound<'_, PyBaseException>) -> PyResult<bool> {
        self.answer(py, Answer::Failure(Raised::new(exc)?))
    }

    /// The same as `registry.wait(key, waiter, timeout)`.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<Py<PyAny>> {
        let (registry, key, waiter) = self.parts(py)?;
        registry.get().wait(py, key, waiter.clone().unbind(), timeout)
    }

    /// Takes the request out, unanswered. Its waiter, or None.
    fn pop(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let (registry, key, waiter) = self.parts(py)?;
        registry.get().pop(py, key, Some(waiter.clone().into_any()))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let (_, key, waiter) = self.parts(py)?;
        let state = if waiter.get().full() { "answered" } else { "open" };
        Ok(format!("<ReplyHandle key={} {state}>", key.repr()?))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if !self.born.exists() {
            return Ok(());
        }
        visit.call(&self.registry)?;
        visit.call(&self.key)?;
        visit.call(&self.waiter)
    }
}
