//! Ctrl-C, and a polite request to end: a flag that is looked at between steps.

use crate::failure::Failure;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the process ends with when it is asked a second time, as after the first.
const EXIT_CODE: i32 = 130;

/// Whether somebody asked us to stop.
#[derive(Debug)]
pub(crate) struct Interrupt {
    asked: Arc<AtomicBool>,
}

impl Interrupt {
    /// From now on the first signal is noted, and a second one ends the process at once: a step of a large model may
    /// take long.
    pub(crate) fn install() -> Result<Interrupt, Failure> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // Handlers run in this order, so the first signal does not yet see its own mark.
            flag::register_conditional_shutdown(signal, EXIT_CODE, asked.clone())?;
            flag::register(signal, asked.clone())?;
        }
        Ok(Interrupt { asked })
    }

    /// The flag itself, for those who wait in threads of their own.
    pub(crate) fn flag(&self) -> Arc<AtomicBool> {
        self.asked.clone()
    }

    /// Stops here where somebody asked for it.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.asked.load(Ordering::Relaxed) {
            Err(Failure::Interrupted)
        } else {
            Ok(())
        }
    }
}
