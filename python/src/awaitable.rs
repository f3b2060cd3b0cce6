//! What `receive()`, `sleep()` and their like return: one class for all, with the methods of a coroutine.
//!
//! An [`Operation`] says what happens at each step; [`Awaitable`] speaks the protocol. Its hot slots, which PyO3 cannot write,
//! are in `raw.rs`.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyStopIteration, PyTypeError};
use pyo3::prelude::*;
use pyo3::pyclass::boolean_struct::True;
use pyo3::types::{PyFloat, PyType};
use pyo3::{PyClass, PyTraverseError, PyVisit, intern};

use crate::entry::check;
use crate::event_loop::{need_running_loop, now};
use crate::raw::{call, call_method};
use crate::wake::{Born, Parked, Tasks};

/// What an operation comes to in one step of its task.
pub(crate) enum Step {
    /// It is done, with this result.
    Return(Py<PyAny>),
    /// It waits to be woken through this.
    Park(Py<Parked>),
    /// It lets the loop go round once.
    Pass,
}

/// An operation that a task waits for.
pub(crate) trait Operation: Send + Sync {
    /// Begins, or goes on after a wake. An error ends it.
    fn step(&mut self, py: Python<'_>) -> PyResult<Step>;
    /// Gives up what it holds in the primitive: its place in a queue, a timer. Called when it ends in any other way than by
    /// returning, and may be called more than once.
    fn leave(&mut self, _py: Python<'_>) {}
    /// Begins anew, on this object; for operations that are used again.
    fn renew(&mut self, _py: Python<'_>, _object: Py<PyAny>) {}
    /// Shows the garbage collector what it refers to.
    fn visit(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError>;
}

/// A coroutine, as far as `await`, tasks and `asyncio.run` are concerned.
#[pyclass(weakref, module = "microio._microio")]
pub(crate) struct Awaitable {
    operation: Box<dyn Operation>,
    name: &'static str,
    state: State,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    New,
    Begun,
    Done,
}

impl Awaitable {
    pub(crate) fn new(name: &'static str, operation: impl Operation + 'static) -> Self {
        Awaitable { operation: Box::new(operation), name, state: State::New }
    }

    /// Makes it new again, for its next use. Only of one that nobody else holds.
    pub(crate) fn renew(&mut self, py: Python<'_>, object: Py<PyAny>) {
        self.state = State::New;
        self.operation.renew(py, object);
    }

    /// Ends a wait that somebody has begun and dropped without a word.
    pub(crate) fn give_up(&mut self, py: Python<'_>) {
        if self.state == State::Begun {
            self.end(py);
        }
    }

    pub(crate) fn step(&mut self, py: Python<'_>) -> PyResult<Step> {
        if self.state == State::Done {
            return Err(PyRuntimeError::new_err(format!("cannot reuse already awaited {}()", self.name)));
        }
        self.state = State::Begun;
        let step = self.operation.step(py);
        match &step {
            Ok(Step::Return(_)) => self.state = State::Done,
            Ok(_) => {}
            Err(_) => self.end(py),
        }
        step
    }

    fn end(&mut self, py: Python<'_>) {
        self.state = State::Done;
        self.operation.leave(py);
    }
}

/// Somebody awaits it.
///
/// # Errors
/// RuntimeError, if somebody does already: whoever came first would not be woken any more.
pub(crate) fn awaited(slf: &Bound<'_, Awaitable>) -> PyResult<()> {
    match slf.try_borrow() {
        Ok(this) if this.state != State::Begun => Ok(()),
        _ => Err(PyRuntimeError::new_err("already being awaited")),
    }
}

/// The step of an awaitable. It is borrowed meanwhile: who comes in between finds it executing.
pub(crate) fn step(slf: &Bound<'_, Awaitable>) -> PyResult<Step> {
    slf.try_borrow_mut().map_err(|_| PyRuntimeError::new_err("already being awaited"))?.step(slf.py())
}

#[pymethods]
impl Awaitable {
    fn __await__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        awaited(&slf)?;
        Ok(slf)
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        match step(slf)? {
            Step::Return(value) => Err(PyStopIteration::new_err((value,))),
            Step::Park(parked) => Ok(parked.into_any()),
            Step::Pass => Ok(slf.py().None()),
        }
    }

    fn send(slf: &Bound<'_, Self>, value: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        if !value.is_none() && slf.try_borrow().is_ok_and(|this| this.state == State::New) {
            return Err(PyTypeError::new_err("can't send non-None value to a just-started coroutine"));
        }
        Self::__next__(slf)
    }

    #[pyo3(signature = (kind, value=None, traceback=None))]
    fn throw(
        slf: &Bound<'_, Self>,
        kind: &Bound<'_, PyAny>,
        value: Option<&Bound<'_, PyAny>>,
        traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        Self::close(slf)?;
        let error = match (kind.cast::<PyType>(), value.filter(|value| !value.is_none())) {
            (Err(_), _) => kind.clone(),
            (Ok(_), None) => call(kind, [])?,
            (Ok(class), Some(value)) if value.is_instance(class)? => value.clone(),
            (Ok(_), Some(value)) => call(kind, [value])?,
        };
        if let Some(traceback) = traceback.filter(|traceback| !traceback.is_none()) {
            error.setattr(intern!(py, "__traceback__"), traceback)?;
        }
        Err(PyErr::from_value(error))
    }

    fn close(slf: &Bound<'_, Self>) -> PyResult<()> {
        let this = slf.try_borrow_mut();
        let mut this = this.map_err(|_| PyRuntimeError::new_err("already being awaited"))?;
        if this.state != State::Done {
            this.end(slf.py());
        }
        Ok(())
    }

    #[getter]
    fn __name__(slf: &Bound<'_, Self>) -> &'static str {
        slf.try_borrow().map_or("wait", |this| this.name)
    }

    #[getter]
    fn __qualname__(slf: &Bound<'_, Self>) -> &'static str {
        Self::__name__(slf)
    }

    fn __repr__(slf: &Bound<'_, Self>) -> String {
        // A gate, in the middle of a step, may want to say which task it is in.
        let Ok(this) = slf.try_borrow() else { return "<microio wait, running>".into() };
        let state = match this.state {
            State::New => "not awaited yet",
            State::Begun => "waiting",
            State::Done => "done",
        };
        format!("<microio {}(), {state}>", this.name)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.operation.visit(&visit)
    }

    fn __clear__(&mut self) {
        struct Nothing;
        impl Operation for Nothing {
            fn step(&mut self, _py: Python<'_>) -> PyResult<Step> {
                Err(PyRuntimeError::new_err("collected as garbage"))
            }
            fn visit(&self, _visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
                Ok(())
            }
        }
        self.operation = Box::new(Nothing);
    }
}

impl Drop for Awaitable {
    fn drop(&mut self) {
        if self.state == State::Begun {
            let _ = Python::try_attach(|py| self.operation.leave(py));
        }
    }
}

/// A wait of the core as an operation: a future, woken through a [`Parked`].
pub(crate) struct Waiting<P, F> {
    /// In a mutex that is never locked: a future need not be `Sync`.
    future: Mutex<Option<Pin<Box<F>>>>,
    parked: Option<Py<Parked>>,
    /// Its place among the tasks of the primitive.
    place: Option<usize>,
    deadline: Option<Deadline>,
    primitive: Py<P>,
    /// What the future refers to.
    keeps: Option<Arc<dyn Keep>>,
}

/// What a future refers to through an `Arc`, so that the garbage collector sees it once.
pub(crate) trait Keep: Send + Sync {
    fn visit(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError>;
}

/// What tasks wait for through [`Waiting`].
pub(crate) trait Primitive: PyClass<Frozen = True> + Sync {
    const WHAT: &'static str;
    fn born(&self) -> Born;
    fn tasks(&self) -> &Tasks;
}

/// What happens when the time is up: it says how the wait ends.
struct Deadline {
    after: Duration,
    /// On the loop's clock, from the first step on.
    at: Option<f64>,
    timer: Option<Py<PyAny>>,
    expire: Expire,
}

pub(crate) type Expire = Box<dyn FnMut(Python<'_>) -> PyResult<Py<PyAny>> + Send + Sync>;

impl<P: Primitive, F> Waiting<P, F>
where
    F: Future<Output = PyResult<Py<PyAny>>> + Send + 'static,
{
    pub(crate) fn new(primitive: Py<P>, future: F) -> Self {
        Waiting {
            future: Mutex::new(Some(Box::pin(future))),
            parked: None,
            place: None,
            deadline: None,
            primitive,
            keeps: None,
        }
    }

    pub(crate) fn keeping(mut self, keeps: Arc<dyn Keep>) -> Self {
        self.keeps = Some(keeps);
        self
    }

    pub(crate) fn with_timeout(mut self, after: Option<Duration>, expire: Expire) -> Self {
        self.deadline = after.map(|after| Deadline { after, at: None, timer: None, expire });
        self
    }

    fn poll(&mut self, py: Python<'_>) -> PyResult<Step> {
        self.primitive.get().born().check(P::WHAT)?;
        check(py)?;
        let expired = self.parked.take().is_some_and(|parked| parked.get().expired());
        let loop_ = need_running_loop(py)?;
        let parked = Py::new(py, Parked::new(loop_.clone().unbind()))?;
        let waker = parked.get().waker();
        let future = self.future.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(future) = future else { return Err(PyRuntimeError::new_err("awaited after its end")) };
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            self.leave(py);
            return output.map(Step::Return);
        }
        if let Some(deadline) = &mut self.deadline {
            let now = now(&loop_)?;
            let at = *deadline.at.get_or_insert(now + deadline.after.as_secs_f64());
            if (expired && now >= at) || deadline.after.is_zero() {
                let output = (deadline.expire)(py);
                self.leave(py);
                return output.map(Step::Return);
            }
            let at = PyFloat::new(py, at);
            let timer = call_method(intern!(py, "call_at"), [&loop_, &at, parked.bind(py)], None)?.unbind();
            cancel_timer(py, deadline.timer.replace(timer));
        }
        self.primitive.get().tasks().park(&mut self.place, parked.clone_ref(py));
        self.parked = Some(parked.clone_ref(py));
        Ok(Step::Park(parked))
    }
}

pub(crate) fn cancel_timer(py: Python<'_>, timer: Option<Py<PyAny>>) {
    if let Some(Err(error)) = timer.map(|timer| call_method(intern!(py, "cancel"), [timer.bind(py)], None)) {
        error.write_unraisable(py, None);
    }
}

impl<P: Primitive, F> Operation for Waiting<P, F>
where
    F: Future<Output = PyResult<Py<PyAny>>> + Send + 'static,
{
    fn step(&mut self, py: Python<'_>) -> PyResult<Step> {
        self.poll(py)
    }

    fn leave(&mut self, py: Python<'_>) {
        let future = self.future.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let deadline = self.deadline.take();
        cancel_timer(py, deadline.and_then(|deadline| deadline.timer));
        drop((future, self.parked.take()));
        self.primitive.get().tasks().leave(&mut self.place);
        self.keeps = None;
    }

    fn visit(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.primitive)?;
        visit.call(&self.parked)?;
        if let Some(keeps) = &self.keeps {
            keeps.visit(visit)?;
        }
        match &self.deadline {
            Some(deadline) => visit.call(&deadline.timer),
            None => Ok(()),
        }
    }
}
