//! Why things are as they are, in sentences with numbers.

use axum::extract::State;
use axum::response::Response;
use lowtide_core::job::{JobState, Moment};
use lowtide_core::{Budget, Bytes};
use lowtide_jobs::report::Explanation;
use lowtide_jobs::{Job, Listing, Stats};
use serde_json::{Value, json};

use super::Routes;
use crate::answer;
use crate::app::{App, Inner};
use crate::fleet::Fleet;
use crate::incoming::Asked;
use crate::openapi::{Operation, reference};
use crate::refusal::Refusal;

pub(super) fn routes(routes: Routes) -> Routes {
    let explain = Operation::new(
        "memory",
        "Why things are as they are, and what more memory would buy",
    )
    .query(
        "more",
        json!({ "type": "string", "pattern": crate::schemas::SIZE, "examples": ["3GiB"] }),
        "Memory to imagine in addition; 1 and 3 GiB where left out",
    )
    .answers(200, "Sentences with their numbers", reference("Explain"));
    routes.get("/gpu/explain", explain_now, explain)
}

async fn explain_now(State(app): State<App>, mut asked: Asked) -> Result<Response, Refusal> {
    let more = asked.read::<Bytes>("more")?;
    asked.done()?;
    app.blocking(move |app| {
        let (stats, fleet, now) = (app.store.stats(app.now())?, app.fleet()?, app.now());
        let mut explanations = of_workers(&fleet);
        explanations.extend(of_queue(&stats, &fleet, now));
        let summary = explanations
            .first()
            .map_or_else(String::new, |first| first.text.clone());
        let imagined = more.map_or_else(|| app.options.what_if.clone(), |more| vec![more]);
        let what_if = match (fleet.budget(), subject(app)?) {
            (Some(budget), Some(job)) => what_if(app, &job, budget, &imagined),
            _ => Vec::new(),
        };
        Ok(answer::ok(
            &json!({ "summary": summary, "explanations": explanations, "what_if": what_if }),
        ))
    })
    .await
}

/// What workers say, the most important first.
fn of_workers(fleet: &Fleet) -> Vec<Explanation> {
    let several = fleet.alive().count() > 1;
    let mut all = Vec::new();
    for worker in fleet.alive() {
        for explanation in &worker.status.explanations {
            let mut explanation = explanation.clone();
            if several {
                explanation
                    .values
                    .insert("worker".to_owned(), json!(worker.id));
            }
            all.push(explanation);
        }
    }
    all
}

/// What the queue has to do with it.
fn of_queue(stats: &Stats, fleet: &Fleet, now: Moment) -> Vec<Explanation> {
    let waiting = stats.in_state(JobState::Queued);
    let running = stats.in_state(JobState::Running) + stats.in_state(JobState::Parked);
    let mut all = Vec::new();
    if fleet.alive().next().is_none() {
        let last = fleet.workers.iter().map(|worker| worker.seen).max();
        let text = match last {
            Some(seen) => format!(
                "No worker is there: the last one was heard of {:.0} s ago. {waiting} jobs wait.",
                now.seconds_since(seen)
            ),
            None => format!("No worker is there, and none ever was. {waiting} jobs wait."),
        };
        let last_s = last.map(|seen| now.seconds_since(seen));
        all.push(Explanation::new(
            "no_worker",
            text,
            json!({ "waiting": waiting, "last_seen_s": last_s }),
        ));
    } else if !fleet.ready() {
        let text = format!(
            "No worker begins jobs now: it starts, is paused or is about to end. {waiting} jobs wait."
        );
        all.push(Explanation::new(
            "no_worker_ready",
            text,
            json!({ "waiting": waiting }),
        ));
    }
    if stats.held {
        let text = format!("The queue is held by hand: {waiting} jobs wait until it is released.");
        all.push(Explanation::new(
            "queue_held",
            text,
            json!({ "waiting": waiting }),
        ));
    }
    let paused = stats.in_state(JobState::Paused);
    if paused > 0 {
        let text = format!("{paused} jobs are paused by hand and hold no memory.");
        all.push(Explanation::new(
            "jobs_paused",
            text,
            json!({ "paused": paused }),
        ));
    }
    match (waiting, running) {
        (0, 0) => {
            let done: u64 = stats.minutes.iter().map(|minute| minute.done).sum();
            let text = format!(
                "No job runs and none waits; {done} were done in the last hour. That is why the device is idle."
            );
            all.push(Explanation::new(
                "queue_empty",
                text,
                json!({ "done_last_hour": done }),
            ));
        }
        (0, _) => {
            let text = format!("{running} jobs run and none waits.");
            all.push(Explanation::new(
                "queue_keeps_up",
                text,
                json!({ "running": running }),
            ));
        }
        _ => all.push(longest(stats, (waiting, running), now)),
    }
    all
}

/// The job that has waited longest, and what goes before it.
fn longest(stats: &Stats, (waiting, running): (u64, u64), now: Moment) -> Explanation {
    let oldest = stats.oldest_waiting.iter().min_by_key(|(_, at)| **at);
    let Some((&priority, &at)) = oldest else {
        let text = format!("{waiting} jobs wait and {running} run.");
        return Explanation::new(
            "jobs_wait",
            text,
            json!({ "waiting": waiting, "running": running }),
        );
    };
    let before: u64 = stats
        .counts
        .iter()
        .filter(|((state, class), _)| *state == JobState::Queued && *class > priority)
        .map(|(_, jobs)| jobs)
        .sum();
    let waited_s = now.seconds_since(at);
    let values = json!({
        "waiting": waiting, "running": running, "priority": priority.name(), "waited_s": waited_s, "more_urgent": before,
    });
    match before {
        0 => Explanation::new(
            "jobs_wait",
            format!("{waiting} jobs wait and {running} run; the longest wait is {waited_s:.0} s."),
            values,
        ),
        _ => Explanation::new(
            "waits_for_priority",
            format!(
                "{waiting} jobs wait and {running} run; the longest wait, {waited_s:.0} s, is of a {priority} job, because \
                 {before} more urgent ones go before it. Its wait counts: it is not passed over for ever."
            ),
            values,
        ),
    }
}

/// The job that runs, or the latest one.
fn subject(app: &Inner) -> Result<Option<Job>, Refusal> {
    for states in [vec![JobState::Running], Vec::new()] {
        let listing = Listing {
            states,
            limit: 1,
            ..Listing::default()
        };
        if let Some(found) = app.store.list(&listing)?.first() {
            return Ok(Some(app.store.job(found.id)?));
        }
    }
    Ok(None)
}

/// What each of these sizes in addition would save.
fn what_if(app: &Inner, job: &Job, budget: Budget, imagined: &[Bytes]) -> Vec<Value> {
    let planned = |budget: Budget| {
        let request = serde_json::from_str(&job.request).ok()?;
        let planned = app
            .door
            .plan(&job.kind, Some(&job.model), request, Some(budget))
            .ok()?;
        Some(planned.checked.hints.seconds)
    };
    let Some(now_s) = planned(budget) else {
        return Vec::new();
    };
    let with = |&more: &Bytes| {
        let total = budget.total.checked_add(more)?;
        let seconds = planned(Budget { total, ..budget })?;
        let saves_s = (now_s - seconds).max(0.0);
        // Less than a hundredth is within what a prediction can be wrong by.
        let text = match saves_s > now_s * 0.01 {
            true => format!(
                "With {more} more, a job like the latest would take {seconds:.1} s instead of {now_s:.1} s."
            ),
            false => format!(
                "{more} more would save a job like the latest nothing: it takes {now_s:.1} s either way."
            ),
        };
        Some(json!({ "more_bytes": more.0, "seconds": seconds, "saves_s": saves_s, "text": text }))
    };
    imagined.iter().filter_map(with).collect()
}
