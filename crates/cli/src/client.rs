//! The verbs that ask a running server: which one, how, and what they print.
//!
//! In reading order: [`http`] (one request, its answer or the reason), [`hand_over`] (`generate`), [`mod@upscale`], [`mod@jobs`],
//! [`live`] (`ps`, `explain`), [`models`], [`mod@pull`].

mod detail;
mod hand_over;
mod http;
mod jobs;
mod live;
mod models;
mod picture;
mod pull;
mod upscale;

use crate::args::{ServerArgs, SettingArgs};
use crate::failure::Failure;
use crate::service::{Surroundings, data_folder_of, running};

pub(crate) use detail::detail;
pub(crate) use hand_over::generate;
pub(crate) use http::Http;
pub(crate) use jobs::run as jobs;
pub(crate) use live::{explain, ps};
pub(crate) use models::order as order_model;
pub(crate) use pull::pull;
pub(crate) use upscale::upscale;

/// The variable that names a server.
const SERVER_VARIABLE: &str = "LOWTIDE_SERVER";

/// The variable that has a key to it. There is no argument for that: others on the machine can read those.
const KEY_VARIABLE: &str = "LOWTIDE_KEY";

/// The server that is meant, if there is one: by argument, by variable, or the one that runs on this machine.
///
/// # Errors
/// When what names it is no address, or the settings that say where its data is are wrong.
pub(crate) fn find(args: &ServerArgs) -> Result<Option<Http>, Failure> {
    let around = Surroundings::of_process();
    let key = around
        .variables
        .get(KEY_VARIABLE)
        .filter(|key| !key.is_empty());
    let keyed = |server: Http| Some(server.with_key(key.map(String::as_str)));
    if let Some(url) = &args.server {
        return Http::new(url, "--server").map(keyed);
    }
    let variable = around.variables.get(SERVER_VARIABLE);
    if let Some(url) = variable.filter(|url| !url.is_empty() && args.data_dir.is_none()) {
        return Http::new(url, SERVER_VARIABLE).map(keyed);
    }
    let settings = SettingArgs {
        data_dir: args.data_dir.clone(),
        ..SettingArgs::default()
    };
    let Some(folder) = data_folder_of(&settings, &around)? else {
        return Ok(None);
    };
    match running(&folder) {
        Some(server) => Http::new(&server.url, "server.json").map(keyed),
        None => Ok(None),
    }
}

/// As [`find`]; no server is a mistake.
///
/// # Errors
/// As [`find`], and when there is none.
pub(crate) fn found(args: &ServerArgs) -> Result<Http, Failure> {
    find(args)?.ok_or_else(|| {
        Failure::mistake(
            "no server is running on this machine; start one with 'lowtide serve', or name one with --server",
        )
    })
}
