//! What all joints do at one time: values, rates and accelerations, each in an array of its own.
//!
//! Promises: to sum what plans do is a few multiply-adds per joint, plan and array, over memory that lies in order, in
//! vectors of whatever width the processor has. Nothing allocates but the constructor. Called by the plan, the reference and
//! the motion, in every tick.

use std::iter::repeat;

use pulp::{Arch, Simd, WithSimd};

use super::splice::Sample;

/// Joints that the widest vectors hold. Arrays are filled up to a multiple of it; what is there beyond the last joint is never
/// looked at.
const LANES: usize = 8;

/// The length of an array of so many joints.
pub fn padded(joints: usize) -> usize {
    joints.next_multiple_of(LANES)
}

/// Of each joint its value (rad or m, or per s for velocity-controlled joints), its rate (per s) and, where there are three
/// arrays, its acceleration (per s²).
#[derive(Clone, Debug)]
pub struct Samples<const N: usize> {
    orders: [Vec<f64>; N],
    arch: Arch,
}

impl<const N: usize> Samples<N> {
    /// Nothing, for so many joints.
    pub fn new(joints: usize) -> Self {
        Self { orders: [(); N].map(|()| vec![0.0; padded(joints)]), arch: Arch::new() }
    }

    /// Each joint's, and some more.
    pub fn iter(&self) -> impl Iterator<Item = Sample> {
        let of = |order: usize| self.orders.get(order).map_or(&[][..], Vec::as_slice);
        let (values, rates, accelerations) = (of(0), of(1), of(2).iter().copied().chain(repeat(0.0)));
        let joints = values.iter().zip(rates).zip(accelerations);
        joints.map(|((&value, &rate), acceleration)| Sample { value, rate, acceleration })
    }

    /// Adds to each joint.
    pub fn add(&mut self, samples: impl Iterator<Item = Sample>) {
        for (joint, Sample { value, rate, acceleration }) in samples.enumerate() {
            for (sums, part) in self.orders.iter_mut().zip([value, rate, acceleration]) {
                sums.get_mut(joint).into_iter().for_each(|sum| *sum += part);
            }
        }
    }

    /// The sum of these.
    pub fn sum(&mut self, parts: &[Part]) {
        self.arch.dispatch(Sum { orders: self.orders.each_mut().map(Vec::as_mut_slice), parts });
    }
}

/// What one plan adds: a cubic between two of four steps, the one before, the one, the next, and the one after.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    counts: Counts,
    rows: [&'a [f64]; 4],
}

impl<'a> Part<'a> {
    /// Nothing.
    pub const NONE: Self = Self { counts: Counts([[0.0; 4]; 3]), rows: [&[]; 4] };

    /// Of four steps, padded.
    pub fn new(counts: Counts, rows: [&'a [f64]; 4]) -> Self {
        Self { counts, rows }
    }
}

struct Sum<'a, 'b, const N: usize> {
    orders: [&'a mut [f64]; N],
    parts: &'a [Part<'b>],
}

/// All rows and arrays are as long: a plan has the shape of its scheduler.
impl<const N: usize> WithSimd for Sum<'_, '_, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let mut orders = self.orders.map(|sums| S::as_mut_simd_f64s(sums).0);
        let blocks = orders.first().map_or(0, |sums| sums.len());
        for block in 0..blocks {
            let mut sums = [simd.splat_f64s(0.0); N];
            for Part { counts, rows } in self.parts {
                let [before, here, next, after] = rows.each_ref().map(|row| S::as_simd_f64s(row).0[block]);
                let way = simd.sub_f64s(next, here);
                let leaving = simd.sub_f64s(next, before);
                let arriving = simd.sub_f64s(after, here);
                for (sum, counts) in sums.iter_mut().zip(&counts.0) {
                    let [c0, c1, c2, c3] = counts.map(|count| simd.splat_f64s(count));
                    // From the step on: where nothing else counts, it is the step's value, bit for bit.
                    let part = simd.mul_add_e_f64s(c1, way, simd.mul_f64s(c0, here));
                    let part = simd.mul_add_e_f64s(c3, arriving, simd.mul_add_e_f64s(c2, leaving, part));
                    *sum = simd.add_f64s(*sum, part);
                }
            }
            orders.iter_mut().zip(sums).for_each(|(order, sum)| order[block] = sum);
        }
    }
}

/// Between two steps: what the one, the way to the next, the way from the one before to the next, and the way from the
/// one to the one after the next count; in the value, the rate and the acceleration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Counts(pub [[f64; 4]; 3]);

impl Counts {
    /// Of what stands still at the one step.
    pub const STILL: Self = Self([[1.0, 0.0, 0.0, 0.0], [0.0; 4], [0.0; 4]]);

    /// Of a share, which changes too.
    pub fn shared(&self, share: Sample) -> Self {
        let [value, rate, acceleration] = self.0;
        let (s, ds, dds) = (share.value, share.rate, share.acceleration);
        let mut shared = [[0.0; 4]; 3];
        for k in 0..4 {
            let (v, dv, ddv) = (value[k], rate[k], acceleration[k]);
            (shared[0][k], shared[1][k], shared[2][k]) =
                (s * v, s * dv + ds * v, s * ddv + 2.0 * ds * dv + dds * v);
        }
        Self(shared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// However wide the vectors are: each joint's sum is that of its own numbers.
        #[test]
        fn the_sum_is_that_of_each_joint_alone(
            joints in 1..20usize, plans in 0..9usize, numbers in prop::collection::vec(-3.0..3.0f64, 9 * 16),
        ) {
            let width = padded(joints);
            let of = |plan: usize, k: usize| numbers[plan * 16 + k];
            let row = |plan: usize, k: usize| -> Vec<f64> {
                (0..width).map(|joint| of(plan, k) * (1.0 + joint as f64)).collect()
            };
            let rows: Vec<[Vec<f64>; 4]> = (0..plans).map(|plan| [0, 1, 2, 3].map(|k| row(plan, k))).collect();
            let counts = |plan: usize| Counts([4, 8, 12].map(|k| [0, 1, 2, 3].map(|i| of(plan, k + i))));
            let parts: Vec<Part> = rows
                .iter()
                .enumerate()
                .map(|(plan, rows)| Part::new(counts(plan), rows.each_ref().map(Vec::as_slice)))
                .collect();
            let mut samples = Samples::<3>::new(joints);
            samples.sum(&parts);
            for (joint, sample) in samples.iter().take(joints).enumerate() {
                for (order, found) in [sample.value, sample.rate, sample.acceleration].into_iter().enumerate() {
                    let expected: f64 = (0..plans)
                        .map(|plan| {
                            let [before, here, next, after] = [0, 1, 2, 3].map(|k| rows[plan][k][joint]);
                            let [c0, c1, c2, c3] = counts(plan).0[order];
                            c0 * here + c1 * (next - here) + c2 * (next - before) + c3 * (after - here)
                        })
                        .sum();
                    prop_assert!((found - expected).abs() < 1e-9, "{found} {expected}");
                }
            }
        }
    }

    #[test]
    fn what_stands_still_is_passed_on_bit_for_bit() {
        let row: Vec<f64> = (0..8).map(|joint| 0.1 + f64::from(joint) / 3.0).collect();
        let whole = Sample { value: 1.0, ..Sample::default() };
        let mut samples = Samples::<2>::new(5);
        samples.sum(&[Part::new(Counts::STILL.shared(whole), [&row; 4])]);
        for (sample, value) in samples.iter().take(5).zip(&row) {
            assert_eq!((sample.value.to_bits(), sample.rate), (value.to_bits(), 0.0));
        }
    }
}
