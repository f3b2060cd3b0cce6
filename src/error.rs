//! What every piece says when something ends badly: one shared [`Failure`], one [`Reason`], one [`Cancelled`].
//!
//! A failure is made once and then shared: every waiter, every report and the log hold the *same* cause
//! ([`Failure::ptr_eq`]). Nothing in the crate is generic over an error type.

use std::any::Any;
use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

/// A name of a service, a task or a reason: text that is mostly a literal.
pub type Name = Cow<'static, str>;

/// One shared failure: a cheap clone of an error that may be held by many waiters at once.
///
/// It is made from any error by `?` or `into()`, or from text by [`Failure::msg`]. Like `anyhow::Error` it does not
/// implement [`Error`] itself (otherwise `?` could not convert every error into it); it dereferences to the error it
/// holds, and converts into `Box<dyn Error>`.
///
/// `{}` prints the error, `{:#}` the error and its chain of sources on one line. One that panics as it is printed is told as an
/// error that cannot be printed, and a chain without an end is followed for 256 errors.
///
/// ```
/// use microio::Failure;
/// fn port(text: &str) -> Result<u16, Failure> { Ok(text.parse()?) }
///
/// let failure = port("many").unwrap_err();
/// assert!(failure.downcast_ref::<std::num::ParseIntError>().is_some());
/// assert!(failure.ptr_eq(&failure.clone()));
/// ```
#[derive(Clone, Debug)]
pub struct Failure(Arc<dyn Error + Send + Sync>);

impl Failure {
    /// A failure that is only text.
    pub fn msg(text: impl Into<String>) -> Self {
        Failure(Arc::new(Message(text.into())))
    }

    /// The error inside, if it is an `E`.
    pub fn downcast_ref<E: Error + 'static>(&self) -> Option<&E> {
        self.0.downcast_ref()
    }

    /// Whether both are the same failure: one error, shared.
    pub fn ptr_eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether this error, or one that it was caused by, is an `E`.
    pub(crate) fn chain_has<E: Error + 'static>(&self) -> bool {
        catch(|| self.chain().any(|error| error.is::<E>())).unwrap_or(false)
    }

    /// The error and what it was caused by. An error may say that it caused itself: then it ends somewhere, too.
    fn chain(&self) -> impl Iterator<Item = &(dyn Error + 'static)> {
        const LONGEST: usize = 256;
        let first: &(dyn Error + 'static) = &**self;
        std::iter::successors(Some(first), |&error| error.source()).take(LONGEST)
    }

    fn print(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            return fmt::Display::fmt(&*self.0, f);
        }
        let mut text = self.0.to_string();
        f.write_str(&text)?;
        for source in self.chain().skip(1) {
            // An error that only carries another shows as that one: it is said once.
            let said = std::mem::replace(&mut text, source.to_string());
            if text != said {
                write!(f, ": {text}")?;
            }
        }
        Ok(())
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure(Arc::new(error))
    }
}

impl Deref for Failure {
    type Target = dyn Error + Send + Sync + 'static;
    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl fmt::Display for Failure {
    /// An error that panics instead of printing itself must not take along who only wants to report it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let printed = catch(|| self.print(f)).unwrap_or(Err(fmt::Error));
        printed.or_else(|_| f.write_str("an error that cannot be printed"))
    }
}

impl From<Failure> for Box<dyn Error + Send + Sync> {
    fn from(failure: Failure) -> Self {
        Box::new(Boxed(failure))
    }
}

impl From<Failure> for Box<dyn Error> {
    fn from(failure: Failure) -> Self {
        Box::new(Boxed(failure))
    }
}

#[derive(Debug)]
struct Message(String);

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Message {}

/// A failure on its way into a `Box<dyn Error>`: a type of its own, because `Failure` is not an `Error`.
struct Boxed(Failure);

impl fmt::Debug for Boxed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0.0, f)
    }
}

impl fmt::Display for Boxed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.0, f)
    }
}

impl Error for Boxed {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.0.source()
    }
}

/// What a panic leaves behind: its message, as an error.
///
/// A task or service that panicked fails with a [`Failure`] that downcasts to this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Panic {
    message: String,
}

impl Panic {
    /// The text that the code panicked with.
    pub fn message(&self) -> &str {
        &self.message
    }

    fn from_payload(payload: Box<dyn Any + Send>) -> Self {
        let message = match payload.downcast_ref::<&'static str>() {
            Some(text) => (*text).to_owned(),
            None => payload.downcast_ref::<String>().cloned().unwrap_or_else(|| "a value that is not text".to_owned()),
        };
        // A payload is a user's value: its drop may panic too, and so may what that panics with.
        if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            std::mem::forget(again);
        }
        Panic { message }
    }
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "panicked: {}", self.message)
    }
}

impl Error for Panic {}

/// Runs `f`; a panic becomes the [`Panic`] failure. For code of the user that we run on somebody's behalf.
pub(crate) fn catch<R>(f: impl FnOnce() -> R) -> Result<R, Failure> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|payload| Panic::from_payload(payload).into())
}

/// Drops what is the user's, where a panic of its drop (the panic hook has reported it) would break our books.
pub(crate) fn discard<T>(value: T) {
    let _reported = catch(|| drop(value));
}

pin_project! {
    /// A future of the user that is polled *and dropped* inside a catch: a panic in either is its failure.
    pub(crate) struct Caught<F> {
        #[pin]
        body: Option<F>,
    }

    impl<F> PinnedDrop for Caught<F> {
        fn drop(this: Pin<&mut Self>) {
            let _ = this.cut();
        }
    }
}

impl<F> Caught<F> {
    pub(crate) fn new(body: F) -> Self {
        Caught { body: Some(body) }
    }

    /// Drops the body.
    ///
    /// # Errors
    /// The panic of something in it.
    pub(crate) fn cut(self: Pin<&mut Self>) -> Result<(), Failure> {
        let mut body = self.project().body;
        catch(|| body.set(None))
    }
}

impl<F: Future> Future for Caught<F> {
    type Output = Result<F::Output, Failure>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let body = self.as_mut().project().body.as_pin_mut().expect("polled after its end");
        let output = match catch(|| body.poll(cx)) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(output)) => Ok(output),
            Err(panic) => Err(panic),
        };
        Poll::Ready(match (output, self.cut()) {
            (Ok(output), Ok(())) => Ok(output),
            (Ok(output), Err(panic)) => {
                let _ = catch(|| drop(output));
                Err(panic)
            }
            (Err(panic), _) => Err(panic),
        })
    }
}

/// Why something was cancelled, stopped or closed.
///
/// A child scope stores the reason of the scope that was cancelled: reasons are never nested.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Reason {
    /// Somebody asked for it, and said why.
    Requested(Name),
    /// A deadline passed.
    Deadline,
    /// A sibling of that name failed.
    ChildFailed(Name, Failure),
    /// Whoever owned it is gone: the last handle was dropped.
    OwnerDropped,
    /// What it belonged to was closed, with that text.
    Closed(Name),
}

impl From<&'static str> for Reason {
    fn from(text: &'static str) -> Self {
        Reason::Requested(text.into())
    }
}

impl From<String> for Reason {
    fn from(text: String) -> Self {
        Reason::Requested(text.into())
    }
}

impl From<Name> for Reason {
    fn from(text: Name) -> Self {
        Reason::Requested(text)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Requested(text) | Reason::Closed(text) => f.write_str(text),
            Reason::Deadline => f.write_str("deadline passed"),
            Reason::ChildFailed(name, failure) => write!(f, "{name} failed: {failure}"),
            Reason::OwnerDropped => f.write_str("owner dropped"),
        }
    }
}

/// The outcome of work that was cancelled: why, and where `cancel` was called.
#[derive(Clone, Debug)]
pub struct Cancelled {
    /// Why.
    pub reason: Reason,
    /// Where in the source the winning `cancel` was called.
    pub at: &'static Location<'static>,
}

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cancelled: {}", self.reason)
    }
}

impl Error for Cancelled {}

/// `Display` and `Error` of an error enum, a line a variant: how it reads, and after `from` what caused it. The form with `<T>`
/// is for errors that carry an item: they say what happened, not what the item is, which need not be `Debug`.
macro_rules! display {
    ($type:ident { $($pattern:pat => $text:literal $(from $cause:expr)?,)+ }) => {
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self { $($pattern => write!(f, $text),)+ }
            }
        }
        impl std::error::Error for $type {
            #[allow(unused_variables)]
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                match self { $($pattern => $crate::error::display!(@source $($cause)?),)+ }
            }
        }
    };
    ($type:ident<T> { $($pattern:pat => $text:literal,)+ }) => {
        impl<T> std::fmt::Display for $type<T> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self { $($pattern => write!(f, $text),)+ }
            }
        }
        impl<T> std::fmt::Debug for $type<T> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({self})", stringify!($type))
            }
        }
        impl<T> std::error::Error for $type<T> {}
    };
    (@source) => { None };
    (@source $cause:expr) => { $cause };
}
pub(crate) use display;

/// Why a blocking wait ended without what it waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitError {
    /// The time ran out.
    TimedOut,
    /// The wait was called where it would deadlock: on an event loop's own thread or inside an async worker. Nothing was
    /// waited for. Use the async form there, or move the wait to a plain thread (`spawn_blocking`).
    WouldBlock,
}

/// The one wording of [`WaitError::WouldBlock`] and of its namesakes in the other error types.
pub(crate) const WOULD_BLOCK: &str =
    "would block an async worker or an event loop: use the async form, or wait on a plain thread";

display!(WaitError {
    WaitError::TimedOut => "timed out",
    WaitError::WouldBlock => "{WOULD_BLOCK}",
});
