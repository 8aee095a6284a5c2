//! News of graphs over a web socket, as ComfyUI's clients wait for them.

use std::collections::HashSet;
use std::sync::Arc;

use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use lowtide_core::job::{JobId, JobState};
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;

use super::board::{CLIENT_LEN_MAX, Entry};
use super::{Foreign, operation, queue};
use crate::access::{self, Caller};
use crate::app::App;
use crate::hub::{self, Line};
use crate::incoming::Asked;
use crate::refusal::Refusal;
use crate::routes::Routes;
use crate::schemas;

/// Clients send next to nothing.
const MESSAGE_MAX: usize = 64 << 10;

pub(super) fn routes(routes: Routes, at: &impl Fn(&str) -> String) -> Routes {
    let socket = operation("News over a web socket")
        .query("clientId", schemas::name(), "Whose graphs are told of")
        .answers_nothing(101, "The socket is open")
        .refuses(&[426]);
    routes.get(&at("/ws"), socket_of, socket)
}

async fn socket_of(
    State(app): State<App>,
    mut asked: Asked,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Result<Response, Foreign> {
    let client = asked.text("clientId")?;
    asked.done()?;
    if client
        .as_ref()
        .is_some_and(|client| client.len() > CLIENT_LEN_MAX)
    {
        return Err(Refusal::malformed("clientId", "it is too long").into());
    }
    let upgrade = upgrade.map_err(|error| Refusal::Malformed {
        field: None,
        problem: format!("this is for web sockets: {error}"),
    })?;
    // Listened to before the answer: what happens after it is heard.
    let (lines, _) = hub::listen(&app).await?;
    let upgrade = upgrade
        .max_message_size(MESSAGE_MAX)
        .max_frame_size(MESSAGE_MAX);
    let caller = app.caller();
    Ok(upgrade.on_upgrade(move |socket| async move {
        let client = client.unwrap_or_else(|| JobId::new(app.now(), 0).to_string());
        let mut talk = Talk {
            app,
            caller: Arc::clone(&caller),
            client,
            socket,
            over: HashSet::new(),
        };
        // A socket that breaks is a client that went away.
        let _ = access::scope(caller, talk.run(lines)).await;
    }))
}

struct Talk {
    app: App,
    caller: Arc<Caller>,
    client: String,
    socket: WebSocket,
    /// Jobs whose end was told.
    over: HashSet<JobId>,
}

/// The client went away, or its key was revoked.
struct Gone;

impl Talk {
    async fn run(
        &mut self,
        mut lines: tokio::sync::broadcast::Receiver<Arc<Line>>,
    ) -> Result<(), Gone> {
        let mut ending = self.app.hub.ending();
        self.status(true).await?;
        // A graph that was done before its client listened is told of now.
        self.catch_up().await?;
        loop {
            tokio::select! {
                line = lines.recv() => match line {
                    Ok(line) => self.tell(&line).await?,
                    Err(RecvError::Lagged(_)) => self.catch_up().await?,
                    Err(RecvError::Closed) => return Ok(()),
                },
                message = self.socket.recv() => match message {
                    // What clients say, such as what they could show, needs no answer; pings have theirs already.
                    Some(Ok(Message::Close(_))) | Some(Err(_)) | None => return Ok(()),
                    Some(Ok(_)) => {}
                },
                () = hub::ended(&mut ending) => return Ok(()),
            }
        }
    }

    async fn send(&mut self, kind: &str, data: Value) -> Result<(), Gone> {
        let text = json!({ "type": kind, "data": data }).to_string();
        self.socket
            .send(Message::text(text))
            .await
            .map_err(|_| Gone)
    }

    async fn status(&mut self, first: bool) -> Result<(), Gone> {
        let Ok(remaining) = self.app.blocking(queue::count).await else {
            return Ok(());
        };
        let mut data = json!({ "status": { "exec_info": { "queue_remaining": remaining } } });
        if first {
            data["sid"] = json!(self.client);
        }
        self.send("status", data).await
    }

    /// Tells of jobs that ended unheard.
    async fn catch_up(&mut self) -> Result<(), Gone> {
        for job in self.app.comfy.jobs_of(&self.client, &self.caller) {
            if let Some(entry) = self.app.comfy.entry(job, &self.caller) {
                self.end(&entry).await?;
            }
        }
        Ok(())
    }

    async fn tell(&mut self, line: &Line) -> Result<(), Gone> {
        if !self.app.still_may(&self.caller) {
            return Err(Gone);
        }
        let caller = &self.caller;
        let entry = line.job.and_then(|job| self.app.comfy.entry(job, caller));
        let Some(entry) = entry else {
            return Ok(());
        };
        if entry.client == self.client {
            self.own(&entry, line).await?;
        }
        match line.name.as_str() {
            "progress" | "position" => Ok(()),
            _ => self.status(false).await,
        }
    }

    /// News of a graph of this client.
    async fn own(&mut self, entry: &Entry, line: &Line) -> Result<(), Gone> {
        let id = entry.job.to_string();
        let data: Value = serde_json::from_str(&line.data).unwrap_or_default();
        match line.name.as_str() {
            "claimed" => {
                self.send(
                    "execution_start",
                    json!({ "prompt_id": id, "timestamp": data["at_ms"] }),
                )
                .await?;
                self.send(
                    "execution_cached",
                    json!({ "nodes": [], "prompt_id": id, "timestamp": data["at_ms"] }),
                )
                .await?;
                let node = &entry.sampler;
                self.send(
                    "executing",
                    json!({ "node": node, "display_node": node, "prompt_id": id }),
                )
                .await
            }
            "progress" => {
                let (value, max) = (&data["step"], &data["steps"]);
                self.send(
                    "progress",
                    json!({ "value": value, "max": max, "prompt_id": id, "node": entry.sampler }),
                )
                .await
            }
            _ if line.over => self.end(entry).await,
            _ => Ok(()),
        }
    }

    /// Tells how a graph ended, once.
    async fn end(&mut self, entry: &Entry) -> Result<(), Gone> {
        if self.over.contains(&entry.job) {
            return Ok(());
        }
        let id = entry.job;
        let Ok(job) = self.app.ask(move |store| store.job(id)).await else {
            return Ok(());
        };
        if !job.state.is_final() {
            return Ok(());
        }
        self.over.insert(entry.job);
        let id = entry.job.to_string();
        let at = job.finished.map(|at| at.0);
        let node = &entry.sampler;
        let class = entry.class(node);
        match job.state {
            JobState::Done => {
                for output in &entry.outputs {
                    let told = queue::output(entry, output, &job);
                    self.send(
                        "executed",
                        json!({ "node": output, "display_node": output, "output": told, "prompt_id": id }),
                    )
                    .await?;
                }
                self.send("execution_success", json!({ "prompt_id": id, "timestamp": at })).await?;
                self.send("executing", json!({ "node": null, "prompt_id": id })).await
            }
            JobState::Cancelled => {
                self.send(
                    "execution_interrupted",
                    json!({ "prompt_id": id, "node_id": node, "node_type": class, "executed": [], "timestamp": at }),
                )
                .await
            }
            _ => {
                self.send(
                    "execution_error",
                    json!({
                        "prompt_id": id, "node_id": node, "node_type": class, "executed": [],
                        "exception_message": job.error, "exception_type": "Failed", "traceback": [],
                        "current_inputs": {}, "current_outputs": [], "timestamp": at,
                    }),
                )
                .await
            }
        }
    }
}
