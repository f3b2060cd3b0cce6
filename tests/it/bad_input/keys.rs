//! Keys and values with bad manners: hashes that lie, comparisons, clones and drops that panic or come back.

use std::cell::{Cell, RefCell};
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::task::Poll;

use microio::{Failure, RequestError, RequestRegistry, Waiter};
use proptest::prelude::*;

use super::check;
use crate::support::Hand;

type Requests = RequestRegistry<Odd, Odd>;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Hashes {
    Honestly,
    Constantly,
    AtRandom,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Equals {
    Honestly,
    Never,
    Always,
}

/// What the user's code does besides its work.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Whim {
    None,
    Panics,
    /// Uses the registry that it is in.
    ComesBack,
}

#[derive(Clone, Copy, Debug)]
struct Manners {
    hashes: Hashes,
    equals: Equals,
    on_hash: Whim,
    on_eq: Whim,
    on_clone: Whim,
    on_drop: Whim,
}

const GOOD: Manners = Manners {
    hashes: Hashes::Honestly,
    equals: Equals::Honestly,
    on_hash: Whim::None,
    on_eq: Whim::None,
    on_clone: Whim::None,
    on_drop: Whim::None,
};

thread_local! {
    static MANNERS: Cell<Manners> = const { Cell::new(GOOD) };
    static HOME: RefCell<Option<Requests>> = const { RefCell::new(None) };
}

fn whim(pick: impl FnOnce(Manners) -> Whim) {
    match pick(MANNERS.get()) {
        // Without the hook, which prints.
        Whim::Panics if !std::thread::panicking() => resume_unwind(Box::new("a whim")),
        Whim::None | Whim::Panics => {}
        Whim::ComesBack => {
            let manners = MANNERS.replace(GOOD); // once at a time
            if let Some(requests) = HOME.take() {
                let other = || Odd(200, Arc::new(()));
                assert!(!requests.contains(&other()));
                let _ = (requests.register(other()).map(drop), requests.resolve(&other(), other()), requests.len());
                HOME.set(Some(requests));
            }
            MANNERS.set(manners);
        }
    }
}

/// A key and a value. All of them share one token.
#[derive(Debug)]
struct Odd(u8, Arc<()>);

impl Hash for Odd {
    fn hash<H: Hasher>(&self, state: &mut H) {
        whim(|manners| manners.on_hash);
        match MANNERS.get().hashes {
            Hashes::Honestly => self.0.hash(state),
            Hashes::Constantly => {}
            Hashes::AtRandom => fastrand::u64(..).hash(state),
        }
    }
}

impl PartialEq for Odd {
    fn eq(&self, other: &Self) -> bool {
        whim(|manners| manners.on_eq);
        match MANNERS.get().equals {
            Equals::Honestly => self.0 == other.0,
            Equals::Never => false,
            Equals::Always => true,
        }
    }
}

impl Eq for Odd {}

impl Clone for Odd {
    fn clone(&self) -> Self {
        whim(|manners| manners.on_clone);
        Odd(self.0, self.1.clone())
    }
}

impl Drop for Odd {
    fn drop(&mut self) {
        whim(|manners| manners.on_drop);
    }
}

fn manners() -> impl Strategy<Value = Manners> {
    let hashes = prop_oneof![Just(Hashes::Honestly), Just(Hashes::Constantly), Just(Hashes::AtRandom)];
    let equals = prop_oneof![3 => Just(Equals::Honestly), 1 => Just(Equals::Never), 1 => Just(Equals::Always)];
    let whim = || prop_oneof![3 => Just(Whim::None), 1 => Just(Whim::Panics), 1 => Just(Whim::ComesBack)];
    // What comes back under the lock has a test of its own.
    let quiet = || prop_oneof![3 => Just(Whim::None), 1 => Just(Whim::Panics)];
    (hashes, equals, whim(), quiet(), quiet(), whim()).prop_map(
        |(hashes, equals, on_hash, on_eq, on_clone, on_drop)| Manners {
            hashes,
            equals,
            on_hash,
            on_eq,
            on_clone,
            on_drop,
        },
    )
}

/// `act` with those manners; None if it panicked.
fn with<R>(manners: Manners, act: impl FnOnce() -> R) -> Option<R> {
    MANNERS.set(manners);
    let done = catch_unwind(AssertUnwindSafe(act)).ok();
    MANNERS.set(GOOD);
    done
}

fn parked(mut waiter: Waiter<Odd, Odd>) -> (Hand, Waiter<Odd, Odd>) {
    let hand = Hand::new();
    assert!(hand.poll(&mut waiter).is_pending());
    (hand, waiter)
}

/// Whoever waits is woken, or still pending; what was ended and not woken would hang.
fn look_after(waiting: &mut Vec<(Hand, Waiter<Odd, Odd>)>, manners: Manners) {
    waiting.retain_mut(|(hand, waiter)| {
        let woken = hand.wakes() > 0;
        let poll = with(manners, || hand.poll(waiter).map(drop));
        let over = !matches!(poll, Some(Poll::Pending));
        assert_eq!(over, woken, "ended and not woken, or woken for nothing");
        !over
    });
}

#[test]
fn whatever_the_keys_do_every_request_ends_once_and_leaves_nothing() {
    let steps = prop::collection::vec((0..10u8, 0..4u8, any::<prop::sample::Index>()), 0..40);
    check(256, (manners(), steps), |(manners, steps)| {
        let (requests, token) = (Requests::new(), Arc::new(()));
        HOME.set(Some(requests.clone()));
        let odd = |n| Odd(n, token.clone());
        let (mut waiting, mut handles, mut closed) = (Vec::new(), Vec::new(), false);
        for (step, key, index) in steps {
            let cause = || Failure::msg("over");
            match step {
                0 | 1 => match with(manners, || requests.register(odd(key))) {
                    Some(Ok(waiter)) => waiting.push(parked(waiter)),
                    Some(Err(error)) => assert_eq!(matches!(error, RequestError::Closed(_)), closed),
                    None => {}
                },
                2 | 3 => match with(manners, || requests.reply(odd(key))) {
                    Some(Ok((handle, waiter))) => {
                        waiting.push(parked(waiter));
                        handles.push(handle);
                    }
                    Some(Err(error)) => assert_eq!(matches!(error, RequestError::Closed(_)), closed),
                    None => {}
                },
                4 => drop(with(manners, || requests.resolve(&odd(key), odd(0)).map_err(drop))),
                5 => drop(with(manners, || requests.fail(&odd(key), cause()))),
                6 if !handles.is_empty() => {
                    let handle = handles.swap_remove(index.index(handles.len()));
                    with(manners, || if key == 0 { drop(handle) } else { drop(handle.resolve(odd(0))) });
                }
                7 if !waiting.is_empty() => {
                    let (hand, waiter) = waiting.swap_remove(index.index(waiting.len()));
                    with(manners, || drop(waiter));
                    assert_eq!(hand.wakers(), 0);
                }
                8 => drop(with(manners, || requests.fail_all(cause()))),
                9 if key == 0 => {
                    with(manners, || requests.close(cause()));
                    closed = true;
                }
                _ => drop(with(manners, || (requests.contains(&odd(key)), requests.pending().len()))),
            }
            if index.index(3) == 0 {
                look_after(&mut waiting, manners);
            }
            assert_eq!(requests.len(), waiting.iter().filter(|(hand, _)| hand.wakes() == 0).count());
        }
        with(manners, || requests.close(Failure::msg("the end")));
        look_after(&mut waiting, manners);
        assert!(waiting.is_empty() && requests.is_empty() && requests.pending().is_empty());
        with(manners, || handles.clear());
        HOME.set(None);
        drop(requests);
        // What a function was about to return is leaked by the compiler, if a drop panics on the way out of it.
        if manners.on_drop != Whim::Panics {
            assert_eq!(Arc::strong_count(&token), 1, "a key or a value is left");
        }
    });
}

#[test]
fn an_answer_that_nobody_sees_and_that_panics_when_dropped_stops_nobody() {
    check(8, any::<bool>(), |by_key| {
        let (requests, token) = (RequestRegistry::<u8, Odd>::new(), Arc::new(()));
        let (handle, waiter) = requests.reply(1).unwrap();
        let answer = Odd(7, token.clone());
        if by_key {
            requests.resolve(&1, answer).unwrap();
            drop(handle);
        } else {
            handle.resolve(answer).unwrap();
        }
        assert!(with(Manners { on_drop: Whim::Panics, ..GOOD }, || drop(waiter)).is_some(), "a drop that panics");
        assert_eq!((requests.len(), Arc::strong_count(&token)), (0, 1));
    });
}

/// It would wait for the lock that it runs under.
#[test]
fn a_comparison_that_comes_back_to_its_registry_panics_and_leaves_the_registry_whole() {
    check(16, 0..6u8, |act| {
        let (requests, token, hand) = (Requests::new(), Arc::new(()), Hand::new());
        let odd = |n| Odd(n, token.clone());
        let mut waiter = requests.register(odd(1)).unwrap();
        assert!(hand.poll(&mut waiter).is_pending());
        HOME.set(Some(requests.clone()));
        let came_back = match act {
            5 => Manners { on_clone: Whim::ComesBack, ..GOOD },
            _ => Manners { on_eq: Whim::ComesBack, ..GOOD },
        };
        let done = with(came_back, || match act {
            0 => drop(requests.register(odd(1))),
            1 => drop(requests.reply(odd(1))),
            2 => drop(requests.resolve(&odd(1), odd(2))),
            3 => _ = requests.fail(&odd(1), Failure::msg("over")),
            4 => _ = requests.contains(&odd(1)),
            _ => drop(requests.pending()),
        });
        assert!(done.is_none(), "it came back and nobody noticed");
        HOME.set(None);
        assert_eq!((requests.len(), hand.wakes()), (1, 0));
        requests.resolve(&odd(1), odd(3)).unwrap();
        assert!(matches!(hand.poll(&mut waiter), Poll::Ready(Ok(Odd(3, _)))));
        assert_eq!(requests.len(), 0);
    });
}

#[test]
fn a_comparison_may_use_another_registry() {
    let (requests, home, token) = (Requests::new(), Requests::new(), Arc::new(()));
    let waiter = requests.register(Odd(1, token.clone())).unwrap();
    HOME.set(Some(home.clone()));
    let manners = Manners { on_eq: Whim::ComesBack, on_clone: Whim::ComesBack, ..GOOD };
    let seen = with(manners, || (requests.contains(&Odd(1, token.clone())), requests.pending().len()));
    assert_eq!(seen, Some((true, 1)));
    HOME.set(None);
    drop(waiter);
}
