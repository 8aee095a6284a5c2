//! Who holds which byte of a device, and never more of them than the budget.

use std::collections::BTreeMap;
use std::fmt;

use crate::Bytes;

/// What bytes are held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Blocks that stay.
    Weights,
    /// The ring streamed blocks go through.
    Slots,
    /// Everything a computation makes: activations, latents, embeddings.
    Activation,
    /// Copies in host memory. They are known but do not count against the device's budget.
    Host,
}

impl Kind {
    /// All kinds, in the order of [`Holding`]'s fields.
    pub const ALL: [Kind; 4] = [Kind::Weights, Kind::Slots, Kind::Activation, Kind::Host];

    fn is_on_device(self) -> bool {
        match self {
            Kind::Weights | Kind::Slots | Kind::Activation => true,
            Kind::Host => false,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Weights => "weights",
            Kind::Slots => "slots",
            Kind::Activation => "activations",
            Kind::Host => "host memory",
        })
    }
}

/// What one holder holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// Bytes of [`Kind::Weights`].
    pub weights: Bytes,
    /// Bytes of [`Kind::Slots`].
    pub slots: Bytes,
    /// Bytes of [`Kind::Activation`].
    pub activation: Bytes,
    /// Bytes of [`Kind::Host`].
    pub host: Bytes,
}

impl Holding {
    /// Bytes of one kind.
    pub fn of(&self, kind: Kind) -> Bytes {
        match kind {
            Kind::Weights => self.weights,
            Kind::Slots => self.slots,
            Kind::Activation => self.activation,
            Kind::Host => self.host,
        }
    }

    /// Bytes that count against the budget.
    pub fn on_device(&self) -> Bytes {
        let Holding {
            weights,
            slots,
            activation,
            host: _,
        } = *self;
        weights + slots + activation
    }

    fn of_mut(&mut self, kind: Kind) -> &mut Bytes {
        match kind {
            Kind::Weights => &mut self.weights,
            Kind::Slots => &mut self.slots,
            Kind::Activation => &mut self.activation,
            Kind::Host => &mut self.host,
        }
    }
}

/// A refused entry. The ledger is as it was before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// The budget has no room.
    #[error(
        "{holder} asks for {asked} of {kind}, but {in_use} of the budget of {budget} are in use"
    )]
    OverBudget {
        /// Who asked.
        holder: String,
        /// For what.
        kind: Kind,
        /// How much.
        asked: Bytes,
        /// In use on the device.
        in_use: Bytes,
        /// The budget.
        budget: Bytes,
    },
    /// More is given back than is held: this is a bug in whoever gives it back.
    #[error("{holder} gives back {released} of {kind} but holds {held}: this is a bug")]
    NotHeld {
        /// Who gives back.
        holder: String,
        /// Of what.
        kind: Kind,
        /// How much.
        released: Bytes,
        /// How much it holds.
        held: Bytes,
    },
    /// A holder that holds nothing gives everything back: this is a bug in whoever does so.
    #[error("{holder} gives everything back but holds nothing: this is a bug")]
    UnknownHolder {
        /// Who.
        holder: String,
    },
}

/// The state of a ledger at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The budget.
    pub budget: Bytes,
    /// Bytes in use on the device.
    pub in_use: Bytes,
    /// The most that ever were since the last [`Ledger::reset_peak`].
    pub peak: Bytes,
    /// Who holds what, by name.
    pub holders: Vec<(String, Holding)>,
}

/// The books of one device. Holders are models, components or sessions, by name.
#[derive(Clone, Debug)]
pub struct Ledger {
    budget: Bytes,
    in_use: Bytes,
    peak: Bytes,
    holders: BTreeMap<String, Holding>,
}

impl Ledger {
    /// Empty books for a device of which at most `budget` may ever be in use.
    pub fn new(budget: Bytes) -> Ledger {
        Ledger {
            budget,
            in_use: Bytes::ZERO,
            peak: Bytes::ZERO,
            holders: BTreeMap::new(),
        }
    }

    /// Bytes that may ever be in use.
    pub fn budget(&self) -> Bytes {
        self.budget
    }

    /// Bytes in use on the device.
    pub fn in_use(&self) -> Bytes {
        self.in_use
    }

    /// Bytes of the budget not in use.
    pub fn free(&self) -> Bytes {
        self.budget - self.in_use
    }

    /// The most bytes in use since the last [`Ledger::reset_peak`].
    pub fn peak(&self) -> Bytes {
        self.peak
    }

    /// Begins a new peak from what is in use now, and returns the old one.
    pub fn reset_peak(&mut self) -> Bytes {
        std::mem::replace(&mut self.peak, self.in_use)
    }

    /// What `holder` holds.
    pub fn holding(&self, holder: &str) -> Holding {
        self.holders.get(holder).copied().unwrap_or_default()
    }

    /// Enters `bytes` of `kind` for `holder`.
    ///
    /// # Errors
    /// [`LedgerError::OverBudget`] when the device would then hold more than the budget. Nothing is entered.
    pub fn charge(&mut self, holder: &str, kind: Kind, bytes: Bytes) -> Result<(), LedgerError> {
        if bytes == Bytes::ZERO {
            return Ok(());
        }
        let over_budget = || LedgerError::OverBudget {
            holder: holder.to_owned(),
            kind,
            asked: bytes,
            in_use: self.in_use,
            budget: self.budget,
        };
        let in_use = match kind.is_on_device() {
            true => self
                .in_use
                .checked_add(bytes)
                .filter(|&sum| sum <= self.budget)
                .ok_or_else(over_budget)?,
            false => self.in_use,
        };
        let held = self
            .holding(holder)
            .of(kind)
            .checked_add(bytes)
            .ok_or_else(over_budget)?;
        *self
            .holders
            .entry(holder.to_owned())
            .or_default()
            .of_mut(kind) = held;
        self.in_use = in_use;
        self.peak = self.peak.max(in_use);
        Ok(())
    }

    /// Takes `bytes` of `kind` off what `holder` holds.
    ///
    /// # Errors
    /// [`LedgerError::NotHeld`] when it holds less: a byte cannot be given back twice. Nothing is taken off.
    pub fn release(&mut self, holder: &str, kind: Kind, bytes: Bytes) -> Result<(), LedgerError> {
        let held = self.holding(holder).of(kind);
        if bytes > held {
            return Err(LedgerError::NotHeld {
                holder: holder.to_owned(),
                kind,
                released: bytes,
                held,
            });
        }
        if let Some(holding) = self.holders.get_mut(holder) {
            *holding.of_mut(kind) = held - bytes;
            if *holding == Holding::default() {
                self.holders.remove(holder);
            }
        }
        if kind.is_on_device() {
            self.in_use = self.in_use - bytes;
        }
        Ok(())
    }

    /// Takes everything off that `holder` holds, and returns it.
    ///
    /// # Errors
    /// [`LedgerError::UnknownHolder`] when it holds nothing.
    pub fn release_all(&mut self, holder: &str) -> Result<Holding, LedgerError> {
        let holding = self
            .holders
            .remove(holder)
            .ok_or_else(|| LedgerError::UnknownHolder {
                holder: holder.to_owned(),
            })?;
        self.in_use = self.in_use - holding.on_device();
        Ok(holding)
    }

    /// Everything there is to know, for the log and the panel.
    pub fn snapshot(&self) -> Snapshot {
        let Ledger {
            budget,
            in_use,
            peak,
            holders,
        } = self;
        Snapshot {
            budget: *budget,
            in_use: *in_use,
            peak: *peak,
            holders: holders
                .iter()
                .map(|(name, holding)| (name.clone(), *holding))
                .collect(),
        }
    }

    /// Panics unless the books balance: for simulations and tests, at every transition.
    pub fn assert_balanced(&self) {
        let sum: Bytes = self.holders.values().map(Holding::on_device).sum();
        assert_eq!(
            sum, self.in_use,
            "the holders' sum is not what is in use: this is a bug"
        );
        assert!(
            self.in_use <= self.budget,
            "{} in use of {}: this is a bug",
            self.in_use,
            self.budget
        );
        assert!(
            self.in_use <= self.peak,
            "a peak below what is in use: this is a bug"
        );
        assert!(
            self.holders.values().all(|h| *h != Holding::default()),
            "an empty holder: this is a bug"
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_budget_is_the_limit_to_the_byte() {
        let mut ledger = Ledger::new(Bytes(100));
        assert_eq!(ledger.charge("a", Kind::Weights, Bytes(100)), Ok(()));
        let refused = ledger
            .charge("b", Kind::Slots, Bytes(1))
            .expect_err("one byte too many");
        assert_eq!(
            refused,
            LedgerError::OverBudget {
                holder: "b".into(),
                kind: Kind::Slots,
                asked: Bytes(1),
                in_use: Bytes(100),
                budget: Bytes(100)
            }
        );
        assert_eq!(ledger.snapshot().holders.len(), 1);
        assert_eq!(
            ledger.charge("b", Kind::Host, Bytes(1 << 40)),
            Ok(()),
            "host memory is another budget"
        );
        assert!(
            ledger
                .charge("c", Kind::Activation, Bytes(u64::MAX))
                .is_err()
        );
    }

    #[test]
    fn a_byte_is_given_back_once() {
        let mut ledger = Ledger::new(Bytes(100));
        ledger.charge("a", Kind::Weights, Bytes(60)).expect("fits");
        ledger.release("a", Kind::Weights, Bytes(60)).expect("held");
        let twice = ledger
            .release("a", Kind::Weights, Bytes(60))
            .expect_err("given back already");
        assert!(matches!(
            twice,
            LedgerError::NotHeld {
                held: Bytes::ZERO,
                released: Bytes(60),
                ..
            }
        ));
        ledger.charge("a", Kind::Slots, Bytes(10)).expect("fits");
        assert!(
            ledger.release("a", Kind::Weights, Bytes(1)).is_err(),
            "slots are not weights"
        );
        assert_eq!(
            ledger.release_all("a").map(|holding| holding.slots),
            Ok(Bytes(10))
        );
        assert_eq!(
            ledger.release_all("a"),
            Err(LedgerError::UnknownHolder { holder: "a".into() })
        );
        assert_eq!(ledger.peak(), Bytes(60));
        assert_eq!(ledger.reset_peak(), Bytes(60));
        assert_eq!(ledger.peak(), Bytes::ZERO);
    }

    #[derive(Clone, Debug)]
    enum Entry {
        Charge(usize, usize, u64),
        Release(usize, usize, u64),
        ReleaseAll(usize),
    }

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let entry = prop_oneof![
            4 => (0..3usize, 0..4usize, 0..60u64).prop_map(|(h, k, b)| Entry::Charge(h, k, b)),
            4 => (0..3usize, 0..4usize, 0..60u64).prop_map(|(h, k, b)| Entry::Release(h, k, b)),
            1 => (0..3usize).prop_map(Entry::ReleaseAll),
        ];
        prop::collection::vec(entry, 0..60)
    }

    proptest! {
        /// Whatever is entered and refused, the books equal those of a naive bookkeeper, and an error changes nothing.
        #[test]
        fn the_books_always_balance(entries in entries(), budget in 0..200u64) {
            const NAMES: [&str; 3] = ["a", "b", "c"];
            let mut ledger = Ledger::new(Bytes(budget));
            let mut model = [[0u64; 4]; 3];
            let on_device = |model: &[[u64; 4]; 3]| model.iter().map(|h| h[..3].iter().sum::<u64>()).sum::<u64>();
            let mut peak = 0;
            for entry in entries {
                let before = ledger.snapshot();
                let (done, expected) = match entry {
                    Entry::Charge(holder, kind, bytes) => {
                        let fits = kind == 3 || bytes == 0 || on_device(&model) + bytes <= budget;
                        model[holder][kind] += if fits { bytes } else { 0 };
                        (ledger.charge(NAMES[holder], Kind::ALL[kind], Bytes(bytes)).is_ok(), fits)
                    }
                    Entry::Release(holder, kind, bytes) => {
                        let held = model[holder][kind] >= bytes;
                        model[holder][kind] -= if held { bytes } else { 0 };
                        (ledger.release(NAMES[holder], Kind::ALL[kind], Bytes(bytes)).is_ok(), held)
                    }
                    Entry::ReleaseAll(holder) => {
                        let held = model[holder] != [0; 4];
                        model[holder] = [0; 4];
                        (ledger.release_all(NAMES[holder]).is_ok(), held)
                    }
                };
                prop_assert_eq!(done, expected);
                ledger.assert_balanced();
                peak = peak.max(on_device(&model));
                prop_assert_eq!(ledger.in_use(), Bytes(on_device(&model)));
                prop_assert_eq!(ledger.peak(), Bytes(peak));
                if !done {
                    prop_assert_eq!(ledger.snapshot(), before);
                }
                for (holder, held) in model.iter().enumerate() {
                    for (kind, &bytes) in held.iter().enumerate() {
                        prop_assert_eq!(ledger.holding(NAMES[holder]).of(Kind::ALL[kind]), Bytes(bytes));
                    }
                }
            }
        }
    }
}
