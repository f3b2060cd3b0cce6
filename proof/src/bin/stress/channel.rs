//! A channel, unbounded or with few places. The books:
//!
//! - `sent == received + queued`, looked at in every moment while the receiver lives.
//! - What was sent is what the sends said `Ok` to, less what came late to a sender that has late items dropped.
//! - What was received is what the receiver had in hands; what it did not get was left when it was dropped.
//! - What was refused came back; what was in a send that was dropped half-way went with it.
//! - One sender's items come in their order.
//! - A sender or receiver that was left waiting and could go on has been woken.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::task::Poll;

use microio::{Failure, LateSend, Receiver, SendBlockingError, SendError, Sender, TrySendError, bounded, channel};

use crate::books::{Count, Fate, Token, expecting};
use crate::crew::{Polled, Round, Worker};

#[derive(Default)]
struct Tally {
    /// Sends that said Ok, or whose item was late and panicked in its drop.
    ok: Count,
    /// Refused: closed. And: full, or timed out.
    closed: Count,
    full: Count,
    /// Dropped half-way.
    cut: Count,
    received: Count,
    drained: Count,
}

/// The receiving end, and the last number that it has seen of each sender.
struct End {
    rx: Receiver<Token>,
    last: Vec<u64>,
}

impl End {
    fn take(&mut self, token: Token, fate: Fate, worker: &Worker) {
        let last = &mut self.last[token.from];
        worker.books().hold(*last < token.number, || format!("item {} after {last} of one sender", token.number));
        *last = token.number;
        token.end(fate);
    }
}

pub(crate) fn round(round: &Round) {
    let mut rng = round.rng();
    let (tx, rx) = match rng.u8(..3) {
        0 => channel(),
        _ => bounded(rng.usize(1..6).try_into().expect("not zero")),
    };
    let ends = rng.u32(..3) == 0; // somewhere in the middle, too
    let tally = Tally::default();
    let seat = Mutex::new(Some(End { rx, last: vec![0; round.threads] }));
    let (gone, senders) = (AtomicBool::new(false), AtomicUsize::new(round.threads - 1));

    round.crew(|worker| {
        let late = if worker.one_in(3) { LateSend::Drop } else { LateSend::Reject };
        let mut sender = tx.clone().with_late_send(late);
        for _ in 0..worker.steps() {
            match worker.rng.u32(..100) {
                0..45 => send(worker, &sender, &tally),
                45..85 => {
                    let end = seat.lock().unwrap().take();
                    if let Some(mut end) = end {
                        receive(worker, &mut end, &tally);
                        if ends && worker.one_in(100) {
                            worker.at("drop the receiver");
                            gone.store(true, SeqCst);
                            let _bomb = expecting(Fate::Left, || drop(end));
                        } else {
                            *seat.lock().unwrap() = Some(end);
                        }
                    }
                }
                85..90 => sender = sender.clone(),
                90..91 if ends => end_it(worker, &tx),
                _ => {
                    worker.at("stats");
                    let stats = tx.stats();
                    let adds_up = stats.sent == stats.received + stats.queued;
                    worker.books().hold(adds_up || gone.load(SeqCst), || format!("{stats:?} does not add up"));
                }
            }
        }
        stand_still(worker, &sender, &seat, &tally);

        // All that is still to come: worker 0 receives it, the others send and wait for their place as long as it takes.
        if worker.me > 0 {
            for _ in 0..worker.rng.u32(..3) {
                worker.at("send_blocking, for ever");
                let token = worker.token();
                refused_blocking(expecting(Fate::Late, || sender.send_blocking(token, None)), &tally);
            }
            if senders.fetch_sub(1, SeqCst) == 1 {
                tx.close();
            }
            return;
        }
        let end = seat.lock().unwrap().take();
        if let Some(mut end) = end {
            worker.at("recv_blocking, for ever");
            while let Ok(token) = end.rx.recv_blocking(None) {
                tally.received.one();
                end.take(token, Fate::Received, worker);
            }
            *seat.lock().unwrap() = Some(end);
        }
    });

    let _bomb = expecting(Fate::Left, || drop(seat));
    let (stats, ledger, books) = (tx.stats(), &round.ledger, &round.books);
    books.equal("sent, said Ok and not late", stats.sent, tally.ok.get() - ledger.ended(Fate::Late));
    books.equal("received, in hands", stats.received, tally.received.get() + tally.drained.get());
    books.equal("left, sent and not received", ledger.ended(Fate::Left), stats.sent - stats.received);
    let late = tally.closed.get() + ledger.ended(Fate::Late);
    books.equal("dropped, late and left", stats.dropped, late + ledger.ended(Fate::Left));
    books.equal("cut, items in them", tally.cut.get(), ledger.ended(Fate::Cut));
    books.equal("returned", tally.closed.get() + tally.full.get(), ledger.ended(Fate::Returned));
}

fn send(worker: &mut Worker, sender: &Sender<Token>, tally: &Tally) {
    let token = worker.token();
    match worker.rng.u8(..3) {
        0 => {
            worker.at("try_send");
            match expecting(Fate::Late, || sender.try_send(token)) {
                Some(Ok(())) | None => tally.ok.one(),
                Some(Err(TrySendError::Closed(token))) => closed(token, tally),
                Some(Err(TrySendError::Full(token))) => {
                    tally.full.one();
                    token.end(Fate::Returned);
                }
            }
        }
        1 => {
            worker.at("send, polled by hand");
            match worker.polls(Fate::Late, Fate::Cut, sender.send(token)) {
                Polled::Ready(Ok(())) | Polled::Panicked => tally.ok.one(),
                Polled::Ready(Err(SendError(token))) => closed(token, tally),
                Polled::Cut => tally.cut.one(),
            }
        }
        _ => {
            worker.at("send_blocking");
            let time = worker.moment();
            refused_blocking(expecting(Fate::Late, || sender.send_blocking(token, Some(time))), tally);
        }
    }
}

fn refused_blocking(sent: Option<Result<(), SendBlockingError<Token>>>, tally: &Tally) {
    match sent {
        Some(Ok(())) | None => tally.ok.one(),
        Some(Err(SendBlockingError::Closed(token))) => closed(token, tally),
        Some(Err(SendBlockingError::TimedOut(token) | SendBlockingError::WouldBlock(token))) => {
            tally.full.one();
            token.end(Fate::Returned);
        }
    }
}

fn closed(token: Token, tally: &Tally) {
    tally.closed.one();
    token.end(Fate::Returned);
}

fn receive(worker: &mut Worker, end: &mut End, tally: &Tally) {
    for _ in 0..worker.rng.u32(1..8) {
        let max = worker.rng.usize(..5);
        let mut got = Vec::new();
        let mut fate = Fate::Received;
        match worker.rng.u8(..6) {
            0 => {
                worker.at("try_recv");
                got.extend(end.rx.try_recv());
            }
            1 => {
                worker.at("recv, polled by hand");
                if let Polled::Ready(Ok(token)) = worker.polls(Fate::Lost, Fate::Lost, end.rx.recv()) {
                    got.push(token);
                }
            }
            2 => {
                worker.at("recv_many, polled by hand");
                let many = worker.polls(Fate::Lost, Fate::Lost, end.rx.recv_many(&mut got, max));
                let said = if let Polled::Ready(Ok(count)) = many { count } else { 0 };
                worker.books().equal("recv_many said, and gave", said as u64, got.len() as u64);
            }
            3 => {
                worker.at("recv_blocking");
                let time = worker.moment();
                got.extend(end.rx.recv_blocking(Some(time)));
            }
            4 => {
                worker.at("recv under a cancelled scope");
                let scope = microio::CancelScope::new();
                let cancels = worker.rng.bool();
                let recv = scope.run(async {
                    if cancels {
                        scope.cancel("stress"); // what is ready in this very poll is still received
                    }
                    end.rx.recv().await
                });
                if let Polled::Ready(Ok(Ok(token))) = worker.polls(Fate::Lost, Fate::Lost, recv) {
                    got.push(token);
                }
            }
            _ => {
                worker.at("drain");
                fate = Fate::Drained;
                got = end.rx.drain(worker.rng.bool().then_some(max));
            }
        }
        let count = if fate == Fate::Drained { &tally.drained } else { &tally.received };
        count.add(got.len());
        got.into_iter().for_each(|token| end.take(token, fate, worker));
    }
}

fn end_it(worker: &mut Worker, tx: &Sender<Token>) {
    worker.at("close or fail");
    if worker.rng.bool() {
        tx.close();
    } else {
        tx.fail(Failure::msg("stress"));
    }
}

/// Leaves a receive and sends waiting, and looks at them when nobody moves.
fn stand_still(worker: &mut Worker, sender: &Sender<Token>, seat: &Mutex<Option<End>>, tally: &Tally) {
    let end = if worker.one_in(2) { seat.lock().unwrap().take() } else { None };
    if let Some(mut end) = end {
        worker.at("recv, left waiting");
        let mut got = None;
        let mut parked = worker.park(end.rx.recv(), |first| got = first.ok());
        worker.meet();
        let alone = worker.alone();
        if let Some(Poll::Ready(Ok(token))) = parked.as_mut().map(|recv| recv.audit("recv", worker.books())) {
            got = Some(token);
        }
        drop(alone);
        drop(parked);
        if let Some(token) = got {
            tally.received.one();
            end.take(token, Fate::Received, worker);
        }
        *seat.lock().unwrap() = Some(end);
    } else {
        worker.at("send, left waiting");
        let token = worker.token();
        // None: not sent. Some(None): late, and a bomb.
        let mut sent = None;
        let send = sender.send(token);
        let mut parked = match expecting(Fate::Late, || worker.park(send, |first| sent = Some(Some(first)))) {
            Some(parked) => parked,
            None => {
                sent = Some(None);
                None
            }
        };
        worker.meet();
        let alone = worker.alone();
        if let Some(send) = &mut parked {
            match expecting(Fate::Late, || send.audit("send", worker.books())) {
                Some(Poll::Ready(ready)) => sent = Some(Some(ready)),
                Some(Poll::Pending) => {}
                None => sent = Some(None),
            }
        }
        let _bomb = expecting(Fate::Cut, || drop(parked));
        drop(alone);
        match sent {
            Some(Some(Ok(())) | None) => tally.ok.one(),
            Some(Some(Err(SendError(token)))) => closed(token, tally),
            None => tally.cut.one(),
        }
    }
    worker.meet_empty_handed(); // and the receiver is back in its seat
}
