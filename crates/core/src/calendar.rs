//! Moments as people and other programs write them: by the calendar, in UTC.

use crate::job::Moment;

/// Days from the first of March of the year 0 to the first of January 1970: years that begin in March have their leap day
/// last.
const TO_EPOCH: u64 = 719_468;

/// Days of 400 years, after which the calendar repeats.
const ERA_DAYS: u64 = 146_097;

impl Moment {
    /// Year, month, day and hour, minute, second, all in UTC.
    pub fn calendar(self) -> ([u64; 3], [u64; 3]) {
        let seconds = self.0 / 1_000;
        let days = seconds / 86_400 + TO_EPOCH;
        let (era, day) = (days / ERA_DAYS, days % ERA_DAYS);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        // From March on five months have 153 days.
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let (month, later) = if month < 10 {
            (month + 3, 0)
        } else {
            (month - 9, 1)
        };
        let time = seconds % 86_400;
        (
            [era * 400 + year + later, month, day],
            [time / 3_600, time / 60 % 60, time % 60],
        )
    }

    /// As ISO 8601 has it, such as `2026-03-01T00:00:00.000Z`.
    pub fn iso(self) -> String {
        let ([year, month, day], [hour, minute, second]) = self.calendar();
        let ms = self.0 % 1_000;
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (seconds, date, time) in [
            (0, [1970, 1, 1], [0, 0, 0]),
            (951_782_399, [2000, 2, 28], [23, 59, 59]),
            (951_782_400, [2000, 2, 29], [0, 0, 0]),
            (1_735_689_599, [2024, 12, 31], [23, 59, 59]),
            (1_772_323_200, [2026, 3, 1], [0, 0, 0]),
        ] {
            assert_eq!(Moment(seconds * 1000).calendar(), (date, time), "{seconds}");
        }
    }

    #[test]
    fn moments_are_those_of_the_calendar() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_735_689_599_999, "2024-12-31T23:59:59.999Z"),
            (1_772_323_200_007, "2026-03-01T00:00:00.007Z"),
        ] {
            assert_eq!(Moment(ms).iso(), text);
        }
    }
}
