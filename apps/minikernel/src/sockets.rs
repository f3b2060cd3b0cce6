//! The sockets: each has one owner, the loop of its service. Others reach it through the channel that is its outbox.

use std::collections::HashMap;
use std::num::NonZeroU16;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use microio::{CloseScope, Failure, LoopServiceThread, Receiver, WorkTracker, shield};
use tokio::select;
use tokio::task::yield_now;
use tracing::{debug, warn};
use zeromq::{PubSocket, RouterSocket, Socket, SocketEvent, SocketRecv, SocketSend};

use crate::message::{Connection, Message, Request, Wire};

/// How long a service that is stopped may take to send what is queued. Whoever waits for its end has less time.
const FLUSH: Duration = Duration::from_secs(10);

/// What a [`router`] does with what it hears, on its loop.
pub(crate) trait Handler: Send + 'static {
    fn on_request(&mut self, request: Request) -> impl Future<Output = ()>;
    fn on_connect(&mut self, _client: &[u8]) {}
    /// The client of this message is not connected, or not any more.
    fn on_unsent(&mut self, _message: Message) {}
}

/// A ROUTER socket as a service: hears each client, and sends to each.
pub(crate) fn router(
    name: &'static str,
    connection: &Connection,
    port: NonZeroU16,
    mut outbox: Receiver<Message>,
    mut handler: impl Handler,
) -> LoopServiceThread {
    let (endpoint, wire) = (connection.endpoint(port), connection.wire());
    let service = LoopServiceThread::new(name, move |cx| {
        let serve = async move {
            let mut socket: RouterSocket = bind(&endpoint).await?;
            let (mut events, (send, mut recv)) = (socket.monitor(), socket.split());
            let mut writer = Writer::new(send, wire.clone());
            let mut connections = HashMap::<Bytes, CloseScope>::new();
            let mut stopped = pin!(cx.scope().closed());
            cx.started();
            loop {
                select! {
                    frames = recv.recv() => match wire.read(frames?) {
                        Ok(mut request) => {
                            request.connection = connections.entry(request.identities[0].clone()).or_default().clone();
                            handler.on_request(request).await;
                        }
                        Err(error) => warn!("{name}: dropped a message: {error}"),
                    },
                    Ok(event) = events.recv() => match event {
                        SocketEvent::Accepted(_, client) => handler.on_connect(&client),
                        SocketEvent::Disconnected(client) => {
                            if let Some(connection) = connections.remove(&*client) {
                                connection.close("the client is gone");
                            }
                        }
                        _ => {}
                    },
                    Ok(message) = outbox.recv() => {
                        if let Err(message) = writer.send(message).await {
                            handler.on_unsent(message);
                        }
                    }
                    _ = &mut stopped => return writer.finish(outbox).await,
                }
            }
        };
        shield(serve)
    });
    service.with_grace(FLUSH)
}

/// The PUB socket as a service: tells all clients what is put into the outbox, in its order.
pub(crate) fn publisher(connection: &Connection, mut outbox: Receiver<Message>) -> LoopServiceThread {
    let (endpoint, wire) = (connection.endpoint(connection.iopub_port), connection.wire());
    let service = LoopServiceThread::new("iopub", move |cx| {
        let serve = async move {
            let mut writer = Writer::new(bind::<PubSocket>(&endpoint).await?, wire);
            let mut stopped = pin!(cx.scope().closed());
            cx.started();
            loop {
                select! {
                    Ok(message) = outbox.recv() => drop(writer.send(message).await),
                    _ = &mut stopped => return writer.finish(outbox).await,
                }
            }
        };
        shield(serve)
    });
    service.with_grace(FLUSH)
}

/// Sends back what comes in: whether the kernel is alive is told by a loop of its own, whatever the others do.
pub(crate) fn heartbeat(connection: &Connection) -> LoopServiceThread {
    let endpoint = connection.endpoint(connection.hb_port);
    LoopServiceThread::new("heartbeat", move |cx| async move {
        let (mut send, mut recv) = bind::<RouterSocket>(&endpoint).await?.split();
        cx.started();
        loop {
            if let Err(error) = send.send(recv.recv().await?).await {
                debug!("heartbeat: {error}");
            }
        }
    })
}

async fn bind<S: Socket>(endpoint: &str) -> Result<S, Failure> {
    let mut socket = S::new();
    socket.bind(endpoint).await.map_err(|error| Failure::msg(format!("cannot listen on {endpoint}: {error}")))?;
    Ok(socket)
}

/// A socket's sending side. What it has taken is written by tasks of the loop, which end with it.
struct Writer<S> {
    socket: S,
    wire: Wire,
    unwritten: WorkTracker,
}

impl<S: SocketSend> Writer<S> {
    fn new(socket: S, wire: Wire) -> Self {
        Writer { socket, wire, unwritten: WorkTracker::new() }
    }

    /// Gives the message back if its client is not there.
    async fn send(&mut self, message: Message) -> Result<(), Message> {
        let sent = self.socket.send(self.wire.write(&message, self.unwritten.track())).await;
        yield_now().await; // those who write have their turn
        sent.map_err(|error| {
            debug!("not sent: {error}");
            message
        })
    }

    /// Sends what is still queued, and waits until it is written.
    async fn finish(mut self, mut outbox: Receiver<Message>) -> Result<(), Failure> {
        for message in outbox.drain(None) {
            let _client_gone = self.send(message).await;
        }
        self.unwritten.idle().await;
        Ok(())
    }
}
