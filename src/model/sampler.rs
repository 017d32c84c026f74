//! The sampler: integrates the velocity field from noise (t = 1) to actions (t = 0), spec/PI05.md §8.
//!
//! Written once against "evaluate the velocity, combine vectors" ([`Denoiser`]), so that it runs on host vectors and
//! can be recorded into a CUDA graph: every time is known before the first evaluation ([`Sampler::times`]).

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};

/// How the sequence of times is rounded; the two differ by at most 1e-7 in t, 2e-5 in the tiny model's actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeRounding {
    /// openpi: `t = f32(t + dt)`, accumulated in f32.
    Accumulated,
    /// LeRobot: `t_k = f32(1 - k / n)`, each from f64.
    Direct,
}

/// Euler steps on the linear schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampler {
    /// Denoise steps, at least 1.
    pub steps: usize,
    /// Whose rounding of the times.
    pub rounding: TimeRounding,
}

/// A velocity field v(x, t) and the vector space it lives in.
pub trait Denoiser {
    /// Where a vector `[horizon, action_dim]` lives.
    type Vector;
    /// What an evaluation can fail with.
    type Error;
    /// `v(x, times[step])`, with `times` as announced by [`Sampler::times`].
    fn velocity(&mut self, x: &Self::Vector, step: usize) -> Result<Self::Vector, Self::Error>;
    /// `x += scale * v`
    fn add_scaled(&mut self, x: &mut Self::Vector, scale: f32, v: &Self::Vector);
}

impl Sampler {
    /// Size of one step, negative.
    pub fn dt(&self) -> f32 {
        (-1.0 / self.steps as f64) as f32
    }

    /// The time of each velocity evaluation, from 1 down; every time is known beforehand.
    pub fn times(&self) -> Vec<f32> {
        match self.rounding {
            TimeRounding::Accumulated => {
                std::iter::successors(Some(1f32), |t| Some(t + self.dt())).take(self.steps).collect()
            }
            TimeRounding::Direct => {
                let dt = -1.0 / self.steps as f64;
                (0..self.steps).map(|k| (1.0 + k as f64 * dt) as f32).collect()
            }
        }
    }

    /// Integrates from `x` (noise) to actions, in place.
    pub fn run<D: Denoiser>(&self, denoiser: &mut D, x: &mut D::Vector) -> Result<(), D::Error> {
        for step in 0..self.steps {
            let v = denoiser.velocity(x, step)?;
            denoiser.add_scaled(x, self.dt(), &v);
        }
        Ok(())
    }
}

/// Standard normal noise for one chunk, `len` values: a function of the seed and the chunk's number only.
pub fn noise(seed: u64, chunk: u64, len: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(chunk);
    StandardNormal.sample_iter(rng).take(len).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// v(x, t) = x: the exact solution is x(0) = x(1) / e.
    struct Exponential;

    impl Denoiser for Exponential {
        type Vector = f64;
        type Error = std::convert::Infallible;
        fn velocity(&mut self, x: &f64, _: usize) -> Result<f64, Self::Error> {
            Ok(*x)
        }
        fn add_scaled(&mut self, x: &mut f64, scale: f32, v: &f64) {
            *x += f64::from(scale) * v;
        }
    }

    #[test]
    fn euler_converges_with_order_one() {
        let error = |steps| {
            let mut x = 1.0;
            let Ok(()) = Sampler { steps, rounding: TimeRounding::Accumulated }.run(&mut Exponential, &mut x);
            (x - (-1f64).exp()).abs()
        };
        let ratio = error(50) / error(100);
        assert!((1.9..2.1).contains(&ratio), "halving the step halves the error: {ratio}");
    }

    #[test]
    fn ten_accumulated_steps_are_openpis() {
        let times = Sampler { steps: 10, rounding: TimeRounding::Accumulated }.times();
        assert_eq!(times[..5], [1.0, 0.9, 0.79999995, 0.6999999, 0.5999999]);
        assert_eq!(times[9], 0.09999993);
        assert_eq!(Sampler { steps: 10, rounding: TimeRounding::Direct }.times()[2], 0.8);
    }

    #[test]
    fn noise_depends_on_seed_and_chunk_and_is_normal() {
        assert_eq!(noise(0, 3, 64), noise(0, 3, 64));
        assert_ne!(noise(0, 3, 64), noise(0, 4, 64));
        assert_ne!(noise(1, 3, 64), noise(0, 3, 64));
        assert_eq!(noise(0, 3, 64)[..32], noise(0, 3, 32)[..], "a prefix stays a prefix");
        let many = noise(7, 0, 100_000);
        let mean = many.iter().sum::<f32>() / 1e5;
        let variance = many.iter().map(|x| x * x).sum::<f32>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
    }
}
