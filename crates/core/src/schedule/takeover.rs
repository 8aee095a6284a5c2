//! Between two steps of a session: whether another takes its place.

use super::choose::{Choice, Choosing, Contender, Standed};
use super::policy::{Claim, Standing};
use super::reason::{Stay, Why};
use super::room::Room;
use super::{Action, Session};
use crate::job::Moment;
use crate::lifecycle::Residency;

/// A session is parked for one of its own class only when that one is at most this part of what is left: then both
/// together finish sooner on average.
const SHORTER: f64 = 0.5;

impl<'a> Choosing<'a> {
    /// `session` steps since the moment `since`.
    pub(super) fn between_steps(&mut self, session: &'a Session, since: Moment) -> Choice {
        let queued = self.queued();
        let full = self.open() >= self.device.open_max;
        let own = self.own_standing(session);
        let waiting = queued.len();
        let higher = |entry: &Standed<'_>| overrides(entry, session, &own);
        let mut stay = match waiting {
            0 => Stay::Alone,
            waiting => Stay::NoneBetter { waiting },
        };
        let full_for = |contenders: &[Standed<'_>]| full && contenders.iter().any(higher);
        if full_for(&queued) {
            stay = Stay::Full {
                open: self.open(),
                open_max: self.device.open_max,
            };
        }
        let mut contenders = self.parked();
        if !full {
            let starts = self.device.starts_since_oldest;
            let limited = starts + 1 >= 2 * self.policy.turn;
            if limited && queued.iter().any(higher) {
                stay = Stay::OldestNext { starts };
            }
            contenders.extend(queued.into_iter().filter(|(contender, _)| match contender {
                Contender::Queued(job, _) => !limited || self.is_oldest(job),
                Contender::Parked(..) => true,
            }));
        }
        let (higher, others): (Vec<Standed<'a>>, Vec<Standed<'a>>) =
            contenders.into_iter().partition(higher);
        let takeover = self
            .for_a_higher_class(session, &higher, &mut stay)
            .or_else(|| self.after_a_quantum(session, since, (&others, &own), &mut stay));
        takeover.unwrap_or_else(|| {
            let why = Why::Stays {
                remaining_s: session.remaining_s,
                stay,
            };
            (Action::Continue { job: session.id }, why, None)
        })
    }

    fn own_standing(&self, session: &Session) -> Standing {
        let claim = Claim {
            priority: session.priority,
            submitted: session.submitted,
            deadline: session.deadline,
            seconds: session.remaining_s,
            load_s: 0.0,
            begun: true,
        };
        self.policy.standing(&claim, self.now)
    }

    fn for_a_higher_class(
        &self,
        session: &Session,
        higher: &[Standed<'a>],
        stay: &mut Stay,
    ) -> Option<Choice> {
        let ((contender, standing), room) = self.room_for_best(session, higher, stay)?;
        let switch_s = self.switch_s(session, &contender, &room);
        if session.remaining_s <= switch_s {
            *stay = Stay::NearlyDone { switch_s };
            return None;
        }
        let why = Why::Higher {
            priority: contender.priority(),
            parked: session.priority,
            slack_s: standing.slack_s,
            remaining_s: session.remaining_s,
            switch_s,
        };
        Some(self.go(contender, room, Some(session), why))
    }

    fn after_a_quantum(
        &self,
        session: &Session,
        since: Moment,
        (others, own): (&[Standed<'a>], &Standing),
        stay: &mut Stay,
    ) -> Option<Choice> {
        if own.slack_s.is_some() {
            return None;
        }
        let shorter = |(contender, _): &&Standed<'_>| {
            contender.priority() >= session.priority
                && contender.seconds() <= SHORTER * session.remaining_s
        };
        let shorter: Vec<Standed<'a>> = others.iter().filter(shorter).copied().collect();
        let ((contender, _), room) = self.room_for_best(session, &shorter, stay)?;
        let switch_s = self.switch_s(session, &contender, &room);
        if session.remaining_s <= switch_s {
            *stay = Stay::NearlyDone { switch_s };
            return None;
        }
        let both_resident =
            room.evict.is_empty() && contender.model().residency == Residency::Device;
        let least_s = if both_resident {
            0.0
        } else {
            self.policy.quantum_min_s
        };
        let quantum_s = (self.policy.quantum_ratio * switch_s)
            .max(contender.seconds())
            .max(least_s);
        let ran_s = self.now.seconds_since(since);
        if ran_s < quantum_s {
            *stay = Stay::Quantum { ran_s, quantum_s };
            return None;
        }
        let why = Why::Quantum {
            seconds: contender.seconds(),
            remaining_s: session.remaining_s,
            ran_s,
            switch_s,
            both_resident,
        };
        Some(self.go(contender, room, Some(session), why))
    }

    fn room_for_best(
        &self,
        session: &Session,
        contenders: &[Standed<'a>],
        stay: &mut Stay,
    ) -> Option<(Standed<'a>, Room)> {
        match self.best(contenders, Some(session)) {
            Ok(found) => Some(found),
            Err(None) => None,
            Err(Some(no_room)) => {
                *stay = Stay::NoRoom(no_room);
                None
            }
        }
    }

    /// What it costs that `contender` steps instead of `session`: to park and to resume, to load its model, and to load
    /// the session's again where that has to leave.
    fn switch_s(&self, session: &Session, contender: &Contender<'_>, room: &Room) -> f64 {
        let left = room.evict.iter().find(|gone| gone.model == session.model);
        let again_s =
            left.zip(self.model(&session.model))
                .map_or(0.0, |(gone, model)| match gone.to {
                    Residency::Device => 0.0,
                    Residency::Host => model.from_host_s,
                    Residency::Unloaded => model.from_file_s,
                });
        2.0 * self.policy.park_s + contender.model().load_s() + again_s
    }
}

/// Whether a contender may interrupt a session at once: it stands before it and is of a higher class, or of its class
/// with a deadline that is near when the session has none.
fn overrides((contender, standing): &Standed<'_>, session: &Session, own: &Standing) -> bool {
    let hurries = standing.slack_s.is_some() && own.slack_s.is_none();
    standing.as_if_s > own.as_if_s
        && (contender.priority() > session.priority
            || hurries && contender.priority() == session.priority)
}
