//! Models that a service fetches from the hub, in the background: because a job names one that is not here, or because
//! somebody asked.
//!
//! A job whose model is not here waits in the queue as any other; that it does is what starts a download, so that after
//! any end of this process the next one goes on. What came of files is kept by the hub's cache. Nothing about downloads
//! is stored but that.

mod entry;
mod keeper;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lowtide_core::job::JobId;
use lowtide_hub::{Choice, Error as HubError, Order, Settings as HubSettings, Stop, Wanted, look};
use lowtide_jobs::JobStore;
use lowtide_server::{Download, DownloadState, Downloads, NotFetched, Offer};

use super::catalog::Catalog;
use super::folders::Surroundings;
use super::settings::ModelsSettings;
use crate::failure::one_line;
use crate::models::hub_settings;
use crate::pull::PARALLEL;

use entry::Entry;
pub(crate) use keeper::Keeper;

/// The most downloads that are known, ended ones included.
const KNOWN_MAX: usize = 64;

/// Fetches models for a service.
pub(crate) struct Fetcher {
    /// How the hub is asked, or what is wrong with what the environment says of it.
    hub: Result<HubSettings, String>,
    /// Whether the settings allow it.
    allowed: bool,
    catalog: Arc<Catalog>,
    store: Arc<dyn JobStore>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// In the order they were asked for.
    entries: Vec<Entry>,
    /// Jobs whose model does not come, and why, until they are told.
    hopeless: BTreeMap<JobId, String>,
    /// The service ends: what runs stops, nothing begins.
    ending: bool,
}

impl Fetcher {
    /// One that fetches where the settings allow it.
    pub(crate) fn new(
        settings: &ModelsSettings,
        around: &Surroundings,
        (catalog, store): (Arc<Catalog>, Arc<dyn JobStore>),
    ) -> Arc<Fetcher> {
        Arc::new(Fetcher {
            hub: hub_settings(around).map_err(|error| one_line(&error.to_string())),
            allowed: settings.download,
            catalog,
            store,
            state: Mutex::default(),
        })
    }

    /// A model's name at the hub, as it is listed once it is here; `None` where it can be none.
    pub(crate) fn wanted(name: &str) -> Option<Wanted> {
        // Very old repositories have no owner; here such names are those of folders.
        name.parse().ok().filter(|_| name.contains('/'))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settings(&self) -> Result<&HubSettings, NotFetched> {
        match self.forbidden() {
            None => self
                .hub
                .as_ref()
                .map_err(|why| NotFetched::Forbidden(why.clone())),
            Some(why) => Err(NotFetched::Forbidden(why)),
        }
    }

    fn read(name: &str) -> Result<Wanted, NotFetched> {
        match name.parse::<Wanted>() {
            Ok(wanted) if name.contains('/') => Ok(wanted),
            Ok(_) => Err(NotFetched::BadName(format!(
                "'{name}' is no name of a model at a hub: write org/name"
            ))),
            Err(error) => Err(refusal(&error)),
        }
    }
}

/// What a download of this model is.
fn order(wanted: &Wanted) -> Order {
    Order {
        wanted: wanted.clone(),
        choice: Choice::default(),
        parallel: PARALLEL,
    }
}

impl Downloads for Fetcher {
    fn forbidden(&self) -> Option<String> {
        match &self.hub {
            _ if !self.allowed => Some(
                "this server fetches no models; the setting models.download = true allows it, and 'lowtide pull' \
                 fetches one by hand"
                    .to_owned(),
            ),
            Err(problem) => Some(problem.clone()),
            Ok(settings) if settings.offline => {
                Some("HF_HUB_OFFLINE forbids asking the hub; start the server without it".to_owned())
            }
            Ok(_) => None,
        }
    }

    fn all(&self) -> Vec<Download> {
        self.lock().entries.iter_mut().map(Entry::view).collect()
    }

    fn offer(&self, model: &str) -> Result<Offer, NotFetched> {
        let settings = self.settings()?;
        let wanted = Fetcher::read(model)?;
        let offer = look(settings, &order(&wanted), &Stop::default());
        let offer = offer.map_err(|error| refusal(&error))?;
        Ok(Offer {
            model: wanted.to_string(),
            has_room: offer.has_room(),
            commit: offer.commit,
            files: offer.files,
            bytes: offer.bytes,
            missing: offer.missing,
            free: offer.free,
        })
    }

    fn begin(&self, model: &str) -> Result<Download, NotFetched> {
        self.settings()?;
        let wanted = Fetcher::read(model)?;
        let mut state = self.lock();
        let entry = state.entry(wanted)?;
        entry.by_hand = true;
        let view = entry.view();
        drop(state);
        self.store.nudge();
        Ok(view)
    }

    fn stop(&self, model: &str) -> Result<Download, NotFetched> {
        let wanted = Fetcher::read(model)?;
        let mut state = self.lock();
        let running = |entry: &&mut Entry| entry.wanted == wanted && !entry.state.is_over();
        let Some(entry) = state.entries.iter_mut().find(running) else {
            let problem = format!("'{wanted}' is not on its way");
            return Err(NotFetched::NotFound(problem));
        };
        entry.end(DownloadState::Stopped, None);
        let jobs = std::mem::take(&mut entry.jobs);
        let view = entry.view();
        for job in jobs {
            let why = "fetching its model was stopped; sent through the queue again, it goes on with what came";
            state.hopeless.insert(job, why.to_owned());
        }
        drop(state);
        self.store.nudge();
        Ok(view)
    }
}

impl State {
    /// The download of this model: the one under way, else a new one.
    fn entry(&mut self, wanted: Wanted) -> Result<&mut Entry, NotFetched> {
        let under_way = |entry: &Entry| entry.wanted == wanted && !entry.state.is_over();
        if let Some(at) = self.entries.iter().position(under_way) {
            return Ok(&mut self.entries[at]);
        }
        self.entries.retain(|entry| entry.wanted != wanted);
        if self.entries.len() >= KNOWN_MAX {
            let over = self.entries.iter().position(|entry| entry.state.is_over());
            let Some(over) = over else {
                let problem = format!("{KNOWN_MAX} models are on their way already; wait for one");
                return Err(NotFetched::Unavailable(problem));
            };
            self.entries.remove(over);
        }
        self.entries.push(Entry::new(wanted));
        Ok(self.entries.last_mut().expect("one was just added"))
    }
}

/// What the hub's trouble means to a client.
fn refusal(error: &HubError) -> NotFetched {
    let sentence = one_line(&error.to_string());
    match error {
        HubError::BadName { .. } => NotFetched::BadName(sentence),
        HubError::NoSuchRepo { .. }
        | HubError::NoSuchRevision { .. }
        | HubError::NoSuchFile { .. }
        | HubError::NothingToFetch { .. }
        | HubError::NotInstalled { .. } => NotFetched::NotFound(sentence),
        HubError::Setting { .. }
        | HubError::Offline { .. }
        | HubError::Unauthorised { .. }
        | HubError::Gated { .. }
        | HubError::Refused { .. }
        | HubError::TooMuch { .. }
        | HubError::NoChecksum { .. } => NotFetched::Forbidden(sentence),
        HubError::Unreachable { .. }
        | HubError::Busy { .. }
        | HubError::NotAHub { .. }
        | HubError::Damaged { .. }
        | HubError::CutShort { .. }
        | HubError::DiskFull { .. }
        | HubError::InUse { .. }
        | HubError::Stopped
        | HubError::Io { .. } => NotFetched::Unavailable(sentence),
    }
}
