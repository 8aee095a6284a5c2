//! Placements in one sentence with numbers.

use std::fmt;

use crate::Bytes;
use crate::pipeline::Offload;
use crate::plan::{DoesNotFit, Plan};

/// Why the blocks that stream do so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Nothing streams.
    AllFit,
    /// Each block is used once, so that keeping it saves nothing.
    UsedOnce,
    /// The copies hide behind the computing, so that keeping more saves nothing.
    Hidden,
    /// The budget has no room for more.
    Budget,
    /// The user asked for it.
    Asked,
}

/// What a larger budget would give.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MoreMemory {
    /// Bytes to add to the budget.
    pub bytes: Bytes,
    /// Seconds that would save.
    pub seconds: f64,
}

/// A variable that had to be turned down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rung {
    /// The variable.
    pub var: String,
    /// What it was set to.
    pub value: u64,
    /// What everything at once would be.
    pub full: u64,
}

/// Why a phase is placed as it is, as data. Its `Display` is the sentence.
#[derive(Clone, Debug, PartialEq)]
pub struct Reason {
    /// The phase.
    pub phase: String,
    /// The mode.
    pub mode: String,
    /// Whether the mode is exact.
    pub exact: bool,
    /// Blocks of the component.
    pub blocks: usize,
    /// Those that stay.
    pub resident_blocks: usize,
    /// Bytes of those that stay.
    pub resident: Bytes,
    /// Bytes of all blocks.
    pub component: Bytes,
    /// The ring.
    pub slots: Vec<Bytes>,
    /// Visits of all blocks.
    pub visits: u64,
    /// The budget.
    pub budget: Bytes,
    /// What of it was in use.
    pub in_use: Bytes,
    /// Bytes of activations.
    pub activation: Bytes,
    /// Bytes held all through the phase.
    pub held: Bytes,
    /// Bytes of other components' weights that stay meanwhile.
    pub beside: Bytes,
    /// What the user said about weights that leave the device.
    pub offload: Offload,
    /// The variables turned down.
    pub rungs: Vec<Rung>,
    /// Why blocks stream.
    pub cause: Cause,
    /// What more memory would give, where it gives at least 5 % of the phase's time.
    pub more: Option<MoreMemory>,
    /// For an approximate mode: the smallest total budget with which an exact one would fit, if there is one.
    pub exact_needs: Option<Bytes>,
}

impl Reason {
    /// What the budget leaves for weights.
    pub fn for_weights(&self) -> Bytes {
        self.budget
            .saturating_sub(self.in_use)
            .saturating_sub(self.activation)
            .saturating_sub(self.held)
            .saturating_sub(self.beside)
    }

    /// What the user's word had to do with it.
    fn write_offload(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.offload {
            Offload::Auto => Ok(()),
            Offload::Never => write!(
                f,
                " beside {} of the other components, as offload 'never' asks",
                self.beside
            ),
            Offload::Components | Offload::Stream => {
                write!(f, ", as offload '{}' asks", self.offload.name())
            }
        }
    }

    fn write_streams(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let streamed = self.blocks - self.resident_blocks;
        if self.resident_blocks == 0 {
            write!(f, "all {} ({}) stream", blocks(self.blocks), self.component)?;
        } else {
            write!(
                f,
                "{} of {} ({} of {}), {streamed} stream",
                self.resident_blocks,
                stay(self.blocks, self.resident_blocks),
                self.resident,
                self.component
            )?;
        }
        write!(f, " through {}", slots(&self.slots))?;
        match self.visits {
            1 => write!(f, " once"),
            visits => write!(f, " at each of {visits} passes"),
        }
    }

    fn write_room(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the budget of {}", self.budget)?;
        if self.in_use > Bytes::ZERO {
            write!(f, " ({} in use)", self.in_use)?;
        }
        write!(
            f,
            " leaves {} for weights beside {} of activations",
            self.for_weights(),
            self.activation
        )?;
        if self.held > Bytes::ZERO {
            write!(f, " and {} held throughout", self.held)?;
        }
        Ok(())
    }
}

impl fmt::Display for Reason {
    /// One sentence, such as `denoise: 18 of 30 blocks stay (2.10 GiB of 3.40 GiB), 12 stream through 2 slots of
    /// 115.0 MiB at each of 9 passes because …; 900.0 MiB more would save 3.1 s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.phase)?;
        if self.slots.is_empty() {
            match self.blocks {
                0 => f.write_str("no weights")?,
                1 => write!(f, "the one block stays ({})", self.component)?,
                n => write!(f, "all {n} blocks stay ({})", self.component)?,
            }
            self.write_offload(f)?;
            f.write_str("; ")?;
        } else {
            self.write_streams(f)?;
            self.write_offload(f)?;
            f.write_str(match self.cause {
                Cause::AllFit | Cause::Asked => "; ",
                Cause::UsedOnce => ", which costs no time because each is used once; ",
                Cause::Hidden => {
                    ", which costs no time because the copies hide behind the computing; "
                }
                Cause::Budget => " because ",
            })?;
        }
        self.write_room(f)?;
        for rung in &self.rungs {
            write!(f, "; {} is {} of {}", rung.var, rung.value, rung.full)?;
        }
        if !self.exact {
            write!(f, "; mode '{}' is approximate", self.mode)?;
            if let Some(needs) = self.exact_needs {
                write!(f, ", an exact one needs {}", needs.to_string_up())?;
            }
        }
        if let Some(more) = self.more {
            write!(
                f,
                "; {} more would save {}",
                more.bytes.to_string_up(),
                seconds(more.seconds)
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for DoesNotFit {
    /// One sentence with what is needed, what there is, and what to do. A budget typed as it is printed here is enough.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "does not fit: {} needs at least {} but the budget is {}",
            self.phase,
            self.needed.to_string_up(),
            self.budget
        )?;
        if self.in_use > Bytes::ZERO {
            write!(f, " ({} of it in use)", self.in_use)?;
        }
        write!(
            f,
            "; the smallest budget that would do is {}",
            self.smallest.to_string_up()
        )?;
        match self.smallest_approximate {
            Some(bytes) => write!(
                f,
                ", or {} with approximate modes allowed",
                bytes.to_string_up()
            ),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Plan {
    /// A line a phase, and a line for the whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for phase in &self.phases {
            writeln!(f, "{}", phase.reason)?;
        }
        write!(
            f,
            "peak {} of {}, about {}",
            self.peak,
            self.budget.total,
            seconds(self.seconds)
        )?;
        if !self.approximate.is_empty() {
            write!(f, ", approximate: {}", self.approximate.join(", "))?;
        }
        Ok(())
    }
}

fn blocks(count: usize) -> String {
    if count == 1 {
        "1 block".to_owned()
    } else {
        format!("{count} blocks")
    }
}

fn stay(count: usize, staying: usize) -> String {
    format!(
        "{} {}",
        blocks(count),
        if staying == 1 { "stays" } else { "stay" }
    )
}

fn slots(slots: &[Bytes]) -> String {
    match slots {
        [one] => format!("1 slot of {one}"),
        [first, rest @ ..] if rest.iter().all(|slot| slot == first) => {
            format!("{} slots of {first}", slots.len())
        }
        _ => {
            let sizes: Vec<String> = slots.iter().map(Bytes::to_string).collect();
            format!("{} slots of {}", slots.len(), sizes.join(" and "))
        }
    }
}

/// Seconds as people read them: `850 ms`, `3.1 s`, `4 min 10 s`.
pub(crate) fn seconds(value: f64) -> String {
    match value {
        v if v < 0.9995 => format!("{:.0} ms", v * 1e3),
        v if v < 59.95 => format!("{v:.1} s"),
        v => {
            let whole = v.round() as u64;
            format!("{} min {} s", whole / 60, whole % 60)
        }
    }
}
