//! An open session: a run, the jobs it is for, and the right to write about them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lowtide_core::job::{JobId, Moment};
use lowtide_core::schedule::{Session as View, SessionState};
use lowtide_engine::processor::{Product, Run, Stepped};
use lowtide_jobs::report::SessionStatus;
use lowtide_jobs::{Job, Lease, Preview, Progress, SavedSession, WorkerId};

/// A preview is made no more often than this: it costs a moment of computing.
const PREVIEW_EVERY: Duration = Duration::from_millis(400);

/// Ending of saved sessions.
const ENDING: &str = "session";

/// A session and its jobs.
pub(crate) struct Open {
    /// As the schedule sees it.
    pub(crate) view: View,
    pub(crate) members: Vec<Member>,
    pub(crate) progress: Progress,
    pub(crate) began: Instant,
    /// Computed since it was saved last, or since it began.
    pub(crate) unsaved: Duration,
    /// Computed in all.
    pub(crate) computed: Duration,
    run: Box<dyn Run>,
    previewed: Option<Instant>,
    rungs: usize,
}

/// One job of a session.
pub(crate) struct Member {
    pub(crate) lease: Lease,
    pub(crate) priority_word: &'static str,
    /// Nobody wants it any more, or somebody else has it.
    pub(crate) gone: bool,
    /// Where it was saved, all attempts.
    pub(crate) files: Vec<PathBuf>,
}

impl Open {
    pub(crate) fn new(
        jobs: &[(Lease, Job)],
        files: Vec<Option<PathBuf>>,
        run: Box<dyn Run>,
        now: Moment,
    ) -> Open {
        let first = &jobs[0].1;
        let members = jobs.iter().zip(files).map(|((lease, job), file)| Member {
            lease: lease.clone(),
            priority_word: job.priority.name(),
            gone: false,
            files: file.into_iter().collect(),
        });
        let mut open = Open {
            view: View {
                id: first.id,
                model: first.model.clone(),
                priority: first.priority,
                submitted: first.submitted,
                deadline: first.deadline,
                remaining_s: 0.0,
                peak: run.peak(),
                holds: run.holds(),
                keeps: run.keeps(),
                state: SessionState::Active { since: now },
            },
            members: members.collect(),
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
        };
        open.refresh();
        open
    }

    pub(crate) fn is_active(&self) -> bool {
        matches!(self.view.state, SessionState::Active { .. })
    }

    /// Members that still count, with their places.
    pub(crate) fn present(&self) -> impl Iterator<Item = (usize, &Member)> {
        self.members
            .iter()
            .enumerate()
            .filter(|(_, member)| !member.gone)
    }

    pub(crate) fn is_deserted(&self) -> bool {
        self.members.iter().all(|member| member.gone)
    }

    /// Does one step, and returns the products of the members that count when it was the last.
    pub(crate) fn step(&mut self) -> lowtide_engine::Result<Option<Vec<(usize, Product)>>> {
        let start = Instant::now();
        let stepped = self.run.step();
        let took = start.elapsed();
        self.unsaved += took;
        self.computed += took;
        let finished = match stepped? {
            Stepped::Progress(progress) => {
                self.progress = Progress {
                    phase: progress.phase.to_owned(),
                    step: u32::try_from(progress.done).unwrap_or(u32::MAX),
                    steps: u32::try_from(progress.total).unwrap_or(u32::MAX),
                    eta_ms: None,
                };
                None
            }
            Stepped::Finished(products) => {
                let wanted = products
                    .into_iter()
                    .enumerate()
                    .filter_map(|(place, product)| {
                        product
                            .filter(|_| !self.members[place].gone)
                            .map(|product| (place, product))
                    });
                Some(wanted.collect())
            }
        };
        self.refresh();
        let eta_ms = (self.view.remaining_s * 1e3).max(0.0) as u64;
        self.progress.eta_ms = Some(eta_ms);
        Ok(finished)
    }

    fn refresh(&mut self) {
        self.view.remaining_s = self.run.remaining_s();
        self.view.holds = self.run.holds();
        self.view.keeps = self.run.keeps();
        self.view.peak = self.run.peak();
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
        let file = self.run.preview(place)?;
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
        self.run.park();
        self.refresh();
        self.view.state = SessionState::Parked;
    }

    /// Nobody wants this member any more.
    pub(crate) fn drop_member(&mut self, place: usize) {
        self.members[place].gone = true;
        self.run.drop_member(place);
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
        if !self.run.save(place, &path)? {
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

/// The file of a saved session in `folder`, where it is one of ours and there.
pub(crate) fn saved_file(folder: &Path, session: &SavedSession) -> Option<PathBuf> {
    job_of(&session.location)?;
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
        }
    }
}
