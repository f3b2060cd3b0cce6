//! A request registry, by key and by handle, alone or bound to a scope. The books:
//!
//! - Every request has one outcome, and `len()` is 0 when the last waiter is gone.
//! - What `resolve` said `Ok` to is what the waiters got, and what went with a waiter that never looked; what it refused came
//!   back.
//! - Who got `Failed` is who was failed; who got `Closed` was there at the one close that counted, or came later. Only waiters
//!   that were dropped half-way may not know.
//! - A reply goes to the request that it was for.
//! - No key is left, and no waiter sleeps on an outcome.

use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::sync::Mutex;

use microio::{CloseScope, Failure, ReplyHandle, RequestError, RequestRegistry, Waiter};

use crate::books::{Count, Fate, Live, Token, expecting, planned_panic};
use crate::crew::{Polled, Round, Worker};

type Registry = RequestRegistry<Key, Token>;

#[derive(Default)]
struct Tally {
    /// Waiters that came to be, and what they got.
    registered: Count,
    ok: Count,
    failed: Count,
    closed: Count,
    abandoned: Count,
    timed_out: Count,
    /// Dropped without a look, or with a `send` that failed or panicked.
    dropped: Count,
    /// Refused: there was one with that key; the registry was closed; the key's `Eq` panicked.
    duplicate: Count,
    refused: Count,
    /// What those who answer were told.
    resolved: Count,
    returned: Count,
    fails: Count,
    closes: Count,
    /// Handles that were dropped unused: some had nobody waiting any more.
    handles: Count,
}

/// A key that knows how many of it there are, and whose `Eq` panics when it is armed.
#[derive(Clone)]
struct Key {
    number: u16,
    _live: Live,
}

thread_local! { static ARMED: Cell<bool> = const { Cell::new(false) }; }

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        if ARMED.get() {
            planned_panic();
        }
        self.number == other.number
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.number.hash(state);
    }
}

/// Waiters and handles of all threads: whoever comes by takes one.
#[derive(Default)]
struct Pool {
    waiters: Mutex<Vec<Waiter<Key, Token>>>,
    handles: Mutex<Vec<ReplyHandle<Key, Token>>>,
}

impl Pool {
    fn waiter(&self) -> Option<Waiter<Key, Token>> {
        self.waiters.lock().unwrap().pop()
    }

    fn handle(&self) -> Option<ReplyHandle<Key, Token>> {
        self.handles.lock().unwrap().pop()
    }
}

pub(crate) fn round(round: &Round) {
    let mut rng = round.rng();
    let scope = CloseScope::new();
    let bound = rng.u8(..4) == 0;
    let registry = if bound { Registry::bound_to(&scope) } else { Registry::new() };
    let ends = rng.u8(..3) == 0; // somewhere in the middle, too
    let (tally, pool) = (Tally::default(), Pool::default());

    round.crew(|worker| {
        for _ in 0..worker.steps() {
            match worker.rng.u32(..100) {
                0..35 => ask(worker, &registry, &pool, &tally),
                35..65 => answer(worker, &registry, &pool, &tally),
                65..85 => wait(worker, &pool, &tally),
                85..87 => {
                    worker.at("fail_all");
                    tally.fails.add(registry.fail_all(Failure::msg("stress")));
                }
                87 if ends && bound => {
                    worker.at("close the scope");
                    scope.close("stress");
                }
                87 if ends => close(worker, &registry, &tally),
                _ => {
                    worker.at("look");
                    let _ = (registry.len(), registry.pending().len(), registry.contains(&key(worker)));
                    drop(registry.clone());
                }
            }
        }
        // One waits, all others stand still; then somebody closes, and it has been woken.
        worker.at("a waiter, left waiting");
        let waiter = pool.waiter();
        let key = waiter.as_ref().map_or(0, |waiter| waiter.key().number);
        let mut ready = None;
        let mut parked = waiter.and_then(|waiter| worker.park(waiter, |first| ready = Some(first)));
        ready.into_iter().for_each(|ready| outcome(ready, key, worker, &tally));
        worker.meet();
        let alone = worker.alone();
        worker.audit(&mut parked, "a request", |ready| outcome(ready, key, worker, &tally));
        drop(alone);
        worker.meet();
        match worker.me {
            0 if bound => drop(scope.fail(Failure::msg("stress"))),
            0 => close(worker, &registry, &tally),
            _ => {}
        }
        worker.meet();
        let _alone = worker.alone();
        worker.audit(&mut parked, "a request, after the close", |ready| outcome(ready, key, worker, &tally));
        worker.books().hold(parked.is_none(), || "a waiter still waits after the close".into());
    });

    while let Some(handle) = pool.handle() {
        tally.handles.one();
        drop(handle);
    }
    while let Some(waiter) = pool.waiter() {
        drop_waiter(waiter, &tally);
    }
    let (ledger, books) = (&round.ledger, &round.books);
    books.equal("entries, none", registry.len() as u64, 0);
    let looked = [&tally.ok, &tally.failed, &tally.closed, &tally.abandoned, &tally.timed_out];
    let looked: u64 = looked.iter().map(|count| count.get()).sum();
    books.equal("requests, outcomes", tally.registered.get(), looked + tally.dropped.get());
    books.equal("resolved, got or not looked at", tally.resolved.get(), tally.ok.get() + ledger.ended(Fate::Unlooked));
    books.equal("values in hands", tally.ok.get(), ledger.ended(Fate::Received));
    books.equal("values that came back", tally.returned.get(), ledger.ended(Fate::Returned));
    let dropped = tally.dropped.get() + tally.timed_out.get();
    let known = |what: &str, told: u64, got: u64| {
        let fits = got <= told && told <= got + dropped;
        books.hold(fits, || format!("{what}: {told} were told, {got} got it, {dropped} never looked"));
    };
    known("failed", tally.fails.get(), tally.failed.get());
    if !bound {
        known("closed", tally.closes.get(), tally.closed.get());
    }
    let handles = tally.handles.get();
    books.hold(tally.abandoned.get() <= handles, || "more were abandoned than handles dropped".into());
    drop((registry, scope));
}

fn key(worker: &mut Worker) -> Key {
    Key { number: worker.rng.u16(..24), _live: worker.round.live() }
}

fn close(worker: &Worker, registry: &Registry, tally: &Tally) {
    worker.at("close");
    tally.closes.add(registry.close(Failure::msg("stress")));
}

/// Calls `f` with keys that may panic when they are compared.
fn armed<R>(worker: &mut Worker, f: impl FnOnce() -> R) -> Option<R> {
    ARMED.set(worker.one_in(20));
    let output = expecting(Fate::Lost, f);
    ARMED.set(false);
    output
}

fn refused(error: RequestError, worker: &Worker, tally: &Tally) {
    match error {
        RequestError::Duplicate => tally.duplicate.one(),
        RequestError::Closed(_) => tally.refused.one(),
        other => worker.books().wrong(format!("register said {other:?}")),
    }
}

fn outcome(outcome: Result<Token, RequestError>, key: u16, worker: &Worker, tally: &Tally) {
    match outcome {
        Ok(token) => {
            worker.books().equal("the reply's key, the request's", token.number, key.into());
            tally.ok.one();
            token.end(Fate::Received);
        }
        Err(RequestError::Failed(_)) => tally.failed.one(),
        Err(RequestError::Closed(_)) => tally.closed.one(),
        Err(RequestError::Abandoned) => tally.abandoned.one(),
        Err(RequestError::TimedOut) => tally.timed_out.one(),
        Err(RequestError::Duplicate | RequestError::WouldBlock) => {} // never: the sums will tell
    }
}

fn ask(worker: &mut Worker, registry: &Registry, pool: &Pool, tally: &Tally) {
    let key = key(worker);
    let number = key.number;
    match worker.rng.u8(..5) {
        0 => {
            worker.at("register");
            match armed(worker, || registry.register(key)) {
                Some(Ok(waiter)) => {
                    tally.registered.one();
                    pool.waiters.lock().unwrap().push(waiter);
                }
                Some(Err(error)) => refused(error, worker, tally),
                None => {}
            }
        }
        1 => {
            worker.at("reply");
            match armed(worker, || registry.reply(key)) {
                Some(Ok((handle, waiter))) => {
                    tally.registered.one();
                    pool.handles.lock().unwrap().push(handle);
                    pool.waiters.lock().unwrap().push(waiter);
                }
                Some(Err(error)) => refused(error, worker, tally),
                None => {}
            }
        }
        2 => {
            worker.at("request, polled by hand");
            let fate = worker.rng.u8(..12);
            let sent = Cell::new(false);
            let asked = worker.polls(Fate::Unlooked, Fate::Unlooked, registry.request(key, |_| send(&sent, fate)));
            asked_by_hand(asked, sent.get(), fate, number, worker, tally);
        }
        3 => {
            worker.at("ask, polled by hand");
            let fate = worker.rng.u8(..12);
            let sent = Cell::new(false);
            let asked = registry.ask(key, |handle| {
                if fate > 1 {
                    pool.handles.lock().unwrap().push(handle);
                } else {
                    tally.handles.one(); // it goes now
                }
                send(&sent, fate)
            });
            let asked = worker.polls(Fate::Unlooked, Fate::Unlooked, asked);
            asked_by_hand(asked, sent.get(), fate, number, worker, tally);
        }
        _ => {
            worker.at("ask_blocking");
            let (sent, time) = (Cell::new(false), worker.moment());
            let asked = expecting(Fate::Unlooked, || {
                let send_it = |handle| {
                    pool.handles.lock().unwrap().push(handle);
                    send(&sent, 2)
                };
                registry.ask_blocking(key, send_it, Some(time))
            });
            match asked {
                Some(asked) => asked_by_hand(Polled::Ready(asked), sent.get(), 2, number, worker, tally),
                None => asked_by_hand(Polled::Panicked, sent.get(), 2, number, worker, tally),
            }
        }
    }
}

/// What is sent: the fate 0 fails, 1 panics.
fn send(sent: &Cell<bool>, fate: u8) -> Result<(), Failure> {
    sent.set(true);
    match fate {
        0 => return Err(Failure::msg("stress: not sent")),
        1 => planned_panic(),
        _ => {}
    }
    Ok(())
}

fn asked_by_hand(
    asked: Polled<Result<Token, RequestError>>,
    sent: bool,
    fate: u8,
    number: u16,
    worker: &Worker,
    tally: &Tally,
) {
    tally.registered.add(usize::from(sent));
    match asked {
        // Its own error, or its own panic; the waiter goes.
        Polled::Ready(Err(RequestError::Failed(_))) if fate == 0 => tally.dropped.one(),
        Polled::Ready(Err(error)) if !sent => refused(error, worker, tally),
        Polled::Ready(ready) => outcome(ready, number, worker, tally),
        Polled::Cut | Polled::Panicked => tally.dropped.add(usize::from(sent)),
    }
}

fn answer(worker: &mut Worker, registry: &Registry, pool: &Pool, tally: &Tally) {
    // The reply says to which key.
    let token = |worker: &mut Worker, key: &Key| {
        let mut token = worker.token();
        token.number = key.number.into();
        token
    };
    let given = |resolved: Option<Result<(), Token>>| match resolved {
        Some(Ok(())) => tally.resolved.one(),
        Some(Err(token)) => {
            tally.returned.one();
            token.end(Fate::Returned);
        }
        None => {}
    };
    match worker.rng.u8(..6) {
        0 | 1 => {
            worker.at("resolve");
            let key = key(worker);
            let token = token(worker, &key);
            given(expecting(Fate::Lost, || registry.resolve(&key, token)));
        }
        2 => {
            worker.at("fail");
            let key = key(worker);
            tally.fails.add(usize::from(armed(worker, || registry.fail(&key, Failure::msg("stress"))) == Some(true)));
        }
        3 | 4 => {
            worker.at("resolve by handle");
            let Some(handle) = pool.handle() else { return };
            let token = token(worker, handle.key());
            given(expecting(Fate::Lost, || handle.resolve(token)));
        }
        _ => {
            worker.at("fail or drop a handle");
            let Some(handle) = pool.handle() else { return };
            if worker.rng.bool() {
                tally.fails.add(usize::from(handle.fail(Failure::msg("stress"))));
            } else {
                tally.handles.one();
                drop(handle);
            }
        }
    }
}

fn wait(worker: &mut Worker, pool: &Pool, tally: &Tally) {
    let Some(mut waiter) = pool.waiter() else { return };
    let number = waiter.key().number;
    match worker.rng.u8(..3) {
        0 => {
            worker.at("a waiter, polled by hand");
            match worker.polls(Fate::Lost, Fate::Lost, &mut waiter) {
                Polled::Ready(ready) => outcome(ready, number, worker, tally),
                // Its waker stays in the slot: the next one to poll it replaces it, or the end takes it out.
                _ => pool.waiters.lock().unwrap().push(waiter),
            }
        }
        1 => {
            worker.at("wait_blocking");
            let time = worker.moment();
            match expecting(Fate::Unlooked, || waiter.wait_blocking(Some(time))) {
                Some(ready) => outcome(ready, number, worker, tally),
                None => tally.timed_out.one(), // what came too late was a bomb
            }
        }
        _ => {
            worker.at("drop a waiter");
            drop_waiter(waiter, tally);
        }
    }
}

fn drop_waiter(waiter: Waiter<Key, Token>, tally: &Tally) {
    tally.dropped.one();
    let _bomb = expecting(Fate::Unlooked, || drop(waiter));
}
