//! Beginning, stepping, parking and ending sessions.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lowtide_core::Bytes;
use lowtide_core::job::{JobId, JobState};
use lowtide_core::lifecycle::{Event, Residency};
use lowtide_core::schedule::{SessionState, Switch};
use lowtide_engine::Blame;
use lowtide_engine::device::cpu;
use lowtide_engine::processor::{Opened, Order, Product, Run};
use lowtide_jobs::report::WorkerState;
use lowtide_jobs::{Claimed, Lease, Progress, StoreError};
use serde_json::json;

use super::{Worker, clock};
use crate::chain::Uses;
use crate::log::Level;
use crate::publisher::Finished;
use crate::publisher::patiently;
use crate::session::{Claim, Open, words};
use crate::stopwatch::Began;

impl Worker {
    pub(super) fn switch(&mut self, switch: &Switch) {
        if let Some(job) = switch.park {
            self.tallies.parked.add();
            self.park(job);
        }
        for eviction in &switch.evict {
            self.shelf
                .tell(&eviction.model, Event::MakeRoom { to: eviction.to });
        }
    }

    pub(super) fn place(&self, job: JobId) -> Option<usize> {
        self.sessions.iter().position(|open| open.view.id == job)
    }

    pub(super) fn park(&mut self, job: JobId) {
        let Some(place) = self.place(job) else { return };
        self.checkpoint(place);
        let open = &mut self.sessions[place];
        open.park();
        for lease in open.leases() {
            let answer = self.store.park(&lease, clock());
            self.keeper.heard(&lease, &answer);
        }
        for model in open.uses.in_use() {
            self.shelf.tell(model, Event::JobParks);
        }
    }

    pub(super) fn resume(&mut self, job: JobId) {
        let Some(place) = self.place(job) else { return };
        let open = &mut self.sessions[place];
        open.view.state = SessionState::Active { since: clock() };
        for lease in open.leases() {
            let answer = self.store.unpark(&lease, clock());
            self.keeper.heard(&lease, &answer);
        }
        let mut failed = None;
        for model in open.uses.in_use() {
            failed = self.shelf.tell(model, Event::JobResumes).failed.or(failed);
        }
        if let Some(error) = failed {
            self.fail(place, &error);
        }
    }

    /// Claims jobs and makes one session of them. What cannot be claimed is somebody else's.
    pub(super) fn start(&mut self, jobs: &[JobId], kind: &str, model: &str) {
        let mut claims = self.claim(jobs);
        let Some(first) = claims.first() else {
            return;
        };
        let wishes = first.job.wishes;
        let uses = Uses::of(kind, &first.job);
        for model in uses.models() {
            self.shelf.count_use(model);
            self.shelf
                .wishes(model, wishes.after_job, wishes.keep_alive);
        }
        self.status.state = WorkerState::Loading;
        self.say(true);
        let keep_alive = wishes.keep_alive;
        let began = self.stopwatch.begin();
        let told = self.shelf.tell(model, Event::JobBegins { keep_alive });
        for model in uses.expected() {
            self.shelf.tell(model, Event::JobExpects);
        }
        let mut run = match told.failed {
            Some(error) => Err(error),
            None => self.begin(kind, model, &claims),
        };
        if let (Err(error), true) = (&run, claims.len() > 1) {
            // One of them may be the trouble, or all together too much.
            let text = format!(
                "{} jobs could not share a batch and run one by one: {error}",
                claims.len()
            );
            self.log.say(Level::Warn, text, json!({ "model": model }));
            let mates = claims.split_off(1);
            mates.into_iter().for_each(|mate| self.return_claim(&mate));
            run = self.begin(kind, model, &claims);
        }
        if let Err(error) = &run
            && error.blame() == Blame::Fit
            && self.clear_the_way(model)
        {
            run = self.begin(kind, model, &claims);
        }
        self.note_load(&claims, began, &run);
        match run {
            Ok(run) => {
                let mut open = Open::new(claims, run, uses, clock());
                self.log_start(&open, kind);
                // One that goes on may be in a later step.
                let failed = self.shelf.follow(&mut open);
                self.sessions.push(open);
                if let Some(error) = failed {
                    self.fail(self.sessions.len() - 1, &error);
                }
            }
            Err(error) => {
                let others = !self.sessions.is_empty();
                let (reason, retryable) = self.judged(&error, others);
                self.fail_lease(&claims[0].lease, &reason, retryable);
                self.shelf.tell_all(uses.leaving(true));
                if self.sessions.is_empty() {
                    // What others made room with, nobody takes now.
                    cpu::give_back();
                }
            }
        }
    }

    /// What it took until the first step can begin.
    fn note_load(
        &self,
        claims: &[Claim],
        began: Began,
        run: &lowtide_engine::Result<Box<dyn Run>>,
    ) {
        for Claim { job, .. } in claims {
            let about = vec![("lowtide.model", job.model.clone())];
            let error = run.as_ref().err().map(ToString::to_string);
            let traced = (job.id, job.wishes.trace);
            self.stopwatch.note(traced, "load", began, about, error);
        }
    }

    fn claim(&mut self, jobs: &[JobId]) -> Vec<Claim> {
        jobs.iter().for_each(|&job| self.queue.take(job));
        let began = self.stopwatch.begin();
        let claimed = self
            .store
            .claim_all(jobs, &self.id, self.options.lease, clock());
        let claimed = claimed.unwrap_or_else(|error| vec![Err(error)]);
        let mut claims: Vec<Claim> = Vec::new();
        for claim in claimed {
            match claim {
                Ok(Claimed { lease, job }) => {
                    self.keeper.keep(&lease);
                    self.tallies.started.add();
                    let about = vec![
                        ("lowtide.worker", self.id.to_string()),
                        ("lowtide.attempt", lease.attempt.to_string()),
                    ];
                    let traced = (job.id, job.wishes.trace);
                    self.stopwatch.note(traced, "claim", began, about, None);
                    let file = self.depot.find(&job);
                    let claim = Claim { lease, job, file };
                    if claim.file.is_some() && !claims.is_empty() {
                        // It was begun elsewhere since the queue was read, and goes on alone.
                        self.return_claim(&claim);
                    } else {
                        claims.push(claim);
                    }
                }
                Err(StoreError::NotClaimable { .. } | StoreError::NotFound { .. }) => {}
                Err(error) => {
                    let text = format!("jobs could not be claimed: {error}");
                    self.log.say(Level::Warn, text, json!({}));
                }
            }
        }
        if claims.len() > 1 && claims[0].file.is_some() {
            let mates = claims.split_off(1);
            mates.into_iter().for_each(|mate| self.return_claim(&mate));
        }
        claims
    }

    /// Gives a job back that was claimed but not begun.
    fn return_claim(&self, claim: &Claim) {
        let back = patiently(clock, |now| self.store.give_back(&claim.lease, None, now));
        self.keeper.let_go(&claim.lease);
        self.note_refusal(&claim.lease, back.map(drop));
    }

    /// Moves every model away that no job uses. Returns whether any held memory.
    fn clear_the_way(&mut self, model: &str) -> bool {
        let others = self.shelf.views().into_iter();
        let idle: Vec<String> = others
            .filter(|view| view.name != model && view.in_flight == 0 && view.device > Bytes::ZERO)
            .map(|view| view.name)
            .collect();
        for name in &idle {
            let to = Residency::Host;
            self.shelf.tell(name, Event::MakeRoom { to });
        }
        !idle.is_empty()
    }

    /// The run of these jobs. A saved session that cannot be used is left, and the job begins anew.
    fn begin(
        &mut self,
        kind: &str,
        model: &str,
        claims: &[Claim],
    ) -> lowtide_engine::Result<Box<dyn Run>> {
        let requests = claims
            .iter()
            .map(|claim| {
                serde_json::from_str(&claim.job.request).map_err(|cause| {
                    lowtide_engine::Error::request("request", format!("is no JSON: {cause}"))
                })
            })
            .collect::<lowtide_engine::Result<Vec<serde_json::Value>>>()?;
        let opened = self.shelf.opened_for((kind, model), &requests[0])?;
        if let Some(file) = &claims[0].file {
            let order = Order {
                request: requests[0].clone(),
                resume: Some(file),
            };
            match started(&opened, vec![order]) {
                Ok(run) => {
                    let job = claims[0].job.id.to_string();
                    let text = format!("job {job} goes on from where it was saved");
                    self.log.say(Level::Info, text, json!({ "job": job }));
                    return Ok(run);
                }
                Err(error) => {
                    let text = format!("a saved session cannot go on and begins anew: {error}");
                    self.log.say(Level::Warn, text, json!({ "model": model }));
                }
            }
        }
        let orders = requests.into_iter().map(|request| Order {
            request,
            resume: None,
        });
        started(&opened, orders.collect())
    }

    pub(super) fn log_start(&self, open: &Open, kind: &str) {
        let jobs: Vec<String> = open
            .members
            .iter()
            .map(|member| member.lease.job.to_string())
            .collect();
        let text = format!(
            "job {} begins: {kind} on {}, {}, about {:.1} s, peak {}",
            jobs.join(" and "),
            open.view.model,
            open.view.priority,
            open.view.remaining_s,
            open.view.peak
        );
        let fields = json!({ "jobs": jobs, "kind": kind, "model": open.view.model, "seconds": open.view.remaining_s,
                             "peak": open.view.peak.0 });
        self.log.say(Level::Info, text, fields);
    }

    /// One step of the active session.
    pub(super) fn step(&mut self) {
        let Some(place) = self.sessions.iter().position(Open::is_active) else {
            return;
        };
        if self.status.state != WorkerState::Busy {
            self.say(false);
        }
        let open = &mut self.sessions[place];
        let start = Instant::now();
        let watch = self.stopwatch.begin();
        let stepped = open.step();
        let error = stepped.as_ref().err().map(ToString::to_string);
        for (_, member) in open.present() {
            let Progress {
                phase, step, steps, ..
            } = &open.progress;
            let about = vec![
                ("lowtide.phase", phase.clone()),
                ("lowtide.step", format!("{step}/{steps}")),
            ];
            self.stopwatch
                .note(member.traced(), "step", watch, about, error.clone());
        }
        let took = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.tallies.busy_us.add_many(took);
        let rungs = open.new_rungs();
        if rungs > 0 {
            self.tallies.rungs.add_many(rungs as u64);
            let text = format!(
                "memory was refused to job {}: {rungs} rungs were taken, and the step was tried again",
                open.view.id
            );
            self.log.say(
                Level::Warn,
                text,
                json!({ "job": open.view.id.to_string() }),
            );
        }
        match stepped {
            Ok(None) => self.stepped(place),
            Ok(Some(products)) => self.finished(place, products),
            Err(error) => self.fail(place, &error),
        }
    }

    pub(super) fn stepped(&mut self, place: usize) {
        if let Some(error) = self.shelf.follow(&mut self.sessions[place]) {
            return self.fail(place, &error);
        }
        let open = &mut self.sessions[place];
        let previews = self.options.previews && open.preview_is_due();
        let progress = open.progress.clone();
        let members: Vec<(usize, Lease)> = open
            .present()
            .map(|(place, member)| (place, member.lease.clone()))
            .collect();
        for (member, lease) in members {
            let preview = if previews { open.preview(member) } else { None };
            self.keeper.note(&lease, progress.clone(), preview);
        }
        if open.unsaved >= self.options.checkpoint_every {
            self.checkpoint(place);
        }
    }

    /// Saves what a session has reached, in case this process vanishes.
    pub(super) fn checkpoint(&mut self, place: usize) {
        self.sessions[place].unsaved = Duration::ZERO;
        let present = self.sessions[place].present();
        let members: Vec<usize> = present.map(|(member, _)| member).collect();
        for member in members {
            let open = &mut self.sessions[place];
            let lease = open.members[member].lease.clone();
            match open.save(member, self.depot.folder(), &self.id) {
                Ok(Some(session)) => {
                    self.depot.share(&session.location);
                    let answer = self.store.checkpoint(&lease, session, clock());
                    self.keeper.heard(&lease, &answer);
                }
                Ok(None) => {}
                Err(error) => self.log_unsaved(&lease, &error),
            }
        }
    }

    pub(super) fn log_unsaved(&self, lease: &Lease, error: &lowtide_engine::Error) {
        let text = format!(
            "job {} could not be saved and would begin anew: {error}",
            lease.job
        );
        self.log
            .say(Level::Warn, text, json!({ "job": lease.job.to_string() }));
    }

    pub(super) fn finished(&mut self, place: usize, products: Vec<(usize, Product)>) {
        let open = self.sessions.swap_remove(place);
        let leaving = open.leaving();
        let Open {
            view,
            members,
            began,
            computed,
            run,
            ..
        } = open;
        // What it holds goes before the model is asked to leave, which may be at once.
        drop(run);
        let line = format!(
            "{} in {:.2} s, {:.2} s of them computing",
            view.model,
            began.elapsed().as_secs_f64(),
            computed.as_secs_f64()
        );
        let peak = products.first().and_then(|(_, product)| peak(product));
        let line = match peak {
            Some(peak) => format!("{line}, at most {peak} in use"),
            None => line,
        };
        let mut members: Vec<_> = members.into_iter().map(Some).collect();
        for (place, product) in products {
            let Some(member) = members.get_mut(place).and_then(Option::take) else {
                continue;
            };
            let read = product.report["bytes_read"].as_u64().unwrap_or(0);
            self.tallies.bytes_read.add_many(read);
            // A job that found everything in memory says nothing about loading.
            if read > 0
                && let Some(load_s) = product.report["load_seconds"].as_f64()
            {
                self.shelf.note_load(&view.model, load_s);
            }
            let (_, trace) = member.traced();
            self.publisher.publish(Finished {
                trace,
                lease: member.lease,
                product,
                sessions: member.files,
                line: line.clone(),
            });
        }
        for member in members.into_iter().flatten() {
            self.keeper.let_go(&member.lease);
        }
        self.shelf.tell_all(leaving);
    }

    /// An error ends a session. Where several jobs share it, it may be the doing of one of them: each is tried again, by
    /// itself.
    pub(super) fn fail(&mut self, place: usize, error: &lowtide_engine::Error) {
        let open = self.sessions.swap_remove(place);
        let (reason, retryable) = self.judged(error, !self.sessions.is_empty());
        let retryable = retryable || open.present().count() > 1;
        let present = open.leases();
        let leaving = open.leaving();
        drop(open);
        if matches!(error, lowtide_engine::Error::Panicked(_)) {
            // It may have left things half done.
            for (model, _) in &leaving {
                self.shelf.abandon(model);
            }
        }
        for lease in present {
            self.fail_lease(&lease, &reason, retryable);
        }
        self.shelf.tell_all(leaving);
    }

    /// Whether another attempt may do better: not where the request is wrong; where nothing fits, only if something
    /// else holds memory now, or others than this process decide how much there is.
    fn judged(&mut self, error: &lowtide_engine::Error, others: bool) -> (String, bool) {
        use lowtide_engine::Error::{Incomplete, Weights};
        if error.is_lost() {
            self.lost = Some(error.to_string());
        }
        let others = others || self.shelf.held() > Bytes::ZERO || self.device.budget.is_none();
        let retryable = match error.blame() {
            Blame::User => false,
            Blame::Fit => others,
            Blame::Program => true,
        };
        // Files may be on their way, or on a disk that sleeps.
        let unread = matches!(
            error,
            Weights(lowtide_weights::Error::Io { .. }) | Incomplete { .. }
        );
        (error.to_string(), retryable || unread)
    }

    pub(super) fn fail_lease(&mut self, lease: &Lease, reason: &str, retryable: bool) {
        self.tallies.failed.add();
        let told = patiently(clock, |now| self.store.fail(lease, reason, retryable, now));
        self.keeper.let_go(lease);
        let job = lease.job;
        let text = match &told {
            Ok(JobState::Failed) => format!("job {job} failed: {reason}"),
            Ok(_) => format!("job {job} is tried again later: {reason}"),
            Err(error) => {
                format!("job {job} failed ({reason}), which the queue did not take: {error}")
            }
        };
        let fields = json!({ "job": job.to_string(), "reason": reason, "retryable": retryable });
        self.log.say(Level::Warn, text, fields);
    }

    pub(super) fn note_refusal(&self, lease: &Lease, answer: lowtide_jobs::Result<()>) {
        if let Err(error) = answer {
            let text = format!("job {}: {error}", lease.job);
            self.log
                .say(Level::Warn, text, json!({ "job": lease.job.to_string() }));
        }
    }
}

/// The most memory that was in use, where the report says so.
fn peak(product: &Product) -> Option<Bytes> {
    let measured = product.report["memory"]["measured_peak"].as_object()?;
    measured
        .values()
        .filter_map(serde_json::Value::as_u64)
        .max()
        .map(Bytes)
}

/// Starts a run; a panic is a failed job.
fn started(
    opened: &Arc<dyn Opened>,
    orders: Vec<Order<'_>>,
) -> lowtide_engine::Result<Box<dyn Run>> {
    catch_unwind(AssertUnwindSafe(|| opened.start(orders)))
        .unwrap_or_else(|panic| Err(lowtide_engine::Error::Panicked(words(&*panic))))
}
