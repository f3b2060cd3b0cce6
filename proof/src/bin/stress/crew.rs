//! One round: its seed, its books, and the threads that do as the seed says.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use fastrand::Rng;

use crate::books::{Books, Fate, Hand, Ledger, Live, Parked, expecting};
use crate::watch;

/// One round of one kind.
pub(crate) struct Round {
    seed: u64,
    pub(crate) threads: usize,
    pub(crate) books: Books,
    pub(crate) ledger: Arc<Ledger>,
    live: Arc<AtomicUsize>,
    /// Hands whose wakers tokio may have.
    lent: Mutex<Vec<Hand>>,
}

impl Round {
    pub(crate) fn new(seed: u64, threads: usize) -> Self {
        Round {
            seed,
            threads,
            books: Books::default(),
            ledger: Arc::default(),
            live: Arc::default(),
            lent: Mutex::default(),
        }
    }

    /// The round's own choices, besides those of its threads.
    pub(crate) fn rng(&self) -> Rng {
        Rng::with_seed(self.seed)
    }

    pub(crate) fn live(&self) -> Live {
        Live::new(&self.live)
    }

    /// Has all threads do `work`, each with choices of its own. When it returns they are gone, and so must be their wakers,
    /// though what they worked on is still there.
    pub(crate) fn crew(&self, work: impl Fn(&mut Worker) + Sync) {
        let (barrier, turn) = (Barrier::new(self.threads), Mutex::new(()));
        let main = |me: usize| {
            let mut rng = Rng::with_seed(self.seed ^ (me as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let hands = std::array::from_fn(|n| Hand::new(n == 3 && rng.bool()));
            let mut worker = Worker { me, rng, round: self, hands, barrier: &barrier, turn: &turn, born: 0 };
            work(&mut worker);
            watch::at(me, "done");
            worker.hands
        };
        let hands: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..self.threads).map(|me| scope.spawn(move || main(me))).collect();
            // By hand: the scope itself does not wait until the threads' own destructors have run.
            threads.into_iter().filter_map(|thread| thread.join().ok()).flatten().collect()
        });
        let kept = hands.iter().map(|hand| hand.wakers(1)).sum::<usize>();
        self.books.equal("wakers still held, none", kept as u64, 0);
    }

    /// When everything that the round made has been dropped.
    pub(crate) fn balance(&self) {
        self.ledger.balance(&self.books);
        let kept = self.lent.lock().unwrap().iter().map(|hand| hand.wakers(1)).sum::<usize>();
        self.books.equal("wakers that went to tokio, none held", kept as u64, 0);
        self.books.equal("live guards, none", self.live.load(SeqCst) as u64, 0);
    }
}

/// One of the threads of a round.
pub(crate) struct Worker<'a> {
    pub(crate) me: usize,
    pub(crate) rng: Rng,
    pub(crate) round: &'a Round,
    hands: [Hand; 4],
    barrier: &'a Barrier,
    turn: &'a Mutex<()>,
    born: u64,
}

/// What became of a future that was polled a few times and dropped.
pub(crate) enum Polled<T> {
    Ready(T),
    Cut,
    /// A planned panic came out of the poll.
    Panicked,
}

impl<'a> Worker<'a> {
    /// How many things to do in this round.
    pub(crate) fn steps(&mut self) -> usize {
        self.rng.usize(20..200)
    }

    /// One thing is begun, of that name.
    pub(crate) fn at(&self, what: &'static str) {
        watch::at(self.me, what);
    }

    pub(crate) fn one_in(&mut self, n: u32) -> bool {
        self.rng.u32(..n) == 0
    }

    pub(crate) fn books(&self) -> &'a Books {
        &self.round.books
    }

    pub(crate) fn token(&mut self) -> crate::books::Token {
        self.born += 1;
        let bomb = self.one_in(50);
        self.round.ledger.token(self.me, self.born, bomb)
    }

    /// Zero, or a moment: long enough for others to come between, too short to be waited out often.
    pub(crate) fn moment(&mut self) -> Duration {
        Duration::from_micros(if self.rng.bool() { 0 } else { self.rng.u64(1..500) })
    }

    /// Any hand, an angry one too.
    pub(crate) fn hand(&mut self) -> Hand {
        self.rng.choice(&self.hands).expect("there are four").clone()
    }

    /// A hand whose waker may be given to tokio, which does not bear a panic, and may be about to wake it when the threads are
    /// gone: it is looked at when the round is over.
    pub(crate) fn lend_hand(&mut self) -> Hand {
        let hand = Hand::new(false);
        self.round.lent.lock().unwrap().push(hand.clone());
        hand
    }

    /// Polls a few times by hand, then drops. Tokens that go in a poll, or with the future, meet these fates.
    pub(crate) fn polls<F: Future>(&mut self, in_poll: Fate, at_drop: Fate, future: F) -> Polled<F::Output> {
        let hand = self.hand();
        self.polls_with(&hand, in_poll, at_drop, future)
    }

    pub(crate) fn polls_with<F: Future>(
        &mut self,
        hand: &Hand,
        in_poll: Fate,
        at_drop: Fate,
        future: F,
    ) -> Polled<F::Output> {
        let mut polled = Polled::Cut;
        let _bomb = expecting(at_drop, || {
            let mut future = pin!(future);
            for _ in 0..self.rng.u32(1..4) {
                match expecting(in_poll, || hand.poll(future.as_mut())) {
                    Some(Poll::Pending) if self.rng.bool() => thread::yield_now(),
                    Some(Poll::Pending) => {}
                    Some(Poll::Ready(output)) => {
                        polled = Polled::Ready(output);
                        break;
                    }
                    None => {
                        polled = Polled::Panicked;
                        break;
                    }
                }
            }
        });
        polled
    }

    /// Polls once; None if it is ready, which `ready` gets.
    pub(crate) fn park<F: Future>(&mut self, future: F, ready: impl FnOnce(F::Output)) -> Option<Parked<F>> {
        let mut parked = Parked::new(self.hand(), future);
        match parked.poll() {
            Poll::Pending => Some(parked),
            Poll::Ready(output) => {
                ready(output);
                None
            }
        }
    }

    /// Looks at what was parked, while all others stand still (see [`Parked::audit`]). What is ready is gone afterwards.
    pub(crate) fn audit<F: Future>(&self, parked: &mut Option<Parked<F>>, what: &str, ready: impl FnOnce(F::Output)) {
        if let Some(Poll::Ready(output)) = parked.as_mut().map(|waiting| waiting.audit(what, self.books())) {
            ready(output);
            *parked = None;
        }
    }

    /// Waits until all threads have come here.
    pub(crate) fn meet(&self) {
        self.barrier.wait();
    }

    /// As `meet`, with no future left anywhere: nobody may hold a waker.
    pub(crate) fn meet_empty_handed(&self) {
        self.meet();
        let kept = self.hands.iter().map(|hand| hand.wakers(1)).sum::<usize>();
        self.books().equal("wakers held without a future, none", kept as u64, 0);
        self.meet();
    }

    /// While this is held, no other thread has it. After `meet`, and before the next one, that is: all others stand still.
    pub(crate) fn alone(&self) -> MutexGuard<'a, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pending that many times, each time woken at once.
pub(crate) async fn yields(times: u32) {
    for _ in 0..times {
        let mut first = true;
        std::future::poll_fn(|cx| {
            if !std::mem::take(&mut first) {
                return Poll::Ready(());
            }
            let _angry = expecting(Fate::Lost, || cx.waker().wake_by_ref());
            Poll::Pending
        })
        .await;
    }
}
