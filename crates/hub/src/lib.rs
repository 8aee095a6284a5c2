//! Fetches: models by name from a hub, into the cache that other programs share.
//!
//! The folders are those that Python's `huggingface_hub` makes, so that neither program fetches what the other has, and
//! both may pull at the same time. What a server says is not believed: a path must stay in its folder, a size has a
//! bound, and a file gets its name only after its checksum was right. Whatever stops a pull, the next one goes on where
//! it ended.
//!
//! In reading order: [`Settings`] (where the cache is, which hub, which token), [`RepoName`] and [`Wanted`] (what is
//! asked for), [`Cache`] (the folders; what is installed, whether it is whole, how it goes), [`Listing`] (what a
//! repository has), [`choose`] (what of it a pipeline needs), [`pull`].
//!
//! *Absent:* the environment (variables are passed in), terminals, what is inside a weight file.

#![forbid(unsafe_code)]

mod cache;
mod choose;
mod client;
mod digest;
mod disk;
mod error;
mod listing;
mod lock;
mod name;
mod path;
mod pull;
mod settings;
mod transfer;

pub use cache::{Cache, Checked, Installed, InstalledRevision, Removed, Snapshot};
pub use choose::{Choice, Chosen, choose, matches};
pub use client::Stop;
pub use digest::{Checksum, Hasher};
pub use disk::free_bytes;
pub use error::{Error, Result};
pub use listing::{Listed, Listing};
pub use name::{MAIN, RepoName, Revision, Wanted};
pub use path::RepoPath;
pub use pull::{Event, Offer, Order, Pulled, look, pull};
pub use settings::{Settings, Token};
