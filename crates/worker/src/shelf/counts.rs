//! Bytes of models on the device: what several share is there once.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use lowtide_core::Bytes;
use lowtide_core::lifecycle::Residency;
use lowtide_engine::shared::Counted;

use super::{Model, Shelf};

impl Shelf {
    /// By model: bytes of its weights on the device. What several share is counted at the one that will leave last: one
    /// in use, else the one used last.
    pub(super) fn each_once(&self) -> BTreeMap<&str, Bytes> {
        let mut order: Vec<(&String, &Model)> = self.models.iter().collect();
        order.sort_by_key(|(_, model)| (model.life.in_flight() == 0, Reverse(model.used)));
        let mut counted = Counted::default();
        let mut held = BTreeMap::new();
        for (name, model) in order {
            let opened = model.opened.values();
            let bytes = opened.map(|opened| opened.held_beside(&mut counted)).sum();
            held.insert(name.as_str(), bytes);
        }
        held
    }

    /// Whether a model counts as being on the device and has nothing there that could be elsewhere.
    pub(crate) fn is_bare(&self, name: &str) -> bool {
        self.models.get(name).is_some_and(|model| {
            let idle = model.life.in_flight() == 0 && model.life.moving_to().is_none();
            let there = model.life.residency() == Residency::Device;
            idle && there && model.card.bytes > Bytes::ZERO && model.held() == Bytes::ZERO
        })
    }
}

impl Model {
    /// Bytes of its weights on the device, with what it shares with others.
    pub(super) fn held(&self) -> Bytes {
        let mut counted = Counted::default();
        let opened = self.opened.values();
        opened.map(|opened| opened.held_beside(&mut counted)).sum()
    }
}
