//! Programs that must stay this short: they compile against the names and shapes that users of the crate rely on.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use microio::*;

use crate::support::block_on;

const S: Duration = Duration::from_secs(1);

fn is_send<T: Send>(value: T) -> T {
    value
}

async fn listen(status: TaskStatus<SocketAddr>) -> Result<(), Failure> {
    let address: SocketAddr = "127.0.0.1:0".parse()?;
    status.started(address);
    Ok(())
}

async fn group() -> Result<(), GroupError> {
    task_group(async |tg| {
        let address = tg.start("listen", listen).await?;
        assert_eq!(address.port(), 0);
        tg.start_soon("tick", async {
            loop {
                sleep(S).await;
                checkpoint_if_cancelled()?;
            }
        });
        let task = tg.create_task("sum", async { Ok(1 + 1) });
        if let TaskOutcome::Done(sum) = task.await {
            let sum: i32 = sum;
            assert_eq!(sum, 2);
        }
        tg.cancel("done");
        Ok(())
    })
    .await
}

async fn ask(reg: RequestRegistry<u64, String>, tx: Sender<(u64, String)>) {
    let reply = fail_after(S, reg.request(1, |id| tx.try_send((*id, "q".into())))).await;
    assert!(reply.is_err());
    assert_eq!(reg.len(), 0);
}

fn counter() -> LoopServiceThread {
    let (_tx, mut rx) = channel::<u8>();
    LoopServiceThread::new("counter", |cx| async move {
        cx.started();
        while let Ok(_n) = rx.recv().await {
            cx.task_group().start_soon("x", async { Ok(()) });
        }
        Ok(())
    })
}

async fn act(mut actor: ActorCore<PriorityMailbox<u8, u8>>) {
    let mut total = 0u64;
    let first = actor
        .run(async |item| {
            total += u64::from(item);
            if item == 0 {
                return Err(io::Error::other("x").into());
            }
            Ok(())
        })
        .await;
    assert_eq!(total, 7);
    assert_eq!(first.unwrap_err().cause.to_string(), "x");
    assert!(
        actor
            .run(|item| async move {
                let _: u8 = item;
                Ok(())
            })
            .await
            .is_err()
    );
}

async fn deadlines() -> Result<(), Failure> {
    fail_after(S, async {}).await?;
    assert_eq!(move_on_after(S, async { 1 }).await, Some(1));
    Ok(())
}

#[test]
fn futures_are_send() {
    drop(is_send(group()));
    drop(is_send(ask(RequestRegistry::new(), channel().0)));
    drop(is_send(deadlines()));
}

#[test]
fn they_run() {
    block_on(async {
        group().await.unwrap();
        let (tx, _rx) = channel();
        ask(RequestRegistry::new(), tx).await;
        deadlines().await.unwrap();
        assert_eq!(ScopeGroup::new().scope().run(async { 1 }).await.unwrap(), 1);
        let actor = ActorCore::new(PriorityMailbox::new(|item: &u8| *item));
        [7, 0].into_iter().for_each(|item| assert!(actor.submit(item)));
        act(actor).await;
    });
}

#[test]
fn a_registry_bound_to_a_scope_ends_with_it() {
    let scope = CloseScope::new();
    let reg = RequestRegistry::<u64, String>::bound_to(&scope);
    scope.fail(io::Error::other("eof"));
    assert_eq!(reg.register(1).unwrap_err().to_string(), "eof");
}

#[test]
fn services_in_a_group() -> Result<(), StartAllError> {
    let mut group = ServiceGroup::new("kernel");
    group.add(ServiceThread::new("hb", |cx| {
        cx.started();
        while let Err(WaitError::TimedOut) = cx.scope().wait_blocking(Some(S)) {}
        Ok(())
    }));
    group.add(counter());
    group.start_all(Some(S))?;
    let report = group.stop_join("bye", Some(S));
    assert!(report.errors.is_empty() && report.stuck.is_empty(), "{report:?}");
    Ok(())
}

#[test]
fn a_loop_takes_values_that_are_not_send() {
    let service = LoopServiceThread::new("idle", |cx| async move {
        cx.started();
        std::future::pending().await
    });
    service.start().unwrap();
    let local = |handle: LoopHandle| async move {
        handle
            .submit_local(|| async {
                let x = Rc::new(5u8);
                *x
            })
            .await
    };
    assert_eq!(block_on(local(service.handle())).unwrap(), 5);
    fn later<F: Future>(_: F) {}
    later(service.joined());
}

#[test]
fn a_reply_handle_travels_with_the_request() {
    let reg = RequestRegistry::<u64, u8>::new();
    let (tx, mut rx) = channel::<ReplyHandle<u64, u8>>();
    let server = std::thread::spawn(move || rx.recv_blocking(None).unwrap().resolve(9));
    let value = reg.ask_blocking(1, |reply| tx.try_send(reply).map_err(|_| Failure::msg("gone")), Some(S));
    assert_eq!(value.unwrap(), 9);
    server.join().unwrap().unwrap();
}
