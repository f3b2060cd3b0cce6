//! What the service of a cell does, and where: one fault, as a thread's body and as a future.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use microio::{CloseScope, Failure, ServiceContext};

use super::Fault;

/// A blocking job takes that long, unless it is let go.
const LONG_JOB: Duration = Duration::from_secs(60);

pub(super) struct Script {
    pub(super) fault: Fault,
    /// Somebody else listens here.
    taken: TcpListener,
    /// Where the service listens as long as it lives.
    pub(super) bound: Mutex<Option<SocketAddr>>,
    /// What it failed with: the very object.
    pub(super) cause: Mutex<Option<Failure>>,
    /// It runs, and listens.
    pub(super) begun: CloseScope,
    /// Its turn has come to fail; or, if it was late, to become ready.
    pub(super) go: CloseScope,
    /// It is deaf.
    pub(super) deaf: CloseScope,
    /// It has ended.
    #[cfg(feature = "tokio")]
    pub(super) over: CloseScope,
    /// What the deaf wait for.
    let_go: Mutex<Option<mpsc::Receiver<()>>>,
}

impl Script {
    /// The script, and what holds back its deaf and blocking code.
    pub(super) fn new(fault: Fault) -> (Arc<Self>, mpsc::Sender<()>) {
        let (let_go, wait) = mpsc::channel();
        let script = Script {
            fault,
            taken: TcpListener::bind((own_host(), 0)).unwrap(),
            bound: Mutex::default(),
            cause: Mutex::default(),
            begun: CloseScope::new(),
            go: CloseScope::new(),
            deaf: CloseScope::new(),
            #[cfg(feature = "tokio")]
            over: CloseScope::new(),
            let_go: Mutex::new(Some(wait)),
        };
        (Arc::new(script), let_go)
    }

    /// The port to bind: a free one, or one that is taken.
    fn address(&self) -> SocketAddr {
        match self.fault {
            Fault::PortTaken => self.taken.local_addr().unwrap(),
            _ => (own_host(), 0).into(),
        }
    }

    fn bound(&self, address: SocketAddr) {
        *self.bound.lock().unwrap() = Some(address);
        self.begun.close("it listens");
    }

    fn fails(&self, cause: impl Into<Failure>) -> Result<(), Failure> {
        let cause = cause.into();
        *self.cause.lock().unwrap() = Some(cause.clone());
        Err(cause)
    }

    /// Takes a minute, unless the test lets go.
    fn stay_deaf(&self) -> impl FnOnce() + Send + 'static {
        let (wait, deaf) = (self.let_go.lock().unwrap().take().expect("called once"), self.deaf.clone());
        move || {
            deaf.close("it hears of nothing but of the test");
            let _let_go = wait.recv_timeout(LONG_JOB);
        }
    }

    pub(super) fn on_a_thread(&self, cx: &ServiceContext) -> Result<(), Failure> {
        let listener = match TcpListener::bind(self.address()) {
            Ok(listener) => listener,
            Err(taken) => return self.fails(taken),
        };
        self.bound(listener.local_addr()?);
        match self.fault {
            Fault::ErrorBeforeReady => return self.fails(Failure::msg("no config")),
            Fault::ReturnBeforeReady => return Ok(()),
            Fault::PanicBeforeReady => panic!("boom"),
            Fault::StopWhileStarting => cx.scope().wait_blocking(None).map(drop)?,
            Fault::NotReadyInTime => self.go.wait_blocking(None).map(drop)?,
            _ => {}
        }
        cx.started();
        match self.fault {
            Fault::PanicAfterReady => {
                self.go.wait_blocking(None)?;
                panic!("boom")
            }
            Fault::ErrorWhileRunning => {
                self.go.wait_blocking(None)?;
                self.fails(Failure::msg("lost the peer"))
            }
            Fault::IgnoresCancel | Fault::NeverYields | Fault::BlockingJob => {
                self.stay_deaf()();
                Ok(())
            }
            _ => Ok(cx.scope().wait_blocking(None).map(drop)?),
        }
    }

    #[cfg(feature = "tokio")]
    pub(super) async fn on_a_loop(self: Arc<Self>, started: impl FnOnce()) -> Result<(), Failure> {
        use std::future::pending;

        let _over = crate::support::OnDrop({
            let over = self.over.clone();
            move || _ = over.close("the future has ended")
        });
        let listener = match tokio::net::TcpListener::bind(self.address()).await {
            Ok(listener) => listener,
            Err(taken) => return self.fails(taken),
        };
        self.bound(listener.local_addr()?);
        match self.fault {
            Fault::ErrorBeforeReady => return self.fails(Failure::msg("no config")),
            Fault::ReturnBeforeReady => return Ok(()),
            Fault::PanicBeforeReady => panic!("boom"),
            Fault::StopWhileStarting => pending().await,
            Fault::NotReadyInTime => _ = self.go.closed().await,
            _ => {}
        }
        started();
        match self.fault {
            Fault::PanicAfterReady => {
                self.go.closed().await;
                panic!("boom")
            }
            Fault::ErrorWhileRunning => {
                self.go.closed().await;
                self.fails(Failure::msg("lost the peer"))
            }
            Fault::IgnoresCancel => microio::shield(pending()).await,
            Fault::NeverYields => {
                self.stay_deaf()();
                Ok(())
            }
            Fault::BlockingJob => {
                tokio::task::spawn_blocking(self.stay_deaf());
                pending().await
            }
            _ => pending().await,
        }
    }
}

/// An address of this machine that no other process takes a port of: what is free again stays free.
fn own_host() -> Ipv4Addr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, high | 0x80, middle, low)
}
