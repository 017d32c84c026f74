//! What the sampler promises, on velocity fields whose solution is known.

use super::rtc::{Leftover, MAX_GUIDANCE_WEIGHT, PrefixSchedule, Rtc};
use super::*;

const SCHEDULES: [Schedule; 4] = [Schedule::Linear, Schedule::Cosine, Schedule::Quadratic, Schedule::Sigmoid];
const SOLVERS: [Solver; 6] =
    [Solver::Euler, Solver::Midpoint, Solver::Heun, Solver::DpmSolver2, Solver::Rk4, Solver::Ddim];

/// A velocity field over pairs of f64, which forgets no digit of f32.
struct Analytic<F> {
    times: Vec<f32>,
    evaluations: usize,
    field: F,
}

impl<F: Fn([f64; 2], f64) -> [f64; 2]> Denoiser for Analytic<F> {
    type Vector = [f64; 2];
    type Error = std::convert::Infallible;
    fn velocity(&mut self, x: &[f64; 2], evaluation: usize) -> Result<[f64; 2], Self::Error> {
        assert_eq!(evaluation, self.evaluations, "in the announced order");
        self.evaluations += 1;
        Ok((self.field)(*x, self.times[evaluation].into()))
    }
    fn copy(&mut self, x: &[f64; 2]) -> [f64; 2] {
        *x
    }
    fn add_scaled(&mut self, x: &mut [f64; 2], scale: f32, v: &[f64; 2]) {
        *x = [0, 1].map(|i| x[i] + f64::from(scale) * v[i]);
    }
    fn multiply(&mut self, x: &mut [f64; 2], factors: &[f64; 2]) {
        *x = [0, 1].map(|i| x[i] * factors[i]);
    }
}

fn sampler(steps: usize, schedule: Schedule, solver: Solver) -> Sampler {
    Sampler { steps, schedule, solver, rounding: TimeRounding::Direct }
}

/// From x at t = 1 to t = 0; every announced evaluation is made.
fn solve(sampler: Sampler, field: impl Fn([f64; 2], f64) -> [f64; 2], from: [f64; 2]) -> [f64; 2] {
    let (mut x, times) = (from, sampler.times());
    let mut analytic = Analytic { times, evaluations: 0, field };
    let Ok(()) = sampler.run(&mut analytic, &Steering::None, &mut x);
    assert_eq!(analytic.evaluations, analytic.times.len());
    x
}

/// A spiral whose turning depends on the time: `x(t) = r(t) (cos a(t), sin a(t))`, `r = e^(t - t²)`, `a = 2 t + sin 3t`.
fn spiral(x: [f64; 2], t: f64) -> [f64; 2] {
    let (growth, turn) = (1.0 - 2.0 * t, 2.0 + 3.0 * (3.0 * t).cos());
    [growth * x[0] - turn * x[1], growth * x[1] + turn * x[0]]
}

/// Largest error at t = 0.
fn error(steps: usize, schedule: Schedule, solver: Solver) -> f64 {
    let angle = 2.0 + 3f64.sin();
    let x = solve(sampler(steps, schedule, solver), spiral, [angle.cos(), angle.sin()]);
    (x[0] - 1.0).abs().max(x[1].abs())
}

#[test]
fn solvers_converge_with_their_order_on_every_schedule() {
    for solver in SOLVERS {
        // Far enough for the order to show, not so far that the rounding of the times is what is left of the error.
        let (order, few, many) = match solver {
            Solver::Euler | Solver::Ddim => (1.0, 200, 400),
            Solver::Midpoint | Solver::Heun => (2.0, 50, 100),
            Solver::DpmSolver2 => (2.0, 400, 800), // its order shows late: the error goes with log(n) / n²
            Solver::Rk4 => (4.0, 12, 24),
        };
        for schedule in SCHEDULES {
            let (coarse, fine) = (error(few, schedule, solver), error(many, schedule, solver));
            let found = (coarse / fine).log2();
            assert!(
                (order - 0.2..order + 0.5).contains(&found) && fine > 1e-6,
                "{solver} {schedule}: order {found:.2}, errors {coarse:.1e} {fine:.1e}"
            );
        }
    }
}

#[test]
fn a_straight_path_takes_one_step() {
    for solver in SOLVERS {
        for schedule in SCHEDULES {
            for steps in [1, 2, 3, 50] {
                let x = solve(sampler(steps, schedule, solver), |_, _| [3.0, -0.5], [1.0, 2.0]);
                let off = (x[0] + 2.0).abs().max((x[1] - 2.5).abs());
                assert!(off < 2e-6, "{solver} {schedule} {steps}: {x:?}");
            }
        }
    }
}

#[test]
fn every_evaluation_is_announced_and_lies_between_noise_and_actions() {
    let per_step = |solver| match solver {
        Solver::Euler | Solver::Ddim | Solver::DpmSolver2 => 1,
        Solver::Midpoint | Solver::Heun => 2,
        Solver::Rk4 => 4,
    };
    for solver in SOLVERS {
        for schedule in SCHEDULES {
            for rounding in [TimeRounding::Accumulated, TimeRounding::Direct] {
                for steps in 1..=50 {
                    let times = Sampler { steps, schedule, solver, rounding }.times();
                    let first = usize::from(solver == Solver::DpmSolver2);
                    assert_eq!(times.len(), steps * per_step(solver) + first, "{solver} {steps}");
                    assert_eq!(times[0], 1.0);
                    assert!(times.iter().all(|t| (0.0..=1.0).contains(t)), "{solver} {schedule}: {times:?}");
                }
            }
        }
    }
}

#[test]
fn ddim_is_its_formula() {
    for schedule in SCHEDULES {
        let mut x = [0.3, -1.0];
        for Step { t, next, .. } in schedule.steps(7, TimeRounding::Direct) {
            let (t, next) = (f64::from(t), f64::from(next));
            let v = spiral(x, t);
            let actions = [0, 1].map(|i| x[i] - t * v[i]);
            let noise = [0, 1].map(|i| (x[i] - (1.0 - t) * actions[i]) / t);
            x = [0, 1].map(|i| (1.0 - next) * actions[i] + next * noise[i]);
        }
        let found = solve(sampler(7, schedule, Solver::Ddim), spiral, [0.3, -1.0]);
        assert!((0..2).all(|i| (found[i] - x[i]).abs() < 2e-6), "{schedule}: {found:?} {x:?}");
    }
}

/// Rows of two values each, as an engine has them. The velocity of a row depends on every row and the time.
struct Rows {
    times: Vec<f32>,
}

impl HostField for Rows {
    type Error = std::convert::Infallible;
    fn velocity_at(&mut self, x: &[f32], evaluation: usize) -> Result<Vec<f32>, Self::Error> {
        let (sum, t) = (x.iter().sum::<f32>(), self.times[evaluation]);
        Ok(x.iter().enumerate().map(|(i, x)| 0.7 * x + (0.1 * sum + i as f32).sin() * t).collect())
    }
}

fn run(sampler: Sampler, rtc: &Rtc, noise: &[f32]) -> Vec<f32> {
    let mut x = rtc.start(noise);
    let Ok(()) = sampler.run(&mut Rows { times: sampler.times() }, &rtc.steering(), &mut x);
    x
}

const NOISE: [f32; 8] = [0.4, -1.2, 0.9, 2.0, -0.3, 0.0, 1.1, -0.8];
const SHAPE: [usize; 2] = [4, 2];

#[test]
fn linear_euler_is_the_references_loop_bit_by_bit() {
    for steps in [1, 3, 10, 50] {
        let dt = (-1.0 / steps as f64) as f32;
        let mut openpi: Vec<f32> = NOISE.to_vec();
        let mut t = 1f32;
        while t >= -dt / 2.0 {
            let Ok(v) = Rows { times: vec![t] }.velocity(&openpi, 0);
            openpi.iter_mut().zip(v).for_each(|(x, v)| *x += dt * v);
            t += dt;
        }
        let mut lerobot: Vec<f32> = NOISE.to_vec();
        for k in 0..steps {
            let t = (1.0 + k as f64 * (-1.0 / steps as f64)) as f32;
            let Ok(v) = Rows { times: vec![t] }.velocity(&lerobot, 0);
            lerobot.iter_mut().zip(v).for_each(|(x, v)| *x += dt * v);
        }
        assert_eq!(run(Sampler::euler(steps, TimeRounding::Accumulated), &Rtc::Off, &NOISE), openpi);
        assert_eq!(run(Sampler::euler(steps, TimeRounding::Direct), &Rtc::Off, &NOISE), lerobot);
    }
}

#[test]
fn rows_of_a_trained_prefix_are_the_leftovers_with_any_solver() {
    let values = [5.0, -6.0, 7.0, 8.0, 9.0, 9.0];
    let rtc = Rtc::trained(Leftover { values: &values, dims: 2 }, 2, SHAPE).unwrap();
    for solver in SOLVERS {
        for schedule in SCHEDULES {
            let x = run(sampler(6, schedule, solver), &rtc, &NOISE);
            let free = run(sampler(6, schedule, solver), &Rtc::Off, &NOISE);
            assert_eq!(x[..4], values[..4], "{solver} {schedule}");
            assert!(x[4..] != free[4..] && x[4..] != values[2..], "{solver} {schedule}: the others move");
        }
    }
}

#[test]
fn guidance_pulls_where_it_weighs_with_any_solver() {
    let values = [5.0; 8];
    let rtc = |schedule, max| {
        Rtc::guided(Leftover { values: &values, dims: 2 }, schedule, 2, 3, max, SHAPE).unwrap()
    };
    let away = |x: &[f32]| x.iter().map(|x| (x - 5.0).abs()).fold(0f32, f32::max);
    for solver in SOLVERS {
        for schedule in SCHEDULES {
            let run = |rtc: &Rtc| run(sampler(10, schedule, solver), rtc, &NOISE);
            let free = run(&Rtc::Off);
            let guided = run(&rtc(PrefixSchedule::Linear, MAX_GUIDANCE_WEIGHT));
            assert!(guided.iter().all(|x| x.is_finite()), "{solver} {schedule}: {guided:?}");
            assert!(away(&guided[..4]) < 0.3 * away(&free[..4]), "{solver} {schedule}: {guided:?} {free:?}");
            assert_eq!(run(&rtc(PrefixSchedule::Linear, 0.0)), free, "no strength, no pull");
        }
    }
}
