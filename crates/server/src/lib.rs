//! Speaks: HTTP, events, metrics, the panel.
//!
//! The server knows jobs by their records in a [`JobStore`](lowtide_jobs::JobStore) and workers by what they say of
//! themselves there. What a kind of job means is behind a [`Door`], which whoever wires the program opens.
//!
//! [`Server::serve`] is given a listener and an end signal. Calls to the store block and are made on threads that may;
//! one thread reads events for all clients, another lets time pass. Routes and their description come from one list.

#![forbid(unsafe_code)]

mod access;
mod answer;
mod app;
mod base64;
mod counters;
mod door;
mod downloads;
mod fields;
mod fleet;
mod guard;
mod history;
mod hub;
mod incoming;
mod keeper;
mod listen;
mod openapi;
mod options;
mod outlook;
mod pictures;
mod refusal;
mod routes;
mod schemas;
mod server;
mod traced;
mod view;
mod webhooks;
mod words;

pub use access::AccessMode;
pub use access::audit::{AuditSink, Audited};
pub use door::{Checked, Door, Extra, Kind, ModelEntry, Planned, Refused};
pub use downloads::{Download, DownloadState, Downloads, NotFetched, Offer};
pub use options::{Clock, Options};
pub use server::{End, Server, end_signal};
pub use webhooks::{NoticeSink, Reach, WebhookHosts, WebhookOptions, WebhookSecret};
