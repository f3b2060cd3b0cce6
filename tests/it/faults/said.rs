//! What somebody has heard of an end: a text, and the very object if it is shared.

use microio::{CloseError, Failure, ServiceError};

#[derive(Clone, Debug)]
pub(super) struct Said {
    pub(super) text: String,
    pub(super) cause: Option<Failure>,
}

impl From<Failure> for Said {
    fn from(cause: Failure) -> Self {
        Said { text: cause.to_string(), cause: Some(cause) }
    }
}

impl From<CloseError> for Said {
    fn from(end: CloseError) -> Self {
        match end {
            CloseError::Failed(cause) => cause.into(),
            CloseError::Closed(reason) => Said { text: reason.to_string(), cause: None },
        }
    }
}

impl From<ServiceError> for Said {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::Failed { cause, .. } => cause.into(),
            ServiceError::Panicked { message, .. } => Said { text: format!("panicked: {message}"), cause: None },
            ServiceError::Stopped { reason, .. } => Said { text: reason.to_string(), cause: None },
            other => Said { text: other.to_string(), cause: None },
        }
    }
}

#[cfg(feature = "tokio")]
impl From<microio::CallError> for Said {
    fn from(error: microio::CallError) -> Self {
        match error {
            microio::CallError::Failed(cause) => cause.into(),
            microio::CallError::Closed(reason) => Said { text: reason.to_string(), cause: None },
            other => Said { text: other.to_string(), cause: None },
        }
    }
}
