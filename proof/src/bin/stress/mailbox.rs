//! A mailbox, plain or by priority: with a gate and a key that panic, a floor that moves. The books:
//!
//! - `sent == received + queued`, looked at in every moment: what is parked in the heap is queued.
//! - What was received is what the receiver had in hands, and what the gate consumed or a panic of gate or key took.
//! - What is left when it is dropped is what was sent and not received.
//! - Within a level, one sender's items come in their order; a drain gives the most urgent first.
//! - A receiver that was left waiting, for an item or for the floor, has been woken.

use std::sync::{Arc, Mutex};
use std::task::Poll;

use microio::{Failure, Floor, Inbox, Mailbox, PriorityMailbox, Sender};

use crate::books::{Count, Fate, Ledger, Token, expecting, planned_panic};
use crate::crew::{Polled, Round, Worker};

#[derive(Default)]
struct Tally {
    /// Said Ok: sent, or late and dropped.
    ok: Count,
    cut: Count,
    received: Count,
    drained: Count,
    /// What gate and key say that they took.
    consumed: Count,
}

const LEVELS: u64 = 4;

fn level(token: &Token) -> u64 {
    token.number % LEVELS
}

/// The receiving end, and the last number seen of each sender in each level.
struct End<M> {
    mailbox: M,
    last: Vec<[u64; LEVELS as usize]>,
}

pub(crate) fn round(round: &Round) {
    let tally = Arc::new(Tally::default());
    if round.rng().bool() {
        play(round, Mailbox::new(), None, &tally);
        return;
    }
    let mailbox = PriorityMailbox::new({
        let tally = tally.clone();
        move |token: &Token| {
            if token.number % 89 == 7 {
                tally.consumed.one();
                planned_panic();
            }
            level(token)
        }
    });
    let gate = gate(tally.clone(), mailbox.sender(), round.ledger.clone(), round.threads);
    let mailbox = mailbox.with_gate(gate);
    let floor = mailbox.floor();
    play(round, mailbox, Some(floor), &tally);
}

/// Consumes some, panics at some, and sends something itself at others.
fn gate(tally: Arc<Tally>, sender: Sender<Token>, ledger: Arc<Ledger>, me: usize) -> impl FnMut(&Token) -> bool {
    let mut born = 0;
    move |token| {
        if token.from != me && token.number % 30 == 9 {
            born += 1;
            let token = ledger.token(me, born, false);
            let _never = expecting(Fate::Late, || sender.try_send(token));
            tally.ok.one();
        }
        let passes = token.number % 16 != 3;
        let panics = token.number % 97 == 5;
        if panics || !passes {
            tally.consumed.one();
        }
        if panics {
            planned_panic();
        }
        passes
    }
}

fn play<M: Inbox<Item = Token> + Send>(round: &Round, mailbox: M, floor: Option<Floor<u64>>, tally: &Tally) {
    let sender = mailbox.sender();
    let last = vec![[0; LEVELS as usize]; round.threads + 1];
    let seat = Mutex::new(Some(End { mailbox, last }));

    round.crew(|worker| {
        for _ in 0..worker.steps() {
            match worker.rng.u32(..100) {
                0..45 => send(worker, &sender, tally),
                45..80 => {
                    let end = seat.lock().unwrap().take();
                    if let Some(mut end) = end {
                        receive(worker, &mut end, tally);
                        *seat.lock().unwrap() = Some(end);
                    }
                }
                80..90 => {
                    worker.at("move the floor");
                    let to = worker.rng.bool().then(|| worker.rng.u64(..LEVELS));
                    floor.iter().for_each(|floor| floor.set(to));
                }
                90 if worker.one_in(20) => {
                    worker.at("close or fail");
                    if worker.rng.bool() {
                        sender.close();
                    } else {
                        sender.fail(Failure::msg("stress"));
                    }
                }
                _ => {
                    worker.at("stats");
                    let stats = sender.stats();
                    let adds_up = stats.sent == stats.received + stats.queued;
                    worker.books().hold(adds_up, || format!("{stats:?} does not add up"));
                }
            }
        }
        stand_still(worker, &seat, floor.as_ref(), &sender, tally);
    });

    let mut end = seat.into_inner().unwrap().expect("whoever takes it puts it back");
    if round.rng().bool() {
        while sender.stats().queued > 0 {
            if let Some(tokens) = expecting(Fate::Consumed, || end.mailbox.drain(None)) {
                tally.drained.add(tokens.len());
                tokens.into_iter().for_each(|token| token.end(Fate::Drained));
            }
        }
    }
    let _bomb = expecting(Fate::Left, || drop(end));
    let (stats, ledger, books) = (sender.stats(), &round.ledger, &round.books);
    books.equal("sent, said Ok and not late", stats.sent, tally.ok.get() - ledger.ended(Fate::Late));
    let received = tally.received.get() + tally.drained.get() + ledger.ended(Fate::Consumed);
    books.equal("received, in hands and consumed", stats.received, received);
    books.equal("consumed, by gate and key", ledger.ended(Fate::Consumed), tally.consumed.get());
    books.equal("left, sent and not received", ledger.ended(Fate::Left), stats.sent - stats.received);
    books.equal("dropped, late and left", stats.dropped, ledger.ended(Fate::Late) + ledger.ended(Fate::Left));
    books.equal("cut, items in them", tally.cut.get(), ledger.ended(Fate::Cut));
}

fn send(worker: &mut Worker, sender: &Sender<Token>, tally: &Tally) {
    let token = worker.token();
    if worker.rng.bool() {
        worker.at("try_send");
        let sent = expecting(Fate::Late, || sender.try_send(token));
        worker.books().hold(!matches!(sent, Some(Err(_))), || "a mailbox refused an item".into());
        tally.ok.one();
    } else {
        worker.at("send, polled by hand");
        match worker.polls(Fate::Late, Fate::Cut, sender.send(token)) {
            Polled::Cut => tally.cut.one(),
            _ => tally.ok.one(),
        }
    }
}

impl<M: Inbox<Item = Token>> End<M> {
    fn take(&mut self, token: Token, fate: Fate, worker: &Worker) {
        let last = &mut self.last[token.from][level(&token) as usize];
        worker.books().hold(*last < token.number, || format!("item {} after {last} of one sender", token.number));
        *last = token.number;
        token.end(fate);
    }
}

fn receive<M: Inbox<Item = Token>>(worker: &mut Worker, end: &mut End<M>, tally: &Tally) {
    for _ in 0..worker.rng.u32(1..8) {
        match worker.rng.u8(..3) {
            0 => {
                worker.at("recv, polled by hand");
                if let Polled::Ready(Ok(token)) = worker.polls(Fate::Consumed, Fate::Lost, end.mailbox.recv()) {
                    tally.received.one();
                    end.take(token, Fate::Received, worker);
                }
            }
            1 => {
                worker.at("recv, blocking");
                let time = worker.moment();
                let got = expecting(Fate::Consumed, || microio::host::block_on(end.mailbox.recv(), Some(time)));
                if let Some(Ok(Ok(token))) = got {
                    tally.received.one();
                    end.take(token, Fate::Received, worker);
                }
            }
            _ => {
                worker.at("drain");
                let max = worker.rng.bool().then(|| worker.rng.usize(..5));
                let tokens = expecting(Fate::Consumed, || end.mailbox.drain(max)).unwrap_or_default();
                tally.drained.add(tokens.len());
                tokens.into_iter().for_each(|token| end.take(token, Fate::Drained, worker));
            }
        }
    }
}

/// Leaves a receive waiting, and sends or lifts the floor when nobody else moves.
fn stand_still<M: Inbox<Item = Token>>(
    worker: &mut Worker,
    seat: &Mutex<Option<End<M>>>,
    floor: Option<&Floor<u64>>,
    sender: &Sender<Token>,
    tally: &Tally,
) {
    let end = if worker.one_in(2) { seat.lock().unwrap().take() } else { None };
    if let Some(mut end) = end {
        worker.at("recv, left waiting");
        let mut got = None;
        let recv = end.mailbox.recv();
        let mut parked = expecting(Fate::Consumed, || worker.park(recv, |first| got = first.ok())).flatten();
        worker.meet();
        let alone = worker.alone();
        if let Some(recv) = &mut parked {
            if let Some(Poll::Ready(ready)) = expecting(Fate::Consumed, || recv.audit("recv", worker.books())) {
                got = ready.ok();
            }
        }
        drop(alone);
        drop(parked);
        if let Some(token) = got {
            tally.received.one();
            end.take(token, Fate::Received, worker);
        }
        *seat.lock().unwrap() = Some(end);
    } else {
        worker.meet();
        let _alone = worker.alone();
        match worker.rng.u8(..3) {
            0 => floor.iter().for_each(|floor| floor.set(None)),
            1 => send(worker, sender, tally),
            _ => {}
        }
    }
    worker.meet();
}
