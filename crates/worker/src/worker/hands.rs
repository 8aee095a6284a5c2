//! What people ask for: cancelling, pausing, moving models, ending.

use lowtide_core::lifecycle::Order as ModelOrder;
use lowtide_jobs::report::WorkerState;
use lowtide_jobs::{Acknowledgement, Lease, Order as Command, SavedSession};
use serde_json::json;

use super::{Worker, clock};
use crate::log::Level;
use crate::publisher::patiently;

impl Worker {
    /// Looks what people want of the open sessions: cancelled members go, paused ones are saved and given back.
    pub(super) fn obey(&mut self) -> lowtide_jobs::Result<()> {
        let mut place = 0;
        while place < self.sessions.len() {
            let members: Vec<(usize, Lease)> = self.sessions[place]
                .present()
                .map(|(member, who)| (member, who.lease.clone()))
                .collect();
            for (member, lease) in members {
                let look = self.keeper.look(&lease);
                if look.lost {
                    // Its file stays: whoever has the job may go on from there.
                    let text = format!(
                        "job {} is somebody else's now; this attempt is dropped",
                        lease.job
                    );
                    self.log
                        .say(Level::Warn, text, json!({ "job": lease.job.to_string() }));
                    self.leave(place, member);
                } else if look.directive.cancel {
                    self.tallies.cancelled.add();
                    self.stop_member(place, member);
                    let text = format!("job {} stopped: it was cancelled", lease.job);
                    self.log
                        .say(Level::Info, text, json!({ "job": lease.job.to_string() }));
                } else if look.directive.pause {
                    self.give_back(place, member);
                    let text = format!("job {} paused: its memory is given back", lease.job);
                    self.log
                        .say(Level::Info, text, json!({ "job": lease.job.to_string() }));
                }
            }
            if self.sessions[place].is_deserted() {
                self.close(place);
            } else {
                place += 1;
            }
        }
        Ok(())
    }

    /// A member goes.
    fn leave(&mut self, place: usize, member: usize) {
        let open = &mut self.sessions[place];
        open.drop_member(member);
        self.keeper.let_go(&open.members[member].lease);
    }

    /// A member that nobody wants any more goes, with what was saved of it.
    fn stop_member(&mut self, place: usize, member: usize) {
        let lease = self.sessions[place].members[member].lease.clone();
        let told = patiently(clock, |now| self.store.stopped(&lease, now));
        if told.is_ok() {
            self.depot
                .remove(&self.sessions[place].members[member].files);
        }
        self.note_refusal(&lease, told);
        self.leave(place, member);
    }

    /// Saves a member and gives its job back.
    pub(super) fn give_back(&mut self, place: usize, member: usize) {
        let open = &mut self.sessions[place];
        let lease = open.members[member].lease.clone();
        let session: Option<SavedSession> = match open.save(member, self.depot.folder(), &self.id) {
            Ok(session) => session,
            Err(error) => {
                self.log_unsaved(&lease, &error);
                None
            }
        };
        if let Some(session) = &session {
            self.depot.share(&session.location);
        }
        let told = patiently(clock, |now| {
            self.store.give_back(&lease, session.clone(), now)
        });
        self.note_refusal(&lease, told.map(drop));
        self.leave(place, member);
    }

    /// Ends a session whose members are all gone.
    pub(super) fn close(&mut self, place: usize) {
        let open = self.sessions.swap_remove(place);
        let leaving = open.leaving();
        drop(open);
        self.shelf.tell_all(leaving);
    }

    pub(super) fn commands(&mut self) -> lowtide_jobs::Result<()> {
        for command in self.store.commands(&self.id, clock())? {
            let (ok, message) = self.carry_out(&command.order);
            let text = format!("by hand: {message}");
            self.log.say(
                Level::Info,
                text,
                json!({ "command": command.id.0, "ok": ok }),
            );
            let answer = Acknowledgement {
                at: clock(),
                ok,
                message,
            };
            if let Err(error) = self.store.acknowledge(&self.id, command.id, answer) {
                // It is given again, and doing it twice does no harm.
                let text = format!("the queue did not take an answer: {error}");
                self.log.say(Level::Warn, text, json!({}));
            }
            self.say(true);
        }
        Ok(())
    }

    pub(super) fn carry_out(&mut self, order: &Command) -> (bool, String) {
        let moved = |answer: std::result::Result<String, String>| match answer {
            Ok(message) => (true, message),
            Err(message) => (false, message),
        };
        match order {
            Command::Load { model } => {
                self.status.state = WorkerState::Loading;
                self.say(true);
                moved(self.shelf.order(Some(model), ModelOrder::Load))
            }
            Command::Offload { model } => {
                moved(self.shelf.order(model.as_deref(), ModelOrder::Offload))
            }
            Command::Release { model } => {
                moved(self.shelf.order(model.as_deref(), ModelOrder::Release))
            }
            Command::Cancel { job } => {
                self.keeper.ask(*job);
                (true, format!("looked at job {job}"))
            }
            Command::Pause { job: Some(job) } => {
                self.keeper.ask(*job);
                (true, format!("looked at job {job}"))
            }
            Command::Pause { job: None } => {
                self.paused = true;
                (
                    true,
                    "paused: what runs is parked, nothing begins".to_owned(),
                )
            }
            Command::Resume => {
                self.paused = false;
                (true, "resumed".to_owned())
            }
            Command::Drain => {
                self.draining = true;
                (true, "ends as soon as what runs is saved".to_owned())
            }
        }
    }
}
