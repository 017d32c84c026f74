//! The sampler: integrates the velocity field from noise (t = 1) to actions (t = 0), spec/PI05.md §8.
//!
//! Written once against "evaluate the velocity, combine vectors" ([`Denoiser`]), so that it runs on host vectors and
//! can be recorded into a CUDA graph: every time is known before the first evaluation ([`Sampler::times`]), and so is
//! every factor.
//!
//! | file | holds |
//! |---|---|
//! | `schedule` | where the steps lie |
//! | `solver` | how a step is taken |
//! | [`rtc`] | what the previous chunk's leftover does to the velocity |

pub mod rtc;
mod schedule;
mod solver;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};

use rtc::Steering;
pub use schedule::{Schedule, Step, TimeRounding};
pub use solver::Solver;

/// Denoise steps of the reference implementations, where a checkpoint does not say its own.
pub const DEFAULT_STEPS: usize = 10;

/// From noise to actions: how many steps, where, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampler {
    /// Denoise steps, at least 1.
    pub steps: usize,
    /// Where they lie.
    pub schedule: Schedule,
    /// How one is taken.
    pub solver: Solver,
    /// Whose rounding of the times.
    pub rounding: TimeRounding,
}

/// A velocity field v(x, t) and the vector space it lives in.
pub trait Denoiser {
    /// Where a vector `[horizon, action_dim]` lives.
    type Vector;
    /// What an evaluation can fail with.
    type Error;
    /// `v(x, times[evaluation])`, with `times` as announced by [`Sampler::times`]; called for each in order.
    fn velocity(&mut self, x: &Self::Vector, evaluation: usize) -> Result<Self::Vector, Self::Error>;
    /// Another vector with the same values.
    fn copy(&mut self, x: &Self::Vector) -> Self::Vector;
    /// `x += scale * v`
    fn add_scaled(&mut self, x: &mut Self::Vector, scale: f32, v: &Self::Vector);
    /// `x *= factors`, element by element.
    fn multiply(&mut self, x: &mut Self::Vector, factors: &Self::Vector);
}

/// A velocity field on vectors in memory: a [`Denoiser`] without more ado.
pub trait HostField {
    /// What an evaluation can fail with.
    type Error;
    /// As [`Denoiser::velocity`].
    fn velocity_at(&mut self, x: &[f32], evaluation: usize) -> Result<Vec<f32>, Self::Error>;
}

impl<F: HostField> Denoiser for F {
    type Vector = Vec<f32>;
    type Error = F::Error;

    fn velocity(&mut self, x: &Vec<f32>, evaluation: usize) -> Result<Vec<f32>, F::Error> {
        self.velocity_at(x, evaluation)
    }

    fn copy(&mut self, x: &Vec<f32>) -> Vec<f32> {
        x.clone()
    }

    fn add_scaled(&mut self, x: &mut Vec<f32>, scale: f32, v: &Vec<f32>) {
        x.iter_mut().zip(v).for_each(|(x, v)| *x += scale * v);
    }

    fn multiply(&mut self, x: &mut Vec<f32>, factors: &Vec<f32>) {
        x.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
    }
}

impl Sampler {
    /// Euler steps on the linear schedule, as the reference implementations.
    pub fn euler(steps: usize, rounding: TimeRounding) -> Self {
        Self { steps, schedule: Schedule::Linear, solver: Solver::Euler, rounding }
    }

    /// The time of each velocity evaluation, in order; every time is known beforehand.
    pub fn times(&self) -> Vec<f32> {
        self.solver.times(&self.grid())
    }

    /// Integrates from `x` (noise) to actions, in place.
    pub fn run<D: Denoiser>(
        &self,
        denoiser: &mut D,
        steering: &Steering<D::Vector>,
        x: &mut D::Vector,
    ) -> Result<(), D::Error> {
        let steps = self.grid();
        let times = self.solver.times(&steps);
        self.solver.integrate(&steps, &mut Field { denoiser, steering, times, evaluations: 0 }, x)
    }

    fn grid(&self) -> Vec<Step> {
        self.schedule.steps(self.steps, self.rounding)
    }
}

/// The velocity as the solvers see it: steered, at the next of the announced times.
struct Field<'a, D: Denoiser> {
    denoiser: &'a mut D,
    steering: &'a Steering<D::Vector>,
    times: Vec<f32>,
    evaluations: usize,
}

impl<D: Denoiser> Field<'_, D> {
    fn velocity(&mut self, x: &D::Vector) -> Result<D::Vector, D::Error> {
        let mut v = self.denoiser.velocity(x, self.evaluations)?;
        self.steering.steer(self.denoiser, x, self.times[self.evaluations], &mut v);
        self.evaluations += 1;
        Ok(v)
    }

    /// The velocity at `x + dt v`.
    fn velocity_ahead(&mut self, x: &D::Vector, dt: f32, v: &D::Vector) -> Result<D::Vector, D::Error> {
        let ahead = self.ahead(x, dt, v);
        self.velocity(&ahead)
    }

    /// `x + dt v`, elsewhere.
    fn ahead(&mut self, x: &D::Vector, dt: f32, v: &D::Vector) -> D::Vector {
        let mut ahead = self.denoiser.copy(x);
        self.denoiser.add_scaled(&mut ahead, dt, v);
        ahead
    }

    /// `x += scale * v`
    fn add(&mut self, x: &mut D::Vector, scale: f32, v: &D::Vector) {
        self.denoiser.add_scaled(x, scale, v);
    }
}

/// Standard normal noise for one chunk, `len` values: a function of the seed and the chunk's number only.
pub fn noise(seed: u64, chunk: u64, len: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(chunk);
    StandardNormal.sample_iter(rng).take(len).collect()
}

#[cfg(test)]
mod tests;
