//! The HTTP server on a thread of its own.

use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context;
use lowtide_jobs::{ArtifactStore, InputStore, JobStore, Retention, Tracer};
use lowtide_server::{AuditSink, Door, End, Options, Server, end_signal};
use serde_json::json;

use super::log::{Level, Logger};
use super::settings::Settings;
use super::webhooks;
use crate::failure::Failure;

/// A server that listens.
pub(crate) struct Net {
    end: End,
    thread: JoinHandle<std::io::Result<()>>,
}

/// What a server speaks about.
pub(crate) struct Subjects {
    pub(crate) store: Arc<dyn JobStore>,
    pub(crate) artifacts: Arc<dyn ArtifactStore>,
    pub(crate) inputs: Arc<dyn InputStore>,
    pub(crate) door: Arc<dyn Door>,
    pub(crate) tracer: Option<Arc<dyn Tracer>>,
}

impl Net {
    /// Starts one on this listener.
    ///
    /// # Errors
    /// When there is no thread for it, or no secret for webhooks.
    pub(crate) fn start(
        listener: TcpListener,
        subjects: Subjects,
        (settings, log): (&Settings, &Logger),
    ) -> Result<Net, Failure> {
        let Subjects {
            store,
            artifacts,
            inputs,
            door,
            tracer,
        } = subjects;
        let options = Options {
            tracer,
            ..options(settings, log)?
        };
        let server = Server::new(store, artifacts, inputs, door, options);
        let (end, ended) = end_signal();
        let thread = std::thread::Builder::new()
            .name("server".to_owned())
            .spawn(move || server.serve(listener, ended))
            .context("no thread for the server")?;
        Ok(Net { end, thread })
    }

    /// Whether it ended although nobody asked it to.
    pub(crate) fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Takes no more connections, finishes what is under way.
    ///
    /// # Errors
    /// What ended it before.
    pub(crate) fn stop(self) -> Result<(), Failure> {
        self.end.now();
        match self.thread.join() {
            Ok(result) => Ok(result.context("the HTTP server")?),
            Err(_) => Err(Failure::Other(anyhow::anyhow!(
                "the HTTP server panicked; this is a bug"
            ))),
        }
    }
}

/// Lines that tell who did what. They are told whatever else is left out.
fn audit(log: &Logger) -> AuditSink {
    let log = log.named("audit");
    AuditSink::new(move |line| {
        let jobs: Vec<String> = line.jobs.iter().map(ToString::to_string).collect();
        let fields = json!({
            "audit": true, "who": line.who, "key": line.key, "address": line.from, "what": line.what,
            "subject": line.subject, "jobs": jobs, "status": line.status,
        });
        let fields = fields.as_object().cloned().unwrap_or_default();
        log.say_always(Level::Info, &line.to_string(), fields);
    })
}

fn options(settings: &Settings, log: &Logger) -> Result<Options, Failure> {
    let server = &settings.server;
    let queue = &settings.queue;
    Ok(Options {
        access: server.access,
        audit: Some(audit(log)),
        hosts: server.hosts.clone(),
        origins: server.origins.clone(),
        body_max: server.body_max,
        input_max: server.input_max,
        connections_max: server.connections_max,
        panel: server.panel,
        openai: server.openai,
        sdapi: server.sdapi,
        comfyui: server.comfyui,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        retention: Some(Retention {
            age_max: queue.retention_age,
            artifacts_max: Some(queue.retention_bytes),
            jobs_max: Some(queue.retention_jobs),
        }),
        webhooks: webhooks::options(settings, log)?,
        ..Options::default()
    })
}
