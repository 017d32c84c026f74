//! What the commands should be at any time: one plan, or several averaged, and what is left of the way from the one
//! before.
//!
//! Promises: the storage is allocated once; a plan that joins or leaves makes no jump in value or rate, if
//! [`Reference::join`] is called then. Called by the motion. It knows no limits.

use crate::clock::Steady;

use super::plan::{Chunk, Malformed, Place, Plan, seconds};
use super::splice::{Execution, Offset, Sample, Splice};

/// Most chunks that are averaged. More would be older than any horizon in use.
pub const PLANS_MAX: usize = 8;

/// At least one plan once [`Reference::take`] was called.
#[derive(Clone, Debug)]
pub struct Reference {
    /// The first `active` are in use, the oldest first.
    plans: Vec<Weighted>,
    active: usize,
    /// `[joints]`: added to the plans, since `joined`.
    offsets: Vec<Offset>,
    joined: Steady,
}

#[derive(Clone, Debug)]
struct Weighted {
    plan: Plan,
    observed: Steady,
    /// Share of the average; all add up to 1.
    weight: f64,
}

/// A [`Reference`] at one time.
pub struct View<'a> {
    reference: &'a Reference,
    places: [Place; PLANS_MAX],
    since_joined: f64,
}

impl View<'_> {
    /// One joint: the plans and the offset.
    pub fn sample(&self, joint: usize) -> Sample {
        let mut sample = self.plans(joint);
        sample.add(1.0, self.reference.offsets[joint].sample(self.since_joined));
        sample
    }

    /// One joint: the plans alone.
    pub fn plans(&self, joint: usize) -> Sample {
        match &self.reference.plans[..self.reference.active] {
            [only] => only.plan.sample(self.places[0], joint),
            plans => plans.iter().zip(&self.places).fold(Sample::default(), |mut sum, (weighted, &place)| {
                sum.add(weighted.weight, weighted.plan.sample(place, joint));
                sum
            }),
        }
    }
}

impl Reference {
    /// Room for chunks of up to `max_steps` steps.
    pub fn new(joints: usize, max_steps: usize) -> Self {
        let empty = || Weighted { plan: Plan::new(joints, max_steps), observed: Steady(0), weight: 1.0 };
        Self {
            plans: (0..PLANS_MAX).map(|_| empty()).collect(),
            active: 1,
            offsets: vec![Offset::NONE; joints],
            joined: Steady(0),
        }
    }

    /// Whether `chunk` can become a plan.
    pub fn check(&self, chunk: &Chunk) -> Result<(), Malformed> {
        self.plans[0].plan.check(chunk)
    }

    /// From now on `chunk`, which was checked; with the ones before it, if they are averaged and go on beyond `now`.
    pub fn take(&mut self, chunk: &Chunk, splice: &Splice, now: Steady, alone: bool) {
        let (start, steps) = match splice.execution {
            Execution::OpenLoop if splice.open_loop_steps > 0 => (now, splice.open_loop_steps),
            Execution::OpenLoop => (now, chunk.actions.len()),
            _ => (chunk.observed, chunk.actions.len()),
        };
        if splice.execution == Execution::Ensemble && !alone {
            self.expire(now);
            if self.active == PLANS_MAX {
                self.plans.rotate_left(1);
            } else {
                self.active += 1;
            }
        } else {
            self.active = 1;
        }
        let newest = &mut self.plans[self.active - 1];
        newest.observed = chunk.observed;
        newest.plan.fill(chunk, start, steps);
        self.weigh(chunk, splice.ensemble_decay);
    }

    /// Lets go of the plans that have ended, but for the newest. Whether there were any.
    pub fn expire(&mut self, now: Steady) -> bool {
        let mut kept = 0;
        for index in 0..self.active {
            if index + 1 == self.active || self.plans[index].plan.end() > now {
                self.plans.swap(kept, index);
                kept += 1;
            }
        }
        let any = kept < self.active;
        self.active = kept;
        if any {
            self.normalise();
        }
        any
    }

    /// Whether [`Reference::expire`] would let go of any.
    pub fn has_expired(&self, now: Steady) -> bool {
        self.plans[..self.active - 1].iter().any(|weighted| weighted.plan.end() <= now)
    }

    /// When the last of the plans ends.
    pub fn end(&self) -> Steady {
        let plans = self.plans[..self.active].iter();
        plans.map(|weighted| weighted.plan.end()).max().unwrap_or(Steady(0))
    }

    /// Nanoseconds between two steps of the newest plan.
    pub fn period_ns(&self) -> i64 {
        self.plans[self.active - 1].plan.period_ns()
    }

    /// As it is at `time`.
    pub fn at(&self, time: Steady) -> View<'_> {
        let mut places = [Place::START; PLANS_MAX];
        for (place, weighted) in places.iter_mut().zip(&self.plans[..self.active]) {
            *place = weighted.plan.place(time);
        }
        View { reference: self, places, since_joined: seconds(time.0.saturating_sub(self.joined.0)) }
    }

    /// From `time` on this is added to the plans, `[joints]`.
    pub fn join(&mut self, time: Steady, offsets: &[Offset]) {
        self.joined = time;
        self.offsets.copy_from_slice(offsets);
    }

    /// exp(-decay) per policy step that a plan is older than the newest.
    fn weigh(&mut self, newest: &Chunk, decay: f64) {
        for weighted in &mut self.plans[..self.active] {
            let older_ns = newest.observed.0.saturating_sub(weighted.observed.0);
            let steps = older_ns as f64 / newest.period_ns.max(1) as f64;
            weighted.weight = (-decay * steps).clamp(-500.0, 500.0).exp();
        }
        self.normalise();
    }

    fn normalise(&mut self) {
        let plans = &mut self.plans[..self.active];
        let sum: f64 = plans.iter().map(|weighted| weighted.weight).sum();
        let sum = sum.max(f64::MIN_POSITIVE);
        plans.iter_mut().for_each(|weighted| weighted.weight /= sum);
    }
}
