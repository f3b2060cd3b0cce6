//! An actor on either mailbox, serial or concurrent; handlers that wait, fail and panic; runs that are dropped half-way. The books:
//!
//! - What was received from the mailbox was begun by a handler, came back unhandled, was drained, or consumed by the gate.
//! - What was begun was handled, or went with its handler: failed, or cut with its run.
//! - Serial handlers never overlap; after a failure the senders know the cause.
//! - Nothing that was accepted is anywhere else; a baton that lives on keeps no waker.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use microio::{ActorCore, CancelScope, Failure, Inbox, Mailbox, PriorityMailbox, Release, Sender, Stopped};

use crate::books::{Count, Fate, Token, expecting, planned_panic};
use crate::crew::{Polled, Round, Worker, yields};

#[derive(Default)]
struct Tally {
    /// Said Ok: sent, or late and dropped.
    ok: Count,
    begun: Count,
    handled: Count,
    unhandled: Count,
    drained: Count,
}

/// What handlers and the other threads meddle with.
struct Stage {
    tally: Tally,
    batons: Mutex<Vec<Release>>,
    /// What some handlers wait for; cancelled for good in the end.
    pulse: Mutex<CancelScope>,
    fails: bool,
    others: AtomicUsize,
}

pub(crate) fn round(round: &Round) {
    let consumed = Arc::new(Count::default());
    match round.rng().u8(..3) {
        0 => play(round, PriorityMailbox::new(|token: &Token| token.number % 3)),
        1 => {
            let counts = consumed.clone();
            let gate = move |token: &Token| {
                let (panics, passes) = (token.number % 97 == 5, token.number % 16 != 3);
                counts.add(usize::from(panics || !passes));
                if panics {
                    planned_panic();
                }
                passes
            };
            play(round, PriorityMailbox::new(|token: &Token| token.number % 3).with_gate(gate));
        }
        _ => play(round, Mailbox::new()),
    }
    round.books.equal("consumed, by the gate", round.ledger.ended(Fate::Consumed), consumed.get());
}

fn play<M: Inbox<Item = Token> + Send>(round: &Round, mailbox: M) {
    let stage = Stage {
        tally: Tally::default(),
        batons: Mutex::default(),
        pulse: Mutex::default(),
        fails: round.rng().u8(..3) == 0,
        others: AtomicUsize::new(round.threads - 1),
    };
    let sender = mailbox.sender();
    let actor = Mutex::new(ActorCore::new(mailbox));
    round.crew(|worker| {
        if worker.me == 0 {
            act(worker, &mut actor.lock().unwrap(), &stage);
        } else {
            meddle(worker, &sender, &stage);
        }
    });

    let _bomb = expecting(Fate::Left, || drop(actor));
    let (stats, ledger, books, tally) = (sender.stats(), &round.ledger, &round.books, &stage.tally);
    books.equal("sent, said Ok and not late", stats.sent, tally.ok.get() - ledger.ended(Fate::Late));
    let received = tally.begun.get() + tally.unhandled.get() + tally.drained.get() + ledger.ended(Fate::Consumed);
    books.equal("received, begun, unhandled, drained or consumed", stats.received, received);
    books.equal("begun, handled or cut", tally.begun.get(), tally.handled.get() + ledger.ended(Fate::Cut));
    books.equal("left, sent and not received", ledger.ended(Fate::Left), stats.sent - stats.received);
}

fn meddle(worker: &mut Worker, sender: &Sender<Token>, stage: &Stage) {
    for _ in 0..worker.steps() {
        match worker.rng.u32(..100) {
            0..60 => {
                worker.at("submit");
                let token = worker.token();
                let _late = expecting(Fate::Late, || sender.try_send(token));
                stage.tally.ok.one();
            }
            60..75 => {
                worker.at("release");
                let baton = stage.batons.lock().unwrap().pop();
                baton.filter(|_| worker.rng.bool()).iter().for_each(Release::release);
            }
            75..90 => {
                worker.at("pulse");
                let pulse = std::mem::take(&mut *stage.pulse.lock().unwrap());
                pulse.cancel("stress");
            }
            90 if worker.one_in(30) => {
                worker.at("close");
                sender.close();
            }
            91 if worker.one_in(30) => {
                worker.at("fail");
                sender.fail(Failure::msg("stress"));
            }
            _ => {
                worker.at("stats");
                let stats = sender.stats();
                let adds_up = stats.sent == stats.received + stats.queued;
                worker.books().hold(adds_up || stats.closed, || format!("{stats:?} does not add up"));
            }
        }
    }
    if stage.others.fetch_sub(1, SeqCst) == 1 {
        let pulse = stage.pulse.lock().unwrap().clone();
        pulse.cancel("the end"); // and stays
        sender.close();
    }
}

fn act<M: Inbox<Item = Token>>(worker: &mut Worker, actor: &mut ActorCore<M>, stage: &Stage) {
    loop {
        let last = stage.others.load(SeqCst) == 0;
        if !last && worker.one_in(10) {
            worker.at("drain");
            let some = worker.rng.usize(..4);
            if let Some(tokens) = expecting(Fate::Consumed, || actor.drain(Some(some))) {
                stage.tally.drained.add(tokens.len());
                tokens.into_iter().for_each(|token| token.end(Fate::Drained));
            }
            continue;
        }
        let running = Cell::new(0);
        let ended = if worker.rng.bool() {
            worker.at("run");
            let books = worker.books();
            let serial = async |token| {
                let overlap = Overlap::begin(&running);
                books.hold(running.get() == 1, || "two serial handlers at once".into());
                let handled = handle(token, None, stage).await;
                drop(overlap);
                handled
            };
            drive(worker, last, actor.run(serial))
        } else {
            worker.at("run_concurrent");
            drive(worker, last, actor.run_concurrent(|token, release| handle(token, Some(release), stage)))
        };
        match ended {
            None => {}
            Some(Ok(())) => return,
            Some(Err(Stopped { unhandled, cause: _ })) => {
                stage.tally.unhandled.add(unhandled.len());
                unhandled.into_iter().for_each(|token| token.end(Fate::Unhandled));
                worker.books().hold(actor.sender().is_closed(), || "stopped, and still open".into());
                return;
            }
        }
    }
}

/// Runs it for a moment and drops it; the last one to its end.
fn drive<F: Future>(worker: &mut Worker, last: bool, run: F) -> Option<F::Output> {
    if !last && worker.rng.bool() {
        return match worker.polls(Fate::Consumed, Fate::Cut, run) {
            Polled::Ready(ended) => Some(ended),
            Polled::Cut | Polled::Panicked => None,
        };
    }
    let time = (!last).then(|| worker.moment());
    let mut run = Box::pin(run);
    let ended = expecting(Fate::Consumed, || microio::host::block_on(run.as_mut(), time).ok()).flatten();
    let _bomb = expecting(Fate::Cut, || drop(run));
    ended
}

struct Overlap<'a>(&'a Cell<u32>);

impl<'a> Overlap<'a> {
    fn begin(running: &'a Cell<u32>) -> Self {
        running.set(running.get() + 1);
        Overlap(running)
    }
}

impl Drop for Overlap<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// An item in a handler: however it goes, it goes as `Cut` unless it was handled.
struct Held(Option<Token>);

impl Drop for Held {
    fn drop(&mut self) {
        let token = self.0.take();
        if expecting(Fate::Cut, || drop(token)).is_none() {
            planned_panic(); // a bomb
        }
    }
}

fn handle(token: Token, release: Option<Release>, stage: &Stage) -> impl Future<Output = Result<(), Failure>> {
    stage.tally.begun.one();
    let number = token.number;
    let mut held = Held(Some(token));
    if stage.fails && number % 211 == 17 && release.is_some() {
        planned_panic(); // while the handler is made
    }
    async move {
        if let Some(release) = release {
            match number % 4 {
                0 => release.release(),
                1 => {}
                _ => stage.batons.lock().unwrap().push(release),
            }
        }
        match number % 6 {
            0 | 1 => {}
            2 | 3 => yields(number as u32 % 5).await,
            _ => {
                let pulse = stage.pulse.lock().unwrap().clone();
                pulse.cancelled().await;
            }
        }
        if stage.fails && number % 199 == 18 {
            return Err(Failure::msg("stress"));
        }
        if stage.fails && number % 193 == 19 {
            planned_panic();
        }
        stage.tally.handled.one();
        held.0.take().into_iter().for_each(|token| token.end(Fate::Received));
        Ok(())
    }
}
