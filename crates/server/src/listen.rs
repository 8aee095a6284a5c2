//! Connections: how many, how slow they may be, and how they end.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::Extension;
use axum::http::Request;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep};
use tower::ServiceExt;

use crate::access::Peer;
use crate::app::App;
use crate::counters::Counted;
use crate::guard::BoundTo;
use crate::hub;
use crate::refusal::Refusal;

/// Bytes of a request's head, and of what is buffered of a connection.
const HEAD_MAX: usize = 32 << 10;

/// Fields of a request's head.
const HEADERS_MAX: usize = 64;

/// After the system had no more connections to give, as when files run out.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a connection is given to take a refusal.
const FAREWELL: Duration = Duration::from_secs(1);

/// Refusals that are being written at once; more connections are just closed.
const FAREWELLS_MAX: usize = 64;

/// Accepts connections until `shutdown` is there, then lets requests end for a while.
pub(crate) async fn serve(
    app: App,
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let bound = listener.local_addr()?.ip();
    let router = router.layer(Extension(BoundTo(bound)));
    let room = Arc::new(Semaphore::new(app.options.connections_max));
    let farewells = Arc::new(Semaphore::new(FAREWELLS_MAX));
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            // It was reset before it was accepted, or there are no descriptors left: neither ends the server.
            Err(_) => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        match Arc::clone(&room).try_acquire_owned() {
            Ok(permit) => {
                let (app, router) = (Arc::clone(&app), router.clone());
                tokio::spawn(async move {
                    let _counted = Counted::new(&app.counters.connections);
                    connection(&app, stream, (router, peer)).await;
                    drop(permit);
                });
            }
            Err(_) => {
                app.counters
                    .refused
                    .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if let Ok(permit) = Arc::clone(&farewells).try_acquire_owned() {
                    let limit = app.options.connections_max;
                    tokio::spawn(async move {
                        farewell(stream, &too_many(limit)).await;
                        drop(permit);
                    });
                }
            }
        }
    }
    drop(listener);
    app.hub.end();
    let all = u32::try_from(app.options.connections_max).unwrap_or(u32::MAX);
    // Those that are not through by then are cut off.
    let _ = tokio::time::timeout(app.options.grace, room.acquire_many(all)).await;
    Ok(())
}

async fn connection(app: &App, stream: TcpStream, (router, peer): (Router, SocketAddr)) {
    // Answers and events are written whole: waiting for more to send gains nothing. Where it fails they are late.
    let _ = stream.set_nodelay(true);
    let io = TokioIo::new(Patient::new(stream, app.options.write_timeout));
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(app.options.head_timeout)
        .max_buf_size(HEAD_MAX)
        .max_headers(HEADERS_MAX);
    let service = router.map_request(move |mut request: Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(Peer(peer.ip()));
        request
    });
    let service = TowerToHyperService::new(service);
    let mut connection = builder.serve_connection(io, service).with_upgrades();
    let mut ending = app.hub.ending();
    let result = tokio::select! {
        result = &mut connection => result,
        () = hub::ended(&mut ending) => {
            Pin::new(&mut connection).graceful_shutdown();
            (&mut connection).await
        }
    };
    if let Err(error) = result
        && error.is_timeout()
        // A connection that became a web socket has said what it wanted.
        && let Some(parts) = connection.into_parts()
    {
        // A connection that is only kept open has asked nothing and is told nothing.
        if !parts.read_buf.is_empty() {
            farewell(
                parts.io.into_inner().stream,
                &too_slow(app.options.head_timeout),
            )
            .await;
        }
    }
}

/// Tells a client why its connection ends. What it sent is read, as far as it is there: unread bytes would make the
/// system reset the connection, and the client would not see the answer.
async fn farewell(mut stream: TcpStream, text: &str) {
    let all = async {
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await?;
        let mut rest = [0; 1024];
        while tokio::io::AsyncReadExt::read(&mut stream, &mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    // Whether the client took it is its business.
    let _ = tokio::time::timeout(FAREWELL, all).await;
}

fn too_many(limit: usize) -> String {
    let body = serde_json::json!({ "error": {
        "code": "too_many_connections",
        "message": format!("{limit} connections are open, and no more may be; try again"),
        "limit": limit,
    }});
    raw(
        "503 Service Unavailable",
        "retry-after: 1\r\n",
        &body.to_string(),
    )
}

fn too_slow(limit: Duration) -> String {
    let refusal = Refusal::TooSlow {
        problem: format!("the head of the request took longer than {limit:?}"),
    };
    raw("408 Request Timeout", "", &refusal.body().to_string())
}

fn raw(status: &str, more: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{more}connection: close\r\n\r\n{body}",
        body.len()
    )
}

/// A connection whose writes fail when nothing was taken for too long.
struct Patient {
    stream: TcpStream,
    patience: Duration,
    waits: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn new(stream: TcpStream, patience: Duration) -> Patient {
        Patient {
            stream,
            patience,
            waits: None,
        }
    }

    fn bounded<T>(
        &mut self,
        context: &mut Context<'_>,
        poll: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.waits = None;
            return poll;
        }
        let end = Instant::now() + self.patience;
        let sleep = self
            .waits
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
        match sleep.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.bounded(context, poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.bounded(context, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// A listener of this runtime from one of the system.
pub(crate) fn adopt(listener: std::net::TcpListener) -> io::Result<(TcpListener, SocketAddr)> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}
