//! Real-time chunking: the leftover of the previous chunk steers the next one (spec/PI05.md §12).
//!
//! Guided (§12.1): each velocity is pulled towards the leftover, row by row as [`PrefixSchedule::weights`] say. The
//! paper pulls through the network's Jacobian; the reference (LeRobot) means to, but its correction is the error
//! itself, and so it is here: one evaluation, no derivative.
//! Trained (§12.3): the first rows are the leftover's, as clean actions at time 0, and stay so.

use thiserror::Error;

use super::Denoiser;
use crate::choices::choices;

choices! {
    /// How the pull towards the leftover falls off along the rows.
    PrefixSchedule {
        /// Rows that will have been executed before the chunk is there, and no other.
        Zeros = "zeros",
        /// Every row up to the execution horizon alike.
        Ones = "ones",
        /// From 1 to 0 in equal steps between the two; LeRobot's default.
        #[default]
        Linear = "linear",
        /// The same, falling faster: `w (e^w - 1) / (e - 1)`.
        Exp = "exp",
    }
}

/// LeRobot's strongest pull.
pub const MAX_GUIDANCE_WEIGHT: f32 = 10.0;

/// The end of the previous chunk in model space, `[rows, dims]`: what it would have done from now on.
#[derive(Clone, Copy, Debug)]
pub struct Leftover<'a> {
    /// Row-major.
    pub values: &'a [f32],
    /// Values per row, at most the network's; the missing ones count as 0.
    pub dims: usize,
}

/// Why a leftover cannot steer.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum RtcError {
    /// Not `[rows, dims]`.
    #[error(
        "leftover of the previous chunk: expected [rows, 1 to {action_dim}], found {values} values of {dims} each"
    )]
    Shape {
        /// Of the network.
        action_dim: usize,
        /// How many there are.
        values: usize,
        /// Claimed per row.
        dims: usize,
    },
    /// NaN or infinite.
    #[error("leftover of the previous chunk: expected finite numbers, found {0}")]
    NotFinite(f32),
    /// No sensible strength.
    #[error("guidance weight: expected a finite maximum of at least 0, found {0}")]
    Weight(f32),
    /// A trained prefix that does not fit.
    #[error(
        "inference delay: expected at most {most} steps (of {rows} left over, {horizon} of a chunk), found {delay}"
    )]
    Delay {
        /// What would do.
        most: usize,
        /// Rows of the leftover.
        rows: usize,
        /// Rows of a chunk.
        horizon: usize,
        /// What was asked for.
        delay: usize,
    },
}

/// What steers the sampling of one chunk.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Rtc {
    /// Nothing: the first chunk, or no real-time chunking.
    #[default]
    Off,
    /// §12.1, for any checkpoint.
    Guided(Guidance),
    /// §12.3, for checkpoints trained for it.
    Trained(CleanPrefix),
}

/// A leftover that pulls, made by [`Rtc::guided`].
#[derive(Clone, Debug, PartialEq)]
pub struct Guidance {
    /// Horizon and action_dim.
    shape: [usize; 2],
    /// `[horizon, action_dim]`
    leftover: Vec<f32>,
    /// `[horizon]`
    weights: Vec<f32>,
    max_weight: f32,
}

/// A leftover whose first rows are the chunk's, made by [`Rtc::trained`].
#[derive(Clone, Debug, PartialEq)]
pub struct CleanPrefix {
    /// Horizon and action_dim.
    shape: [usize; 2],
    /// `[rows, action_dim]`; at least one row, fewer than the horizon.
    leftover: Vec<f32>,
}

/// [`Rtc`] in the sampler's vector space: `[horizon, action_dim]` vectors, and factors that are known beforehand.
#[derive(Clone, Debug)]
pub enum Steering<V> {
    /// The velocity as it is.
    None,
    /// Pulled towards the leftover.
    Guided {
        /// Missing values are 0.
        leftover: V,
        /// Each row's weight, in all its columns.
        weights: V,
        /// Upper bound of [`guidance_weight`].
        max_weight: f32,
    },
    /// Rows that stay as they are.
    Fixed {
        /// 0 in their columns, 1 elsewhere.
        free: V,
    },
}

impl PrefixSchedule {
    /// Each row's weight, `[horizon]`. `delay`: rows that will have been executed before the chunk is there; `end`: rows
    /// from which on nothing pulls.
    pub fn weights(self, delay: usize, end: usize, horizon: usize) -> Vec<f32> {
        let start = delay.min(end);
        // Interior points of a line from 1 just before `start` to 0 just after the last row that counts.
        let between = end.min(horizon).saturating_sub(start);
        let weight = |row: usize| {
            let falling = || 1.0 - (row - start + 1) as f64 / (between + 1) as f64;
            match self {
                _ if row < start => 1.0,
                _ if row >= end => 0.0,
                PrefixSchedule::Zeros => 0.0,
                PrefixSchedule::Ones => 1.0,
                PrefixSchedule::Linear => falling(),
                PrefixSchedule::Exp => falling() * falling().exp_m1() / 1f64.exp_m1(),
            }
        };
        (0..horizon).map(|row| weight(row) as f32).collect()
    }
}

/// Strength of the pull at time t: `min(c r, max)` with τ = 1 - t, `c = (1 - τ) / τ`, `r = ((1 - τ)² + τ²) / (1 - τ)²`;
/// `max` where that is infinite, at both ends.
pub fn guidance_weight(t: f32, max: f32) -> f32 {
    let (t, tau) = (f64::from(t), 1.0 - f64::from(t));
    if t <= 0.0 || tau <= 0.0 {
        return max;
    }
    ((t * t + tau * tau) / (t * tau)).min(max.into()) as f32
}

impl Rtc {
    /// Guided. `delay`: policy steps that will pass before the chunk is there; `execution_horizon`: rows that pull at
    /// most; `shape`: `[horizon, action_dim]` of the network. An empty leftover steers nothing.
    pub fn guided(
        leftover: Leftover<'_>,
        schedule: PrefixSchedule,
        delay: usize,
        execution_horizon: usize,
        max_weight: f32,
        shape: [usize; 2],
    ) -> Result<Self, RtcError> {
        if !(max_weight.is_finite() && max_weight >= 0.0) {
            return Err(RtcError::Weight(max_weight));
        }
        let rows = leftover.rows(shape)?;
        if rows == 0 {
            return Ok(Rtc::Off);
        }
        Ok(Rtc::Guided(Guidance {
            shape,
            leftover: leftover.padded(shape),
            weights: schedule.weights(delay, execution_horizon.min(rows), shape[0]),
            max_weight,
        }))
    }

    /// Trained: the leftover's first `delay` rows are the chunk's. Without a delay nothing is steered.
    pub fn trained(leftover: Leftover<'_>, delay: usize, shape: [usize; 2]) -> Result<Self, RtcError> {
        let rows = leftover.rows(shape)?;
        if rows == 0 || delay == 0 {
            return Ok(Rtc::Off);
        }
        let [horizon, action_dim] = shape;
        let most = rows.min(horizon.saturating_sub(1));
        if delay > most {
            return Err(RtcError::Delay { most, rows, horizon, delay });
        }
        Ok(Rtc::Trained(CleanPrefix { shape, leftover: leftover.padded([delay, action_dim]) }))
    }

    /// The `[horizon, action_dim]` that it was made for, if it steers.
    pub fn shape(&self) -> Option<[usize; 2]> {
        match self {
            Rtc::Off => None,
            Rtc::Guided(Guidance { shape, .. }) | Rtc::Trained(CleanPrefix { shape, .. }) => Some(*shape),
        }
    }

    /// Rows that are clean actions: the network takes them at time 0.
    pub fn clean_rows(&self) -> usize {
        if let Rtc::Trained(CleanPrefix { shape, leftover }) = self { leftover.len() / shape[1] } else { 0 }
    }

    /// Guided: how much each row is pulled, `[horizon]`.
    pub fn weights(&self) -> Option<&[f32]> {
        if let Rtc::Guided(guidance) = self { Some(&guidance.weights) } else { None }
    }

    /// Where the sampling begins, from `noise` `[horizon, action_dim]`: the clean rows take the place of their noise.
    pub fn start(&self, noise: &[f32]) -> Vec<f32> {
        let mut x = noise.to_vec();
        if let Rtc::Trained(CleanPrefix { leftover, .. }) = self {
            for (x, clean) in x.iter_mut().zip(leftover) {
                *x = *clean;
            }
        }
        x
    }

    /// As host vectors.
    pub fn steering(&self) -> Steering<Vec<f32>> {
        let in_columns = |row: f32, [_, action_dim]: [usize; 2]| std::iter::repeat_n(row, action_dim);
        match self {
            Rtc::Off => Steering::None,
            Rtc::Guided(Guidance { shape, leftover, weights, max_weight }) => Steering::Guided {
                leftover: leftover.clone(),
                weights: weights.iter().flat_map(|&weight| in_columns(weight, *shape)).collect(),
                max_weight: *max_weight,
            },
            Rtc::Trained(CleanPrefix { shape, .. }) => {
                let free = |row| if row < self.clean_rows() { 0.0 } else { 1.0 };
                Steering::Fixed {
                    free: (0..shape[0]).flat_map(|row| in_columns(free(row), *shape)).collect(),
                }
            }
        }
    }
}

impl<V> Steering<V> {
    /// The velocity `v` at (x, t), steered: `v - g w (leftover - (x - t v))`, or 0 in rows that stay.
    pub(super) fn steer<D: Denoiser<Vector = V>>(&self, denoiser: &mut D, x: &V, t: f32, v: &mut V) {
        match self {
            Steering::None => {}
            Steering::Guided { leftover, weights, max_weight } => {
                let mut actions = denoiser.copy(x);
                denoiser.add_scaled(&mut actions, -t, v);
                let mut error = denoiser.copy(leftover);
                denoiser.add_scaled(&mut error, -1.0, &actions);
                denoiser.multiply(&mut error, weights);
                denoiser.add_scaled(v, -guidance_weight(t, *max_weight), &error);
            }
            Steering::Fixed { free } => denoiser.multiply(v, free),
        }
    }
}

impl Leftover<'_> {
    /// How many rows there are, if it fits a network of this `[horizon, action_dim]`.
    fn rows(&self, [_, action_dim]: [usize; 2]) -> Result<usize, RtcError> {
        let (values, dims) = (self.values.len(), self.dims);
        if dims == 0 || dims > action_dim || !values.is_multiple_of(dims) {
            return Err(RtcError::Shape { action_dim, values, dims });
        }
        match self.values.iter().find(|value| !value.is_finite()) {
            Some(&value) => Err(RtcError::NotFinite(value)),
            None => Ok(values / dims),
        }
    }

    /// With zeros to `[horizon, action_dim]`; rows beyond are left out.
    fn padded(&self, [horizon, action_dim]: [usize; 2]) -> Vec<f32> {
        let mut padded = vec![0.0; horizon * action_dim];
        for (to, from) in padded.chunks_exact_mut(action_dim).zip(self.values.chunks_exact(self.dims)) {
            to[..self.dims].copy_from_slice(from);
        }
        padded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pull_is_lerobots() {
        // guidance_weight_per_step of the recording, for ten steps.
        let recorded =
            [10.0, 9.111_111, 4.25, 2.761_905, 2.166_667, 2.0, 2.166_667, 2.761_905, 4.25, 9.111_109];
        for (k, recorded) in recorded.into_iter().enumerate() {
            let weight = guidance_weight(1.0 - k as f32 / 10.0, MAX_GUIDANCE_WEIGHT);
            assert!((weight - recorded).abs() < 1e-5, "{k}: {weight} {recorded}");
            assert_eq!(guidance_weight(1.0 - k as f32 / 10.0, 1.0), 1.0);
        }
        for end in [0.0, -7e-8, 1.0, 1.000_000_1] {
            assert_eq!(guidance_weight(end, 5.0), 5.0, "no NaN where it is infinite");
        }
    }

    #[test]
    fn a_leftover_is_checked() {
        let shape = [10, 8];
        let guided = |values: &[f32], dims| {
            let leftover = Leftover { values, dims };
            Rtc::guided(leftover, PrefixSchedule::Linear, 2, 6, MAX_GUIDANCE_WEIGHT, shape)
        };
        let trained = |values: &[f32], dims, delay| Rtc::trained(Leftover { values, dims }, delay, shape);
        for (values, dims) in [(&[0.0; 8][..], 0), (&[0.0; 18], 9), (&[0.0; 7], 8)] {
            assert!(matches!(guided(values, dims), Err(RtcError::Shape { .. })));
            assert!(matches!(trained(values, dims, 1), Err(RtcError::Shape { .. })));
        }
        assert!(matches!(guided(&[f32::NAN; 8], 8), Err(RtcError::NotFinite(_))));
        assert!(matches!(trained(&[f32::INFINITY; 8], 8, 1), Err(RtcError::NotFinite(_))));
        assert!(matches!(trained(&[0.0; 24], 8, 4), Err(RtcError::Delay { most: 3, .. })));
        assert!(matches!(trained(&[0.0; 160], 8, 10), Err(RtcError::Delay { most: 9, .. })));
        assert_eq!(guided(&[], 8), Ok(Rtc::Off));
        assert_eq!(trained(&[], 8, 3), Ok(Rtc::Off));
        assert_eq!(trained(&[0.0; 24], 8, 0), Ok(Rtc::Off));
        let leftover = Leftover { values: &[0.0; 8], dims: 8 };
        for weight in [f32::NAN, f32::INFINITY, -1.0] {
            let rtc = Rtc::guided(leftover, PrefixSchedule::Linear, 2, 6, weight, shape);
            assert!(matches!(rtc, Err(RtcError::Weight(_))));
        }
    }

    #[test]
    fn missing_dimensions_and_rows_are_zero_and_clean_rows_replace_noise() {
        let values = [1.0, 2.0, 3.0, 4.0];
        let rtc = Rtc::trained(Leftover { values: &values, dims: 2 }, 1, [3, 4]).unwrap();
        assert_eq!(rtc.start(&[9.0; 12])[..6], [1.0, 2.0, 0.0, 0.0, 9.0, 9.0]);
        assert_eq!((rtc.clean_rows(), rtc.shape()), (1, Some([3, 4])));
        let ones = PrefixSchedule::Ones;
        let rtc = Rtc::guided(Leftover { values: &values, dims: 2 }, ones, 0, 9, 5.0, [3, 4]).unwrap();
        let Steering::Guided { leftover, weights, .. } = rtc.steering() else { panic!("{rtc:?}") };
        assert_eq!(leftover, [1.0, 2.0, 0.0, 0.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(weights, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    }
}
