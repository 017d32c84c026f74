//! What the commands should be at any time: one plan, or several averaged, and what is left of the way to them.
//!
//! Promises: a plan that joins others makes no jump in value, rate or acceleration: its weight grows from nothing while
//! theirs become less. Whatever else changes what is followed, [`Reference::join`] leads over. The work of a look is that
//! of the plans in use, whatever their length; nothing is allocated or freed, plans are only swapped. Called by the
//! motion. It knows no limits.

use crate::clock::Steady;

use super::plan::{Plan, seconds};
use super::samples::{Part, Samples};
use super::splice::{Execution, Offset, Sample, Splice};

/// Most chunks that are averaged: more than the steps of a chunk in use, and so many overlap at most where an inference
/// takes a step or longer.
const AVERAGED_MAX: usize = 62;
/// Most plans at once, with those that are on their way out.
const PLANS_MAX: usize = AVERAGED_MAX + 2;

/// At least one plan once one was taken.
#[derive(Clone, Debug)]
pub struct Reference {
    /// The first `active` are in use, the oldest first.
    plans: Vec<Weighted>,
    active: usize,
    /// Since then the weights change.
    turned: Steady,
    /// `[joints]`: added to the plans, since `joined`.
    offsets: Vec<Offset>,
    joined: Steady,
    /// Seconds until the last of them is over.
    joins_for: f64,
}

#[derive(Clone, Debug)]
struct Weighted {
    plan: Plan,
    observed: Steady,
    /// Share of the average in the end; all add up to 1.
    weight: f64,
    /// What there is of it beside that until then; all add up to 0.
    fade: Offset,
}

impl Weighted {
    const EMPTY: Self = Self { plan: Plan::EMPTY, observed: Steady(0), weight: 0.0, fade: Offset::NONE };

    /// Its share of the average, so many seconds after the weights began to change.
    fn share(&self, elapsed: f64) -> Sample {
        let fade = self.fade.sample(elapsed);
        Sample { value: self.weight + fade.value, ..fade }
    }
}

impl Reference {
    /// For so many joints.
    pub fn new(joints: usize) -> Self {
        Self {
            plans: vec![Weighted::EMPTY; PLANS_MAX],
            active: 0,
            turned: Steady(0),
            offsets: vec![Offset::NONE; joints],
            joined: Steady(0),
            joins_for: 0.0,
        }
    }

    /// This plan alone, at once. What it swaps it for is of no use any more.
    pub fn take(&mut self, plan: &mut Plan, observed: Steady) {
        self.active = 0;
        self.push(plan, observed);
        self.jump();
    }

    /// From what is at `time` to this plan, or, averaged, to all of them: within so many seconds as `duration` says of
    /// the gaps `[joints]` in between. What it swaps the plan for is of no use any more. There is room for it.
    pub fn turn_to(
        &mut self,
        plan: &mut Plan,
        observed: Steady,
        splice: &Splice,
        time: Steady,
        gaps: &mut Samples<2>,
        duration: impl FnOnce(&Samples<2>) -> f64,
    ) {
        let shares = self.shares(seconds(time.0.saturating_sub(self.turned.0)));
        self.push(plan, observed);
        self.weigh(splice);
        self.sum(time, |index, weighted| shares[index].minus_value(weighted.weight), gaps);
        self.fade(time, &shares, duration(gaps));
    }

    /// Lets those of the averaged plans fade out, within `duration` seconds, that end after `time` before long, so that they
    /// are gone by then. `soon` is longer than that.
    pub fn retire(&mut self, time: Steady, soon: Steady, duration: f64) {
        let older = self.active.saturating_sub(1);
        let ends = |weighted: &Weighted| weighted.weight > 0.0 && weighted.plan.end() <= soon;
        if !self.plans[..older].iter().any(ends) {
            return;
        }
        let elapsed = seconds(time.0.saturating_sub(self.turned.0));
        let shares = self.shares(elapsed);
        // A longer fade that is under way keeps its time.
        let left =
            self.plans[..self.active].iter().map(|weighted| weighted.fade.left(elapsed)).fold(0.0, f64::max);
        self.plans[..older]
            .iter_mut()
            .filter(|weighted| ends(weighted))
            .for_each(|weighted| weighted.weight = 0.0);
        self.normalise();
        self.fade(time, &shares, duration.max(left));
    }

    /// Lets go of the plans that have faded out.
    pub fn forget(&mut self, now: Steady) {
        let elapsed = seconds(now.0.saturating_sub(self.turned.0));
        self.keep(|weighted| weighted.weight > 0.0 || !weighted.fade.is_over(elapsed));
    }

    /// Whether all plans but the newest have their ends after `now`.
    pub fn is_whole(&self, now: Steady) -> bool {
        self.plans[..self.active].iter().rev().skip(1).all(|weighted| weighted.plan.end() > now)
    }

    /// Whether there is room for one more.
    pub fn has_room(&self) -> bool {
        self.active < PLANS_MAX
    }

    /// Lets go, at once, of the plans that have ended, but for the newest; and of the oldest, if there is no room then.
    pub fn expire(&mut self, now: Steady) {
        self.keep(|weighted| weighted.plan.end() > now);
        if !self.has_room() {
            self.plans.rotate_left(1);
            self.active -= 1;
        }
        self.jump();
    }

    /// When the last of the plans ends that are there to stay.
    pub fn end(&self) -> Steady {
        let stay = self.plans[..self.active].iter().filter(|weighted| weighted.weight > 0.0);
        stay.map(|weighted| weighted.plan.end()).max().unwrap_or(Steady(0))
    }

    /// As it is at `time`, `[joints]`: the plans and the offsets.
    pub fn look<const N: usize>(&self, time: Steady, found: &mut Samples<N>) {
        self.look_at_plans(time, found);
        let elapsed = seconds(time.0.saturating_sub(self.joined.0));
        if elapsed < self.joins_for {
            found.add(self.offsets.iter().map(|offset| offset.sample(elapsed)));
        }
    }

    /// The plans alone.
    pub fn look_at_plans<const N: usize>(&self, time: Steady, found: &mut Samples<N>) {
        let elapsed = seconds(time.0.saturating_sub(self.turned.0));
        self.sum(time, |_, weighted| weighted.share(elapsed), found);
    }

    /// From `time` on this is added to the plans, `[joints]`.
    pub fn join(&mut self, time: Steady, offsets: impl Iterator<Item = Offset>) {
        self.joined = time;
        self.offsets.iter_mut().zip(offsets).for_each(|(offset, new)| *offset = new);
        self.joins_for = self.offsets.iter().map(|offset| offset.left(0.0)).fold(0.0, f64::max);
    }

    /// Of each plan in use, so many seconds after the weights began to change; of what is pushed then, none.
    fn shares(&self, elapsed: f64) -> [Sample; PLANS_MAX] {
        let mut shares = [Sample::default(); PLANS_MAX];
        for (share, weighted) in shares.iter_mut().zip(&self.plans[..self.active]) {
            *share = weighted.share(elapsed);
        }
        shares
    }

    /// The sum of such shares of the plans in use, at `time`.
    fn sum<const N: usize>(
        &self,
        time: Steady,
        share: impl Fn(usize, &Weighted) -> Sample,
        into: &mut Samples<N>,
    ) {
        let mut parts = [Part::NONE; PLANS_MAX];
        for ((index, weighted), part) in self.plans[..self.active].iter().enumerate().zip(&mut parts) {
            *part = weighted.plan.part(time, share(index, weighted));
        }
        into.sum(&parts[..self.active]);
    }

    /// From these shares to the weights, from `time` on, in so many seconds.
    fn fade(&mut self, time: Steady, shares: &[Sample; PLANS_MAX], duration: f64) {
        for (share, weighted) in shares.iter().zip(&mut self.plans[..self.active]) {
            weighted.fade = Offset::new(share.minus_value(weighted.weight), duration);
        }
        self.turned = time;
    }

    /// As the newest.
    fn push(&mut self, plan: &mut Plan, observed: Steady) {
        if let Some(newest) = self.plans.get_mut(self.active) {
            std::mem::swap(&mut newest.plan, plan);
            (newest.observed, newest.weight, newest.fade) = (observed, 1.0, Offset::NONE);
            self.active += 1;
        }
    }

    /// The newest has all the weight; averaged, each exp(-decay) of it per policy step that it is older.
    fn weigh(&mut self, splice: &Splice) {
        let Some((newest, older)) = self.plans[..self.active].split_last_mut() else { return };
        newest.weight = 1.0;
        for (age, weighted) in older.iter_mut().rev().enumerate() {
            let averaged = splice.execution == Execution::Ensemble && age + 1 < AVERAGED_MAX;
            let older_ns = newest.observed.0.saturating_sub(weighted.observed.0);
            let steps = older_ns as f64 / newest.plan.period_ns() as f64;
            weighted.weight =
                if averaged { (-splice.ensemble_decay * steps).clamp(-500.0, 500.0).exp() } else { 0.0 };
        }
        self.normalise();
    }

    /// The weights are at once what they would be in the end.
    fn jump(&mut self) {
        self.plans[..self.active].iter_mut().for_each(|weighted| weighted.fade = Offset::NONE);
        self.normalise();
    }

    fn normalise(&mut self) {
        let plans = &mut self.plans[..self.active];
        let sum: f64 = plans.iter().map(|weighted| weighted.weight).sum();
        plans.iter_mut().for_each(|weighted| weighted.weight /= sum.max(f64::MIN_POSITIVE));
    }

    /// Only those, and the newest, in their order.
    fn keep(&mut self, wanted: impl Fn(&Weighted) -> bool) {
        let mut kept = 0;
        for index in 0..self.active {
            if index + 1 == self.active || wanted(&self.plans[index]) {
                if kept != index {
                    self.plans.swap(kept, index);
                }
                kept += 1;
            }
        }
        self.active = kept;
    }
}
