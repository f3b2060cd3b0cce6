//! What waits for one reply: a place for one object, on the core's wait list.

use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use microio::host::{Waitable, Waiters, wait_until, wake_all};
use pyo3::exceptions::{PyBaseException, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyType;
use pyo3::{PyTraverseError, PyVisit};

use crate::awaitable::Primitive;
use crate::channel::generic;
use crate::errors::{Raised, named_error};
use crate::number::Seconds;
use crate::once::Once;
use crate::wake::{Born, Tasks, block, lock};

/// What waits for a reply: a place for one object, with the methods of a `queue.Queue(maxsize=1)`.
#[pyclass(frozen, weakref, module = "microio._microio")]
pub(crate) struct Waiter {
    slot: Mutex<Slot>,
    tasks: Tasks,
    born: Born,
}

impl Primitive for Waiter {
    const WHAT: &'static str = "a waiter";
    fn born(&self) -> Born {
        self.born
    }
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

#[derive(Default)]
pub(crate) struct Slot {
    answer: Option<Answer>,
    /// No `resolve` or `fail` will be taken any more.
    settled: bool,
    waiters: Waiters,
}

pub(crate) enum Answer {
    /// The reply.
    Value(Py<PyAny>),
    /// The failure of the request.
    Failure(Raised),
    /// What somebody has put there by hand; an exception, which `wait` raises, is the other one.
    Put(Py<PyAny>),
    PutFailure(Raised),
}

impl Waitable for Waiter {
    type State = Slot;
    fn lock(&self) -> impl DerefMut<Target = Slot> {
        lock(&self.slot)
    }
    fn waiters(slot: &mut Slot) -> &mut Waiters {
        &mut slot.waiters
    }
}

/// A waiter that a wait of the core holds on to.
struct Held(Py<Waiter>);

impl Deref for Held {
    type Target = Waiter;
    fn deref(&self) -> &Waiter {
        self.0.get()
    }
}

impl Waiter {
    pub(crate) fn new() -> Self {
        Waiter { slot: Mutex::default(), tasks: Tasks::default(), born: Born::now() }
    }

    /// Answers it; false if it has been, or if nobody waits any more.
    pub(crate) fn answer(&self, answer: Answer) -> bool {
        let mut slot = lock(&self.slot);
        if slot.settled || slot.answer.is_some() {
            drop(slot);
            return false;
        }
        slot.settled = true;
        slot.answer = Some(answer);
        let waited_for = slot.waiters.queued() > 0;
        drop(slot);
        if waited_for {
            wake_all(self);
        }
        true
    }

    fn put(&self, item: &Bound<'_, PyAny>) -> PyResult<bool> {
        let answer = match item.cast::<PyBaseException>() {
            Ok(exception) => Answer::PutFailure(Raised::new(exception)?),
            Err(_) => Answer::Put(item.clone().unbind()),
        };
        let mut slot = lock(&self.slot);
        if slot.answer.is_some() {
            drop(slot);
            return Ok(false);
        }
        slot.answer = Some(answer);
        drop(slot);
        wake_all(self);
        Ok(true)
    }

    /// Takes the answer. Who waits for the place to be free is woken.
    fn take(&self) -> Option<Answer> {
        let mut slot = lock(&self.slot);
        let answer = slot.answer.take();
        let waited_for = answer.is_some() && slot.waiters.queued() > 0;
        drop(slot);
        if waited_for {
            wake_all(self);
        }
        answer
    }

    /// Takes the answer, or sees to it that there will be none.
    pub(crate) fn abandon(&self) -> Option<Answer> {
        lock(&self.slot).settled = true;
        self.take()
    }
}

impl Answer {
    fn into_object(self, py: Python<'_>) -> Py<PyAny> {
        match self {
            Answer::Value(object) | Answer::Put(object) => object,
            Answer::Failure(raised) | Answer::PutFailure(raised) => raised.raise(py).into_value(py).into_any(),
        }
    }

    /// What `wait` makes of it.
    pub(crate) fn into_result(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self {
            Answer::Value(object) | Answer::Put(object) => Ok(object),
            Answer::Failure(raised) | Answer::PutFailure(raised) => Err(raised.raise(py)),
        }
    }
}

fn full(py: Python<'_>) -> PyErr {
    static TYPE: Once<Py<PyAny>> = Once::new();
    named_error(py, &TYPE, "queue", "Full", None)
}

fn empty(py: Python<'_>) -> PyErr {
    static TYPE: Once<Py<PyAny>> = Once::new();
    named_error(py, &TYPE, "queue", "Empty", None)
}

pub(crate) fn not_negative(timeout: Option<Seconds>) -> PyResult<Option<Duration>> {
    if timeout.is_some_and(|timeout| timeout.0 < 0.0) {
        return Err(PyValueError::new_err("'timeout' must be a non-negative number"));
    }
    Ok(timeout.and_then(Seconds::timeout))
}

#[pymethods]
impl Waiter {
    #[classmethod]
    fn __class_getitem__(class: &Bound<'_, PyType>, item: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        generic(class, item)
    }

    /// Puts an object there, and waits while the place is taken; queue.Full if it stays so. `wait` raises an exception that
    /// was put.
    #[pyo3(name = "put", signature = (item, block=true, timeout=None))]
    fn put_blocking(
        slf: Py<Self>,
        py: Python<'_>,
        item: &Bound<'_, PyAny>,
        block: bool,
        timeout: Option<Seconds>,
    ) -> PyResult<()> {
        let timeout = if block { not_negative(timeout)? } else { Some(Duration::ZERO) };
        loop {
            if slf.get().put(item)? {
                return Ok(());
            }
            if timeout.is_some_and(|timeout| timeout.is_zero()) {
                return Err(full(py));
            }
            slf.get().born.check(Waiter::WHAT)?;
            let free = wait_until(Held(slf.clone_ref(py)), |slot: &mut Slot| slot.answer.is_none().then_some(()));
            if crate::wake::block(py, free, timeout)?.is_none() {
                return Err(full(py));
            }
        }
    }

    /// Puts an object there; queue.Full if the place is taken.
    fn put_nowait(&self, item: &Bound<'_, PyAny>) -> PyResult<()> {
        if self.put(item)? { Ok(()) } else { Err(full(item.py())) }
    }

    /// Takes the object, and waits while there is none; queue.Empty if it stays so.
    #[pyo3(signature = (block=true, timeout=None))]
    fn get(slf: Py<Self>, py: Python<'_>, block: bool, timeout: Option<Seconds>) -> PyResult<Py<PyAny>> {
        let timeout = if block { not_negative(timeout)? } else { Some(Duration::ZERO) };
        match wait(py, &slf, timeout)? {
            Some(answer) => Ok(answer.into_object(py)),
            None => Err(empty(py)),
        }
    }

    /// Takes the object; queue.Empty if there is none.
    fn get_nowait(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self.take() {
            Some(answer) => Ok(answer.into_object(py)),
            None => Err(empty(py)),
        }
    }

    /// 1 if there is an object, 0 if not.
    fn qsize(&self) -> usize {
        usize::from(self.full())
    }

    /// Whether there is no object.
    fn empty(&self) -> bool {
        !self.full()
    }

    /// Whether there is an object.
    pub(crate) fn full(&self) -> bool {
        lock(&self.slot).answer.is_some()
    }

    fn __repr__(&self) -> &'static str {
        if self.full() { "<Waiter answered>" } else { "<Waiter open>" }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.tasks.visit(&visit)?;
        let Ok(slot) = self.slot.try_lock() else { return Ok(()) };
        match &slot.answer {
            Some(Answer::Value(object) | Answer::Put(object)) => visit.call(object),
            Some(Answer::Failure(raised) | Answer::PutFailure(raised)) => raised.visit(&visit),
            None => Ok(()),
        }
    }

    fn __clear__(&self) {
        let answer = lock(&self.slot).answer.take();
        drop(answer);
    }
}

/// Takes the answer, when there is one; None when the time is up.
pub(crate) fn wait(py: Python<'_>, waiter: &Py<Waiter>, timeout: Option<Duration>) -> PyResult<Option<Answer>> {
    waiter.get().born.check(Waiter::WHAT)?;
    if let Some(answer) = waiter.get().take() {
        return Ok(Some(answer));
    }
    if timeout.is_some_and(|timeout| timeout.is_zero()) {
        return Ok(None);
    }
    let answered = wait_until(Held(waiter.clone_ref(py)), |slot: &mut Slot| slot.answer.take());
    let answer = block(py, answered, timeout)?;
    wake_all(waiter.get()); // the place is free
    Ok(answer)
}

/// The answer, for a task; it stays where it is if nobody polls this to its end.
pub(crate) fn answered<W>(waiter: Arc<W>) -> impl Future<Output = Answer> + Send + 'static
where
    W: Deref<Target = Waiter> + Send + Sync + 'static,
{
    struct Shared<W>(Arc<W>);
    impl<W: Deref<Target = Waiter>> Deref for Shared<W> {
        type Target = Waiter;
        fn deref(&self) -> &Waiter {
            &self.0
        }
    }
    wait_until(Shared(waiter), |slot: &mut Slot| slot.answer.take())
}
