//! Sizes in bytes, with the units people read.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul, Sub};
use std::str::FromStr;

/// A number of bytes. Arithmetic is checked: an overflow or a negative result is a bug and panics with both operands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

impl Bytes {
    /// No bytes.
    pub const ZERO: Bytes = Bytes(0);

    /// `n` times 1024 bytes.
    pub const fn kib(n: u64) -> Bytes {
        Bytes(n << 10)
    }

    /// `n` times 1024^2 bytes.
    pub const fn mib(n: u64) -> Bytes {
        Bytes(n << 20)
    }

    /// `n` times 1024^3 bytes.
    pub const fn gib(n: u64) -> Bytes {
        Bytes(n << 30)
    }

    /// The difference, or zero where `other` is larger.
    pub fn saturating_sub(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_sub(other.0))
    }

    /// The sum, or `None` on overflow: for sizes that come from a file.
    pub fn checked_add(self, other: Bytes) -> Option<Bytes> {
        self.0.checked_add(other.0).map(Bytes)
    }

    /// Rounded up to a multiple of `unit`, which must be a power of two.
    pub fn align_up(self, unit: u64) -> Bytes {
        debug_assert!(unit.is_power_of_two());
        Bytes(
            self.0
                .checked_add(unit - 1)
                .expect("a size near 2^64 is a bug")
                & !(unit - 1),
        )
    }

    /// As `Display` has it but never less than the size: for advice such as the smallest budget that would do, which
    /// someone will type in again.
    pub fn to_string_up(self) -> String {
        let mut shown = self;
        loop {
            let text = shown.to_string();
            if text.parse::<Bytes>().map_or(true, |typed| typed >= self) {
                return text;
            }
            // Far less than the last digit shown, so that none is skipped.
            shown = Bytes(shown.0 + (shown.0 >> 14).max(1));
        }
    }

    /// As a float, for rates and ratios only.
    pub fn as_f64(self) -> f64 {
        self.0 as f64
    }

    /// As an index.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).expect("a buffer larger than the address space is a bug")
    }
}

impl Add for Bytes {
    type Output = Bytes;
    fn add(self, other: Bytes) -> Bytes {
        Bytes(
            self.0
                .checked_add(other.0)
                .expect("byte sum overflows: this is a bug"),
        )
    }
}

impl AddAssign for Bytes {
    fn add_assign(&mut self, other: Bytes) {
        *self = *self + other;
    }
}

impl Sub for Bytes {
    type Output = Bytes;
    fn sub(self, other: Bytes) -> Bytes {
        Bytes(
            self.0
                .checked_sub(other.0)
                .expect("byte difference is negative: this is a bug"),
        )
    }
}

impl Mul<u64> for Bytes {
    type Output = Bytes;
    fn mul(self, times: u64) -> Bytes {
        Bytes(
            self.0
                .checked_mul(times)
                .expect("byte product overflows: this is a bug"),
        )
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Bytes>>(iter: I) -> Bytes {
        iter.fold(Bytes::ZERO, Add::add)
    }
}

impl From<usize> for Bytes {
    fn from(n: usize) -> Bytes {
        Bytes(n as u64)
    }
}

impl fmt::Display for Bytes {
    /// `512 B`, `1.5 KiB`, `43.2 MiB`, `20.55 GiB`: three or four significant digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        let text = if unit == 0 {
            format!("{} B", self.0)
        } else if unit >= 3 {
            format!("{value:.2} {}", UNITS[unit])
        } else {
            format!("{value:.1} {}", UNITS[unit])
        };
        f.pad(&text)
    }
}

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a size: write a number and a unit, such as 600MiB, 8GiB, 8GB or 500000000")]
pub struct NotASize(pub String);

impl FromStr for Bytes {
    type Err = NotASize;

    /// Reads `600MiB`, `8 GiB`, `1.5GB`, `4096`, `8g` (binary). `kB`, `MB`, `GB` are powers of 1000.
    fn from_str(text: &str) -> Result<Bytes, NotASize> {
        let wrong = || NotASize(text.to_owned());
        let trimmed = text.trim();
        let split = trimmed
            .find(|c: char| !(c.is_ascii_digit() || c == '.'))
            .unwrap_or(trimmed.len());
        let number: f64 = trimmed[..split].parse().map_err(|_| wrong())?;
        let scale = match trimmed[split..].trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "k" | "kib" => 1024.0,
            "m" | "mib" => 1048576.0,
            "g" | "gib" => 1073741824.0,
            "t" | "tib" => 1099511627776.0,
            "kb" => 1e3,
            "mb" => 1e6,
            "gb" => 1e9,
            "tb" => 1e12,
            _ => return Err(wrong()),
        };
        let bytes = number * scale;
        if (0.0..9.0e18).contains(&bytes) {
            Ok(Bytes(bytes as u64))
        } else {
            Err(wrong())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        for (text, bytes) in [
            ("600MiB", 600 << 20),
            ("8 GiB", 8 << 30),
            ("1.5GB", 1_500_000_000),
            ("4096", 4096),
            ("8g", 8 << 30),
            ("0", 0),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "MiB", "8 potatoes", "-1", "1e99TiB", "1..2", "nan"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_print_with_their_unit() {
        assert_eq!(Bytes(512).to_string(), "512 B");
        assert_eq!(Bytes::kib(3).to_string(), "3.0 KiB");
        assert_eq!(Bytes::mib(600).to_string(), "600.0 MiB");
        assert_eq!(Bytes::gib(20).to_string(), "20.00 GiB");
    }

    #[test]
    fn advice_typed_in_again_is_enough() {
        for bytes in [
            0,
            1,
            1023,
            1024,
            1025,
            900_000_000,
            1 << 30,
            (1 << 30) + 1,
            10_737_000_001,
            998 << 30,
        ] {
            let text = Bytes(bytes).to_string_up();
            let typed: Bytes = text.parse().expect("a size as we print it");
            assert!(typed >= Bytes(bytes), "{text} for {bytes}");
            assert!(
                typed.as_f64() <= bytes as f64 * 1.1 + 1.0,
                "{text} for {bytes}"
            );
        }
        assert_eq!(Bytes(900_000_000).to_string_up(), "858.4 MiB");
        assert_eq!(Bytes::mib(600).to_string_up(), "600.0 MiB");
    }

    #[test]
    fn alignment_rounds_up() {
        assert_eq!(Bytes(1).align_up(64), Bytes(64));
        assert_eq!(Bytes(64).align_up(64), Bytes(64));
        assert_eq!(Bytes(0).align_up(64), Bytes(0));
    }
}
