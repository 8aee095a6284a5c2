//! What runs on the server: each change of a job is one script, which nothing interrupts.
//!
//! Scripts are asked for by their sums and sent where a server does not have them. Every version of this program thus
//! brings its own, several can work on one queue during an upgrade, and there is nothing to install. They know sets and
//! versions, not the rules of a job's life: those are in `lifecycle`, for every store the same, and a record that was
//! made from an old version is refused here.

use std::sync::LazyLock;

use sha1::{Digest, Sha1};

use super::wire::Command;
use crate::artifacts::hex;

/// A script, and its name on a server.
pub(super) struct Script {
    pub(super) text: String,
    sum: String,
}

impl Script {
    fn new(text: &str) -> Script {
        let text = format!("{}{text}", include_str!("scripts/shared.lua"));
        let sum = hex(&Sha1::digest(text.as_bytes()));
        Script { text, sum }
    }

    /// Calls it for a queue.
    pub(super) fn call(&self, prefix: &str) -> Command {
        let command = Command::new("EVALSHA").arg(&self.sum);
        command.number(1u32).arg(prefix)
    }
}

/// Declares a script by the name of its file.
macro_rules! scripts {
    ($($name:ident $file:literal),* $(,)?) => {
        $(pub(super) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(include_str!(concat!("scripts/", $file, ".lua"))));)*

        /// All of them.
        pub(super) fn all() -> Vec<&'static Script> {
            vec![$(&*$name),*]
        }
    };
}

scripts! {
    SUBMIT "submit", SAVE "save", CANDIDATES "candidates", AHEAD "ahead", LIST "list", STATS "stats", HOLD "hold",
    SWEEP "sweep", RETAIN "retain", SEND "send", ORDERS "orders", ACKNOWLEDGE "acknowledge", HEARTBEAT "heartbeat",
    FORGET "forget", WORKERS "workers", TAKE_CALLS "take_calls",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_script_has_a_name_of_its_own() {
        let sums: std::collections::BTreeSet<&str> =
            all().iter().map(|script| script.sum.as_str()).collect();
        assert_eq!(sums.len(), all().len());
        assert!(sums.iter().all(|sum| sum.len() == 40));
    }
}
