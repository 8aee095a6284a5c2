//! Other processes on the same device, and the models that leave it for them.

use lowtide_core::Bytes;
use lowtide_core::lifecycle::{Event, Residency};
use lowtide_engine::device::figures;
use serde_json::json;

use super::Worker;
use crate::log::Level;

impl Worker {
    /// Where others on the device lack memory, models that nobody uses leave it, the one used longest ago first. What runs
    /// gives way by itself, between two steps.
    pub(super) fn make_room_for_others(&mut self) {
        let lacking = figures::lacking_of_idle(self.device.budget, self.device.reserve);
        if lacking == Bytes::ZERO {
            return;
        }
        let mut idle = self.shelf.views();
        idle.retain(|view| view.in_flight == 0 && view.device > Bytes::ZERO);
        idle.sort_by_key(|view| view.last_used);
        let mut given = Bytes::ZERO;
        for view in idle {
            if given >= lacking {
                break;
            }
            given += view.device;
            let text = format!(
                "others on the device lack {lacking}: {} leaves it with {}",
                view.name, view.device
            );
            self.log
                .say(Level::Info, text, json!({ "model": view.name }));
            let to = Residency::Host;
            self.shelf.tell(&view.name, Event::MakeRoom { to });
        }
    }
}
