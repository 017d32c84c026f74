//! How a step gets from its beginning to its end.
//!
//! Every time at which a solver evaluates the velocity is known before the first evaluation.

use super::schedule::Step;
use super::{Denoiser, Field};
use crate::choices::choices;

choices! {
    /// Integrator of the sampler: a step from (x, t) to (x', t') with dt = t' - t < 0 and velocity v.
    Solver {
        /// First order, as the reference implementations: `x' = x + dt v(x, t)`.
        #[default]
        Euler = "euler",
        /// Second order, 2 evaluations: `x' = x + dt v(x + dt/2 v(x, t), t + dt/2)`.
        Midpoint = "midpoint",
        /// Second order, 2 evaluations: `x' = x + dt/2 (v1 + v2)`, `v1 = v(x, t)`, `v2 = v(x + dt v1, t')`.
        Heun = "heun",
        /// Second order, 1 evaluation (2 in the first step): multistep DPM-Solver++ (2M, arXiv:2211.01095) for a flow.
        ///
        /// With the predicted actions `a = x - t v` the velocity is `(x - a) / t`: linear in x, and that part is solved
        /// exactly. `a` is taken as the straight line in t through this step's and the last one's. (The paper takes it
        /// in log((1 - t) / t), which is infinite at both ends of a flow.) With its slope b the exact solution is
        /// `x' = x + dt v + b (dt - t' ln(t' / t))`. The first step has no last one and takes the midpoint. The error
        /// goes with log(n) / n² in n steps.
        DpmSolver2 = "dpm_solver_2",
        /// Fourth order, 4 evaluations: the classical Runge-Kutta method.
        Rk4 = "rk4",
        /// First order: `x' = (1 - t') a + t' e`, `a = x - t v`, `e = x + (1 - t) v`: actions and noise as predicted,
        /// mixed anew (DDIM with η = 0, arXiv:2010.02502). On a flow's straight paths that is `x + dt v`: Euler's step,
        /// and computed as that.
        Ddim = "ddim",
    }
}

impl Solver {
    /// The time of each velocity evaluation, in order.
    pub(super) fn times(self, steps: &[Step]) -> Vec<f32> {
        let of_step = |(k, step): (usize, &Step)| match self {
            Solver::Euler | Solver::Ddim => vec![step.t],
            Solver::DpmSolver2 if k > 0 => vec![step.t],
            Solver::Midpoint | Solver::DpmSolver2 => vec![step.t, step.middle()],
            Solver::Heun => vec![step.t, step.next],
            Solver::Rk4 => vec![step.t, step.middle(), step.middle(), step.next],
        };
        steps.iter().enumerate().flat_map(of_step).collect()
    }

    /// Takes all `steps`; x is at the last one's end then.
    pub(super) fn integrate<D: Denoiser>(
        self,
        steps: &[Step],
        field: &mut Field<'_, D>,
        x: &mut D::Vector,
    ) -> Result<(), D::Error> {
        // DPM-Solver: the time of the last step, and the actions that it predicted.
        let mut last: Option<(f32, D::Vector)> = None;
        for step in steps {
            let &Step { t, next, dt } = step;
            let v = field.velocity(x)?;
            match self {
                Solver::Euler | Solver::Ddim => field.add(x, dt, &v),
                Solver::Midpoint => {
                    let v = field.velocity_ahead(x, dt / 2.0, &v)?;
                    field.add(x, dt, &v);
                }
                Solver::Heun => {
                    let v2 = field.velocity_ahead(x, dt, &v)?;
                    field.add(x, dt / 2.0, &v);
                    field.add(x, dt / 2.0, &v2);
                }
                Solver::Rk4 => {
                    let v2 = field.velocity_ahead(x, dt / 2.0, &v)?;
                    let v3 = field.velocity_ahead(x, dt / 2.0, &v2)?;
                    let v4 = field.velocity_ahead(x, dt, &v3)?;
                    for (share, v) in [(6.0, &v), (3.0, &v2), (3.0, &v3), (6.0, &v4)] {
                        field.add(x, dt / share, v);
                    }
                }
                Solver::DpmSolver2 => {
                    let actions = field.ahead(x, -t, &v);
                    match last {
                        None => {
                            let v = field.velocity_ahead(x, dt / 2.0, &v)?;
                            field.add(x, dt, &v);
                        }
                        Some((before, last)) => {
                            let shrunk = if next > 0.0 { next * (next / t).ln() } else { 0.0 };
                            let share = (dt - shrunk) / (t - before);
                            let change = field.ahead(&actions, -1.0, &last);
                            field.add(x, dt, &v);
                            field.add(x, share, &change);
                        }
                    }
                    last = Some((t, actions));
                }
            }
        }
        Ok(())
    }
}
