//! Close scopes, with cancel scopes linked to them, and work trackers. The books:
//!
//! - Of all that close or fail one scope, one wins; everybody who looks, before or after, gets the winner's end.
//! - When the winner returns, every linked cancel scope is cancelled.
//! - The count of work is that of the guards that are held; it is 0 in the end.
//! - Who was left waiting for an end, for idle or for busy, has been woken.

use std::sync::Mutex;

use microio::{CancelScope, CloseError, CloseScope, Failure, WorkGuard, WorkTracker};

use crate::books::{Count, Fate};
use crate::crew::{Polled, Round, Worker};

/// One scope, and what was heard of its end.
#[derive(Default)]
struct Service {
    scope: CloseScope,
    winner: Mutex<Option<String>>,
    heard: Mutex<Vec<String>>,
    wins: Count,
    links: Mutex<Vec<CancelScope>>,
}

impl Service {
    fn hear(&self, end: &CloseError) {
        let mut heard = self.heard.lock().unwrap();
        let text = end.to_string();
        if !heard.contains(&text) {
            heard.push(text);
        }
    }
}

pub(crate) fn round(round: &Round) {
    let services: [Service; 4] = Default::default();
    let (tracker, work) = (WorkTracker::new(), Mutex::new(Vec::new()));

    round.crew(|worker| {
        for step in 0..worker.steps() {
            let service = &services[worker.rng.usize(..services.len())];
            match worker.rng.u32(..100) {
                0..2 => end(worker, service, step),
                2..40 => look(worker, service),
                40..80 => busy(worker, &tracker, &work),
                _ => watch(worker, &tracker),
            }
        }
        // All stand still, one after the other does something, and who waits for it has been woken.
        let service = &services[worker.me % services.len()];
        worker.at("left waiting");
        let mut closed = worker.park(service.scope.closed(), |end| service.hear(&end));
        let mut idle = worker.park(tracker.idle(), drop);
        let mut busy_again = worker.park(tracker.busy(), drop);
        worker.meet();
        let alone = worker.alone();
        if worker.rng.bool() {
            busy(worker, &tracker, &work);
        }
        worker.audit(&mut idle, "idle", drop);
        worker.audit(&mut busy_again, "busy", drop);
        drop(alone);
        worker.meet();
        if worker.me == 0 {
            services.iter().for_each(|service| end(worker, service, 0));
            work.lock().unwrap().clear();
        }
        worker.meet();
        let _alone = worker.alone();
        worker.audit(&mut closed, "closed", |end| service.hear(&end));
        worker.audit(&mut idle, "idle, in the end", drop);
        worker
            .books()
            .hold(closed.is_none() && idle.is_none(), || "somebody still waits for the end, or for idle".into());
    });

    let books = &round.books;
    books.equal("work, none", tracker.count() as u64, 0);
    for service in &services {
        books.equal("winners, one", service.wins.get(), 1);
        let winner = service.winner.lock().unwrap().take().into_iter().collect::<Vec<_>>();
        let heard = service.heard.lock().unwrap();
        books.hold(heard.is_empty() || *heard == winner, || format!("the end was {winner:?}; heard {heard:?}"));
        let live = service.links.lock().unwrap().iter().filter(|link| !link.is_cancelled()).count();
        books.equal("linked scopes that live on, none", live as u64, 0);
    }
}

fn end(worker: &mut Worker, service: &Service, step: usize) {
    worker.at("close or fail");
    let text = format!("{} {step}", worker.me);
    let linked = service.links.lock().unwrap().clone();
    let won = match worker.rng.bool() {
        true => service.scope.close(text.clone()),
        false => service.scope.fail(Failure::msg(text.clone())),
    };
    if won {
        service.wins.one();
        *service.winner.lock().unwrap() = Some(text);
        let all = linked.iter().all(CancelScope::is_cancelled);
        worker.books().hold(all, || "closed, and a linked scope is not cancelled".into());
    }
    worker.books().hold(service.scope.is_closed(), || "ended, and not closed".into());
}

fn look(worker: &mut Worker, service: &Service) {
    match worker.rng.u8(..5) {
        0 => {
            worker.at("closed, polled by hand");
            if let Polled::Ready(end) = worker.polls(Fate::Lost, Fate::Lost, service.scope.closed()) {
                service.hear(&end);
            }
        }
        1 => {
            worker.at("wait_blocking");
            let time = worker.moment();
            service.scope.wait_blocking(Some(time)).iter().for_each(|end| service.hear(end));
        }
        2 => {
            worker.at("link");
            let scope = CancelScope::new();
            service.scope.link(&scope);
            if worker.rng.bool() {
                service.links.lock().unwrap().push(scope);
            }
        }
        _ => {
            worker.at("check");
            let over = service.scope.is_closed();
            let check = service.scope.check();
            check.iter().for_each(|()| worker.books().hold(!over, || "closed, and open again".into()));
            check.err().iter().for_each(|end| service.hear(end));
        }
    }
}

fn busy(worker: &mut Worker, tracker: &WorkTracker, work: &Mutex<Vec<WorkGuard>>) {
    worker.at("track, or drop a guard");
    if worker.one_in(3) {
        let guard = tracker.track();
        worker.books().hold(tracker.is_busy(), || "tracked, and not busy".into());
        work.lock().unwrap().push(guard);
    } else {
        let guard = work.lock().unwrap().pop();
        drop(guard);
    }
}

fn watch(worker: &mut Worker, tracker: &WorkTracker) {
    match worker.rng.u8(..3) {
        0 => {
            worker.at("idle, polled by hand");
            let _ = worker.polls(Fate::Lost, Fate::Lost, tracker.idle());
        }
        1 => {
            worker.at("busy, polled by hand");
            let _ = worker.polls(Fate::Lost, Fate::Lost, tracker.busy());
        }
        _ => {
            worker.at("wait_idle_blocking");
            let time = worker.moment();
            let _ = tracker.wait_idle_blocking(Some(time));
        }
    }
}
