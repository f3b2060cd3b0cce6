//! Exceptions that are kept and raised later, the same object in every waiter; and ours by name.

use pyo3::exceptions::PyBaseException;
use pyo3::prelude::*;
use pyo3::types::PyString;
use pyo3::{PyTraverseError, PyVisit, intern};

use crate::once::Once;

/// An exception that is to be raised, once or in several waiters.
pub(crate) struct Raised {
    exception: Py<PyBaseException>,
    /// The traceback that it came with. Each raise starts from there: otherwise every waiter would add to what the
    /// waiter before it has left.
    traceback: Py<PyAny>,
}

impl Raised {
    pub(crate) fn new(exception: &Bound<'_, PyBaseException>) -> PyResult<Self> {
        let traceback = exception.getattr(intern!(exception.py(), "__traceback__"))?.unbind();
        Ok(Raised { exception: exception.clone().unbind(), traceback })
    }

    pub(crate) fn clone_ref(&self, py: Python<'_>) -> Self {
        Raised { exception: self.exception.clone_ref(py), traceback: self.traceback.clone_ref(py) }
    }

    /// The exception itself, ready to be raised.
    pub(crate) fn raise(&self, py: Python<'_>) -> PyErr {
        let exception = self.exception.bind(py);
        match exception.setattr(intern!(py, "__traceback__"), &self.traceback) {
            Ok(()) => PyErr::from_value(exception.clone().into_any()),
            Err(error) => error,
        }
    }

    pub(crate) fn visit(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.exception)?;
        visit.call(&self.traceback)
    }
}

/// The error of that name in a module.
pub(crate) fn named_error(
    py: Python<'_>,
    cell: &'static Once<Py<PyAny>>,
    module: &str,
    name: &str,
    argument: Option<&Bound<'_, PyAny>>,
) -> PyErr {
    let made = cell.import(py, module, name).and_then(|error| match argument {
        None => error.call0(),
        Some(argument) => error.call1((argument,)),
    });
    made.map_or_else(|error| error, PyErr::from_value)
}

static CANCELLED: Once<Py<PyAny>> = Once::new();

/// The class `asyncio.CancelledError`.
pub(crate) fn cancelled_type(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    CANCELLED.import(py, "asyncio", "CancelledError")
}

/// An `asyncio.CancelledError`.
pub(crate) fn cancelled(py: Python<'_>, message: Option<&Bound<'_, PyAny>>) -> PyErr {
    named_error(py, &CANCELLED, "asyncio", "CancelledError", message)
}

/// An `asyncio.InvalidStateError`.
pub(crate) fn invalid_state(py: Python<'_>) -> PyErr {
    static TYPE: Once<Py<PyAny>> = Once::new();
    named_error(py, &TYPE, "asyncio", "InvalidStateError", Some(intern!(py, "result is not set").as_any()))
}

/// An `asyncio.QueueFull`.
pub(crate) fn queue_full(py: Python<'_>) -> PyErr {
    static TYPE: Once<Py<PyAny>> = Once::new();
    named_error(py, &TYPE, "asyncio", "QueueFull", None)
}

/// The text of an object; of one that has none, the name of its type.
pub(crate) fn text(object: &Bound<'_, PyAny>) -> String {
    let text = object.str().map(|text| text.to_string_lossy().into_owned());
    text.or_else(|_| object.get_type().name().map(|name| name.to_string())).unwrap_or_default()
}

macro_rules! errors {
    ($($function:ident: $name:literal,)*) => {$(
        #[doc = concat!("A `", $name, "`, with this text and cause.")]
        pub(crate) fn $function(py: Python<'_>, text: &str, cause: Option<PyErr>) -> PyErr {
            static TYPE: Once<Py<PyAny>> = Once::new();
            let error = named_error(py, &TYPE, "microio._errors", $name, Some(PyString::new(py, text).as_any()));
            if cause.is_some() {
                error.set_cause(py, cause);
            }
            error
        }
    )*};
}

errors! {
    closed: "ClosedResourceError",
    broken: "BrokenResourceError",
}

/// An `EndOfStream`.
pub(crate) fn end_of_stream(py: Python<'_>) -> PyErr {
    static TYPE: Once<Py<PyAny>> = Once::new();
    named_error(py, &TYPE, "microio._errors", "EndOfStream", None)
}
