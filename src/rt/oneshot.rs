//! One value from one side to the other, with one waiter: how tasks and calls hand over their outcome.

use std::task::{Context, Poll, Waker};

use crate::sync::Mutex;
use crate::wait::wake;

/// Lock: a leaf. Values and wakers are dropped, and wakers woken, outside it.
#[derive(Debug)]
pub(crate) struct Oneshot<T>(Mutex<State<T>>);

#[derive(Debug)]
enum State<T> {
    Empty(Option<Waker>),
    Full(T),
    /// Taken, or nobody will come for it.
    Over,
}

impl<T> Oneshot<T> {
    pub(crate) fn new() -> Self {
        Oneshot(Mutex::new(State::Empty(None)))
    }

    /// Puts the value in and wakes the waiter.
    ///
    /// # Errors
    /// The value comes back: there is or was one, or nobody will come for it.
    pub(crate) fn set(&self, value: T) -> Result<(), T> {
        let mut state = self.0.lock();
        let State::Empty(waker) = &mut *state else {
            drop(state);
            return Err(value);
        };
        let waker = waker.take();
        *state = State::Full(value);
        drop(state);
        if let Some(waker) = waker {
            wake(waker);
        }
        Ok(())
    }

    /// Whether a value can still be put in.
    pub(crate) fn is_open(&self) -> bool {
        matches!(*self.0.lock(), State::Empty(_))
    }

    /// Takes the value, or parks.
    ///
    /// # Panics
    /// If the value has been taken.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<T> {
        let mut fresh = None;
        loop {
            let mut state = self.0.lock();
            let State::Empty(waker) = &mut *state else {
                let State::Full(value) = std::mem::replace(&mut *state, State::Over) else {
                    panic!("polled after its end")
                };
                return Poll::Ready(value);
            };
            if waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                return Poll::Pending;
            }
            if let Some(fresh) = fresh.take() {
                let replaced = waker.replace(fresh);
                drop(state);
                drop(replaced);
                return Poll::Pending;
            }
            drop(state);
            fresh = Some(cx.waker().clone());
        }
    }

    /// The waiter goes. Some if a value has come that it has not taken.
    pub(crate) fn leave(&self) -> Option<T> {
        let left = std::mem::replace(&mut *self.0.lock(), State::Over);
        match left {
            State::Full(value) => Some(value),
            State::Empty(_) | State::Over => None,
        }
    }
}
