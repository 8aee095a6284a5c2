//! Elementwise operations, in place.

use crate::isa::isa;
use crate::math::{self, Activation};
use crate::norm::sweep;
use crate::rows::Shared;
use crate::simd::{LANES, Vector, per_isa};
use crate::threads::{GRAIN, parallel};

/// Calls `f` with the parts of `0..count`, in parallel.
fn parts(count: usize, f: impl Fn(usize, usize) + Sync) {
    parallel(count.div_ceil(GRAIN), |task| {
        f(task * GRAIN, GRAIN.min(count - task * GRAIN));
    });
}

/// What is done with a second operand.
#[derive(Clone, Copy)]
enum Op {
    /// `x + s * y`, exactly `x + y` for a scale of one.
    Add(f32),
    Mul,
}

fn binary(x: &mut [f32], y: &[f32], op: Op) {
    assert_eq!(x.len(), y.len(), "operands differ in length");
    let isa = isa();
    let shared = Shared(x.as_mut_ptr());
    parts(x.len(), |start, count| {
        // SAFETY: parts are disjoint and inside both slices.
        unsafe { binary_part(isa, shared.at(start), y[start..].as_ptr(), count, op) };
    });
}

/// `x += y`.
///
/// # Panics
/// When the lengths differ, as for all of two operands.
pub fn add(x: &mut [f32], y: &[f32]) {
    binary(x, y, Op::Add(1.0));
}

/// `x += s * y`.
///
/// # Panics
/// When the lengths differ.
pub fn add_scaled(x: &mut [f32], s: f32, y: &[f32]) {
    binary(x, y, Op::Add(s));
}

/// `x *= y`.
///
/// # Panics
/// When the lengths differ.
pub fn mul(x: &mut [f32], y: &[f32]) {
    binary(x, y, Op::Mul);
}

/// `x = y`, by as many threads as it takes to move that much memory.
///
/// # Panics
/// When the lengths differ.
pub fn copy(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "operands differ in length");
    let shared = Shared(x.as_mut_ptr());
    parts(x.len(), |start, count| {
        let from = y[start..start + count].as_ptr();
        // SAFETY: parts are disjoint and inside both slices.
        unsafe { std::ptr::copy_nonoverlapping(from, shared.at(start), count) };
    });
}

/// `x = act(x)`.
pub fn activate(x: &mut [f32], act: Activation) {
    let isa = isa();
    let shared = Shared(x.as_mut_ptr());
    parts(x.len(), |start, count| {
        // SAFETY: parts are disjoint and inside the slice.
        unsafe { activate_part(isa, shared.at(start), count, act) };
    });
}

#[inline(always)]
unsafe fn binary_generic<V: Vector>(x: *mut f32, y: *const f32, count: usize, op: Op) {
    // SAFETY: the caller promises `count` numbers.
    unsafe {
        sweep!(count, |i, load, store| {
            let (a, b) = (load(x), load(y));
            let v = match op {
                Op::Add(scale) => b.fma(V::splat(scale), a),
                Op::Mul => a.mul(b),
            };
            store(v, x);
        });
    }
}

#[inline(always)]
unsafe fn activate_generic<V: Vector>(x: *mut f32, count: usize, act: Activation) {
    // SAFETY: the caller promises `count` numbers.
    unsafe {
        sweep!(count, |i, load, store| store(
            math::activate(act, load(x)),
            x
        ));
    }
}

per_isa! {
    /// Two operands.
    ///
    /// # Safety
    /// Both pointers must be good for `count` numbers.
    fn binary_part(x: *mut f32, y: *const f32, count: usize, op: Op) = binary_generic;
    /// An activation.
    ///
    /// # Safety
    /// The pointer must be good for `count` numbers.
    fn activate_part(x: *mut f32, count: usize, act: Activation) = activate_generic;
}
