//! Tests of `src/registry.rs`.

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use microio::host::LoopMark;
use microio::{CloseScope, Failure, ReplyHandle, RequestError, RequestRegistry, Waiter, channel};

use crate::support::{BURST, Hand, kept_by, meddler, poll_once, poll_with, ready, scaled};

type Requests = RequestRegistry<u32, &'static str>;

const ZERO: Option<Duration> = Some(Duration::ZERO);

fn sent(_: &u32) -> Result<(), Failure> {
    Ok(())
}

fn closed_with(error: &RequestError, cause: &Failure) -> bool {
    matches!(error, RequestError::Closed(seen) if seen.ptr_eq(cause))
}

/// A struct may hold them without a word about `Eq`, `Hash` or `Clone`.
#[allow(dead_code)]
struct Nameable<K, V> {
    registry: RequestRegistry<K, V>,
    waiter: Waiter<K, V>,
    reply: ReplyHandle<K, V>,
}

// The table at the top of the file, row by row.

#[test]
fn a_pending_request_is_resolved_once_and_its_waiter_takes_the_value() {
    let (requests, hand) = (Requests::new(), Hand::new());
    let mut waiter = requests.register(1).unwrap();
    assert!(hand.poll(&mut waiter).is_pending() && hand.poll(&mut waiter).is_pending());
    assert_eq!((requests.len(), requests.contains(&1), hand.wakers()), (1, true, 1));
    assert_eq!(requests.resolve(&1, "pong"), Ok(()));
    assert_eq!((hand.wakes(), hand.wakers()), (1, 0));
    assert_eq!((requests.len(), requests.contains(&1)), (0, false), "done is not pending");
    assert_eq!(requests.resolve(&1, "late"), Err("late"));
    assert!(!requests.fail(&1, Failure::msg("late")));
    assert!(matches!(hand.poll(&mut waiter), Poll::Ready(Ok("pong"))));
}

#[test]
fn a_request_may_be_done_before_its_waiter_is_polled() {
    let requests = Requests::new();
    let waiter = requests.register(1).unwrap();
    requests.resolve(&1, "early").unwrap();
    assert_eq!(ready(waiter).unwrap(), "early");
}

#[test]
fn a_failed_request_gives_the_cause() {
    let (requests, cause) = (Requests::new(), Failure::msg("no such method"));
    let waiter = requests.register(1).unwrap();
    assert!(requests.fail(&1, cause.clone()));
    assert!(matches!(ready(waiter), Err(RequestError::Failed(seen)) if seen.ptr_eq(&cause)));
}

#[test]
fn a_request_nobody_made_gives_the_value_back() {
    let requests = Requests::new();
    assert_eq!(requests.resolve(&1, "whose?"), Err("whose?"));
    assert!(!requests.fail(&1, Failure::msg("whose?")) && !requests.contains(&1));
}

#[test]
fn a_handle_answers_and_knows_whether_it_is_wanted() {
    let (requests, hand) = (Requests::new(), Hand::new());
    let (reply, mut waiter) = requests.reply(1).unwrap();
    assert!((*reply.key(), *waiter.key()) == (1, 1) && reply.is_wanted());
    assert!(hand.poll(&mut waiter).is_pending());
    assert_eq!(reply.resolve("pong"), Ok(()));
    assert_eq!((hand.wakes(), requests.len(), requests.contains(&1)), (1, 0, false));
    assert!(matches!(hand.poll(&mut waiter), Poll::Ready(Ok("pong"))));

    let (reply, waiter) = requests.reply(1).unwrap();
    assert!(reply.fail(Failure::msg("refused")));
    assert!(matches!(ready(waiter), Err(RequestError::Failed(cause)) if cause.to_string() == "refused"));
}

#[test]
fn a_handle_dropped_without_an_answer_abandons_the_request() {
    let (requests, hand) = (Requests::new(), Hand::new());
    let (reply, mut waiter) = requests.reply(1).unwrap();
    assert!(hand.poll(&mut waiter).is_pending());
    drop(reply);
    assert_eq!((hand.wakes(), requests.len()), (1, 0));
    assert!(matches!(hand.poll(&mut waiter), Poll::Ready(Err(RequestError::Abandoned))));
}

#[test]
fn a_request_with_a_handle_can_be_answered_by_key_and_the_handle_comes_too_late() {
    let requests = Requests::new();
    let (reply, waiter) = requests.reply(1).unwrap();
    requests.resolve(&1, "by key").unwrap();
    assert!(!reply.is_wanted());
    assert_eq!(reply.resolve("by handle"), Err("by handle"));
    assert_eq!(ready(waiter).unwrap(), "by key");
}

#[test]
fn a_dropped_waiter_takes_its_request_back() {
    let (requests, hand) = (Requests::new(), Hand::new());
    let (reply, mut waiter) = requests.reply(1).unwrap();
    assert!(hand.poll(&mut waiter).is_pending());
    drop(waiter);
    assert_eq!((requests.len(), requests.contains(&1), hand.wakers(), hand.wakes()), (0, false, 0, 0));
    assert!(!reply.is_wanted());
    assert_eq!(requests.resolve(&1, "late"), Err("late"));
    assert_eq!(reply.resolve("late"), Err("late"));
}

/// Law 2: a reply that is an error value is data.
#[test]
fn a_value_that_is_an_error_is_a_value() {
    let requests = RequestRegistry::<u32, Result<u8, Failure>>::new();
    let waiter = requests.register(1).unwrap();
    requests.resolve(&1, Err(Failure::msg("data"))).unwrap();
    assert_eq!(ready(waiter).unwrap().unwrap_err().to_string(), "data");
}

// Keys and generations.

#[test]
fn a_key_is_pending_once_at_a_time() {
    let requests = Requests::new();
    let waiter = requests.register(1).unwrap();
    assert!(matches!(requests.register(1), Err(RequestError::Duplicate)));
    assert!(matches!(requests.reply(1), Err(RequestError::Duplicate)));
    assert_eq!(requests.len(), 1);
    requests.resolve(&1, "first").unwrap();
    assert_eq!(ready(waiter).unwrap(), "first", "the duplicate did not harm it");
    drop(requests.register(1).unwrap());
    drop(requests.register(1).unwrap());
}

#[test]
fn a_key_can_be_used_again_while_the_waiter_of_its_last_request_has_not_looked() {
    let requests = Requests::new();
    for by_handle in [true, false] {
        let (reply, old) = requests.reply(1).unwrap();
        if by_handle {
            reply.resolve("old").unwrap()
        } else {
            requests.resolve(&1, "old").unwrap()
        }
        let new = requests.register(1).unwrap();
        assert!(matches!(requests.register(1), Err(RequestError::Duplicate)));
        assert_eq!(ready(old).unwrap(), "old");
        assert!(requests.contains(&1), "the new request keeps its entry when the old waiter goes");
        requests.resolve(&1, "new").unwrap();
        assert_eq!(ready(new).unwrap(), "new");
    }
}

#[test]
fn a_stale_handle_never_answers_a_newer_request_with_the_same_key() {
    let requests = Requests::new();
    let (stale, waiter) = requests.reply(1).unwrap();
    let (stale_too, _) = (requests.reply(2).unwrap().0, drop(waiter));
    let (mut newer, mut other) = (requests.register(1).unwrap(), requests.register(2).unwrap());
    assert!(!stale.is_wanted());
    assert_eq!(stale.resolve("stale"), Err("stale"));
    drop(stale_too); // nor does it abandon one
    assert!(poll_once(&mut newer).is_pending() && poll_once(&mut other).is_pending());
    requests.resolve(&1, "fresh").unwrap();
    assert_eq!(ready(newer).unwrap(), "fresh");
}

#[test]
fn keys_that_all_have_the_same_hash_are_told_apart() {
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Same(u32);
    impl Hash for Same {
        fn hash<H: Hasher>(&self, state: &mut H) {
            0.hash(state);
        }
    }
    let requests = RequestRegistry::<Same, u32>::new();
    let waiters: Vec<_> = (0..500).map(|n| requests.register(Same(n)).unwrap()).collect();
    assert_eq!(requests.len(), 500);
    (0..500).rev().step_by(2).for_each(|n| requests.resolve(&Same(n), n * 10).unwrap());
    for (n, mut waiter) in (0..500).zip(waiters) {
        match poll_once(&mut waiter) {
            Poll::Ready(answer) => assert_eq!(answer.unwrap(), n * 10),
            Poll::Pending => assert_eq!(n % 2, 0, "answered"),
        }
    }
    assert_eq!(requests.len(), 0);
}

#[test]
fn a_key_whose_comparison_panics_leaves_the_registry_intact() {
    #[derive(Clone)]
    struct Picky(u32);
    impl Hash for Picky {
        fn hash<H: Hasher>(&self, _: &mut H) {}
    }
    impl PartialEq for Picky {
        fn eq(&self, other: &Self) -> bool {
            assert!(self.0 != 99 && other.0 != 99, "not comparable");
            self.0 == other.0
        }
    }
    impl Eq for Picky {}

    let requests = RequestRegistry::<Picky, u32>::new();
    let waiters = [1, 2, 3].map(|n| requests.register(Picky(n)).unwrap());
    let panics = |f: &dyn Fn()| catch_unwind(AssertUnwindSafe(f)).is_err();
    assert!(panics(&|| drop(requests.register(Picky(99)))));
    assert!(panics(&|| drop(requests.reply(Picky(99)))));
    assert!(panics(&|| _ = requests.resolve(&Picky(99), 0)));
    assert!(panics(&|| _ = requests.contains(&Picky(99))));
    assert_eq!(requests.len(), 3);
    for (n, waiter) in (1..).zip(waiters) {
        requests.resolve(&Picky(n), n).unwrap();
        assert_eq!(ready(waiter).unwrap(), n);
    }
    assert_eq!(requests.len(), 0);
}

#[test]
fn a_key_whose_clone_panics_leaves_no_entry_behind() {
    thread_local!(static LEFT: Cell<usize> = const { Cell::new(0) });
    #[derive(PartialEq, Eq, Hash)]
    struct Fragile;
    impl Clone for Fragile {
        fn clone(&self) -> Self {
            LEFT.set(LEFT.get().checked_sub(1).expect("out of clones"));
            Fragile
        }
    }
    let requests = RequestRegistry::<Fragile, ()>::new();
    for clones in 0..2 {
        LEFT.set(clones);
        assert!(catch_unwind(AssertUnwindSafe(|| drop(requests.reply(Fragile)))).is_err());
        assert_eq!(requests.len(), 0, "with {clones} clones");
    }
    LEFT.set(1);
    let _waiter = requests.register(Fragile).unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| requests.pending())).is_err());
    assert_eq!(requests.len(), 1);
}

thread_local! {
    static MEDDLED: Cell<Option<RequestRegistry<u32, Meddling>>> = const { Cell::new(None) };
}

/// A value whose drop uses the registry that it was in.
struct Meddling;

impl Drop for Meddling {
    fn drop(&mut self) {
        let Some(requests) = MEDDLED.take() else { return };
        drop((requests.register(7), requests.len(), requests.pending()));
        requests.fail(&1, Failure::msg("from the drop"));
        MEDDLED.set(Some(requests));
    }
}

#[test]
fn a_value_that_uses_the_registry_in_its_drop_does_not_deadlock() {
    let requests = RequestRegistry::new();
    MEDDLED.set(Some(requests.clone()));
    let waiter = requests.register(1).unwrap();
    requests.resolve(&1, Meddling).ok().unwrap();
    drop(waiter); // the outcome goes with it
    drop(requests.resolve(&1, Meddling));
    let (reply, waiter) = requests.reply(2).unwrap();
    drop(waiter);
    drop(reply.resolve(Meddling));
    assert_eq!(requests.len(), 0);
    MEDDLED.take();
}

#[test]
fn a_key_that_uses_the_registry_in_its_drop_does_not_deadlock() {
    thread_local!(static MEDDLED: Cell<Option<RequestRegistry<Key, u8>>> = const { Cell::new(None) });
    #[derive(Clone, PartialEq, Eq, Hash)]
    struct Key(u32);
    impl Drop for Key {
        fn drop(&mut self) {
            let Some(requests) = MEDDLED.take() else { return };
            drop((requests.register(Key(7)), requests.len()));
            MEDDLED.set(Some(requests));
        }
    }
    let requests = RequestRegistry::new();
    MEDDLED.set(Some(requests.clone()));
    for _ in 0..2 {
        let (reply, old) = requests.reply(Key(1)).unwrap();
        assert!(matches!(requests.register(Key(1)), Err(RequestError::Duplicate)));
        reply.resolve(1).unwrap();
        let new = requests.register(Key(1)).unwrap(); // takes the stale entry out
        requests.resolve(&Key(1), 2).unwrap();
        assert_eq!((ready(old).unwrap(), ready(new).unwrap()), (1, 2));
        drop(requests.register(Key(3)));
    }
    let waiter = requests.register(Key(4)).unwrap();
    assert_eq!(requests.fail_all(Failure::msg("all")), 1);
    drop(waiter);
    assert_eq!(requests.len(), 0);
    MEDDLED.take();
}

// All at once.

#[test]
fn failing_all_ends_each_with_one_cause_and_the_registry_stays_usable() {
    let (requests, cause) = (Requests::new(), Failure::msg("reset"));
    let (reply, with_handle) = requests.reply(100).unwrap();
    let waiters: Vec<_> = (0..100).map(|n| requests.register(n).unwrap()).chain([with_handle]).collect();
    assert_eq!(requests.fail_all(cause.clone()), 101);
    assert!(requests.is_empty() && requests.pending().is_empty() && !reply.is_wanted());
    let newer = requests.register(1).unwrap();
    for waiter in waiters {
        assert!(matches!(ready(waiter), Err(RequestError::Failed(seen)) if seen.ptr_eq(&cause)));
    }
    assert_eq!(requests.fail_all(cause.clone()), 1, "only the newer one");
    assert!(ready(newer).is_err());
    assert_eq!(requests.fail_all(cause), 0);
}

#[test]
fn failing_all_wakes_a_hundred_thousand_waiters_once_each() {
    let (requests, hand, count) = (RequestRegistry::<usize, ()>::new(), Hand::new(), scaled(100_000));
    let mut waiters: Vec<_> = (0..count).map(|n| requests.register(n).unwrap()).collect();
    assert!(waiters.iter_mut().all(|waiter| hand.poll(waiter).is_pending()));
    assert_eq!(requests.fail_all(Failure::msg("reset")), count);
    assert_eq!((hand.wakes(), hand.wakers(), requests.len()), (count, 0, 0));
    assert!(waiters.iter_mut().all(|waiter| hand.poll(waiter).is_ready()));
}

/// Who is woken may ask again at once: what is registered during the sweep is not "pending now".
#[test]
fn failing_all_does_not_hit_what_a_waker_registers_during_the_sweep() {
    let requests = RequestRegistry::<u32, ()>::new();
    let again = Arc::new(Mutex::new(Vec::new()));
    let mut waiters: Vec<_> = (0..500).map(|n| requests.register(n).unwrap()).collect();
    for (n, waiter) in (500..).zip(&mut waiters) {
        let (requests, again) = (requests.clone(), again.clone());
        let first = AtomicUsize::new(0);
        let waker = meddler(move || {
            if first.fetch_add(1, Ordering::SeqCst) == 0 {
                let waiter = requests.register(n).unwrap();
                again.lock().unwrap().push(waiter);
            }
        });
        assert!(poll_with(&waker, waiter).is_pending());
    }
    assert_eq!(requests.fail_all(Failure::msg("reset")), 500);
    assert_eq!((again.lock().unwrap().len(), requests.len()), (500, 500));
    for (n, waiter) in (500..).zip(again.lock().unwrap().iter_mut()) {
        assert!(poll_once(waiter).is_pending(), "request {n} was hit");
    }
}

#[test]
fn a_closed_registry_ends_who_waits_and_refuses_who_comes_with_one_cause() {
    let (requests, hand, cause) = (Requests::new(), Hand::new(), Failure::msg("the reader died"));
    let mut waiters: Vec<_> = (0..100).map(|n| requests.register(n).unwrap()).collect();
    assert!(waiters.iter_mut().all(|waiter| hand.poll(waiter).is_pending()));
    assert_eq!(requests.close(cause.clone()), 100);
    assert_eq!((hand.wakes(), requests.close(Failure::msg("again")), requests.len()), (100, 0, 0));
    for waiter in waiters {
        assert!(closed_with(&ready(waiter).unwrap_err(), &cause));
    }
    for key in 0..200 {
        assert!(closed_with(&requests.register(key).unwrap_err(), &cause));
    }
    assert!(closed_with(&requests.reply(1).unwrap_err(), &cause));
    let untouched = |_: &u32| -> Result<(), Failure> { panic!("sent to nobody") };
    assert!(closed_with(&ready(requests.request(1, untouched)).unwrap_err(), &cause));
    assert!(closed_with(&requests.request_blocking(1, untouched, None).unwrap_err(), &cause), "at once");
}

#[test]
fn what_was_answered_before_the_close_is_still_received() {
    let requests = Requests::new();
    let waiter = requests.register(1).unwrap();
    requests.resolve(&1, "in time").unwrap();
    requests.close(Failure::msg("over"));
    assert_eq!(ready(waiter).unwrap(), "in time");
}

#[test]
fn registering_that_races_the_close_is_refused_or_swept_away() {
    for _ in 0..scaled(100) {
        let (requests, barrier) = (RequestRegistry::<u32, ()>::new(), Barrier::new(2));
        thread::scope(|threads| {
            let registered = threads.spawn(|| {
                barrier.wait();
                (0..200).filter_map(|n| requests.register(n).ok()).collect::<Vec<_>>()
            });
            barrier.wait();
            let swept = requests.close(Failure::msg("over"));
            let registered = registered.join().unwrap();
            assert_eq!((swept, requests.len()), (registered.len(), 0));
            for waiter in registered {
                assert!(matches!(waiter.wait_blocking(None), Err(RequestError::Closed(_))), "nobody hangs");
            }
        });
    }
}

#[test]
fn a_bound_registry_closes_with_the_cause_of_its_scope() {
    let (scope, cause) = (CloseScope::new(), Failure::from(io::Error::other("eof")));
    let requests = Requests::bound_to(&scope);
    let waiter = requests.register(1).unwrap();
    scope.fail(cause.clone());
    assert!(closed_with(&ready(waiter).unwrap_err(), &cause));
    assert!(closed_with(&requests.register(1).unwrap_err(), &cause));
    assert!(closed_with(&Requests::bound_to(&scope).register(1).unwrap_err(), &cause), "bound after the end");
}

#[test]
fn a_bound_registry_closes_with_the_text_of_a_plain_reason() {
    let scope = CloseScope::new();
    let requests = Requests::bound_to(&scope);
    let waiter = requests.register(1).unwrap();
    scope.close("going down");
    let [waiting, later] = [ready(waiter).unwrap_err(), requests.register(1).unwrap_err()];
    assert!(
        matches!((&waiting, &later), (RequestError::Closed(one), RequestError::Closed(other)) if one.ptr_eq(other))
    );
    assert_eq!(waiting.to_string(), "going down");
    let late = Requests::bound_to(&scope).register(1).unwrap_err();
    assert!(matches!(late, RequestError::Closed(cause) if cause.to_string() == "going down"));
}

#[test]
fn a_scope_does_not_keep_the_registries_bound_to_it() {
    let (scope, value) = (CloseScope::new(), Arc::new(()));
    let requests = RequestRegistry::<u32, Arc<()>>::bound_to(&scope);
    let waiter = requests.register(1).unwrap();
    requests.resolve(&1, value.clone()).unwrap();
    drop((requests, waiter));
    assert_eq!(Arc::strong_count(&value), 1);
}

// Request and ask.

#[test]
fn a_request_is_registered_before_it_is_sent() {
    let requests = Requests::new();
    let seen = Cell::new(0);
    let send = |id: &u32| -> Result<(), Failure> {
        seen.set(seen.get() + usize::from(requests.contains(id)));
        requests.resolve(id, "faster than the sender").unwrap();
        Ok(())
    };
    assert_eq!(ready(requests.request(1, send)).unwrap(), "faster than the sender");
    assert_eq!(requests.request_blocking(2, send, ZERO).unwrap(), "faster than the sender");
    let send = |reply: ReplyHandle<u32, &'static str>| -> Result<(), Failure> {
        seen.set(seen.get() + usize::from(requests.contains(reply.key())));
        reply.resolve("faster").unwrap();
        Ok(())
    };
    assert_eq!(ready(requests.ask(3, send)).unwrap(), "faster");
    assert_eq!(requests.ask_blocking(4, send, ZERO).unwrap(), "faster");
    assert_eq!(seen.get(), 4);
}

#[test]
fn a_send_that_fails_or_panics_takes_the_request_back() {
    let requests = Requests::new();
    let broken =
        |error: RequestError| matches!(error, RequestError::Failed(cause) if cause.to_string() == "broken pipe");
    let pipe = || Err(Failure::msg("broken pipe"));
    assert!(broken(ready(requests.request(1, |_| pipe())).unwrap_err()));
    assert!(broken(ready(requests.ask(1, |_| pipe())).unwrap_err()), "though its handle is dropped unanswered");
    assert!(broken(requests.request_blocking(1, |_| pipe(), None).unwrap_err()));
    assert!(broken(requests.ask_blocking(1, |_| pipe(), None).unwrap_err()));
    let panics = |_: &u32| -> Result<(), Failure> { panic!("send") };
    assert!(catch_unwind(AssertUnwindSafe(|| ready(requests.request(1, panics)))).is_err());
    assert_eq!(requests.len(), 0);
}

#[test]
fn the_error_of_a_send_is_any_error() {
    let requests = Requests::new();
    let error = ready(requests.request(1, |_| Err(io::Error::other("full")))).unwrap_err();
    assert!(matches!(error, RequestError::Failed(cause) if cause.downcast_ref::<io::Error>().is_some()));
}

#[test]
fn a_request_dropped_or_timed_out_leaves_no_entry() {
    let (requests, hand) = (Requests::new(), Hand::new());
    let mut reply = None;
    {
        let mut request = pin!(requests.request(1, sent));
        let mut ask = pin!(requests.ask(2, |handle| {
            reply = Some(handle);
            sent(&2)
        }));
        assert!(hand.poll(&mut request).is_pending() && hand.poll(&mut ask).is_pending());
        assert_eq!(requests.len(), 2);
    }
    assert_eq!((requests.len(), hand.wakers()), (0, 0));
    assert!(!reply.unwrap().is_wanted());
    assert!(matches!(requests.request_blocking(1, sent, ZERO), Err(RequestError::TimedOut)));
    let mut kept = None;
    let keep = |handle| {
        kept = Some(handle);
        sent(&1)
    };
    assert!(matches!(requests.ask_blocking(1, keep, Some(Duration::from_micros(50))), Err(RequestError::TimedOut)));
    assert_eq!((requests.len(), kept.unwrap().resolve("late")), (0, Err("late")));
}

#[test]
fn a_hundred_thousand_impatient_requests_leave_nothing() {
    let requests = RequestRegistry::<u32, ()>::new();
    for n in 0..scaled(100_000) as u32 {
        let waiter = requests.register(n).unwrap();
        match n % 3 {
            0 => drop(waiter),
            1 => assert!(matches!(waiter.wait_blocking(ZERO), Err(RequestError::TimedOut))),
            _ => assert!(poll_once(&mut Box::pin(requests.request(n + 1_000_000, sent))).is_pending()),
        }
    }
    assert!(requests.is_empty() && requests.pending().is_empty());
}

#[test]
fn what_is_pending_can_be_listed_with_its_age() {
    let requests = Requests::new();
    let _waiters = [3, 1, 2].map(|n| requests.register(n).unwrap());
    assert!(!requests.is_empty());
    requests.resolve(&1, "done").unwrap();
    let mut pending = requests.pending();
    pending.sort();
    assert_eq!(pending.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [2, 3]);
    assert!(pending.iter().all(|(_, age)| *age < Duration::from_secs(3600)));
}

#[test]
fn on_an_event_loop_nothing_is_registered_or_sent() {
    let requests = Requests::new();
    let (waiter, never) = (requests.register(9).unwrap(), |_: &u32| -> Result<(), Failure> { panic!("sent") });
    requests.resolve(&9, "ready").unwrap();
    let _loop = LoopMark::enter(1);
    assert!(matches!(requests.request_blocking(1, never, None), Err(RequestError::WouldBlock)));
    let asked = requests.ask_blocking(1, |_| -> Result<(), Failure> { panic!("sent") }, None);
    assert!(matches!(asked, Err(RequestError::WouldBlock)));
    assert!(matches!(waiter.wait_blocking(None), Err(RequestError::WouldBlock)), "also when it is ready");
    assert_eq!(requests.len(), 0);
}

#[test]
#[cfg(feature = "tokio")]
fn inside_an_async_worker_nothing_is_registered_or_sent() {
    let requests = Requests::new();
    crate::support::block_on(async {
        let never = |_: &u32| -> Result<(), Failure> { panic!("sent") };
        assert!(matches!(requests.request_blocking(1, never, None), Err(RequestError::WouldBlock)));
        assert!(matches!(requests.register(1).unwrap().wait_blocking(None), Err(RequestError::WouldBlock)));
        assert_eq!(requests.len(), 0);
    });
}

// From many threads.

#[test]
fn a_thread_blocked_on_a_request_is_woken_by_its_answer() {
    let (requests, (tx, mut rx)) = (RequestRegistry::<u32, u32>::new(), channel());
    thread::scope(|threads| {
        threads.spawn(|| {
            while let Ok(reply) = rx.recv_blocking(None) {
                let reply: ReplyHandle<u32, u32> = reply;
                let answer = reply.key() * 2;
                reply.resolve(answer).unwrap();
            }
        });
        for n in 0..1_000 {
            let send = |reply| tx.try_send(reply).map_err(|_| Failure::msg("gone"));
            assert_eq!(requests.ask_blocking(n, send, None).unwrap(), n * 2);
        }
        tx.close();
    });
}

/// Several ways to end a request race; one wins, and the waiter gets that one or has gone.
#[test]
fn resolve_racing_fail_racing_timeout_racing_drop_has_exactly_one_outcome() {
    const BATCHES: usize = scaled(100);
    const BATCH: usize = scaled(200);
    let (requests, barrier) = (RequestRegistry::<usize, Arc<()>>::new(), Barrier::new(3));
    let value = Arc::new(());
    let answer = |act: &dyn Fn(usize) -> bool| -> Vec<bool> {
        let batches = (0..BATCHES).flat_map(|batch| {
            barrier.wait(); // the batch is registered
            let won = (batch * BATCH..(batch + 1) * BATCH).map(act).collect::<Vec<_>>();
            barrier.wait();
            won
        });
        batches.collect()
    };
    let (resolved, failed, waited) = thread::scope(|threads| {
        let resolver = threads.spawn(|| answer(&|n| requests.resolve(&n, value.clone()).is_ok()));
        let failer = threads.spawn(|| answer(&|n| requests.fail(&n, Failure::msg("failed"))));
        let mut waited = Vec::new();
        for batch in 0..BATCHES {
            let waiters: Vec<_> = (0..BATCH).map(|n| requests.register(batch * BATCH + n).unwrap()).collect();
            barrier.wait();
            let wait = |(n, waiter): (usize, Waiter<_, _>)| match n % 3 {
                0 => Some(waiter.wait_blocking(Some(Duration::from_micros(1)))),
                1 => Some(waiter.wait_blocking(None)), // one of the two others comes for sure
                _ => None,
            };
            waited.extend(waiters.into_iter().enumerate().map(wait));
            barrier.wait();
        }
        (resolver.join().unwrap(), failer.join().unwrap(), waited)
    });
    for ((resolved, failed), waited) in resolved.into_iter().zip(failed).zip(&waited) {
        assert!(!(resolved && failed), "both won");
        match waited {
            Some(Ok(_)) => assert!(resolved),
            Some(Err(RequestError::Failed(_))) => assert!(failed),
            Some(Err(RequestError::TimedOut)) | None => {}
            Some(Err(other)) => panic!("{other:?}"),
        }
    }
    let received = waited.iter().flatten().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(Arc::strong_count(&value), 1 + received, "every other value was dropped");
    assert_eq!(requests.len(), 0);
}

/// Random use against a map; what is pending in the model is pending in the registry, and nothing else.
#[test]
fn it_behaves_like_a_map_under_random_use() {
    for seed in 0..scaled(200) {
        let mut rng = fastrand::Rng::with_seed(seed as u64);
        let requests = RequestRegistry::<u8, usize>::new();
        let mut pending = HashMap::new(); // key -> the step it was registered in
        let mut waiters = Vec::new(); // (key, step, waiter)
        let mut handles = Vec::new(); // (key, step, handle)
        let mut outcomes = HashMap::new(); // step -> the outcome
        for step in 0..scaled(400) {
            let (at, key) = (format!("seed {seed}, step {step}"), rng.u8(..12));
            match rng.u8(..9) {
                0 | 1 => match requests.register(key) {
                    Ok(waiter) => {
                        assert_eq!(pending.insert(key, step), None, "{at}");
                        waiters.push((key, step, waiter));
                    }
                    Err(error) => {
                        assert!(matches!(error, RequestError::Duplicate) && pending.contains_key(&key), "{at}")
                    }
                },
                2 | 3 => match requests.reply(key) {
                    Ok((handle, waiter)) => {
                        assert_eq!(pending.insert(key, step), None, "{at}");
                        waiters.push((key, step, waiter));
                        handles.push((key, step, handle));
                    }
                    Err(error) => {
                        assert!(matches!(error, RequestError::Duplicate) && pending.contains_key(&key), "{at}")
                    }
                },
                4 => match (requests.resolve(&key, step), pending.remove(&key)) {
                    (Ok(()), Some(registered)) => drop(outcomes.insert(registered, Ok(step))),
                    (Err(back), None) => assert_eq!(back, step, "{at}"),
                    other => panic!("{at}: {other:?}"),
                },
                5 if !handles.is_empty() => {
                    let (key, registered, handle) = handles.swap_remove(rng.usize(..handles.len()));
                    let wanted = pending.get(&key) == Some(&registered);
                    assert_eq!(handle.is_wanted(), wanted, "{at}");
                    let outcome = match rng.u8(..3) {
                        0 => {
                            assert_eq!(handle.resolve(step), if wanted { Ok(()) } else { Err(step) }, "{at}");
                            Ok(step)
                        }
                        1 => {
                            assert_eq!(handle.fail(Failure::msg(at.clone())), wanted, "{at}");
                            Err(at.clone())
                        }
                        _ => {
                            drop(handle);
                            Err("the request was dropped without an answer".to_owned())
                        }
                    };
                    if wanted {
                        pending.remove(&key);
                        outcomes.insert(registered, outcome);
                    }
                }
                6 | 7 if !waiters.is_empty() => {
                    let (key, registered, mut waiter) = waiters.swap_remove(rng.usize(..waiters.len()));
                    let expected = outcomes.remove(&registered);
                    match (poll_once(&mut waiter), expected) {
                        (Poll::Ready(got), Some(expected)) => {
                            assert_eq!(got.map_err(|error| error.to_string()), expected, "{at}");
                        }
                        (Poll::Pending, None) if rng.bool() => waiters.push((key, registered, waiter)),
                        (Poll::Pending, None) => assert_eq!(pending.remove(&key), Some(registered), "{at}"),
                        other => panic!("{at}: {other:?}"),
                    }
                }
                8 if rng.u8(..10) == 0 => {
                    assert_eq!(requests.fail_all(Failure::msg(at.clone())), pending.len(), "{at}");
                    outcomes.extend(pending.drain().map(|(_, registered)| (registered, Err(at.clone()))));
                }
                _ => assert_eq!(requests.contains(&key), pending.contains_key(&key), "{at}"),
            }
            assert_eq!(requests.len(), pending.len(), "{at}");
            let mut listed: Vec<_> = requests.pending().into_iter().map(|(key, _)| key).collect();
            let mut expected: Vec<_> = pending.keys().copied().collect();
            listed.sort();
            expected.sort();
            assert_eq!(listed, expected, "{at}");
        }
    }
}

/// Nobody can resolve by key any more; a reply handle still can, and a bound scope still ends what is left.
#[test]
fn the_last_handle_of_a_registry_abandons_who_waits_by_key() {
    let requests = RequestRegistry::<u8, u8>::new();
    let by_key = requests.register(1).unwrap();
    let (handle, by_handle) = requests.reply(2).unwrap();
    drop(requests.clone());
    assert!(handle.is_wanted(), "a clone is not the last");
    drop(requests);
    assert!(matches!(by_key.wait_blocking(None), Err(RequestError::Abandoned)));
    assert_eq!(handle.resolve(7), Ok(()));
    assert_eq!(by_handle.wait_blocking(None).unwrap(), 7);
}

#[test]
#[cfg_attr(miri, ignore = "what is a burst for each of sixteen shards takes minutes")]
fn a_registry_gives_the_memory_of_a_burst_back() {
    let requests = RequestRegistry::<u32, u32>::new();
    let kept = kept_by(|| {
        let waiters: Vec<_> = (0..BURST as u32).map(|n| requests.register(n).unwrap()).collect();
        drop(waiters);
        let asked: Vec<_> = (0..BURST as u32).map(|n| requests.reply(n).unwrap()).collect();
        asked.into_iter().for_each(|(handle, waiter)| {
            handle.resolve(1).unwrap();
            assert_eq!(ready(waiter).unwrap(), 1);
        });
    });
    assert!(kept < 1000, "{kept} bytes for requests that are gone");
}

#[test]
fn a_scope_remembers_next_to_nothing_of_a_registry_that_is_gone() {
    let scope = CloseScope::new();
    let bound = || (0..scaled(1000)).map(|_| Requests::bound_to(&scope)).collect::<Vec<_>>().clear();
    let kept = kept_by(bound);
    assert!(kept < 100_000, "{kept} bytes for registries that are gone");
}

#[test]
fn an_empty_registry_is_two_kilobytes() {
    let mut requests = None;
    let kept = kept_by(|| requests = Some(Requests::new()));
    assert!(kept < 2400, "{kept} bytes");
}
