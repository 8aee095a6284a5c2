//! The SQLite store keeps the promises of every store, with a file that several handles share.

// Fixtures may unwrap as tests may.
#![allow(clippy::unwrap_used)]

use lowtide_jobs::conformance::Fixture;
use lowtide_jobs::{JobStore, Policy, SqliteOptions, SqliteStore};

struct File(tempfile::TempDir);

impl File {
    fn new() -> File {
        File(tempfile::tempdir().unwrap())
    }
}

impl Fixture for File {
    fn open(&self, policy: Policy) -> Box<dyn JobStore> {
        let options = SqliteOptions {
            policy,
            ..SqliteOptions::default()
        };
        let path = self.0.path().join("jobs.sqlite");
        Box::new(SqliteStore::open(&path, options).unwrap())
    }
}

macro_rules! tests {
    ($($promise:ident),* $(,)?) => {
        $(
            #[test]
            fn $promise() {
                lowtide_jobs::conformance::$promise(&File::new());
            }
        )*
    };
}

lowtide_jobs::for_each_promise!(tests);
