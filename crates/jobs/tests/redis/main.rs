//! The Redis store keeps the promises of every store, against a real server, and what else holds of a server: it may
//! be killed, stopped, full of strangers' settings, or want to know who we are.
//!
//! Tests start a `redis-server` from the path, or the one `$LOWTIDE_REDIS` names; without one they say 'skipped'.

// Fixtures may unwrap as tests may.
#![allow(clippy::unwrap_used)]

mod server;
mod trouble;

use lowtide_jobs::conformance::Fixture;
use lowtide_jobs::{JobStore, Policy, RedisOptions, RedisStore};

use self::server::{DURABLE, Server};

/// A server with one queue.
struct Queue(Server);

impl Fixture for Queue {
    fn open(&self, policy: Policy) -> Box<dyn JobStore> {
        let options = RedisOptions {
            policy,
            ..RedisOptions::new(&self.0.url())
        };
        Box::new(RedisStore::open(options).unwrap())
    }
}

macro_rules! tests {
    ($($promise:ident),* $(,)?) => {
        $(
            #[test]
            fn $promise() {
                if let Some(server) = Server::start(stringify!($promise), DURABLE) {
                    lowtide_jobs::conformance::$promise(&Queue(server));
                }
            }
        )*
    };
}

lowtide_jobs::for_each_promise!(tests);
