//! Where code lets others run, and sees that it is cancelled: `checkpoint`, `checkpoint_if_cancelled`, `sleep`.

use pyo3::prelude::*;
use pyo3::types::PyFloat;
use pyo3::{PyTraverseError, PyVisit, intern};

use crate::awaitable::{Awaitable, Operation, Step, cancel_timer};
use crate::cancel::CancelScope;
use crate::entry::{cancelled_scope, check};
use crate::event_loop::need_running_loop;
use crate::number::Seconds;
use crate::raw::call_method;
use crate::wake::Parked;

/// Raises CancelledError if the running code is in a cancelled scope. Works in threads that inherited the context too
/// (`asyncio.to_thread`).
#[pyfunction]
pub(crate) fn checkpoint_if_cancelled(py: Python<'_>) -> PyResult<()> {
    check(py)
}

/// The innermost cancelled scope that the running code is in, or None.
#[pyfunction]
pub(crate) fn current_cancel_scope(py: Python<'_>) -> PyResult<Option<Py<CancelScope>>> {
    cancelled_scope(py)
}

/// Lets the other tasks run; raises CancelledError in a cancelled scope, before and after.
#[pyfunction]
pub(crate) fn checkpoint() -> Awaitable {
    Awaitable::new("checkpoint", Checkpoint { passed: false })
}

struct Checkpoint {
    passed: bool,
}

impl Operation for Checkpoint {
    fn step(&mut self, py: Python<'_>) -> PyResult<Step> {
        check(py)?;
        if std::mem::replace(&mut self.passed, true) { Ok(Step::Return(py.None())) } else { Ok(Step::Pass) }
    }

    fn visit(&self, _visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        Ok(())
    }
}

/// Waits for `delay` seconds and returns `result`; raises CancelledError in a cancelled scope, before and after.
#[pyfunction]
#[pyo3(signature = (delay, result=None))]
pub(crate) fn sleep(delay: Seconds, result: Option<Py<PyAny>>) -> Awaitable {
    Awaitable::new("sleep", Sleep { delay: delay.0, result, parked: None, timer: None, passed: false })
}

struct Sleep {
    delay: f64,
    result: Option<Py<PyAny>>,
    parked: Option<Py<Parked>>,
    timer: Option<Py<PyAny>>,
    passed: bool,
}

impl Operation for Sleep {
    fn step(&mut self, py: Python<'_>) -> PyResult<Step> {
        check(py)?;
        if std::mem::replace(&mut self.passed, true) {
            if let Some(parked) = self.parked.as_ref().filter(|parked| !parked.get().expired()) {
                return Ok(Step::Park(parked.clone_ref(py)));
            }
            self.timer = None;
            return Ok(Step::Return(self.result.take().unwrap_or_else(|| py.None())));
        }
        if self.delay <= 0.0 {
            return Ok(Step::Pass);
        }
        let loop_ = need_running_loop(py)?;
        let parked = Py::new(py, Parked::new(loop_.clone().unbind()))?;
        if self.delay != f64::INFINITY {
            let delay = PyFloat::new(py, self.delay);
            let timer = call_method(intern!(py, "call_later"), [&loop_, &delay, parked.bind(py)], None)?;
            self.timer = Some(timer.unbind());
        }
        self.parked = Some(parked.clone_ref(py));
        Ok(Step::Park(parked))
    }

    fn leave(&mut self, py: Python<'_>) {
        cancel_timer(py, self.timer.take());
    }

    fn visit(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.result)?;
        visit.call(&self.parked)?;
        visit.call(&self.timer)
    }
}
