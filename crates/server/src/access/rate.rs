//! How often a key may ask, as arithmetic: requests are let in as water runs into a bucket with a hole. A whole minute's
//! worth may come at once; after that they come as fast as they may.

use lowtide_core::job::Moment;

const MINUTE_MS: u64 = 60_000;

/// How much of a minute's requests was used lately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bucket {
    /// When it will be empty, in thousandths of a millisecond: what a request adds is a minute divided by the limit,
    /// which need not be whole.
    empty_at_us: u64,
}

/// What is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// Requests that could come now.
    pub(super) left: u32,
    /// Seconds, rounded up, until one may come.
    pub(super) next_s: u64,
    /// Seconds, rounded up, until as many may come as ever.
    pub(super) reset_s: u64,
}

impl Bucket {
    /// A request comes.
    ///
    /// # Errors
    /// It is one too many; then it is not counted.
    pub(super) fn take(&mut self, per_minute: u32, now: Moment) -> Result<Standing, Standing> {
        let minute_us = MINUTE_MS * 1000;
        let now_us = now.0.saturating_mul(1000);
        let each_us = minute_us.div_ceil(u64::from(per_minute.max(1)));
        // A clock that was set back, or a limit that was lowered, must not keep a client out for longer than a minute.
        let filled = self
            .empty_at_us
            .clamp(now_us, now_us.saturating_add(minute_us));
        let after = filled.saturating_add(each_us);
        let full_at = now_us.saturating_add(each_us.saturating_mul(u64::from(per_minute.max(1))));
        let seconds = |us: u64| us.div_ceil(1_000_000);
        if after > full_at {
            return Err(Standing {
                left: 0,
                next_s: seconds(after - full_at).max(1),
                reset_s: seconds(filled - now_us),
            });
        }
        self.empty_at_us = after;
        let left = (full_at - after) / each_us;
        Ok(Standing {
            left: u32::try_from(left).unwrap_or(u32::MAX),
            next_s: 0,
            reset_s: seconds(after - now_us),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minutes_worth_comes_at_once_and_then_as_fast_as_it_may() {
        let mut bucket = Bucket::default();
        for left in [3, 2, 1, 0] {
            assert_eq!(bucket.take(4, Moment(1_000)).unwrap().left, left);
        }
        let refused = bucket.take(4, Moment(1_000)).unwrap_err();
        assert_eq!((refused.left, refused.next_s, refused.reset_s), (0, 15, 60));
        assert_eq!(bucket.take(4, Moment(15_999)).unwrap_err().next_s, 1);
        assert_eq!(bucket.take(4, Moment(16_000)).unwrap().left, 0);
        assert!(bucket.take(4, Moment(16_000)).is_err());
        assert_eq!(bucket.take(4, Moment(121_000)).unwrap().left, 3);
    }

    #[test]
    fn in_ten_minutes_come_as_many_as_may_and_a_minutes_worth_at_first() {
        for per_minute in [1, 7, 60, 1_000, 100_000] {
            let mut bucket = Bucket::default();
            let tries = (0..600_000).step_by(if per_minute > 1_000 { 1 } else { 10 });
            let mut let_in = 0_u64;
            for at in tries {
                for _ in 0..3 {
                    let_in += u64::from(bucket.take(per_minute, Moment(at)).is_ok());
                }
            }
            let most = u64::from(per_minute) * 11;
            assert!(let_in <= most, "{per_minute}: {let_in}");
            assert!((let_in + 1) * 100 >= most * 98, "{per_minute}: {let_in}");
        }
    }

    #[test]
    fn a_clock_that_jumps_keeps_nobody_out_for_long() {
        let mut bucket = Bucket::default();
        for _ in 0..5 {
            bucket.take(5, Moment(10_000_000)).unwrap();
        }
        assert!(bucket.take(5, Moment(0)).is_err());
        let kept_out = bucket.take(5, Moment(0)).unwrap_err();
        assert!(
            kept_out.next_s <= 60 && kept_out.reset_s <= 60,
            "{kept_out:?}"
        );
        assert!(bucket.take(5, Moment(10_060_000)).is_ok());
    }
}
