//! What all joints do at one time: values, rates and accelerations, each in an array of its own.
//!
//! Promises: to add what a plan does is a few multiply-adds per joint and array, four joints at a time, over memory that
//! lies in order: the compiler makes vectors of them. Nothing allocates but the constructor. Called by the plan, the
//! reference and the motion, in every tick.

use std::array::from_fn;
use std::iter::repeat;

use super::splice::Sample;

/// Joints that are computed at a time. Arrays are filled up to a multiple of it; what is there beyond the last joint is
/// never looked at.
const LANES: usize = 4;

/// Four joints' values.
pub type Lanes = [f64; LANES];

/// So many of them hold so many joints.
pub fn lanes(joints: usize) -> usize {
    joints.div_ceil(LANES)
}

/// Of each joint its value (rad or m, or per s for velocity-controlled joints), its rate (per s) and, where there are three
/// arrays, its acceleration (per s²).
#[derive(Clone, Debug)]
pub struct Samples<const N: usize>([Vec<f64>; N]);

impl<const N: usize> Samples<N> {
    /// Nothing, for so many joints.
    pub fn new(joints: usize) -> Self {
        Self([(); N].map(|()| vec![0.0; LANES * lanes(joints)]))
    }

    /// Each joint's, and some more.
    pub fn iter(&self) -> impl Iterator<Item = Sample> {
        let of = |order: usize| self.0.get(order).map_or(&[][..], Vec::as_slice);
        let (values, rates, accelerations) = (of(0), of(1), of(2).iter().copied().chain(repeat(0.0)));
        let joints = values.iter().zip(rates).zip(accelerations);
        joints.map(|((&value, &rate), acceleration)| Sample { value, rate, acceleration })
    }

    /// Adds to each joint.
    pub fn add(&mut self, samples: impl Iterator<Item = Sample>) {
        for (joint, Sample { value, rate, acceleration }) in samples.enumerate() {
            for (sums, part) in self.0.iter_mut().zip([value, rate, acceleration]) {
                sums.get_mut(joint).into_iter().for_each(|sum| *sum += part);
            }
        }
    }

    /// The sum of these.
    pub fn sum(&mut self, parts: &[Option<Part>]) {
        let blocks = self.0.first().map_or(0, Vec::len) / LANES;
        for block in 0..blocks {
            let mut sums = [[0.0; LANES]; N];
            parts.iter().flatten().for_each(|part| part.add_to(block, &mut sums));
            for (values, sums) in self.0.iter_mut().zip(sums) {
                values[block * LANES..][..LANES].copy_from_slice(&sums);
            }
        }
    }
}

/// What one plan adds: a cubic between two of four steps, the one before, the one, the next, and the one after.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    counts: Counts,
    rows: [&'a [Lanes]; 4],
}

impl<'a> Part<'a> {
    /// Of four steps.
    pub fn new(counts: Counts, rows: [&'a [Lanes]; 4]) -> Self {
        Self { counts, rows }
    }

    fn add_to<const N: usize>(&self, block: usize, sums: &mut [Lanes; N]) {
        let [before, here, next, after] = &self.rows;
        let (Some(before), Some(here)) = (before.get(block), here.get(block)) else { return };
        let (Some(next), Some(after)) = (next.get(block), after.get(block)) else { return };
        let way: Lanes = from_fn(|lane| next[lane] - here[lane]);
        let leaving: Lanes = from_fn(|lane| next[lane] - before[lane]);
        let arriving: Lanes = from_fn(|lane| after[lane] - here[lane]);
        for (sum, [c0, c1, c2, c3]) in sums.iter_mut().zip(self.counts.0) {
            *sum = from_fn(|lane| {
                sum[lane] + (c0 * here[lane] + c1 * way[lane] + c2 * leaving[lane] + c3 * arriving[lane])
            });
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
