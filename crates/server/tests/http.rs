//! The server over real sockets, with a real store and real files; only the pictures are pretended.

#![allow(clippy::unwrap_used)]

#[path = "http/access.rs"]
mod access;
#[path = "http/comfy.rs"]
mod comfy;
#[path = "http/inputs.rs"]
mod inputs;
#[path = "http/life.rs"]
mod life;
#[path = "http/manners.rs"]
mod manners;
#[path = "http/pretend.rs"]
mod pretend;
#[path = "http/receiver.rs"]
mod receiver;
#[path = "http/sdapi.rs"]
mod sdapi;
#[path = "http/sdapi_more.rs"]
mod sdapi_more;
#[path = "http/server.rs"]
mod server;
#[path = "http/studio.rs"]
mod studio;
#[path = "http/webhooks.rs"]
mod webhooks;
