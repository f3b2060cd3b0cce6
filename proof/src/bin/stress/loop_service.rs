//! A service with a loop, and calls onto it from all sides: before its start, while it stops, after its end. The books:
//!
//! - Every call has one answer, and nobody hangs; its function is dropped, run or not.
//! - Who got a value got that of a function that ran; none ran twice.
//! - Nothing that was on the loop is left when it is joined, whatever panicked; it dies on the thread that it lived on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use microio::{CallError, Failure, LoopHandle, LoopServiceThread, Service, ServiceState, shield, sleep};

use crate::books::{Count, Fate, planned_panic};
use crate::crew::{Polled, Round, Worker, yields};

#[derive(Default)]
struct Tally {
    /// Functions and futures that ran to their value.
    ran: Count,
    /// Values that came back.
    got: Count,
    /// Calls that ended, with a value or without, and calls that were made.
    answered: Count,
    made: Count,
}

/// Something that is made and dropped on the loop's thread.
struct Local(thread::ThreadId, Arc<Count>);

impl Drop for Local {
    fn drop(&mut self) {
        if thread::current().id() != self.0 {
            self.1.one();
        }
    }
}

pub(crate) fn round(round: &Round) {
    let mut rng = round.rng();
    let (tally, strayed) = (Arc::new(Tally::default()), Arc::new(Count::default()));
    let (plan, live, stray) = (rng.u8(..8), round.live(), strayed.clone());
    let service = LoopServiceThread::new("loop", move |cx| async move {
        let _live = live;
        let local = Local(thread::current().id(), stray);
        cx.task_group().start_soon_local("idle", {
            let also = Local(local.0, local.1.clone());
            async move {
                let _also = also;
                std::future::pending().await
            }
        });
        match plan {
            0 => return Ok(()),
            1 => planned_panic(),
            _ => cx.started(),
        }
        match plan {
            2 => {
                sleep(Duration::from_micros(300)).await;
                Err(Failure::msg("stress"))
            }
            3 => {
                cx.task_group().start_soon("panics", async {
                    yields(3).await;
                    planned_panic();
                    Ok(())
                });
                std::future::pending().await
            }
            4 => {
                shield(async { drop(cx.scope().closed().await) }).await;
                Ok(())
            }
            5 => shield(std::future::pending()).await, // until it is aborted
            _ => std::future::pending().await,
        }
    });
    let service = service.with_grace(Duration::from_millis(rng.u64(1..4)));
    let handle = service.handle();
    let others = AtomicUsize::new(round.threads);

    round.crew(|worker| {
        let steps = worker.steps() / 4;
        for step in 0..steps {
            match worker.rng.u8(..40) {
                0 => {
                    worker.at("start");
                    let _again = service.start();
                }
                1 if step > steps / 2 => {
                    worker.at("stop");
                    service.stop("stress".into());
                }
                2 => {
                    worker.at("wait_started");
                    let time = worker.moment();
                    let _ = service.wait_started(Some(time));
                }
                3 => {
                    worker.at("join");
                    let time = worker.moment();
                    let _ = service.join(Some(time));
                }
                _ => call(worker, &handle, &tally),
            }
        }
        if others.fetch_sub(1, SeqCst) == 1 {
            let _again = service.start();
            service.stop("the end".into());
        }
        // A call that waits as long as it takes: it is answered, whatever becomes of the loop.
        worker.at("call_sync, for ever");
        tally.made.one();
        answer(worker, &tally, handle.call_sync(function(worker, &tally, true), None));
    });

    let ended = service.join(None);
    let (books, state) = (&round.books, service.state());
    books.hold(state == ServiceState::Done, || format!("joined, and {state:?}: {ended:?}"));
    drop((service, handle));
    books.equal("calls made, answered", tally.made.get(), tally.answered.get());
    books.hold(tally.got.get() <= tally.ran.get(), || "more values came than functions ran".into());
    books.equal("values of the loop that were dropped elsewhere, none", strayed.get(), 0);
    books.equal("who knows the tally, but the round", Arc::strong_count(&tally) as u64 - 1, 0);
}

/// A function to be called: it counts, and panics if it is not calm.
fn function(worker: &Worker, tally: &Arc<Tally>, calm: bool) -> impl FnOnce() -> u8 + Send + 'static {
    let (live, tally) = (worker.round.live(), tally.clone());
    move || {
        let _live = live;
        if !calm {
            planned_panic();
        }
        tally.ran.one();
        1
    }
}

fn answer(worker: &Worker, tally: &Tally, answer: Result<u8, CallError>) {
    tally.answered.one();
    match answer {
        Ok(_) => tally.got.one(),
        Err(CallError::WouldBlock) => worker.books().wrong("WouldBlock on a plain thread"),
        Err(_) => {}
    }
}

fn call(worker: &mut Worker, handle: &LoopHandle, tally: &Arc<Tally>) {
    let calm = !worker.one_in(10);
    let (time, what) = (worker.moment(), worker.rng.u8(..6));
    let function = function(worker, tally, calm);
    tally.made.one();
    let polled = match what {
        0 => {
            worker.at("call_soon");
            tally.answered.one();
            let _refused = handle.call_soon(move || _ = function());
            return;
        }
        1 => {
            worker.at("call_sync");
            Polled::Ready(handle.call_sync(function, Some(time)))
        }
        2 => {
            worker.at("call, polled by hand");
            worker.polls(Fate::Lost, Fate::Lost, handle.call(function))
        }
        3 | 4 => {
            worker.at("submit");
            let times = worker.rng.u32(..4);
            let submitted = match what {
                3 => handle.submit(async move {
                    yields(times).await;
                    if times == 3 {
                        sleep(Duration::from_micros(100)).await;
                    }
                    function()
                }),
                _ => handle.submit_local(move || async move {
                    let not_send = std::rc::Rc::new(function);
                    yields(times).await;
                    std::rc::Rc::into_inner(not_send).expect("the only one")()
                }),
            };
            if worker.one_in(4) {
                submitted.cancel("stress");
            }
            match worker.rng.u8(..3) {
                0 => Polled::Ready(submitted.wait_blocking(Some(time))),
                1 => worker.polls(Fate::Lost, Fate::Lost, submitted),
                _ => Polled::Cut, // it goes on without us
            }
        }
        _ => {
            worker.at("submit, and wait for it");
            let submitted = handle.submit(async move {
                if !calm {
                    std::future::pending::<()>().await;
                }
                function()
            });
            if !calm {
                submitted.cancel("stress");
            }
            Polled::Ready(submitted.wait_blocking(Some(time)))
        }
    };
    match polled {
        Polled::Ready(ready) => answer(worker, tally, ready),
        Polled::Cut => tally.answered.one(),
        Polled::Panicked => worker.books().wrong("a call panicked"),
    }
}
