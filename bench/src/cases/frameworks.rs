//! The adding actor in each of the frameworks, with unbounded mailboxes: nobody waits for a place.

use std::convert::Infallible;

use super::actor::Actor;

#[derive(Default)]
struct Adder(u64);

struct Add(u64);

struct Sum(u64);

/// Its `System` is a current-thread runtime of tokio's with local tasks, which is where it is started here.
pub(super) struct Actix(actix::Addr<Adder>);

impl actix::Actor for Adder {
    type Context = actix::Context<Self>;
}

impl actix::Message for Add {
    type Result = ();
}

impl actix::Message for Sum {
    type Result = u64;
}

impl actix::Handler<Add> for Adder {
    type Result = ();
    fn handle(&mut self, Add(amount): Add, _: &mut Self::Context) {
        self.0 += amount;
    }
}

impl actix::Handler<Sum> for Adder {
    type Result = u64;
    fn handle(&mut self, Sum(amount): Sum, _: &mut Self::Context) -> u64 {
        self.0 += amount;
        self.0
    }
}

impl Actor for Actix {
    async fn start() -> Self {
        Actix(actix::Actor::start(Adder::default()))
    }
    async fn tell(&self, amount: u64) {
        self.0.do_send(Add(amount));
    }
    async fn ask(&self, amount: u64) -> u64 {
        self.0.send(Sum(amount)).await.expect("an answer")
    }
}

pub(super) struct Ractor(ractor::ActorRef<Message>);

pub(super) enum Message {
    Add(u64),
    Sum(u64, ractor::RpcReplyPort<u64>),
}

impl ractor::Actor for Adder {
    type Msg = Message;
    type State = u64;
    type Arguments = ();
    async fn pre_start(&self, _: ractor::ActorRef<Message>, (): ()) -> Result<u64, ractor::ActorProcessingErr> {
        Ok(0)
    }
    async fn handle(
        &self,
        _: ractor::ActorRef<Message>,
        message: Message,
        sum: &mut u64,
    ) -> Result<(), ractor::ActorProcessingErr> {
        match message {
            Message::Add(amount) => *sum += amount,
            Message::Sum(amount, reply) => {
                *sum += amount;
                reply.send(*sum)?;
            }
        }
        Ok(())
    }
}

impl Actor for Ractor {
    async fn start() -> Self {
        let (actor, _handle) = ractor::Actor::spawn(None, Adder::default(), ()).await.expect("an actor");
        Ractor(actor)
    }
    async fn tell(&self, amount: u64) {
        self.0.cast(Message::Add(amount)).expect("an actor");
    }
    async fn ask(&self, amount: u64) -> u64 {
        let reply = self.0.call(|reply| Message::Sum(amount, reply), None).await;
        reply.expect("an actor").expect("an answer")
    }
}

pub(super) struct Kameo(kameo::actor::ActorRef<Adder>);

impl kameo::Actor for Adder {
    type Args = Self;
    type Error = Infallible;
    async fn on_start(adder: Self, _: kameo::actor::ActorRef<Self>) -> Result<Self, Infallible> {
        Ok(adder)
    }
}

impl kameo::message::Message<Add> for Adder {
    type Reply = ();
    async fn handle(&mut self, Add(amount): Add, _: &mut kameo::message::Context<Self, ()>) {
        self.0 += amount;
    }
}

impl kameo::message::Message<Sum> for Adder {
    type Reply = u64;
    async fn handle(&mut self, Sum(amount): Sum, _: &mut kameo::message::Context<Self, u64>) -> u64 {
        self.0 += amount;
        self.0
    }
}

impl Actor for Kameo {
    async fn start() -> Self {
        let mailbox = kameo::mailbox::unbounded();
        Kameo(<Adder as kameo::actor::Spawn>::spawn_with_mailbox(Adder::default(), mailbox))
    }
    async fn tell(&self, amount: u64) {
        self.0.tell(Add(amount)).await.expect("an actor");
    }
    async fn ask(&self, amount: u64) -> u64 {
        self.0.ask(Sum(amount)).await.expect("an answer")
    }
}

pub(super) struct Xtra(xtra::Address<Adder>);

impl xtra::Actor for Adder {
    type Stop = ();
    async fn stopped(self) {}
}

impl xtra::Handler<Add> for Adder {
    type Return = ();
    async fn handle(&mut self, Add(amount): Add, _: &mut xtra::Context<Self>) {
        self.0 += amount;
    }
}

impl xtra::Handler<Sum> for Adder {
    type Return = u64;
    async fn handle(&mut self, Sum(amount): Sum, _: &mut xtra::Context<Self>) -> u64 {
        self.0 += amount;
        self.0
    }
}

impl Actor for Xtra {
    async fn start() -> Self {
        Xtra(xtra::spawn_tokio(Adder::default(), xtra::Mailbox::unbounded()))
    }
    async fn tell(&self, amount: u64) {
        let _the_answer = self.0.send(Add(amount)).detach().await.expect("an actor");
    }
    async fn ask(&self, amount: u64) -> u64 {
        self.0.send(Sum(amount)).await.expect("an answer")
    }
}
