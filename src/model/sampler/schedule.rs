//! Where the sampler's steps lie between noise (t = 1) and actions (t = 0).

use std::f64::consts::FRAC_PI_2;

use crate::choices::choices;

choices! {
    /// Time steps of the sampler: t as a function of the share `s` of steps done. The references have the linear one
    /// only; the others are those of an earlier port of π0.5, which called them finer near the actions: cosine and
    /// quadratic are finer near the noise, sigmoid is finer at both ends.
    Schedule {
        /// `1 - s`: equal steps, as the model was trained.
        #[default]
        Linear = "linear",
        /// `cos(s π / 2)`
        Cosine = "cosine",
        /// `1 - s²`
        Quadratic = "quadratic",
        /// `1 - (σ(10 (s - ½)) - σ(-5)) / (σ(5) - σ(-5))`, σ the logistic function.
        Sigmoid = "sigmoid",
    }
}

/// How the linear schedule's times are rounded; the two differ by at most 1e-7 in t, 2e-5 in the tiny model's actions.
/// The other schedules are rounded once, from f64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeRounding {
    /// openpi: `t = f32(t + dt)`, accumulated in f32.
    Accumulated,
    /// LeRobot: `t_k = f32(1 - k / n)`, each from f64.
    Direct,
}

/// One step of a schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Where it begins.
    pub t: f32,
    /// Where it ends: where the next one begins, 0 for the last.
    pub next: f32,
    /// Its size, negative. Rounded on its own: `t + dt` may miss `next` by a rounding, as in the references.
    pub dt: f32,
}

impl Step {
    /// Its middle.
    pub fn middle(&self) -> f32 {
        self.t + self.dt / 2.0
    }
}

impl Schedule {
    /// t after the share `s` of the steps, from 1 at 0 to 0 at 1.
    pub fn at(self, s: f64) -> f64 {
        let logistic = |x: f64| 1.0 / (1.0 + (-x).exp());
        match self {
            Schedule::Linear => 1.0 - s,
            Schedule::Cosine => (s * FRAC_PI_2).cos(),
            Schedule::Quadratic => 1.0 - s * s,
            Schedule::Sigmoid => {
                let (low, high) = (logistic(-5.0), logistic(5.0));
                1.0 - (logistic(10.0 * (s - 0.5)) - low) / (high - low)
            }
        }
    }

    /// All steps, from 1 to 0.
    pub fn steps(self, count: usize, rounding: TimeRounding) -> Vec<Step> {
        let at = |k: usize| self.at(k as f64 / count as f64);
        let dt = -1.0 / count as f64;
        let begins: Vec<f32> = match (self, rounding) {
            (Schedule::Linear, TimeRounding::Accumulated) => {
                std::iter::successors(Some(1f32), |t| Some(t + dt as f32)).take(count).collect()
            }
            (Schedule::Linear, TimeRounding::Direct) => {
                (0..count).map(|k| (1.0 + k as f64 * dt) as f32).collect()
            }
            _ => (0..count).map(|k| at(k) as f32).collect(),
        };
        let size = |k: usize| if self == Schedule::Linear { dt as f32 } else { (at(k + 1) - at(k)) as f32 };
        let step = |k: usize| Step { t: begins[k], next: *begins.get(k + 1).unwrap_or(&0.0), dt: size(k) };
        (0..count).map(step).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Schedule; 4] = [Schedule::Linear, Schedule::Cosine, Schedule::Quadratic, Schedule::Sigmoid];

    #[test]
    fn every_schedule_goes_down_from_noise_to_actions() {
        for schedule in ALL {
            for rounding in [TimeRounding::Accumulated, TimeRounding::Direct] {
                for count in 1..=50 {
                    let steps = schedule.steps(count, rounding);
                    assert_eq!((steps.len(), steps[0].t, steps[count - 1].next), (count, 1.0, 0.0));
                    assert!(steps.windows(2).all(|pair| pair[0].next == pair[1].t));
                    for step in &steps {
                        assert!(step.dt < 0.0 && step.next < step.t, "{schedule} {count}: {step:?}");
                        assert!((step.t + step.dt - step.next).abs() < 4e-6, "{schedule} {count}: {step:?}");
                        assert!(step.next < step.middle() && step.middle() < step.t);
                    }
                    let sum: f64 = steps.iter().map(|step| f64::from(step.dt)).sum();
                    assert!((sum + 1.0).abs() < 1e-6, "{schedule} {count}: {sum}");
                }
            }
        }
    }

    /// The earlier port's table for 10 steps: how far the first and the last three steps go.
    #[test]
    fn schedules_are_the_earlier_ports() {
        let gone =
            |schedule: Schedule| [1.0 - schedule.at(0.3), schedule.at(0.7)].map(|x| (x * 100.0).round());
        assert_eq!(gone(Schedule::Linear), [30.0, 30.0]);
        assert_eq!(gone(Schedule::Cosine), [11.0, 45.0]);
        assert_eq!(gone(Schedule::Quadratic), [9.0, 51.0]);
        let sigmoid = gone(Schedule::Sigmoid);
        assert!(sigmoid[0] == sigmoid[1] && sigmoid[0] < 15.0, "an S, finer at both ends: {sigmoid:?}");
    }

    #[test]
    fn ten_linear_steps_are_the_references() {
        let times = |rounding| Schedule::Linear.steps(10, rounding).iter().map(|s| s.t).collect::<Vec<_>>();
        let openpi = times(TimeRounding::Accumulated);
        assert_eq!(openpi[..5], [1.0, 0.9, 0.79999995, 0.6999999, 0.5999999]);
        assert_eq!(openpi[9], 0.09999993);
        assert_eq!(times(TimeRounding::Direct)[2], 0.8);
    }
}
