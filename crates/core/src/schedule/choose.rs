//! Choosing among the queued jobs and the parked sessions, and what a free worker does.

use std::cmp::Ordering;

use super::policy::{Claim, Standing};
use super::reason::{SetAside, Why};
use super::room::{self, NoRoom, Room};
use super::{Action, Candidate, Device, Load, ModelView, Policy, Session, SessionState, Switch};
use crate::Bytes;
use crate::job::{JobId, Moment, Priority};
use crate::lifecycle::Residency;

/// What is decided: the action, why, and the new count of starts since the oldest's turn where it changes.
pub(super) type Choice = (Action, Why, Option<u32>);

/// A contender and where it stands.
pub(super) type Standed<'a> = (Contender<'a>, Standing);

/// A job that may be next.
#[derive(Clone, Copy)]
pub(super) enum Contender<'a> {
    Queued(&'a Candidate, &'a ModelView),
    Parked(&'a Session, &'a ModelView),
}

impl Contender<'_> {
    pub(super) fn id(&self) -> JobId {
        match self {
            Contender::Queued(job, _) => job.id,
            Contender::Parked(session, _) => session.id,
        }
    }

    pub(super) fn seconds(&self) -> f64 {
        match self {
            Contender::Queued(job, _) => job.seconds,
            Contender::Parked(session, _) => session.remaining_s,
        }
    }

    pub(super) fn priority(&self) -> Priority {
        match self {
            Contender::Queued(job, _) => job.priority,
            Contender::Parked(session, _) => session.priority,
        }
    }

    pub(super) fn submitted(&self) -> Moment {
        match self {
            Contender::Queued(job, _) => job.submitted,
            Contender::Parked(session, _) => session.submitted,
        }
    }

    pub(super) fn model(&self) -> &ModelView {
        match self {
            Contender::Queued(_, model) | Contender::Parked(_, model) => model,
        }
    }

    pub(super) fn peak(&self) -> Bytes {
        match self {
            Contender::Queued(job, _) => job.peak,
            Contender::Parked(session, _) => session.peak,
        }
    }
}

pub(super) struct Choosing<'a> {
    pub(super) candidates: &'a [Candidate],
    pub(super) device: &'a Device<'a>,
    pub(super) policy: &'a Policy,
    pub(super) now: Moment,
    pub(super) set_aside: Vec<SetAside>,
}

impl<'a> Choosing<'a> {
    /// Sessions that count as open.
    pub(super) fn open(&self) -> usize {
        let held = |session: &&Session| session.state != SessionState::Held;
        self.device.sessions.iter().filter(held).count()
    }

    pub(super) fn model(&self, name: &str) -> Option<&'a ModelView> {
        self.device.models.iter().find(|model| model.name == name)
    }

    pub(super) fn standing(&self, contender: &Contender<'_>) -> Standing {
        let (deadline, begun) = match contender {
            Contender::Queued(job, _) => (job.deadline, false),
            Contender::Parked(session, _) => (session.deadline, true),
        };
        self.policy.standing(
            &Claim {
                priority: contender.priority(),
                submitted: contender.submitted(),
                deadline,
                seconds: contender.seconds(),
                load_s: contender.model().load_s(),
                begun,
            },
            self.now,
        )
    }

    /// Bytes that the device can ever have for us: the budget without what neither a model nor a session
    /// that can go on holds.
    fn within_reach(&self) -> Bytes {
        let models: Bytes = self.device.models.iter().map(|model| model.device).sum();
        let sessions = self.device.sessions.iter();
        let sessions: Bytes = sessions
            .filter(|session| session.state != SessionState::Held)
            .map(|session| session.holds)
            .sum();
        let others = self
            .device
            .ledger
            .in_use()
            .saturating_sub(models + sessions);
        self.device.ledger.budget().saturating_sub(others)
    }

    /// The queued jobs that may start now and can run here; the others are set aside with the reason.
    pub(super) fn queued(&mut self) -> Vec<Standed<'a>> {
        let within_reach = self.within_reach();
        let mut queued = Vec::new();
        for job in self.candidates {
            if job.not_before.is_some_and(|moment| moment > self.now) {
                continue;
            }
            let Some(model) = self.model(&job.model) else {
                self.set_aside.push(SetAside::UnknownModel {
                    job: job.id,
                    model: job.model.clone(),
                });
                continue;
            };
            if job.peak > within_reach {
                self.set_aside.push(SetAside::TooLarge {
                    job: job.id,
                    peak: job.peak,
                    within_reach,
                    budget: self.device.ledger.budget(),
                });
                continue;
            }
            let contender = Contender::Queued(job, model);
            let standing = self.standing(&contender);
            if let Some(late_s) = standing.late_s {
                self.set_aside.push(SetAside::Hopeless {
                    job: job.id,
                    seconds: job.seconds,
                    load_s: model.load_s(),
                    late_s,
                });
            }
            queued.push((contender, standing));
        }
        queued
    }

    pub(super) fn parked(&self) -> Vec<Standed<'a>> {
        let parked = |session: &&Session| session.state == SessionState::Parked;
        let with_model = |session: &'a Session| {
            let contender = Contender::Parked(session, self.model(&session.model)?);
            Some((contender, self.standing(&contender)))
        };
        let sessions = self.device.sessions.iter().filter(parked);
        sessions.filter_map(with_model).collect()
    }

    /// The contender of the best standing for which there is room when `park` is parked, or why the best of all has
    /// none.
    pub(super) fn best(
        &self,
        contenders: &[Standed<'a>],
        park: Option<&Session>,
    ) -> Result<(Standed<'a>, Room), Option<NoRoom>> {
        let mut best: Option<(&Standed<'a>, Room)> = None;
        let mut refused: Option<(&Standed<'a>, NoRoom)> = None;
        for entry in contenders {
            let beaten = |other: &Standed<'_>| by_standing(entry, other) != Ordering::Less;
            if best.as_ref().is_some_and(|(other, _)| beaten(other)) {
                continue;
            }
            match self.room(&entry.0, park) {
                Ok(room) => best = Some((entry, room)),
                Err(no_room) => {
                    if !refused.as_ref().is_some_and(|(other, _)| beaten(other)) {
                        refused = Some((entry, no_room));
                    }
                }
            }
        }
        match best {
            Some((&entry, room)) => Ok((entry, room)),
            None => Err(refused.map(|(_, no_room)| no_room)),
        }
    }

    pub(super) fn room(
        &self,
        contender: &Contender<'_>,
        park: Option<&Session>,
    ) -> Result<Room, NoRoom> {
        let wanted = |name: &str| {
            let queued = |job: &Candidate| job.model == name && job.id != contender.id();
            self.candidates.iter().any(queued)
        };
        room::make(
            self.device,
            &room::Want {
                model: contender.model(),
                peak: contender.peak(),
                park,
                now: self.now,
            },
            wanted,
        )
    }

    /// No session is active.
    pub(super) fn when_free(&mut self) -> Choice {
        let queued = self.queued();
        let parked = self.parked();
        let full = self.open() >= self.device.open_max;
        if !full
            && self.turn_is_due()
            && let Some(choice) = self.oldest(&queued, &parked)
        {
            return choice;
        }
        let mut contenders = parked;
        if !full {
            contenders.extend(queued);
        }
        match self.best(&contenders, None) {
            Ok(((contender, standing), room)) => {
                let why = self.why_best(&contender, &standing, contenders.len());
                self.go(contender, room, None, why)
            }
            Err(no_room) => self.idle(no_room),
        }
    }

    /// The turn of the job submitted first. Where it has no room, nothing starts in its place: parked sessions, which
    /// may be in the way, go on until they end.
    fn oldest(&self, queued: &[Standed<'a>], parked: &[Standed<'a>]) -> Option<Choice> {
        let age = |(job, _): &&Standed<'_>| (job.submitted(), job.id());
        let &(oldest, _) = queued.iter().min_by_key(age)?;
        match self.room(&oldest, None) {
            Ok(room) => {
                let why = Why::Oldest {
                    waited_s: self.now.seconds_since(oldest.submitted()),
                    starts: self.device.starts_since_oldest,
                };
                Some(self.go(oldest, room, None, why))
            }
            Err(no_room) => {
                let ((session, _), room) = self.best(parked, None).ok()?;
                Some(self.go(session, room, None, Why::MakesRoom(no_room)))
            }
        }
    }

    fn turn_is_due(&self) -> bool {
        self.device.starts_since_oldest + 1 >= self.policy.turn
    }

    fn idle(&self, no_room: Option<NoRoom>) -> Choice {
        if let Some(no_room) = no_room {
            return (Action::Nothing, Why::NoRoom(no_room), None);
        }
        let later = self.candidates.iter().filter_map(|job| job.not_before);
        match later.filter(|&moment| moment > self.now).min() {
            Some(until) => {
                let wait_s = until.seconds_since(self.now);
                (Action::Wait { until }, Why::Later { wait_s }, None)
            }
            None => {
                let unfit = self.set_aside.len();
                (Action::Nothing, Why::Idle { unfit }, None)
            }
        }
    }

    fn why_best(&self, contender: &Contender<'_>, standing: &Standing, of: usize) -> Why {
        let waited_s = self.now.seconds_since(contender.submitted());
        match standing.slack_s {
            Some(slack_s) => Why::Deadline { slack_s, waited_s },
            None => Why::Best {
                priority: contender.priority(),
                waited_s,
                as_if_s: standing.as_if_s,
                of,
            },
        }
    }

    /// Starts or resumes `contender`.
    pub(super) fn go(
        &self,
        contender: Contender<'_>,
        room: Room,
        park: Option<&Session>,
        why: Why,
    ) -> Choice {
        let view = contender.model();
        let load = Load {
            from: view.residency,
            seconds: view.load_s(),
        };
        let switch = Switch {
            park: park.map(|session| session.id),
            evict: room.evict,
            load: Some(load).filter(|load| load.from != Residency::Device),
        };
        let model = view.name.clone();
        match contender {
            Contender::Parked(session, _) => {
                let job = session.id;
                (Action::Resume { job, model, switch }, why, None)
            }
            Contender::Queued(job, _) => {
                let mates = self.mates(job, room.left);
                let starts = match self.is_oldest(job) {
                    true => 0,
                    false => self.device.starts_since_oldest + 1,
                };
                let action = Action::Start {
                    job: job.id,
                    kind: job.kind.clone(),
                    model,
                    mates,
                    switch,
                };
                (action, why, Some(starts))
            }
        }
    }

    /// Whether no other queued job that could start was submitted before `job`.
    pub(super) fn is_oldest(&self, job: &Candidate) -> bool {
        let within_reach = self.within_reach();
        let before = |other: &Candidate| {
            (other.submitted, other.id) < (job.submitted, job.id)
                && other.not_before.is_none_or(|moment| moment <= self.now)
                && other.peak <= within_reach
                && self.model(&other.model).is_some()
        };
        !self.candidates.iter().any(before)
    }

    /// Jobs that share `job`'s batch in what is `left` of the device: those of its class or a higher one, the first
    /// submitted first, and none when a deadline makes the job hurry.
    fn mates(&self, job: &Candidate, left: Bytes) -> Vec<JobId> {
        let Some(batch) = job.batch.as_ref().filter(|_| job.deadline.is_none()) else {
            return Vec::new();
        };
        let fits = match batch.more {
            Bytes::ZERO => usize::MAX,
            more => usize::try_from(left.0 / more.0).unwrap_or(usize::MAX),
        };
        let agrees = |other: &&Candidate| {
            other.id != job.id
                && other.priority >= job.priority
                && other.not_before.is_none_or(|moment| moment <= self.now)
                && other.batch.as_ref().is_some_and(|b| b.key == batch.key)
        };
        let mut mates: Vec<&Candidate> = self.candidates.iter().filter(agrees).collect();
        mates.sort_by_key(|mate| (mate.submitted, mate.id));
        let most = self.policy.batch_max.saturating_sub(1).min(fits);
        mates.iter().take(most).map(|mate| mate.id).collect()
    }
}

fn by_standing(a: &Standed<'_>, b: &Standed<'_>) -> Ordering {
    let age = || (a.0.submitted(), a.0.id()).cmp(&(b.0.submitted(), b.0.id()));
    b.1.as_if_s.total_cmp(&a.1.as_if_s).then_with(age)
}
