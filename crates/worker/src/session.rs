//! An open session: a run, the jobs it is for, and the right to write about them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lowtide_core::Bytes;
use lowtide_core::job::{JobId, Moment, Priority};
use lowtide_core::lifecycle::Event;
use lowtide_core::schedule::{Session as View, SessionState};
use lowtide_engine::processor::{Product, Run, Stage, Stepped};
use lowtide_jobs::report::SessionStatus;
use lowtide_jobs::{Job, Lease, Preview, Progress, SavedSession, TraceParent, WorkerId};

use crate::chain::Uses;
use crate::stopwatch::Traced;

/// A preview is made no more often than this: it costs a moment of computing.
const PREVIEW_EVERY: Duration = Duration::from_millis(400);

/// Ending of saved sessions.
const ENDING: &str = "session";

/// A session and its jobs.
pub(crate) struct Open {
    /// As the schedule sees it.
    pub(crate) view: View,
    pub(crate) members: Vec<Member>,
    /// Its models, those left out that it has no more use for.
    pub(crate) uses: Uses,
    /// All of its models.
    all: Vec<String>,
    pub(crate) progress: Progress,
    pub(crate) began: Instant,
    /// Computed since it was saved last, or since it began.
    pub(crate) unsaved: Duration,
    /// Computed in all.
    pub(crate) computed: Duration,
    pub(crate) run: Box<dyn Run>,
    previewed: Option<Instant>,
    rungs: usize,
    /// What the run said when it panicked: nothing more is asked of it.
    broken: Option<String>,
}

/// One job of a session.
pub(crate) struct Member {
    pub(crate) lease: Lease,
    /// Nobody wants it any more, or somebody else has it.
    pub(crate) gone: bool,
    /// Where it was saved, all attempts.
    pub(crate) files: Vec<PathBuf>,
    priority: Priority,
    submitted: Moment,
    deadline: Option<Moment>,
    trace: Option<TraceParent>,
}

/// A claimed job, and where its session was saved.
pub(crate) struct Claim {
    pub(crate) lease: Lease,
    pub(crate) job: Job,
    pub(crate) file: Option<PathBuf>,
}

impl Open {
    pub(crate) fn new(claims: Vec<Claim>, run: Box<dyn Run>, uses: Uses, now: Moment) -> Open {
        let first = &claims[0].job;
        let mut open = Open {
            view: View {
                id: first.id,
                model: first.model.clone(),
                priority: first.priority,
                submitted: first.submitted,
                deadline: first.deadline,
                remaining_s: 0.0,
                peak: Bytes::ZERO,
                holds: Bytes::ZERO,
                keeps: Bytes::ZERO,
                state: SessionState::Active { since: now },
            },
            members: claims.into_iter().map(Member::new).collect(),
            all: uses.models().map(str::to_owned).collect(),
            uses,
            progress: Progress {
                phase: "start".to_owned(),
                ..Progress::default()
            },
            began: Instant::now(),
            unsaved: Duration::ZERO,
            computed: Duration::ZERO,
            run,
            previewed: None,
            rungs: 0,
            broken: None,
        };
        open.refresh();
        open
    }

    pub(crate) fn is_active(&self) -> bool {
        matches!(self.view.state, SessionState::Active { .. })
    }

    /// What its end means for its models.
    pub(crate) fn leaving(&self) -> Vec<(String, Event)> {
        self.uses.leaving(self.is_active())
    }

    /// Every model it uses or used.
    pub(crate) fn all_models(&self) -> &[String] {
        &self.all
    }

    /// Where a job of several steps is.
    pub(crate) fn stage(&mut self) -> Option<Stage> {
        self.guarded(|run| run.stage()).ok().flatten()
    }

    /// Members that still count, with their places.
    pub(crate) fn present(&self) -> impl Iterator<Item = (usize, &Member)> {
        self.members
            .iter()
            .enumerate()
            .filter(|(_, member)| !member.gone)
    }

    /// The rights to the jobs that still count.
    pub(crate) fn leases(&self) -> Vec<Lease> {
        let present = self.present();
        present.map(|(_, member)| member.lease.clone()).collect()
    }

    pub(crate) fn is_deserted(&self) -> bool {
        self.members.iter().all(|member| member.gone)
    }

    /// Does one step, and returns the products of the members that count when it was the last.
    pub(crate) fn step(&mut self) -> lowtide_engine::Result<Option<Vec<(usize, Product)>>> {
        let start = Instant::now();
        // What a step does is told with the number of the step.
        let stage = self.stage();
        let stepped = self.guarded(|run| run.step());
        let took = start.elapsed();
        self.unsaved += took;
        self.computed += took;
        let finished = match stepped?? {
            Stepped::Progress(progress) => {
                self.progress = Progress {
                    phase: match stage {
                        Some(Stage { step, steps, .. }) => {
                            format!("{step}/{steps} {}", progress.phase)
                        }
                        None => progress.phase.to_owned(),
                    },
                    step: u32::try_from(progress.done).unwrap_or(u32::MAX),
                    steps: u32::try_from(progress.total).unwrap_or(u32::MAX),
                    eta_ms: None,
                };
                None
            }
            Stepped::Finished(products) => {
                let products = products.into_iter().enumerate();
                let wanted = products.filter(|(place, _)| !self.members[*place].gone);
                let wanted = wanted.filter_map(|(place, product)| Some((place, product?)));
                Some(wanted.collect())
            }
        };
        self.refresh();
        let eta_ms = (self.view.remaining_s * 1e3).max(0.0) as u64;
        self.progress.eta_ms = Some(eta_ms);
        Ok(finished)
    }

    /// Asks something of the run. A panic is an error like others, and the end of the run.
    fn guarded<T>(
        &mut self,
        ask: impl FnOnce(&mut Box<dyn Run>) -> T,
    ) -> lowtide_engine::Result<T> {
        if let Some(words) = &self.broken {
            return Err(lowtide_engine::Error::Panicked(words.clone()));
        }
        let run = &mut self.run;
        catch_unwind(AssertUnwindSafe(|| ask(run))).map_err(|panic| {
            let words = words(&*panic);
            self.broken = Some(words.clone());
            lowtide_engine::Error::Panicked(words)
        })
    }

    fn refresh(&mut self) {
        let figures = self.guarded(|run| (run.remaining_s(), run.holds(), run.keeps(), run.peak()));
        // Where that fails, the next step says so.
        if let Ok((remaining_s, holds, keeps, peak)) = figures {
            self.view.remaining_s = remaining_s;
            self.view.holds = holds;
            self.view.keeps = keeps;
            self.view.peak = peak;
        }
    }

    /// Rungs taken since this was asked last.
    pub(crate) fn new_rungs(&mut self) -> usize {
        let taken = self.run.rungs_taken();
        let new = taken.saturating_sub(self.rungs);
        self.rungs = taken;
        new
    }

    /// A look at a member, when the last one is old enough.
    pub(crate) fn preview(&mut self, place: usize) -> Option<Preview> {
        let file = self.guarded(|run| run.preview(place)).ok().flatten()?;
        Some(Preview {
            media_type: file.media_type,
            content: file.content,
        })
    }

    /// Whether it is time for another look; if so, the time begins anew.
    pub(crate) fn preview_is_due(&mut self) -> bool {
        let due = self
            .previewed
            .is_none_or(|last| last.elapsed() >= PREVIEW_EVERY);
        if due {
            self.previewed = Some(Instant::now());
        }
        due
    }

    pub(crate) fn park(&mut self) {
        // Where that fails, the next step says so.
        let _ = self.guarded(|run| run.park());
        self.refresh();
        self.view.state = SessionState::Parked;
    }

    /// Nobody wants this member any more.
    pub(crate) fn drop_member(&mut self, place: usize) {
        self.members[place].gone = true;
        // Where that fails, the next step says so.
        let _ = self.guarded(|run| run.drop_member(place));
        // A session goes by its first job, which may come back as another session.
        if let Some(first) = self.members.iter().find(|member| !member.gone) {
            self.view.id = first.lease.job;
            self.view.priority = first.priority;
            self.view.submitted = first.submitted;
            self.view.deadline = first.deadline;
        }
    }

    /// Writes down what a member has reached. `None`: there is nothing to go on from.
    pub(crate) fn save(
        &mut self,
        place: usize,
        folder: &Path,
        worker: &WorkerId,
    ) -> lowtide_engine::Result<Option<SavedSession>> {
        let Lease { job, attempt, .. } = self.members[place].lease;
        let name = format!("{job}-{attempt}.{ENDING}");
        let path = folder.join(&name);
        if !self.guarded(|run| run.save(place, &path))?? {
            return Ok(None);
        }
        let files = &mut self.members[place].files;
        if !files.contains(&path) {
            files.push(path);
        }
        Ok(Some(SavedSession {
            worker: worker.clone(),
            location: name,
            progress: self.progress.clone(),
        }))
    }

    pub(crate) fn status(&self) -> SessionStatus {
        let reasons = self.run.plan().map_or_else(Vec::new, |plan| {
            plan.phases
                .iter()
                .map(|phase| phase.reason.to_string())
                .collect()
        });
        let jobs = self
            .present()
            .map(|(_, member)| member.lease.job.to_string());
        SessionStatus {
            jobs: jobs.collect(),
            model: self.view.model.clone(),
            state: match self.view.state {
                SessionState::Active { .. } => "active",
                SessionState::Parked => "parked",
                SessionState::Held => "held",
            }
            .to_owned(),
            phase: self.progress.phase.clone(),
            step: self.progress.step,
            steps: self.progress.steps,
            remaining_s: self.view.remaining_s,
            holds: self.view.holds.0,
            reasons,
            rungs_taken: self.run.rungs_taken(),
        }
    }

    pub(crate) fn plan(&self) -> Option<&lowtide_core::Plan> {
        self.run.plan()
    }
}

impl Member {
    fn new(claim: Claim) -> Member {
        let Claim { lease, job, file } = claim;
        Member {
            lease,
            gone: false,
            files: file.into_iter().collect(),
            priority: job.priority,
            submitted: job.submitted,
            deadline: job.deadline,
            trace: job.wishes.trace,
        }
    }

    /// Who traces it.
    pub(crate) fn traced(&self) -> Traced {
        (self.lease.job, self.trace)
    }
}

/// What a panic said.
pub(crate) fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "without a word".to_owned())
}

/// The file of this job's saved session in `folder`, where it is one of ours and there.
pub(crate) fn saved_file(folder: &Path, job: &Job) -> Option<PathBuf> {
    let session = job.session.as_ref()?;
    if job_of(&session.location) != Some(job.id) {
        return None;
    }
    let path = folder.join(&session.location);
    path.is_file().then_some(path)
}

/// The job whose session a file of this name holds. No other name is ever part of a path.
pub(crate) fn job_of(name: &str) -> Option<JobId> {
    let (job, attempt) = name
        .strip_suffix(ENDING)?
        .strip_suffix('.')?
        .split_once('-')?;
    attempt.parse::<u32>().ok()?;
    job.parse().ok()
}

/// The job that a part of a saved session belongs to, which should have been gone long ago: `JOB-ATTEMPT.session.PART`.
pub(crate) fn job_of_part(name: &str) -> Option<JobId> {
    let (session, part) = name.rsplit_once('.')?;
    let named = part.split_once('-');
    let (what, number) = named.filter(|(_, number)| number.parse::<u32>().is_ok())?;
    let known = !number.is_empty() && ["step", "go"].contains(&what);
    job_of(session).filter(|_| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_jobs_name_and_a_number_make_a_file() {
        let job = JobId(77);
        assert_eq!(job_of(&format!("{job}-3.session")), Some(job));
        for name in [
            "",
            ".session",
            "../../etc/passwd",
            &format!("{job}-3"),
            &format!("../{job}-3.session"),
            &format!("{job}-x.session"),
            &format!("{job}/3.session"),
        ] {
            assert_eq!(job_of(name), None, "{name}");
            assert_eq!(job_of_part(name), None, "{name}");
        }
        let whole = format!("{job}-3.session");
        assert_eq!(job_of_part(&format!("{whole}.step-0")), Some(job));
        assert_eq!(job_of_part(&format!("{whole}.go-12")), Some(job));
        for part in ["", ".", ".step", ".step-", ".step-x", ".tmp-1", ".step-1/x"] {
            assert_eq!(job_of_part(&format!("{whole}{part}")), None, "{part}");
        }
    }
}
