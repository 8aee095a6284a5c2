//! Writing one record.

use std::sync::Arc;

use lowtide_core::job::{JobState, Moment};

use super::Also;
use crate::accept::millis;
use crate::numbers::Numbered;
use crate::redis::RedisStore;
use crate::redis::rows::{self, Known};
use crate::redis::scripts;
use crate::redis::wire::{Command, Reply};
use crate::{Happening, Job, Result};

/// What became of it.
pub(super) enum Saved {
    /// It was written.
    Done {
        /// The request, where it was asked for.
        request: Option<String>,
    },
    /// Somebody was faster: this is what is there now.
    Stale(Arc<Known>),
    /// There is no such job.
    None,
    /// The queue is held.
    Held,
    /// As many jobs of its owner run as may.
    Busy { running: u64 },
    /// As many jobs of its owner wait as may.
    OwnerFull {
        owner: String,
        limit: u64,
        waiting: u64,
        recent: (u64, Option<Moment>),
    },
    /// There is no room.
    Full {
        waiting: u64,
        /// How many of the latest jobs finished, since when.
        recent: (u64, Option<Moment>),
    },
}

impl RedisStore {
    /// The command that writes `job`, made from `known`; and the version it then has.
    pub(super) fn save(
        &self,
        known: &Known,
        job: &Job,
        also: &Also,
        now: Moment,
    ) -> (Command, String) {
        let version = self.versions.next();
        let happening = also.happening.as_ref();
        let event = happening.map(|what| serde_json::to_string(what).expect("an event has JSON"));
        // What was begun goes on, however late.
        let late = job.start_by.filter(|_| job.session.is_none());
        // Numbers and files are counted once, when it ends.
        let ended = known.job.state.is_final();
        let (counter, waited, ran) = match ended && job.state.is_final() {
            true => ("", 0, 0),
            false => counter(job, also, now),
        };
        let turn = match (also.to_front, job.turn == known.job.turn) {
            (true, _) => "front".to_owned(),
            (false, true) => String::new(),
            (false, false) => job.turn.to_string(),
        };
        let mut artifacts = (String::new(), 0u64);
        if let (JobState::Done, Some(outcome), false) = (job.state, &job.outcome, ended) {
            let ids = outcome.artifacts.iter().map(|file| file.id.to_string());
            artifacts.0 = ids.collect::<Vec<_>>().join(" ");
            let bytes = outcome.artifacts.iter().map(|file| file.bytes);
            // What the server counts in has 63 bits.
            artifacts.1 = bytes.fold(0, u64::saturating_add).min(i64::MAX as u64 / 2);
        }
        let preview = also.preview.as_ref();
        let command = scripts::SAVE
            .call(&self.prefix)
            .arg(job.id.to_string())
            .arg(&known.version)
            .arg(&version)
            .number(now.0)
            .arg(&self.sender)
            .arg(rows::text(job))
            .number(job.state.number())
            .number(job.priority.number())
            .arg(turn)
            .number_or_none(job.not_before.map(|at| at.0))
            .number_or_none(late.map(|at| at.0))
            .number_or_none(job.holder.as_ref().map(|holder| holder.until.0))
            .number_or_none(job.started.map(|at| at.0))
            .number_or_none(job.finished.map(|at| at.0))
            .arg(event.unwrap_or_default())
            .arg(counter)
            .number(waited)
            .number(ran)
            .arg(flags(job, also))
            .number_or_none(also.if_room.then_some(self.policy.waiting_max))
            .arg(preview.map_or("", |preview| preview.media_type.as_str()))
            .arg(preview.map_or(&[][..], |preview| &preview.content))
            .arg(&artifacts.0)
            .number(artifacts.1)
            .number(job.worked_ms().min(i64::MAX as u64 / 2))
            .number_or_none(also.running_max)
            .arg(if job.calls() && !ended { "1" } else { "" })
            .number_or_none(also.settles.map(|(until, _)| until.0))
            .number_or_none(also.settles.and_then(|(_, due)| due).map(|due| due.0));
        (command, version)
    }

    /// What the server made of it.
    pub(super) fn saved(&self, reply: Reply) -> Result<Saved> {
        let parts = reply.list();
        let (word, rest) = parts
            .split_first()
            .ok_or_else(|| self.strange("what became of a write"))?;
        match word.text().as_str() {
            "ok" => Ok(Saved::Done {
                request: rest.first().map(Reply::text),
            }),
            "stale" => {
                let known = self.record(rest)?;
                let known = known.ok_or_else(|| self.strange("a newer record"))?;
                Ok(Saved::Stale(self.remember(known)))
            }
            "none" => Ok(Saved::None),
            "held" => Ok(Saved::Held),
            "busy" => Ok(Saved::Busy {
                running: rest.first().map(Reply::number).unwrap_or_default(),
            }),
            "full" => Ok(full(rest)),
            _ => Err(self.strange("what became of a write")),
        }
    }
}

/// A full queue: how many wait, how many of the latest finished, and since when.
pub(super) fn full(rest: &[Reply]) -> Saved {
    let number = |place: usize| rest.get(place).and_then(Reply::some_number);
    Saved::Full {
        waiting: number(0).unwrap_or_default(),
        recent: (number(1).unwrap_or_default(), number(2).map(Moment)),
    }
}

/// As [`full`], of one owner: whose queue it is and how many may wait come last.
pub(super) fn owner_full(rest: &[Reply]) -> Saved {
    let number = |place: usize| rest.get(place).and_then(Reply::some_number);
    Saved::OwnerFull {
        owner: rest.get(3).map(Reply::text).unwrap_or_default(),
        limit: number(4).unwrap_or_default(),
        waiting: number(0).unwrap_or_default(),
        recent: (number(1).unwrap_or_default(), number(2).map(Moment)),
    }
}

/// What the minute counts, with the milliseconds that were waited and run.
fn counter(job: &Job, also: &Also, now: Moment) -> (&'static str, u64, u64) {
    if let Some(waited) = also.begun {
        return ("started", waited, 0);
    }
    // Only a change into such a state is one: nothing else is written with it.
    match job.state {
        JobState::Done => {
            let began = job.history.last().map_or(now, |attempt| attempt.started);
            ("done", 0, millis(now.since(began)))
        }
        JobState::Failed => ("failed", 0, 0),
        JobState::Cancelled => ("cancelled", 0, 0),
        JobState::Queued | JobState::Running | JobState::Parked | JobState::Paused => ("", 0, 0),
    }
}

fn flags(job: &Job, also: &Also) -> String {
    // What others may begin, or should stop: all but this.
    let news = matches!(
        also.happening,
        None | Some(
            Happening::Progress(_)
                | Happening::Parked
                | Happening::Unparked
                | Happening::Done
                | Happening::Claimed { .. }
        )
    );
    let all = [
        (also.unless_held, 'h'),
        (also.with_request, 'w'),
        (job.state.is_final(), 'x'),
        (news, 'n'),
        (also.quietly, 's'),
    ];
    let set = all.into_iter().filter(|(set, _)| *set);
    set.map(|(_, flag)| flag).collect()
}
