//! `lowtide jobs`: what the queue has, and its verbs.

use lowtide_core::job::{JobId, JobState, Priority};
use serde_json::{Value, json};

use super::{Http, found};
use crate::args::{JobsArgs, JobsVerb};
use crate::console::{self, Table};
use crate::failure::Failure;

/// The jobs among which the beginning or the end of an id is looked for.
const NEWEST: u32 = 500;

/// Runs a verb of `jobs`, or lists them.
pub(crate) fn run(args: &JobsArgs) -> Result<(), Failure> {
    if let Some(state) = &args.state {
        state
            .parse::<JobState>()
            .map_err(|wrong| Failure::mistake(format!("--state: {wrong}")))?;
    }
    let server = found(&args.server)?;
    let answer = match &args.verb {
        None => return list(&server, args),
        Some(JobsVerb::Show { id }) => {
            let job = server.get(&path(&server, id, "")?)?;
            return print(args, &job, shown(&job));
        }
        Some(JobsVerb::Cancel { id }) => server.delete(&path(&server, id, "")?)?,
        Some(JobsVerb::Pause { id }) => send(&server, id, "/pause", &json!({}))?,
        Some(JobsVerb::Resume { id }) => send(&server, id, "/resume", &json!({}))?,
        Some(JobsVerb::Requeue { id }) => send(&server, id, "/requeue", &json!({}))?,
        Some(JobsVerb::Priority { id, to }) => {
            let body = match to.as_str() {
                "front" => json!({ "front": true }),
                word => {
                    let priority: Priority = word
                        .parse()
                        .map_err(|wrong| Failure::mistake(format!("{wrong}, or front")))?;
                    json!({ "priority": priority.name() })
                }
            };
            send(&server, id, "/priority", &body)?
        }
    };
    print(args, &answer, after(&answer))
}

fn send(server: &Http, id: &str, verb: &str, body: &Value) -> Result<Value, Failure> {
    server.post(&path(server, id, verb)?, body)
}

/// The path of a job that is named by its id, or by the beginning or the end of it.
fn path(server: &Http, named: &str, verb: &str) -> Result<String, Failure> {
    let id = match named.parse::<JobId>() {
        Ok(id) => id.to_string(),
        Err(_) => {
            let page = server.get(&format!("/v1/jobs?limit={NEWEST}"))?;
            one_of(&page, named)?
        }
    };
    Ok(format!("/v1/jobs/{id}{verb}"))
}

fn one_of(page: &Value, named: &str) -> Result<String, Failure> {
    let jobs = page["jobs"].as_array().into_iter().flatten();
    let ids = jobs.filter_map(|job| job["id"].as_str());
    let mut fitting =
        ids.filter(|id| !named.is_empty() && (id.starts_with(named) || id.ends_with(named)));
    match (fitting.next(), fitting.count()) {
        (Some(id), 0) => Ok(id.to_owned()),
        (None, _) => Err(Failure::mistake(format!(
            "there is no job '{named}'; 'lowtide jobs' lists them"
        ))),
        (Some(_), more) => Err(Failure::mistake(format!(
            "'{named}' could be {} jobs; write more of the id",
            more + 1
        ))),
    }
}

fn print(args: &JobsArgs, answer: &Value, text: String) -> Result<(), Failure> {
    let text = if args.json {
        format!("{answer}\n")
    } else {
        text
    };
    Ok(console::print(&text)?)
}

fn list(server: &Http, args: &JobsArgs) -> Result<(), Failure> {
    let state = args
        .state
        .as_ref()
        .map_or_else(String::new, |state| format!("&state={state}"));
    let page = server.get(&format!("/v1/jobs?limit={}{state}", args.limit))?;
    print(args, &page, listed(&page))
}

fn listed(page: &Value) -> String {
    let jobs = page["jobs"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if jobs.is_empty() {
        return "  no jobs\n".to_owned();
    }
    let mut table = Table::new(&[5]);
    table.row(["job", "state", "kind", "model", "priority", "seconds", ""]);
    for job in jobs {
        table.row([
            word(&job["id"]),
            word(&job["state"]),
            word(&job["kind"]),
            word(&job["model"]),
            word(&job["priority"]),
            seconds(job),
            remark(job),
        ]);
    }
    table.text()
}

/// Seconds it ran, so far or in all.
fn seconds(job: &Value) -> String {
    match (job["started_ms"].as_u64(), job["finished_ms"].as_u64()) {
        (Some(from), Some(to)) => format!("{:.1}", to.saturating_sub(from) as f64 / 1e3),
        _ => String::new(),
    }
}

/// What else there is to say in a few words.
fn remark(job: &Value) -> String {
    let progress = &job["progress"];
    match word(&job["state"]).as_str() {
        "queued" => match (job["position"].as_u64(), job["eta_s"].as_f64()) {
            (Some(ahead), Some(eta)) => format!("{ahead} before it, about {eta:.0} s"),
            (Some(ahead), None) => format!("{ahead} before it"),
            _ => String::new(),
        },
        "running" | "parked" if progress.is_object() => format!(
            "{} {}/{}",
            word(&progress["phase"]),
            progress["step"],
            progress["steps"]
        ),
        "failed" => word(&job["error"]),
        _ => String::new(),
    }
}

/// Everything known of a job.
fn shown(job: &Value) -> String {
    let mut table = Table::new(&[]);
    for (name, value) in job.as_object().into_iter().flatten() {
        let empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        if !empty && !value.is_object() && !value.is_array() {
            table.row([name.clone(), word(value)]);
        }
    }
    for name in ["progress", "request", "report"] {
        for (field, value) in job[name].as_object().into_iter().flatten() {
            if !value.is_null() && *value != json!([]) {
                table.row([format!("{name}.{field}"), word(value)]);
            }
        }
    }
    for (index, artifact) in job["artifacts"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let text = format!(
            "{} {}",
            word(&artifact["media_type"]),
            word(&artifact["url"])
        );
        table.row([format!("file {}", index + 1), text]);
    }
    table.text()
}

/// What a verb led to.
fn after(job: &Value) -> String {
    let id = word(&job["id"]);
    let asked = |field: &str| job[field].as_bool() == Some(true);
    let soon = if asked("cancel_requested") && job["state"] != "cancelled" {
        "; it ends at its next step"
    } else if asked("pause_requested") && job["state"] != "paused" {
        "; it pauses at its next step"
    } else {
        ""
    };
    format!("  {id}  {}{soon}\n", word(&job["state"]))
}

/// A value as text; nothing for nothing.
fn word(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => crate::failure::one_line(text),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_found_by_an_end_that_only_it_has() {
        let page = json!({ "jobs": [{ "id": "01aax" }, { "id": "01aay" }] });
        assert_eq!(one_of(&page, "ay").unwrap(), "01aay");
        assert!(
            one_of(&page, "01")
                .unwrap_err()
                .to_string()
                .contains("2 jobs")
        );
        assert!(
            one_of(&page, "zz")
                .unwrap_err()
                .to_string()
                .contains("no job 'zz'")
        );
        assert!(one_of(&page, "").is_err());
    }

    #[test]
    fn a_list_says_what_matters_in_each_state() {
        let page = json!({ "jobs": [
            { "id": "a", "state": "queued", "kind": "k", "model": "m", "priority": "batch", "position": 2, "eta_s": 9.4 },
            { "id": "b", "state": "running", "progress": { "phase": "denoise", "step": 3, "steps": 20 } },
            { "id": "c", "state": "done", "started_ms": 1000, "finished_ms": 3500 },
            { "id": "d", "state": "failed", "error": "no\nroom" },
        ]});
        let text = listed(&page);
        for part in ["2 before it, about 9 s", "denoise 3/20", "2.5", "no room"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(listed(&json!({ "jobs": [] })), "  no jobs\n");
    }
}
