//! An actor that adds up: told without waiting, or asked for its sum.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use microio::{ActorCore, Failure, Mailbox, ReplyHandle, RequestRegistry};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{spawn_local, yield_now};

use super::frameworks::{Actix, Kameo, Ractor, Xtra};
use crate::cpu::{self, Place};
use crate::harness::{Bar, Case, Figure, Run, on_loop, ours, peer};

/// The address of an actor.
pub(super) trait Actor: Send + 'static {
    /// On the loop that it is called on.
    fn start() -> impl Future<Output = Self>;
    fn tell(&self, amount: u64) -> impl Future<Output = ()>;
    fn ask(&self, amount: u64) -> impl Future<Output = u64>;
}

struct Microio(microio::Sender<Told>, RequestRegistry<u64, u64>, AtomicU64);

enum Told {
    Add(u64),
    Sum(u64, ReplyHandle<u64, u64>),
}

impl Actor for Microio {
    async fn start() -> Self {
        let mut actor = ActorCore::new(Mailbox::new());
        let sender = actor.sender();
        spawn_local(async move {
            let mut sum = 0;
            let handle = async |told| {
                match told {
                    Told::Add(amount) => sum += amount,
                    Told::Sum(amount, reply) => {
                        sum += amount;
                        let _nobody_waits = reply.resolve(sum);
                    }
                }
                Ok(())
            };
            actor.run(handle).await.expect("it does not fail");
        });
        Microio(sender, RequestRegistry::new(), AtomicU64::new(0))
    }
    async fn tell(&self, amount: u64) {
        assert!(self.0.try_send(Told::Add(amount)).is_ok());
    }
    async fn ask(&self, amount: u64) -> u64 {
        let key = self.2.fetch_add(1, Ordering::Relaxed);
        let send = |reply| self.0.try_send(Told::Sum(amount, reply)).map_err(|_| Failure::msg("gone"));
        self.1.ask(key, send).await.expect("an answer")
    }
}

enum Sent {
    Add(u64),
    Sum(u64, oneshot::Sender<u64>),
}

impl Sent {
    fn add_to(self, sum: &mut u64) {
        match self {
            Sent::Add(amount) => *sum += amount,
            Sent::Sum(amount, reply) => {
                *sum += amount;
                let _nobody_waits = reply.send(*sum);
            }
        }
    }
}

/// What one writes by hand: a task that receives, a oneshot for the answer.
struct Kanal(kanal::Sender<Sent>);
impl Actor for Kanal {
    async fn start() -> Self {
        let (tx, rx) = kanal::unbounded::<Sent>();
        spawn_local(async move {
            let (mut sum, rx) = (0, rx.to_async());
            while let Ok(sent) = rx.recv().await {
                sent.add_to(&mut sum);
            }
        });
        Kanal(tx)
    }
    async fn tell(&self, amount: u64) {
        assert!(self.0.send(Sent::Add(amount)).is_ok());
    }
    async fn ask(&self, amount: u64) -> u64 {
        let (give, take) = oneshot::channel();
        assert!(self.0.send(Sent::Sum(amount, give)).is_ok());
        take.await.expect("an answer")
    }
}

struct Tokio(mpsc::UnboundedSender<Sent>);
impl Actor for Tokio {
    async fn start() -> Self {
        let (tx, mut rx) = mpsc::unbounded_channel::<Sent>();
        spawn_local(async move {
            let mut sum = 0;
            while let Some(sent) = rx.recv().await {
                sent.add_to(&mut sum);
            }
        });
        Tokio(tx)
    }
    async fn tell(&self, amount: u64) {
        assert!(self.0.send(Sent::Add(amount)).is_ok());
    }
    async fn ask(&self, amount: u64) -> u64 {
        let (give, take) = oneshot::channel();
        assert!(self.0.send(Sent::Sum(amount, give)).is_ok());
        take.await.expect("an answer")
    }
}

/// Until it has added up so many. (Asking once is not enough: xtra's mailbox is a heap, the question may overtake.)
async fn handled<A: Actor>(actor: &A, n: usize) {
    while actor.ask(0).await < n as u64 {}
    assert_eq!(actor.ask(0).await, n as u64);
}

/// Told by a task of its own loop, 128 times before it has its turn.
async fn tell_locally<A: Actor>(run: Run) -> Figure {
    let actor = A::start().await;
    let clock = run.start();
    for nth in 1..=run.n {
        actor.tell(1).await;
        if nth % 128 == 0 {
            yield_now().await;
        }
    }
    handled(&actor, run.n).await;
    clock.stop(run.n)
}

/// Told by a thread.
async fn tell_across<A: Actor>(run: Run) -> Figure {
    let actor = A::start().await;
    let (told, done) = oneshot::channel();
    let clock = run.start();
    let thread = thread::spawn(move || {
        cpu::pin(run.place, 1);
        let actor = on_loop(async move {
            for _ in 0..run.n {
                actor.tell(1).await;
            }
            actor
        });
        assert!(told.send(actor).is_ok());
    });
    let actor = done.await.expect("the address");
    handled(&actor, run.n).await;
    let figure = clock.stop(run.n);
    thread.join().expect("it does not panic");
    figure
}

fn tell<A: Actor>(run: Run) -> Figure {
    match run.place {
        Place::One => on_loop(tell_locally::<A>(run)),
        _ => on_loop(tell_across::<A>(run)),
    }
}

fn ask<A: Actor>(run: Run) -> Figure {
    on_loop(async move {
        let actor = A::start().await;
        run.each_async(async |nth| assert_eq!(actor.ask(1).await, nth as u64 + 1)).await
    })
}

pub(super) fn cases() -> Vec<Case> {
    let tells = vec![
        ours("microio", tell::<Microio>),
        peer("kanal by hand", tell::<Kanal>),
        peer("tokio mpsc by hand", tell::<Tokio>),
        peer("actix", tell::<Actix>),
        peer("ractor", tell::<Ractor>),
        peer("kameo", tell::<Kameo>),
        peer("xtra", tell::<Xtra>),
    ];
    let asks = vec![
        ours("microio", ask::<Microio>),
        peer("kanal by hand", ask::<Kanal>),
        peer("tokio mpsc by hand", ask::<Tokio>),
        peer("actix", ask::<Actix>),
        peer("ractor", ask::<Ractor>),
        peer("kameo", ask::<Kameo>),
        peer("xtra", ask::<Xtra>),
    ];
    const BY_HAND: Bar = Bar::BestOf(&["kanal by hand", "tokio mpsc by hand"]);
    const FRAMEWORKS: Bar = Bar::BestOf(&["actix", "ractor", "kameo", "xtra"]);
    vec![
        Case::new("actor.tell", "tell, from the actor's loop or from a thread", 500_000, tells)
            .places(&[Place::One, Place::Cross])
            .target(BY_HAND, 0.85)
            .target(FRAMEWORKS, 0.1)
            .target(Bar::Allocations, 0.0),
        Case::new("actor.ask", "ask and wait, on the actor's loop", 200_000, asks)
            .target(BY_HAND, 0.9)
            .target(FRAMEWORKS, 0.65)
            .target(Bar::Allocations, 0.0),
    ]
}
