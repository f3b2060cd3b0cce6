//! Which scopes the running code is in: a chain of entries in a context variable.
//!
//! `with scope` makes an [`Entry`]: this task is in this scope until it leaves. Code that inherited the context (a child task,
//! `asyncio.to_thread`) finds the entries of whoever it came from, as long as they are open.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use pyo3::{PyTraverseError, PyVisit, intern};

use crate::cancel::{CancelScope, expire};
use crate::errors::cancelled;
use crate::event_loop::{call_soon, in_step};
use crate::once::Once;
use crate::raw::{call_method, is_last};
use crate::wake::lock;

/// How many scopes are cancelled and have somebody in them: while there is none, a checkpoint is one load.
pub(crate) static LIVE: AtomicUsize = AtomicUsize::new(0);

/// A task in a scope.
#[pyclass(frozen, module = "microio._microio")]
pub(crate) struct Entry {
    pub(crate) scope: Py<CancelScope>,
    pub(crate) task: Py<PyAny>,
    pub(crate) loop_: Py<PyAny>,
    /// What `task.cancelling()` was on entering.
    pub(crate) base: usize,
    /// Our one `Task.cancel()` has been made.
    pub(crate) issued: AtomicBool,
    pub(crate) live: AtomicBool,
    pub(crate) key: OnceLock<usize>,
    /// The chain of the context that it was entered in.
    pub(crate) outer: Mutex<Option<Py<Entry>>>,
}

pub(crate) fn chain(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static CHAIN: Once<Py<PyAny>> = Once::new();
    let chain = CHAIN.get_or_make(py, || {
        let kwargs = PyDict::new(py);
        kwargs.set_item("default", py.None())?;
        let variable = py.import("contextvars")?.getattr("ContextVar")?;
        variable.call(("microio_scopes",), Some(&kwargs)).map(Bound::unbind)
    })?;
    Ok(chain.bind(py))
}

/// The innermost entry of the running code.
pub(crate) fn innermost(py: Python<'_>) -> PyResult<Option<Py<Entry>>> {
    let entry = chain(py)?.call_method0(intern!(py, "get"))?;
    Ok(entry.cast_into::<Entry>().ok().map(Bound::unbind))
}

impl Entry {
    pub(crate) fn outer(&self, py: Python<'_>) -> Option<Py<Entry>> {
        lock(&self.outer).as_ref().map(|entry| entry.clone_ref(py))
    }

    pub(crate) fn is_live(&self) -> bool {
        self.live.load(Ordering::Acquire)
    }

    fn is_cancelled(&self) -> bool {
        self.is_live() && self.scope.get().is_cancelled()
    }

    pub(crate) fn cancelling(&self, py: Python<'_>) -> PyResult<usize> {
        self.task.call_method0(py, intern!(py, "cancelling"))?.extract(py)
    }

    /// Whether an enclosing scope that this task entered is cancelled too (rule 4).
    pub(crate) fn has_cancelled_outer(&self, py: Python<'_>) -> bool {
        if LIVE.load(Ordering::Acquire) == 0 {
            return false;
        }
        let mut next = self.outer(py);
        while let Some(entry) = next {
            if entry.get().is_cancelled() && entry.get().task.is(&self.task) {
                return true;
            }
            next = entry.get().outer(py);
        }
        false
    }

    /// Cancels the task; in a callback of its loop only (rule 2).
    pub(crate) fn deliver(&self, py: Python<'_>) -> PyResult<()> {
        if self.is_live() && !self.issued.swap(true, Ordering::AcqRel) {
            call_method(intern!(py, "cancel"), [self.task.bind(py)], None)?;
        }
        Ok(())
    }

    /// Has the task cancelled by its loop.
    pub(crate) fn request(slf: &Bound<'_, Self>, wake: bool) -> PyResult<()> {
        let loop_ = slf.get().loop_.bind(slf.py());
        call_soon(loop_, slf, !wake && in_step(loop_)?)
    }
}

#[pymethods]
impl Entry {
    /// The callback of the loop: the deadline has passed, or somebody asked for a cancel.
    #[pyo3(signature = (deadline=None))]
    fn __call__(&self, py: Python<'_>, deadline: Option<f64>) -> PyResult<()> {
        if let Some(deadline) = deadline {
            expire(self.scope.get(), py, deadline, &self.loop_)?;
        }
        if self.is_cancelled() { self.deliver(py) } else { Ok(()) }
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("<entry of {}>", self.scope.bind(py).repr()?))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.scope)?;
        visit.call(&self.task)?;
        visit.call(&self.loop_)?;
        let Ok(outer) = self.outer.try_lock() else { return Ok(()) };
        visit.call(&*outer)
    }

    fn __clear__(&self) {
        let outer = lock(&self.outer).take();
        drop(outer);
    }
}

/// A long chain is dropped in a loop: it must not use the stack.
impl Drop for Entry {
    fn drop(&mut self) {
        let mut next = lock(&self.outer).take();
        if next.is_none() {
            return;
        }
        let _ = Python::try_attach(|py| {
            while let Some(entry) = next.take() {
                if is_last(&entry, py) {
                    next = lock(&entry.get().outer).take();
                }
            }
        });
    }
}

/// The innermost cancelled scope that the running code is in.
pub(crate) fn cancelled_scope(py: Python<'_>) -> PyResult<Option<Py<CancelScope>>> {
    if LIVE.load(Ordering::Acquire) == 0 {
        return Ok(None);
    }
    let mut next = innermost(py)?;
    while let Some(entry) = next {
        if entry.get().is_cancelled() {
            return Ok(Some(entry.get().scope.clone_ref(py)));
        }
        next = entry.get().outer(py);
    }
    Ok(None)
}

/// Raises CancelledError in a cancelled scope.
#[inline]
pub(crate) fn check(py: Python<'_>) -> PyResult<()> {
    if LIVE.load(Ordering::Acquire) == 0 { Ok(()) } else { check_chain(py) }
}

#[cold]
fn check_chain(py: Python<'_>) -> PyResult<()> {
    match cancelled_scope(py)? {
        Some(_) => Err(cancelled(py, None)),
        None => Ok(()),
    }
}
