//! How long a server in trouble is asked again.

use std::time::Duration;

use super::{Answer, Stop};
use crate::{Error, Result};

/// Failures in a row after which we give up.
const FAILURES_MAX: u32 = 5;
const WAIT_FIRST: Duration = Duration::from_millis(500);
const WAIT_MAX: Duration = Duration::from_secs(30);
/// A server that wants a longer rest is told of instead.
const REST_MAX: Duration = Duration::from_secs(300);
/// How often it is looked whether somebody asked to stop.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Why a request gave nothing.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// It would give nothing again.
    Final(Error),
    /// It may pass, perhaps after as long as the server said.
    Passing {
        error: Error,
        after: Option<Duration>,
    },
}

/// Counts failures in a row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Patience {
    failures: u32,
}

impl Patience {
    /// Something went well.
    pub(crate) fn restore(&mut self) {
        self.failures = 0;
    }

    /// Waits as the trouble asks for, or gives it back as the end of it.
    pub(crate) fn bear(&mut self, trouble: Trouble, stop: &Stop) -> Result<()> {
        let (error, after) = match trouble {
            Trouble::Final(error) => return Err(error),
            Trouble::Passing { error, after } => (error, after),
        };
        self.failures += 1;
        let growing = WAIT_FIRST * 2u32.saturating_pow(self.failures - 1);
        let wait = after.unwrap_or(growing.min(WAIT_MAX));
        if self.failures >= FAILURES_MAX || wait > REST_MAX {
            return Err(error);
        }
        let mut left = wait;
        while left > Duration::ZERO {
            stop.check()?;
            let now = left.min(LOOK_EVERY);
            std::thread::sleep(now);
            left -= now;
        }
        stop.check()
    }

    /// Asks until there is an answer, or patience ends.
    pub(crate) fn until_done<T>(
        &mut self,
        stop: &Stop,
        mut once: impl FnMut() -> Result<T, Trouble>,
    ) -> Result<T> {
        loop {
            match once() {
                Ok(done) => return Ok(done),
                Err(trouble) => self.bear(trouble, stop)?,
            }
        }
    }
}

/// What `Retry-After` asks for: seconds, or a time, which is compared with the server's own.
pub(super) fn retry_after(answer: &Answer) -> Option<Duration> {
    let text = answer.header("retry-after")?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let (then, now) = (http_seconds(text)?, http_seconds(answer.header("date")?)?);
    Some(Duration::from_secs(then.saturating_sub(now)))
}

/// Seconds from the year 1970 to a time such as `Wed, 21 Oct 2015 07:28:00 GMT`.
fn http_seconds(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let words: Vec<&str> = text.split_whitespace().collect();
    let [_, day, month, year, clock, "GMT"] = words[..] else {
        return None;
    };
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let (day, year): (u64, u64) = (day.parse().ok()?, year.parse().ok()?);
    let clock: Vec<u64> = clock
        .split(':')
        .map(|part| part.parse().ok())
        .collect::<Option<_>>()?;
    let [hours, minutes, seconds] = clock[..] else {
        return None;
    };
    if !(1970..=9999).contains(&year) || !(1..=31).contains(&day) {
        return None;
    }
    // Days of the civil calendar, with years that begin in March so that leap days come last.
    let (y, m) = match month > 2 {
        true => (year, month - 3),
        false => (year - 1, month + 9),
    };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
    const DAYS_TO_1970: u64 = 719_468;
    days.checked_sub(DAYS_TO_1970)?
        .checked_mul(86_400)?
        .checked_add(hours.checked_mul(3_600)? + minutes.checked_mul(60)? + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_servers() {
        assert_eq!(http_seconds("Thu, 01 Jan 1970 00:00:10 GMT"), Some(10));
        assert_eq!(
            http_seconds("Wed, 21 Oct 2015 07:28:00 GMT"),
            Some(1_445_412_480)
        );
        assert_eq!(
            http_seconds("Thu, 29 Feb 2024 00:00:00 GMT"),
            Some(1_709_164_800)
        );
        for wrong in [
            "",
            "tomorrow",
            "Wed, 21 Foo 2015 07:28:00 GMT",
            "a 1 Jan 0 1:2:3 GMT",
            "a 1 Jan 2000 1:2 GMT",
        ] {
            assert_eq!(http_seconds(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn patience_ends() {
        let passing = |after| Trouble::Passing {
            error: Error::Busy {
                host: "h".to_owned(),
                status: 503,
                retry_after_s: None,
            },
            after: Some(after),
        };
        let mut patience = Patience::default();
        let stop = Stop::default();
        for _ in 1..FAILURES_MAX {
            assert!(patience.bear(passing(Duration::ZERO), &stop).is_ok());
        }
        assert!(patience.bear(passing(Duration::ZERO), &stop).is_err());
        patience.restore();
        assert!(patience.bear(passing(REST_MAX * 2), &stop).is_err());
        stop.ask();
        patience.restore();
        let stopped = patience.bear(passing(Duration::from_secs(60)), &stop);
        assert!(matches!(stopped, Err(Error::Stopped)));
    }
}
