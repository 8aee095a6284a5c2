//! A server to try clients on, with a worker that makes no pictures: `pretend [port] [step milliseconds]`. Without a worker:
//! `pretend [port] none`.

#[path = "../tests/http/pretend.rs"]
mod pretend;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use lowtide_core::Bytes;
use lowtide_jobs::{
    ArtifactStore, FolderArtifacts, FolderInputs, JobStore, Policy, SqliteOptions, SqliteStore,
};
use lowtide_server::{Options, Server, end_signal};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let port: u16 = arguments.next().map_or(Ok(7861), |text| text.parse())?;
    let worker = arguments.next().unwrap_or_else(|| "5".to_owned());
    let folder = tempfile::tempdir()?;
    let policy = Policy {
        waiting_max: 1_000_000,
        ..Policy::default()
    };
    let options = SqliteOptions {
        policy,
        ..SqliteOptions::default()
    };
    let store: Arc<dyn JobStore> = Arc::new(SqliteStore::open(
        &folder.path().join("jobs.sqlite"),
        options,
    )?);
    let artifacts: Arc<dyn ArtifactStore> =
        Arc::new(FolderArtifacts::open(&folder.path().join("artifacts"))?);
    let _worker = match worker.parse() {
        Ok(step_ms) => {
            let knobs = pretend::Knobs {
                step_ms: AtomicU64::new(step_ms),
                ..pretend::Knobs::default()
            };
            Some(pretend::PretendWorker::start(
                Arc::clone(&store),
                Arc::clone(&artifacts),
                knobs,
            ))
        }
        Err(_) => None,
    };
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    eprintln!(
        "http://{} in {}",
        listener.local_addr()?,
        folder.path().display()
    );
    // Until it is killed.
    let (_end, ended) = end_signal();
    let options = Options {
        clock: pretend::now,
        ..Options::default()
    };
    let inputs = FolderInputs::open(&folder.path().join("inputs"), Bytes::gib(1))?;
    let door = Arc::new(pretend::PretendDoor);
    Server::new(store, artifacts, Arc::new(inputs), door, options).serve(listener, ended)?;
    Ok(())
}
