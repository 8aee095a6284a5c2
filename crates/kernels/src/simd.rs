//! Sixteen f32 lanes, whatever the registers of the machine.
//!
//! Kernels are written once over [`Vector`]; [`per_isa!`] compiles each for every instruction set
//! and picks at run time. Values of a vector type are only ever made by its unsafe constructors,
//! inside code that was entered after its instruction set was found, so the arithmetic is safe.

pub(crate) mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;

/// Lanes of a [`Vector`].
pub(crate) const LANES: usize = 16;

/// Sixteen f32 lanes.
///
/// # Safety of the constructors and of memory access
/// The instruction set of the implementing type must be there, and pointers must be good for
/// sixteen (or `count`) elements. No alignment is asked for.
pub(crate) trait Vector: Copy {
    /// Whether 24 accumulators and their operands stay in registers.
    const WIDE: bool;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    /// The first `count` < 16 lanes, the others zero.
    unsafe fn load_part(from: *const f32, count: usize) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn store_part(self, to: *mut f32, count: usize);
    /// Stores past the caches, to a multiple of 64 bytes; [`Vector::end_stream`] must follow before others look.
    #[inline(always)]
    unsafe fn stream(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { self.store(to) }
    }
    /// Makes what was streamed seen in order with what comes after.
    #[inline(always)]
    fn end_stream() {}
    /// Widens sixteen bf16.
    unsafe fn load_bf16(from: *const u8) -> Self;
    /// Widens sixteen f16 given as their bits.
    unsafe fn from_f16(bits: &[u16; LANES]) -> Self;

    /// Asks for a cache line ahead of its use, to write if `WRITE`. Any address will do.
    #[inline(always)]
    fn prefetch<const WRITE: bool>(_line: *const f32) {}

    /// Asks for a cache line long before its use.
    #[inline(always)]
    fn prefetch_far(_line: *const f32) {}

    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// `self * b + c`, rounded once where the machine can.
    fn fma(self, b: Self, c: Self) -> Self;
    /// The larger; `other` where either is NaN.
    fn max(self, other: Self) -> Self;
    /// The smaller; `other` where either is NaN.
    fn min(self, other: Self) -> Self;
    /// To the nearest integer, ties to even.
    fn round(self) -> Self;
    /// `self * 2^n` for integral `n` from -160 to 160.
    fn scale2(self, n: Self) -> Self;
    /// Lanes of `yes` where `self < bound`, of `no` elsewhere.
    fn where_below(self, bound: Self, yes: Self, no: Self) -> Self;
    /// Rounded to the nearest bf16, ties to even, kept as f32.
    fn to_bf16(self) -> Self;
    /// bf16 of `self` in the low and of `high` in the high half of each 32-bit lane.
    unsafe fn store_bf16_pairs(self, high: Self, to: *mut u32);

    /// bf16 of `self`, then of `next`, as sixteen 32-bit pairs of neighbours.
    #[inline(always)]
    unsafe fn store_bf16(self, next: Self, to: *mut u32) {
        let mut wide = [0f32; 2 * LANES];
        // SAFETY: the array has 32 elements, and the caller promises sixteen at `to`.
        unsafe {
            self.store(wide.as_mut_ptr());
            next.store(wide.as_mut_ptr().add(LANES));
            for pair in 0..LANES {
                let low = portable::bf16_bits(wide[2 * pair]);
                let high = portable::bf16_bits(wide[2 * pair + 1]);
                to.add(pair).write(u32::from(low) | u32::from(high) << 16);
            }
        }
    }

    /// Transposes sixteen rows of 32 numbers to sixteen rows of sixteen bf16 pairs.
    #[inline(always)]
    unsafe fn transpose_bf16(from: *const f32, stride: usize, to: *mut u32, to_stride: usize) {
        let mut pairs = [0f32; LANES * LANES];
        // SAFETY: the caller promises both sides; the array holds sixteen rows of pairs.
        unsafe {
            for row in 0..LANES {
                let from = from.add(row * stride);
                let to = pairs.as_mut_ptr().add(row * LANES);
                Self::load(from).store_bf16(Self::load(from.add(LANES)), to.cast());
            }
            Self::transpose(pairs.as_ptr(), LANES, to.cast(), to_stride);
        }
    }

    /// Transposes a 16 x 16 block from rows at `stride` to rows at `to_stride`.
    unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, to_stride: usize);

    /// Every second of 32 numbers, from the first.
    #[inline(always)]
    unsafe fn load_every_second(from: *const f32) -> Self {
        let mut lanes = [0f32; LANES];
        for (i, lane) in lanes.iter_mut().enumerate() {
            // SAFETY: the caller promises 32 numbers.
            *lane = unsafe { *from.add(2 * i) };
        }
        // SAFETY: the array has sixteen elements; the instruction set is the caller's promise.
        unsafe { Self::load(lanes.as_ptr()) }
    }

    /// A 16 x 16 block from rows at `stride`, transposed.
    #[inline(always)]
    unsafe fn transposed(from: *const f32, stride: usize) -> [Self; LANES] {
        let mut square = [0f32; LANES * LANES];
        // SAFETY: the caller promises the block, and the square is one.
        unsafe {
            Self::transpose(from, stride, square.as_mut_ptr(), LANES);
            std::array::from_fn(|row| Self::load(square.as_ptr().add(row * LANES)))
        }
    }

    /// Whether all lanes are one.
    #[inline(always)]
    fn all_ones(self) -> bool {
        let mut lanes = [0f32; LANES];
        // SAFETY: the array has sixteen elements, and the value proves its instruction set.
        unsafe { self.store(lanes.as_mut_ptr()) };
        lanes.iter().all(|lane| *lane == 1.0)
    }

    /// The sum over lanes, always in the same order.
    #[inline(always)]
    fn sum(self) -> f32 {
        let mut lanes = [0f32; LANES];
        // SAFETY: the array has sixteen elements, and the value proves its instruction set.
        unsafe { self.store(lanes.as_mut_ptr()) };
        let mut width = LANES / 2;
        while width > 0 {
            for lane in 0..width {
                lanes[lane] += lanes[lane + width];
            }
            width /= 2;
        }
        lanes[0]
    }
}

/// Compiles a kernel written over [`Vector`] for each instruction set and chooses at run time.
///
/// `per_isa! { fn name(a: A, b: B) -> R = generic }` makes a safe-to-dispatch `unsafe fn name(isa,
/// a, b)` that calls `generic::<V>(a, b)`; it is unsafe exactly when and because `generic` is.
macro_rules! per_isa {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $generic:ident;)*) => {$(
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis unsafe fn $name(isa: $crate::isa::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller's promise; AVX2 was found before this was entered.
                unsafe { $generic::<$crate::simd::avx2::F32x16>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx512($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller's promise; AVX-512 was found before this was entered.
                unsafe { $generic::<$crate::simd::avx512::F32x16<false>>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx512bf16($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller's promise; AVX-512 with bf16 was found before this was entered.
                unsafe { $generic::<$crate::simd::avx512::F32x16<true>>($($arg),*) }
            }
            match isa {
                // SAFETY: an `Isa` whose vectors are not portable is only ever one that this processor has;
                // the rest is the caller's promise.
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Isa::Avx512Bf16 | $crate::isa::Isa::Amx => unsafe {
                    avx512bf16($($arg),*)
                },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Isa::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Isa::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: the caller's promise.
                _ => unsafe { $generic::<$crate::simd::portable::F32x16>($($arg),*) },
            }
        }
    )*};
}
pub(crate) use per_isa;
