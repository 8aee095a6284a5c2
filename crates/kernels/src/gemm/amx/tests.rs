//! The emulation by its source's rules, and the known product.

use super::*;

/// One element of a tile's product; the others' factors are zero.
fn element(sum: f32, pairs: &[([u16; 2], [u16; 2])]) -> f32 {
    let pack = |[low, high]: [u16; 2]| u32::from(low) | u32::from(high) << 16;
    // SAFETY: the emulation needs no instruction.
    let mut tiles = unsafe { Emulated::configure() };
    tiles.zero::<0>();
    tiles.zero::<4>();
    tiles.zero::<6>();
    tiles.0[0][3 * SIDE + 5] = sum.to_bits();
    for (k, (w, x)) in pairs.iter().enumerate() {
        tiles.0[4][3 * SIDE + k] = pack(*w);
        tiles.0[6][k * SIDE + 5] = pack(*x);
    }
    tiles.multiply::<0, 4, 6>();
    f32::from_bits(tiles.0[0][3 * SIDE + 5])
}

const ONE: u16 = 0x3f80;
const TINY: u16 = 0x0001;
const HUGE: u16 = 0x7f00;
const MINUS_HUGE: u16 = 0xff00;

#[test]
fn a_pair_is_two_products() {
    let (two, three) = (0x4000, 0x4040);
    assert_eq!(element(0.5, &[([two, three], [three, three])]), 15.5);
}

#[test]
fn even_and_odd_are_summed_apart() {
    // 2^25 swallows a one unless 2^25 is gone before the ones are added.
    let large = 0x4c00;
    let minus_large = 0xcc00;
    let pairs = [([large, ONE], [ONE, ONE]), ([minus_large, ONE], [ONE, ONE])];
    assert_eq!(element(0.0, &pairs), 2.0);
    let mixed = [([large, minus_large], [ONE, ONE]), ([ONE, ONE], [ONE, ONE])];
    assert_eq!(element(0.0, &mixed), 0.0);
}

#[test]
fn subnormal_numbers_count_as_zero() {
    assert_eq!(element(0.0, &[([TINY, 0], [HUGE, 0])]), 0.0);
    assert_eq!(element(f32::from_bits(1), &[([0, 0], [0, 0])]), 0.0);
    assert_eq!(element(0.0, &[([0x0080, 0], [0x3f00, 0])]), 0.0);
}

#[test]
fn a_product_is_not_rounded_before_it_is_added() {
    // 2^254, then -2^254, which is no infinity before it is added to one.
    let pairs = [([HUGE, 0], [HUGE, 0]), ([HUGE, 0], [MINUS_HUGE, 0])];
    assert_eq!(element(0.0, &pairs), f32::INFINITY);
    // 2^128 - 2^127 is one.
    let (two, minus_one) = (0x4000, 0xbf80);
    let pairs = [([HUGE, 0], [minus_one, 0]), ([HUGE, 0], [two, 0])];
    assert_eq!(element(0.0, &pairs), f32::from_bits(0x7f00_0000));
}

#[test]
fn infinity_and_nan_pass_through() {
    let (infinity, nan) = (0x7f80, 0x7fc0);
    assert_eq!(element(1.0, &[([infinity, 0], [ONE, 0])]), f32::INFINITY);
    assert!(element(1.0, &[([nan, 0], [ONE, 0])]).is_nan());
    assert!(element(1.0, &[([infinity, 0], [0, 0])]).is_nan());
}

/// Also that the assembler takes the instructions: the function below is compiled with them.
#[test]
fn the_known_product_comes_out() {
    // SAFETY: the emulation needs no instruction.
    assert!(unsafe { multiplies::<Emulated>() });
    #[cfg(target_arch = "x86_64")]
    match crate::isa::amx_state() {
        // SAFETY: just found.
        Ok(()) => assert!(unsafe { multiplies::<Instructions>() }),
        Err(why) => eprintln!("skipped: AMX instructions, {}", why.unwrap_or("not here")),
    }
}

/// Tiles that forget the second number of each pair.
struct Forgetful(Emulated);

impl Tiles for Forgetful {
    unsafe fn configure() -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { Emulated::configure() })
    }

    fn zero<const TILE: usize>(&mut self) {
        self.0.zero::<TILE>();
    }

    unsafe fn load<const TILE: usize>(&mut self, from: *const u8, stride: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.0.load::<TILE>(from, stride) };
    }

    unsafe fn store<const TILE: usize>(&self, to: *mut u8, stride: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.0.store::<TILE>(to, stride) };
    }

    fn multiply<const SUMS: usize, const W: usize, const X: usize>(&mut self) {
        let pairs = self.0.0[W];
        self.0.0[W] = pairs.map(|pair| pair & 0xffff);
        self.0.multiply::<SUMS, W, X>();
        self.0.0[W] = pairs;
    }
}

#[test]
fn wrong_tiles_are_found_out() {
    // SAFETY: the emulation needs no instruction.
    assert!(!unsafe { multiplies::<Forgetful>() });
}
