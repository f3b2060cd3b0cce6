//! Numbers as callers give them. What is too large for a machine's number is the largest: a wait of `10**400` seconds is one
//! for ever, and `10**400` places are as many as there is memory for.

use std::time::Duration;

use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;

/// A time, or a point in time, in seconds: any real number but nan.
#[derive(Clone, Copy)]
pub(crate) struct Seconds(pub(crate) f64);

impl<'py> FromPyObject<'_, 'py> for Seconds {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let py = object.py();
        match object.extract::<f64>() {
            Ok(seconds) if seconds.is_nan() => {
                Err(PyValueError::new_err("a time must be a number of seconds, not nan"))
            }
            Ok(seconds) => Ok(Seconds(seconds)),
            Err(error) if error.is_instance_of::<PyOverflowError>(py) => {
                Ok(Seconds(if object.lt(0)? { f64::NEG_INFINITY } else { f64::INFINITY }))
            }
            Err(error) if error.is_instance_of::<PyTypeError>(py) => Err(expected("a number of seconds", &object)),
            Err(error) => Err(error),
        }
    }
}

impl Seconds {
    /// As a timeout: what is negative is zero; None, for ever, is also what is more than the clock can express.
    pub(crate) fn timeout(self) -> Option<Duration> {
        Duration::try_from_secs_f64(self.0.max(0.0)).ok()
    }
}

/// The number of seconds that a time is: for the Python side.
#[pyfunction]
pub(crate) fn seconds(time: Seconds) -> f64 {
    time.0
}

/// How many: an integer.
#[derive(Clone, Copy)]
pub(crate) struct Count(isize);

impl<'py> FromPyObject<'_, 'py> for Count {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match object.extract() {
            Ok(count) => Ok(Count(count)),
            Err(error) if error.is_instance_of::<PyOverflowError>(object.py()) => {
                Ok(Count(if object.lt(0)? { isize::MIN } else { isize::MAX }))
            }
            Err(error) => Err(error),
        }
    }
}

impl Count {
    /// What is negative is zero.
    pub(crate) fn get(self) -> usize {
        self.0.max(0) as usize
    }
}

/// The error for an argument of a wrong type.
pub(crate) fn expected(what: &str, found: &Bound<'_, PyAny>) -> PyErr {
    match found.get_type().name() {
        Ok(name) => PyTypeError::new_err(format!("{what} was expected, not {name}")),
        Err(error) => error,
    }
}
