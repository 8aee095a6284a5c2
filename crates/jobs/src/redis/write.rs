//! What changes jobs. The rules of `lifecycle` make a new record from the one that is known here; a script writes it if
//! nobody was faster, else the rules are applied to what is there now.

mod save;
mod submit;

use std::sync::Arc;
use std::time::Duration;

use lowtide_core::job::{JobId, JobState, Moment};

use self::save::Saved;
use super::RedisStore;
use super::rows::Known;
use super::scripts;
use crate::accept::{LINES_MAX, fits, millis};
use crate::turns::SERVED_KEPT_MS;
use crate::{
    ArtifactId, Call, Claimed, Directive, Happening, Job, Lease, Move, Outcome, Passed, Preview,
    Progress, Removed, Result, Retention, SavedSession, Settled, StoreError, Swept, Unclaimable,
    WorkerId,
};

/// How often others may be faster before a caller is told that the store is busy.
const TRIES_MAX: u32 = 64;

/// Most jobs one call looks at.
const JOBS_MAX: usize = 512;

/// Most events thrown away in one call.
const EVENTS_MAX: u32 = 3_000;

/// Most jobs forgotten in one call: meanwhile nobody else is served.
const FORGOTTEN_MAX: u32 = 200;

/// What is written beside a record, and what is asked before.
#[derive(Clone, Debug, Default)]
struct Also {
    happening: Option<Happening>,
    preview: Option<Preview>,
    /// Not while the queue is held.
    unless_held: bool,
    /// Not while so many jobs of its owner run.
    running_max: Option<u64>,
    /// Only if there is room for one more.
    if_room: bool,
    /// Its turn is before all others of its class.
    to_front: bool,
    /// It begins: it is counted so, with the milliseconds it waited.
    begun: Option<u64>,
    /// The answer has the request.
    with_request: bool,
    /// Nobody is told.
    quietly: bool,
    /// A call that was held until then and is due again then, or never: written if it is still held so.
    settles: Option<(Moment, Option<Moment>)>,
}

impl Also {
    fn of(happening: Option<Happening>) -> Also {
        Also {
            happening,
            ..Also::default()
        }
    }
}

/// What an act made of a job: an answer, and what is written; nothing where nothing changed.
type Made<T> = Result<(T, Option<Also>)>;

/// A job that has no answer yet: its place among those asked about, what is known of it, and whether that was asked for
/// just now.
type Open = (usize, Option<(Arc<Known>, bool)>);

impl RedisStore {
    /// Applies an act to a job.
    fn change<T>(
        &self,
        job: JobId,
        (durable, now): (bool, Moment),
        act: impl Fn(&mut Job) -> Made<T>,
    ) -> Result<T> {
        let mut all = self.change_all(&[job], (durable, now), act)?;
        all.pop()
            .expect("each job is answered")
            .map(|(answer, _)| answer)
    }

    /// Applies an act to several jobs, with few round trips for all of them. With each answer comes the job as it was
    /// written.
    fn change_all<T>(
        &self,
        jobs: &[JobId],
        (durable, now): (bool, Moment),
        act: impl Fn(&mut Job) -> Made<T>,
    ) -> Result<Vec<Result<(T, Job)>>> {
        let mut answers: Vec<Option<Result<(T, Job)>>> = jobs.iter().map(|_| None).collect();
        let mut open: Vec<Open> = jobs
            .iter()
            .map(|&job| self.memory.get(job).map(|known| (known, false)))
            .enumerate()
            .collect();
        for _ in 0..TRIES_MAX {
            if open.is_empty() {
                break;
            }
            self.ask_for_unknown(jobs, &mut open, &mut answers)?;
            let mut writes = Vec::new();
            let mut next = Vec::new();
            for (place, known) in open {
                let Some((known, fresh)) = known else {
                    continue;
                };
                let mut job = known.job.clone();
                match act(&mut job) {
                    Ok((answer, Some(also))) => {
                        let command = self.save(&known, &job, &also, now);
                        writes.push((place, answer, job, also, command));
                    }
                    Ok((answer, None)) if fresh => answers[place] = Some(Ok((answer, job))),
                    Err(error) if fresh => answers[place] = Some(Err(error)),
                    // What is known may be old: a refusal needs the truth.
                    Ok(_) | Err(_) => next.push((place, None)),
                }
            }
            let commands = writes.iter().map(|write| write.4.0.clone()).collect();
            let replies = match writes.is_empty() {
                true => Vec::new(),
                false => self.writer.call(commands, durable)?,
            };
            for ((place, answer, job, also, (_, version)), reply) in writes.into_iter().zip(replies)
            {
                match self.saved(reply)? {
                    Saved::Done { request } => {
                        let job = self.written(job, version, request, &also);
                        answers[place] = Some(Ok((answer, job)));
                    }
                    Saved::Stale(known) => next.push((place, Some((known, true)))),
                    refused => {
                        self.memory.forget(jobs[place]);
                        answers[place] = Some(Err(self.refusal(refused, jobs[place], now)));
                    }
                }
            }
            open = next;
        }
        let busy = || StoreError::Busy {
            path: self.name().into(),
            waited_ms: 0,
        };
        Ok(answers
            .into_iter()
            .map(|answer| answer.unwrap_or_else(|| Err(busy())))
            .collect())
    }

    /// Asks for jobs of which nothing is known; those that are not there have their answer.
    fn ask_for_unknown<T>(
        &self,
        jobs: &[JobId],
        open: &mut [Open],
        answers: &mut [Option<Result<(T, Job)>>],
    ) -> Result<()> {
        let unknown: Vec<JobId> = open
            .iter()
            .filter(|(_, known)| known.is_none())
            .map(|&(place, _)| jobs[place])
            .collect();
        let mut found = self.fetch(&unknown)?.into_iter();
        for (place, known) in open.iter_mut().filter(|(_, known)| known.is_none()) {
            match found.next().flatten() {
                Some(there) => *known = Some((there, true)),
                None => answers[*place] = Some(Err(StoreError::NotFound { job: jobs[*place] })),
            }
        }
        Ok(())
    }

    /// Notes a job as it was written.
    fn written(&self, mut job: Job, version: String, request: Option<String>, also: &Also) -> Job {
        if also.to_front {
            // Only the server knows its turn.
            self.memory.forget(job.id);
        } else {
            self.memory.put(Arc::new(Known {
                version,
                job: job.clone(),
            }));
        }
        job.request = request.unwrap_or_default();
        self.mark.changed();
        job
    }

    fn refusal(&self, saved: Saved, job: JobId, now: Moment) -> StoreError {
        match saved {
            Saved::Held => StoreError::NotClaimable {
                job,
                why: Unclaimable::QueueHeld,
            },
            Saved::Busy { running } => StoreError::NotClaimable {
                job,
                why: Unclaimable::OwnerBusy { running },
            },
            Saved::OwnerFull {
                owner,
                limit,
                waiting,
                recent,
            } => StoreError::OwnerFull {
                owner,
                waiting,
                limit,
                retry_after_ms: self.policy.retry_after_ms(recent, now),
            },
            Saved::Full { waiting, recent } => StoreError::QueueFull {
                waiting,
                limit: self.policy.waiting_max,
                retry_after_ms: self.policy.retry_after_ms(recent, now),
            },
            Saved::None | Saved::Done { .. } | Saved::Stale(_) => StoreError::NotFound { job },
        }
    }

    pub(super) fn claim_all_of(
        &self,
        jobs: &[JobId],
        (worker, lease_for): (&WorkerId, Duration),
        now: Moment,
    ) -> Result<Vec<Result<Claimed>>> {
        let claims = self.change_all(jobs, (false, now), |job| {
            let begun = match job.started {
                None => millis(now.since(job.submitted)),
                Some(_) => 0,
            };
            let happening = job.claim(worker, now + lease_for, now)?;
            let also = Also {
                unless_held: true,
                running_max: job.running_max,
                with_request: true,
                begun: Some(begun),
                ..Also::of(Some(happening))
            };
            Ok(((), Some(also)))
        })?;
        let claimed = |((), job): ((), Job)| Claimed {
            lease: job.lease().expect("it was leased a moment ago"),
            job,
        };
        Ok(claims.into_iter().map(|claim| claim.map(claimed)).collect())
    }

    pub(super) fn renew_lease(
        &self,
        lease: &Lease,
        lease_for: Duration,
        now: Moment,
    ) -> Result<Directive> {
        self.change(lease.job, (false, now), |job| {
            job.renew(lease, now + lease_for, now)?;
            let also = Also {
                quietly: true,
                ..Also::default()
            };
            Ok((job.directive(), Some(also)))
        })
    }

    pub(super) fn note_progress(
        &self,
        lease: &Lease,
        (progress, preview): (Progress, Option<Preview>),
        now: Moment,
    ) -> Result<Directive> {
        let content = preview.as_ref().map_or(0, |preview| preview.content.len());
        self.change(lease.job, (false, now), |job| {
            let happening = job.progress(lease, progress.clone(), now)?;
            fits("preview", content, self.policy.preview_max)?;
            let also = Also {
                preview: preview.clone(),
                ..Also::of(Some(happening))
            };
            Ok((job.directive(), Some(also)))
        })
    }

    pub(super) fn note_session(
        &self,
        lease: &Lease,
        session: &SavedSession,
        now: Moment,
    ) -> Result<Directive> {
        self.change(lease.job, (true, now), |job| {
            job.checkpoint(lease, session.clone(), now)?;
            Ok((job.directive(), Some(Also::default())))
        })
    }

    pub(super) fn step_or_park(&self, lease: &Lease, park: bool, now: Moment) -> Result<Directive> {
        self.change(lease.job, (false, now), |job| {
            let happening = match park {
                true => job.park(lease, now)?,
                false => job.unpark(lease, now)?,
            };
            Ok((job.directive(), Some(Also::of(happening))))
        })
    }

    pub(super) fn take_back(
        &self,
        lease: &Lease,
        session: Option<&SavedSession>,
        now: Moment,
    ) -> Result<JobState> {
        self.change(lease.job, (true, now), |job| {
            let happening = job.give_back(lease, session.cloned(), now)?;
            Ok((job.state, Some(Also::of(Some(happening)))))
        })
    }

    pub(super) fn has_result(&self, lease: &Lease, outcome: &Outcome, now: Moment) -> Result<()> {
        let report = outcome.report.as_deref().unwrap_or_default();
        fits("report", report.len(), self.policy.json_max)?;
        self.change(lease.job, (true, now), |job| {
            let happening = job.complete(lease, outcome.clone(), now)?;
            Ok(((), happening.map(|done| Also::of(Some(done)))))
        })
    }

    pub(super) fn has_failed(
        &self,
        lease: &Lease,
        why: (&str, bool),
        now: Moment,
    ) -> Result<JobState> {
        self.change(lease.job, (true, now), |job| {
            let happening = job.fail(lease, why, &self.policy, now)?;
            Ok((job.state, Some(Also::of(Some(happening)))))
        })
    }

    pub(super) fn has_stopped(&self, lease: &Lease, now: Moment) -> Result<()> {
        self.change(lease.job, (true, now), |job| {
            let happening = job.stopped(lease, now)?;
            Ok(((), Some(Also::of(Some(happening)))))
        })
    }

    pub(super) fn cancel_job(&self, job: JobId, now: Moment) -> Result<JobState> {
        self.change(job, (true, now), |job| {
            let happening = job.cancel(now)?;
            Ok((job.state, happening.map(|what| Also::of(Some(what)))))
        })
    }

    pub(super) fn pause_job(&self, job: JobId, pause: bool, now: Moment) -> Result<JobState> {
        self.change(job, (true, now), |job| {
            let happening = match pause {
                true => job.pause()?,
                false => Some(job.resume()?),
            };
            Ok((job.state, happening.map(|what| Also::of(Some(what)))))
        })
    }

    pub(super) fn move_job(&self, job: JobId, to: Move, now: Moment) -> Result<()> {
        self.change(job, (true, now), |job| {
            // Where the front is, the server knows.
            let happening = job.reorder(to, 0)?;
            let also = Also {
                to_front: to == Move::ToFront,
                ..Also::of(Some(happening))
            };
            Ok(((), Some(also)))
        })
    }

    pub(super) fn requeue_job(&self, job: JobId, now: Moment) -> Result<()> {
        self.change(job, (true, now), |job| {
            let happening = job.requeue()?;
            let also = Also {
                if_room: true,
                ..Also::of(Some(happening))
            };
            Ok(((), Some(also)))
        })
    }

    pub(super) fn end_call(&self, call: &Call, settled: &Settled, now: Moment) -> Result<()> {
        let ended = self.change(call.job, (true, now), |job| {
            job.settle(call, settled, now);
            let also = Also {
                quietly: true,
                settles: Some((call.until, settled.due())),
                ..Also::default()
            };
            Ok(((), Some(also)))
        });
        match ended {
            // Somebody else has it meanwhile.
            Err(StoreError::NotFound { .. }) => Ok(()),
            other => other,
        }
    }

    pub(super) fn hold_queue(&self, held: bool, now: Moment) -> Result<()> {
        let event = serde_json::to_string(&Happening::QueueHeld { held });
        let command = scripts::HOLD
            .call(&self.prefix)
            .arg(if held { "1" } else { "0" })
            .arg(event.expect("an event has JSON"))
            .number(now.0)
            .arg(&self.sender);
        self.writer.one(command, true)?;
        self.mark.changed();
        Ok(())
    }

    pub(super) fn pass_time(&self, now: Moment) -> Result<Swept> {
        let stale = now.0.saturating_sub(millis(self.policy.stale_kept));
        let command = scripts::SWEEP
            .call(&self.prefix)
            .number(now.0)
            .number(self.policy.events_max)
            .number(JOBS_MAX as u64)
            .number(EVENTS_MAX)
            .number(stale)
            .number(now.0.saturating_sub(SERVED_KEPT_MS));
        let due = self.writer.one(command, false)?.list();
        let mut jobs: Vec<JobId> = Vec::new();
        for ids in due {
            let ids = ids.list();
            jobs.extend(ids.iter().filter_map(|id| id.text().parse::<JobId>().ok()));
        }
        let mut swept = Swept::default();
        // Which of several sweepers changed a job, its own answer says: the others find nothing to do.
        let passed = self.change_all(&jobs, (false, now), |job| {
            let passed = job.pass_time(&self.policy, now);
            let happening = match &passed {
                Passed::Nothing => None,
                Passed::TooLate(happening) | Passed::LeaseEnded(happening) => Some(happening),
            };
            let also = happening.map(|happening| Also::of(Some(happening.clone())));
            Ok((passed.clone(), also))
        })?;
        for passed in passed {
            match passed {
                Ok((Passed::TooLate(_), _)) => swept.too_late += 1,
                Ok((Passed::LeaseEnded(_), _)) => swept.leases_ended += 1,
                // One that was forgotten, or that others are busy with, is theirs.
                Ok((Passed::Nothing, _)) | Err(_) => {}
            }
        }
        Ok(swept)
    }

    pub(super) fn bury_worker(&self, worker: &WorkerId, now: Moment) -> Result<u64> {
        let command = super::wire::Command::new("ZRANGE")
            .arg(format!("{}leases", self.prefix))
            .number(0)
            .number(-1);
        let leased = self.reader.one(command, false)?.list();
        let leased: Vec<JobId> = leased
            .iter()
            .filter_map(|id| id.text().parse().ok())
            .collect();
        let mut ended = 0;
        for some in leased.chunks(LINES_MAX) {
            let ends = self.change_all(some, (true, now), |job| {
                let happening = job.worker_died(worker, &self.policy, now);
                let died = happening.is_some();
                Ok((died, happening.map(|what| Also::of(Some(what)))))
            })?;
            let died = ends.iter().filter(|end| matches!(end, Ok((true, _))));
            ended += died.count() as u64;
        }
        self.forget_one(worker)?;
        Ok(ended)
    }

    pub(super) fn forget_old(&self, retention: &Retention, now: Moment) -> Result<Removed> {
        let old = retention
            .age_max
            .map(|age| now.0.saturating_sub(millis(age)));
        let command = scripts::RETAIN
            .call(&self.prefix)
            .number_or_none(old)
            .number_or_none(retention.jobs_max)
            .number_or_none(retention.artifacts_max.map(|most| most.0))
            .number(FORGOTTEN_MAX);
        let reply = self.writer.one(command, true)?.list();
        let [jobs, artifacts, more] = &reply[..] else {
            return Err(self.strange("what retention removed"));
        };
        let ids = artifacts.clone().list();
        let ids = ids
            .iter()
            .filter_map(|id| id.text().parse::<ArtifactId>().ok());
        self.mark.changed();
        Ok(Removed {
            jobs: jobs.number(),
            artifacts: ids.collect(),
            more: more.text() == "1",
        })
    }
}
