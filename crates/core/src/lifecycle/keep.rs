//! How long a model stays where no job uses it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::{AfterJob, LifePolicy};
use crate::job::Moment;

/// How long a model stays on the device after a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeepAlive {
    /// So long, then to host memory, and out after the idle timer; for no time at all: out at once.
    For(Duration),
    /// Until a hand or another model's need moves it.
    Forever,
    /// As long as waiting for the next request costs less than loading again.
    Auto,
}

/// Why a text says nothing about keeping.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a keep-alive: write 0, a duration such as 90s, 10m or 2h, forever or auto")]
pub struct NotAKeepAlive(pub String);

impl FromStr for KeepAlive {
    type Err = NotAKeepAlive;

    /// Reads `0`, `45` (seconds), `90s`, `10m`, `2h`, `forever`, `-1` (the same), `auto`.
    fn from_str(text: &str) -> Result<KeepAlive, NotAKeepAlive> {
        let wrong = || NotAKeepAlive(text.to_owned());
        match text.trim() {
            "auto" => return Ok(KeepAlive::Auto),
            "forever" | "-1" => return Ok(KeepAlive::Forever),
            _ => {}
        }
        let text = text.trim();
        let (digits, scale) = match text.char_indices().next_back() {
            Some((at, 's')) => (&text[..at], 1),
            Some((at, 'm')) => (&text[..at], 60),
            Some((at, 'h')) => (&text[..at], 3600),
            _ => (text, 1),
        };
        if !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        let seconds = number.checked_mul(scale).ok_or_else(wrong)?;
        Ok(KeepAlive::For(Duration::from_secs(seconds)))
    }
}

impl fmt::Display for KeepAlive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeepAlive::For(time) => write!(f, "{}s", time.as_secs()),
            KeepAlive::Forever => f.write_str("forever"),
            KeepAlive::Auto => f.write_str("auto"),
        }
    }
}

/// What holding an idle model's memory for a second costs, in seconds of someone's waiting: 50 s of idle memory are
/// worth 1 s of loading.
const IDLE_PRICE: f64 = 0.02;

/// The decision to keep is reversed only when the costs differ by this factor, so that a rate near the balance does not
/// move the model at every job.
const HYSTERESIS: f64 = 1.5;

/// Weight of the newest gap in the mean.
const NEWEST: f64 = 0.3;

/// Whether to keep a model whose next request is expected after `gap_s`, when loading it again takes `reload_s` and it
/// `kept` so far.
pub fn keeps(kept: bool, gap_s: f64, reload_s: f64) -> bool {
    let idle_cost_s = gap_s * IDLE_PRICE;
    match kept {
        true => idle_cost_s <= reload_s * HYSTERESIS,
        false => idle_cost_s * HYSTERESIS < reload_s,
    }
}

/// How often a model is asked for: the mean gap between requests, newer ones weighing more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RequestRate {
    last: Option<Moment>,
    gap_s: Option<f64>,
    kept: bool,
}

impl Default for RequestRate {
    /// Nothing known: it is kept until more is.
    fn default() -> RequestRate {
        RequestRate {
            last: None,
            gap_s: None,
            kept: true,
        }
    }
}

impl RequestRate {
    /// A request came at `now`; loading takes `reload_s`.
    pub fn request(&mut self, now: Moment, reload_s: f64) {
        if let Some(last) = self.last {
            let gap_s = now.seconds_since(last);
            let mean_s = self
                .gap_s
                .map_or(gap_s, |mean| mean + NEWEST * (gap_s - mean));
            self.gap_s = Some(mean_s);
            self.kept = keeps(self.kept, mean_s, reload_s);
        }
        self.last = Some(now);
    }

    /// The mean gap, once there were two requests.
    pub fn gap_s(&self) -> Option<f64> {
        self.gap_s
    }

    /// How long `auto` keeps the model. Where requests are rare, not at all; else until idling has cost as much as
    /// loading does: then at most twice is spent of what would have been best in hindsight.
    fn stay(&self, reload_s: f64) -> Duration {
        match self.kept {
            true => {
                // No load takes days; the limit keeps a nonsensical prediction from overflowing.
                Duration::from_secs_f64((reload_s / IDLE_PRICE * HYSTERESIS).clamp(0.0, 1e7))
            }
            false => Duration::ZERO,
        }
    }
}

/// What decided how long a model stays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Because {
    /// The idle timer of so long.
    Timer(Duration),
    /// What happens after a job.
    After(AfterJob),
    /// A keep-alive of so long.
    Asked(Duration),
    /// The request rate: the mean gap, and the seconds to load.
    Rate {
        /// The mean gap between requests, once there were two.
        gap_s: Option<f64>,
        /// Seconds to load it again.
        reload_s: f64,
    },
    /// Nothing: it stays.
    Forever,
}

/// How long a model without a job may stay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rest {
    /// On the device, from the end of the last job.
    pub to_host: Option<Duration>,
    /// On the device or in host memory, from the end of the last job.
    pub out: Option<Duration>,
    /// Why.
    pub because: Because,
}

impl Rest {
    /// From what the last request said, the configuration and the rate. A model `placed` by an order and not used since
    /// is not taken away by what happens after a job, but by the idle timer alone.
    pub fn of(
        asked: Option<KeepAlive>,
        policy: &LifePolicy,
        rate: &RequestRate,
        placed: bool,
    ) -> Rest {
        let later = |time: Duration| policy.idle.map(|idle| time.saturating_add(idle));
        let after = |to_host: Duration, because| Rest {
            to_host: Some(to_host),
            out: later(to_host),
            because,
        };
        let keep_alive = asked.or(policy.keep_alive);
        let (keep_alive, after_job) = match placed && keep_alive != Some(KeepAlive::Forever) {
            true => (None, AfterJob::Keep),
            false => (keep_alive, policy.after_job),
        };
        match (keep_alive, after_job) {
            (Some(KeepAlive::Forever), _) => Rest {
                to_host: None,
                out: None,
                because: Because::Forever,
            },
            (Some(KeepAlive::For(Duration::ZERO)), _) => Rest {
                to_host: None,
                out: Some(Duration::ZERO),
                because: Because::Asked(Duration::ZERO),
            },
            (Some(KeepAlive::For(time)), _) => after(time, Because::Asked(time)),
            (Some(KeepAlive::Auto), _) => {
                let reload_s = policy.from_host_s;
                let because = Because::Rate {
                    gap_s: rate.gap_s(),
                    reload_s,
                };
                after(rate.stay(reload_s), because)
            }
            (None, AfterJob::Release) => Rest {
                to_host: None,
                out: Some(Duration::ZERO),
                because: Because::After(AfterJob::Release),
            },
            (None, AfterJob::Offload) => after(Duration::ZERO, Because::After(AfterJob::Offload)),
            (None, AfterJob::Keep) => match policy.idle {
                Some(idle) => after(idle, Because::Timer(idle)),
                None => Rest {
                    to_host: None,
                    out: None,
                    because: Because::Forever,
                },
            },
        }
    }
}
