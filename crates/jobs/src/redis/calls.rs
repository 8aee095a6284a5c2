//! Ends of jobs that are still to be told.

use std::time::Duration;

use lowtide_core::job::Moment;

use super::RedisStore;
use super::scripts;
use super::wire::{Command, Reply};
use crate::{Call, Result};

impl RedisStore {
    pub(super) fn get_calls(
        &self,
        limit: usize,
        hold_for: Duration,
        now: Moment,
    ) -> Result<Vec<Call>> {
        let until = now + hold_for;
        let command = scripts::TAKE_CALLS
            .call(&self.prefix)
            .number(limit as u64)
            .number(until.0)
            .number(now.0);
        // Where that is lost in a crash it is told twice, which it may be anyway.
        let taken = self.writer.one(command, false)?.list();
        let read = |pair: &[Reply]| {
            let job = pair[0].text().parse();
            Ok(Call {
                job: job.map_err(|_| self.strange("whom to tell of a job"))?,
                tries: u32::try_from(pair[1].number()).unwrap_or(u32::MAX),
                until,
            })
        };
        taken.chunks_exact(2).map(read).collect()
    }

    pub(super) fn first_call(&self) -> Result<Option<Moment>> {
        let command = Command::new("ZRANGE")
            .arg(format!("{}calls", self.prefix))
            .number(0)
            .number(0)
            .arg("WITHSCORES");
        let first = self.reader.one(command, false)?.list();
        Ok(first.get(1).and_then(Reply::some_number).map(Moment))
    }
}
