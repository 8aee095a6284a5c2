//! The server as whoever wires the program has it.

use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use lowtide_jobs::{ArtifactStore, InputStore, JobStore};
use tokio::sync::Semaphore;

use crate::access::Access;
use crate::app::{App, Inner};
use crate::counters::Counters;
use crate::history::History;
use crate::hub::{self, Hub};
use crate::outlook::Forecasts;
use crate::routes::{Board, Desktop};
use crate::{Door, Options, keeper, listen, routes, webhooks};

/// Threads that wait for sockets.
const THREADS: usize = 2;

/// Threads that may wait for the store: as many clients can submit at once and share one wait for the disk.
const BLOCKING_MAX: usize = 96;

/// How long such a thread waits for more to do before it ends.
const BLOCKING_KEPT: Duration = Duration::from_secs(5);

/// Deep enough for nested JSON and SQLite, and touched only as far as it is used.
const STACK_BYTES: usize = 512 << 10;

/// Bodies with pictures in them that are read at once; the others wait.
const LONG_BODIES_MAX: usize = 4;

/// Speaks HTTP about jobs.
pub struct Server {
    app: App,
}

/// Ends a server; dropping it does, too.
#[derive(Debug)]
pub struct End(tokio::sync::oneshot::Sender<()>);

impl End {
    /// Ends it: no new connections, requests under way are finished.
    pub fn now(self) {
        let End(sender) = self;
        // A server that has ended already needs no signal.
        let _ = sender.send(());
    }
}

/// A signal for [`Server::serve`], and what gives it.
pub fn end_signal() -> (End, impl Future<Output = ()> + Send + 'static) {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let ended = async move {
        // Both a word and a dropped sender are the signal.
        let _ = receiver.await;
    };
    (End(sender), ended)
}

impl Server {
    /// Prepares one; nothing runs yet.
    pub fn new(
        store: Arc<dyn JobStore>,
        artifacts: Arc<dyn ArtifactStore>,
        inputs: Arc<dyn InputStore>,
        door: Arc<dyn Door>,
        options: Options,
    ) -> Server {
        let app = Inner {
            kinds: door.kinds(),
            store,
            artifacts,
            inputs,
            long_bodies: Arc::new(Semaphore::new(LONG_BODIES_MAX)),
            door,
            hub: Hub::default(),
            forecasts: Forecasts::default(),
            history: History::new(options.history),
            counters: Counters::default(),
            access: Access::default(),
            sdapi: Desktop::default(),
            comfy: Board::default(),
            calls: webhooks::Desk::default(),
            started: (options.clock)(),
            openapi: OnceLock::new(),
            options,
        };
        Server { app: Arc::new(app) }
    }

    /// Every route, for tests that need no socket. Events only move while [`Server::serve`] runs.
    pub fn router(&self) -> Router {
        routes::router(&self.app)
    }

    /// Serves until the signal is there and what was under way is finished. Blocks; has threads of its own.
    ///
    /// # Errors
    /// When the listener or the threads cannot be had.
    pub fn serve(
        &self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .max_blocking_threads(BLOCKING_MAX)
            .thread_keep_alive(BLOCKING_KEPT)
            .thread_stack_size(STACK_BYTES)
            .thread_name("http")
            .enable_all()
            .build()?;
        let result = std::thread::scope(|scope| {
            let thread = |name: &str| {
                std::thread::Builder::new()
                    .name(name.to_owned())
                    .stack_size(STACK_BYTES)
            };
            let app = &self.app;
            // Whatever happens, the threads end: the scope waits for them.
            let ends = Ends(app);
            thread("events").spawn_scoped(scope, || hub::pump(app))?;
            let keeper = thread("keeper").spawn_scoped(scope, || keeper::keep(app))?;
            thread("webhooks").spawn_scoped(scope, || webhooks::dispatch(app))?;
            let tidy = thread("tidy").spawn_scoped(scope, || keeper::forget(app))?;
            let result = runtime.block_on(async {
                let (listener, _) = listen::adopt(listener)?;
                listen::serve(Arc::clone(app), listener, self.router(), shutdown).await
            });
            drop(ends);
            keeper.thread().unpark();
            tidy.thread().unpark();
            result
        });
        runtime.shutdown_timeout(self.app.options.grace);
        result
    }
}

struct Ends<'a>(&'a App);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.hub.end();
        self.0.calls.stir();
        self.0.store.nudge();
    }
}
