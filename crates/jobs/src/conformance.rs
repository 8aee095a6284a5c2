//! The promises of a store, as functions any store's tests can run.
//!
//! A [`Fixture`] is one empty store that can be opened several times, as several processes would. Each promise gets a
//! fixture of its own:
//!
//! ```text
//! macro_rules! tests {
//!     ($($promise:ident),* $(,)?) => {
//!         $(#[test] fn $promise() { lowtide_jobs::conformance::$promise(&Mine::new()); })*
//!     };
//! }
//! lowtide_jobs::for_each_promise!(tests);
//! ```

mod access;
mod calls;
mod control;
mod leases;
mod log;
mod model;
mod past;
mod submitting;
mod walk;

use std::time::Duration;

use lowtide_core::job::{JobId, JobState, Moment, RetryPolicy};

use crate::{Claimed, Job, JobStore, Policy, StoreError, Submission, WorkerId};

pub use access::{
    an_owner_keeps_to_its_quota, keys_are_known_to_every_process, owners_have_turns,
    usage_is_counted_by_name,
};
pub use calls::{
    a_vanished_caller_changes_nothing, a_webhook_is_part_of_what_was_asked,
    an_end_is_owed_until_it_was_told, an_end_that_was_taken_back_is_not_told,
    another_end_is_told_anew,
};
pub use control::{
    a_cancelled_run_stops_at_its_next_look, a_failed_job_can_be_requeued,
    a_held_queue_gives_nothing_out, a_paused_job_waits_for_a_person,
    a_waiting_job_is_cancelled_at_once, jobs_can_be_moved, what_was_to_begin_earlier_fails,
};
pub use leases::{
    a_job_is_done_once, a_stale_attempt_changes_nothing, an_ended_lease_goes_back_and_then_fails,
    candidates_come_in_order_and_no_priority_hides_another, failures_wait_and_are_limited,
    jobs_of_a_dead_worker_go_back_at_once, of_many_claims_one_wins,
    sessions_are_kept_where_they_can_go_on, several_are_claimed_at_once,
};
pub use log::{
    changes_by_others_are_noticed, commands_are_given_until_acknowledged,
    events_tell_a_life_and_resume, numbers_agree_with_the_jobs, progress_and_previews_are_shown,
    workers_are_known_until_they_are_gone,
};
pub use past::{
    inputs_are_named_as_long_as_their_jobs_are_known, jobs_are_listed_in_pages,
    retention_forgets_the_oldest,
};
pub use submitting::{
    a_batch_is_accepted_whole_or_not_at_all, a_full_queue_refuses_and_says_when,
    another_request_under_the_same_key_is_refused, the_same_again_is_the_same_job,
    what_is_submitted_is_there, what_makes_no_sense_is_refused,
};
pub use walk::random_histories_agree_with_a_simple_model;

/// An empty store that can be opened several times.
pub trait Fixture {
    /// Opens it, the way another process would.
    fn open(&self, policy: Policy) -> Box<dyn JobStore>;
}

/// Hands the names of all promises to a macro.
#[macro_export]
macro_rules! for_each_promise {
    ($to:ident) => {
        $to! {
            what_is_submitted_is_there,
            the_same_again_is_the_same_job,
            another_request_under_the_same_key_is_refused,
            a_batch_is_accepted_whole_or_not_at_all,
            a_full_queue_refuses_and_says_when,
            what_makes_no_sense_is_refused,
            candidates_come_in_order_and_no_priority_hides_another,
            of_many_claims_one_wins,
            several_are_claimed_at_once,
            a_job_is_done_once,
            a_stale_attempt_changes_nothing,
            an_ended_lease_goes_back_and_then_fails,
            jobs_of_a_dead_worker_go_back_at_once,
            failures_wait_and_are_limited,
            sessions_are_kept_where_they_can_go_on,
            a_waiting_job_is_cancelled_at_once,
            a_cancelled_run_stops_at_its_next_look,
            a_paused_job_waits_for_a_person,
            a_failed_job_can_be_requeued,
            jobs_can_be_moved,
            a_held_queue_gives_nothing_out,
            what_was_to_begin_earlier_fails,
            events_tell_a_life_and_resume,
            changes_by_others_are_noticed,
            progress_and_previews_are_shown,
            numbers_agree_with_the_jobs,
            commands_are_given_until_acknowledged,
            workers_are_known_until_they_are_gone,
            jobs_are_listed_in_pages,
            retention_forgets_the_oldest,
            inputs_are_named_as_long_as_their_jobs_are_known,
            keys_are_known_to_every_process,
            usage_is_counted_by_name,
            an_owner_keeps_to_its_quota,
            owners_have_turns,
            an_end_is_owed_until_it_was_told,
            a_vanished_caller_changes_nothing,
            another_end_is_told_anew,
            an_end_that_was_taken_back_is_not_told,
            a_webhook_is_part_of_what_was_asked,
            random_histories_agree_with_a_simple_model,
        }
    };
}

/// When the promises begin.
const START: Moment = Moment(1_700_000_000_000);

/// How long leases are.
const LEASE: Duration = Duration::from_secs(10);

/// So many milliseconds after the beginning.
fn at(ms: u64) -> Moment {
    Moment(START.0 + ms)
}

/// The `number`th id.
fn id(number: u64) -> JobId {
    JobId::new(START, u128::from(number))
}

fn worker(name: &str) -> WorkerId {
    name.parse().expect("it is a plain name")
}

/// Small numbers, so that limits are reached.
fn strict() -> Policy {
    Policy {
        retry: RetryPolicy {
            failures_max: 2,
            losses_max: 3,
            backoff_first: Duration::from_secs(4),
            backoff_max: Duration::from_secs(60),
        },
        ..Policy::default()
    }
}

fn plain(number: u64) -> Submission {
    Submission::new(
        id(number),
        "text-to-image",
        "demo",
        "{\"prompt\":\"a heart\"}",
    )
}

fn submit(store: &dyn JobStore, number: u64, now: Moment) -> JobId {
    let accepted = store.submit(plain(number), now);
    accepted.expect("there is room").job
}

fn claim(store: &dyn JobStore, job: JobId, now: Moment) -> Claimed {
    let claimed = store.claim(job, &worker("one"), LEASE, now);
    claimed.expect("nobody has it")
}

fn get(store: &dyn JobStore, job: JobId) -> Job {
    store.job(job).expect("it was submitted")
}

fn state(store: &dyn JobStore, job: JobId) -> JobState {
    get(store, job).state
}

/// The ids of what can be claimed.
fn candidates(store: &dyn JobStore, now: Moment) -> Vec<JobId> {
    let found = store.candidates(100, now).expect("the store answers");
    found.jobs.iter().map(|job| job.id).collect()
}

#[track_caller]
fn lost<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    match result {
        Err(StoreError::LeaseLost { .. }) => {}
        other => panic!("the lease is lost, but: {other:?}"),
    }
}
