//! Service threads, and groups of them: started, stopped, failed, waited for from all sides. The books:
//!
//! - Each body is dropped; it ran at most once, and not at all if the service was stopped before its start.
//! - One `start` says Ok. Readiness is decided once; everybody hears the same end.
//! - A group that does not start has stopped whom it had started; when it is joined, none of its bodies runs.

use std::sync::{Arc, Mutex};

use microio::{Failure, Service, ServiceError, ServiceGroup, ServiceState, ServiceThread};

use crate::books::{Count, Fate, Live, planned_panic};
use crate::crew::{Polled, Round, Worker};

#[derive(Default)]
struct Tally {
    ran: Count,
    ended: Count,
    starts: Count,
}

/// One service, and what was heard of it.
struct Watched {
    service: ServiceThread,
    tally: Arc<Tally>,
    ready: Mutex<Vec<String>>,
    ends: Mutex<Vec<String>>,
}

struct Running {
    tally: Arc<Tally>,
    _live: Live,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tally.ended.one();
    }
}

/// What the body does: it becomes ready or not, waits for its stop or not, returns well or not.
fn service(plan: u8, live: Live, tally: &Arc<Tally>) -> ServiceThread {
    let tally = tally.clone();
    ServiceThread::new("service", move |cx| {
        tally.ran.one();
        let _running = Running { tally, _live: live };
        match plan {
            0 => return Ok(()),
            1 => return Err(Failure::msg("stress, before ready")),
            2 => planned_panic(),
            _ => cx.started(),
        }
        match plan {
            3 => return Err(Failure::msg("stress")),
            4 => planned_panic(),
            5 => return Ok(()),
            _ => drop(cx.scope().wait_blocking(None)?),
        }
        match plan {
            6 => Err(Failure::msg("stress, after the stop")),
            7 => Ok(cx.scope().check()?),
            _ => Ok(()),
        }
    })
}

pub(crate) fn round(round: &Round) {
    let mut rng = round.rng();
    let services: Vec<_> = (0..3)
        .map(|_| {
            let tally = Arc::new(Tally::default());
            let service = service(rng.u8(..12), round.live(), &tally);
            Watched { service, tally, ready: Mutex::default(), ends: Mutex::default() }
        })
        .collect();
    round.crew(|worker| {
        if worker.me == 0 {
            (0..worker.rng.u32(1..4)).for_each(|_| group(worker));
        }
        for _ in 0..worker.steps() / 4 {
            let watched = &services[worker.rng.usize(..services.len())];
            meddle(worker, watched);
        }
    });

    let books = &round.books;
    for Watched { service, tally, ready, ends } in services {
        let _again = service.start();
        service.stop("the end".into());
        hear(&ends, service.join(None));
        hear(&ready, service.wait_started(None));
        books.hold(service.state() == ServiceState::Done, || format!("joined, and {:?}", service.state()));
        let (ends, ready) = (ends.into_inner().unwrap(), ready.into_inner().unwrap());
        books.hold(ends.len() == 1, || format!("one end, heard as {ends:?}"));
        books.hold(ready.len() == 1, || format!("one readiness, heard as {ready:?}"));
        books.hold(tally.starts.get() <= 1, || format!("{} starts were Ok", tally.starts.get()));
        books.hold(tally.ran.get() <= 1, || "a body ran twice".into());
        books.equal("bodies that ran, ended", tally.ran.get(), tally.ended.get());
    }
}

/// Keeps what is final; a wait that ran out of time says nothing.
fn hear(heard: &Mutex<Vec<String>>, end: Result<(), ServiceError>) {
    let text = match end {
        Err(ServiceError::TimedOut { .. }) => return,
        Err(error) => error.to_string(),
        Ok(()) => "well".to_owned(),
    };
    let mut heard = heard.lock().unwrap();
    if !heard.contains(&text) {
        heard.push(text);
    }
}

fn meddle(worker: &mut Worker, watched: &Watched) {
    let Watched { service, tally, ready, ends } = watched;
    let time = worker.moment();
    match worker.rng.u8(..40) {
        0..6 => {
            worker.at("start");
            tally.starts.add(usize::from(service.start().is_ok()));
        }
        6 => {
            worker.at("stop");
            service.stop("stress".into());
        }
        7 if worker.one_in(4) => {
            worker.at("fail its scope");
            service.scope().fail(Failure::msg("stress, from outside"));
        }
        8..16 => {
            worker.at("wait_started");
            hear(ready, service.wait_started(Some(time)));
        }
        16..24 => {
            worker.at("join");
            // Before the start a join is Ok, and says nothing of the end.
            let before = service.state();
            let joined = service.join(Some(time));
            if before != ServiceState::New {
                hear(ends, joined);
            }
        }
        24..30 => {
            worker.at("ready, polled by hand");
            if let Polled::Ready(said) = worker.polls(Fate::Lost, Fate::Lost, service.ready()) {
                hear(ready, said);
            }
        }
        30..36 => {
            worker.at("joined, polled by hand");
            let before = service.state();
            if let (Polled::Ready(said), true) =
                (worker.polls(Fate::Lost, Fate::Lost, service.joined()), before != ServiceState::New)
            {
                hear(ends, said);
            }
        }
        _ => {
            worker.at("clone, and drop a handle");
            drop(service.clone());
        }
    }
}

fn group(worker: &mut Worker) {
    worker.at("a group of services");
    let tally = Arc::new(Tally::default());
    let mut group = ServiceGroup::new("group");
    for _ in 0..worker.rng.u32(1..5) {
        let plan = if worker.one_in(6) { worker.rng.u8(..6) } else { 8 };
        group.add(service(plan, worker.round.live(), &tally));
    }
    let time = worker.moment();
    let books = worker.books();
    let started = match worker.rng.u8(..3) {
        0 => group.start_all(None).map_err(Some),
        1 => group.start_all(Some(time)).map_err(|_| None), // the time may have been up before they had ended
        _ => match worker.polls(Fate::Lost, Fate::Lost, group.start_all_async()) {
            Polled::Ready(started) => started.map_err(Some),
            Polled::Cut | Polled::Panicked => Ok(()),
        },
    };
    if let Err(Some(error)) = started {
        let running = tally.ran.get() - tally.ended.get();
        books.hold(running == 0, || format!("{error}, and {running} bodies run"));
        books.hold(group.scope().is_closed(), || format!("{error}, and the group's scope is open"));
    }
    if worker.rng.bool() {
        group.stop("stress");
    }
    let report = group.stop_join("the end", None);
    books.hold(report.stuck.is_empty(), || format!("stuck: {report:?}"));
    books.equal("bodies that ran, ended", tally.ran.get(), tally.ended.get());
}
