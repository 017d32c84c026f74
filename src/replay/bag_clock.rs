//! The bag's time: what the stamps of its sources say together, made steady.
//!
//! Stamps in step with the newest one make the time: at most a second behind it, and half a second, or the log time that
//! has passed meanwhile, ahead of it. Beside them log times do not count: a recorder that stalled, or a simulation that
//! was slower or faster than the wall's clock, changes nothing. A source out of step (its stamps froze, its driver began
//! anew with another clock, one stamp is wrong) keeps the stamps that it has and moves nobody else's time. The clock
//! itself has jumped once no source is left in step; then stamps are shifted so that time goes on, as far as log time
//! did. A source that was silent for a second is not waited for. A stamp of 0 is none: such a message came as long after
//! the newest stamp as the log says.
//!
//! A source that runs away in steps below half a second is not told from time itself.

use super::bag::{Bag, BagError};
use super::message::Message;
use super::topics::{Role, Topics};
use crate::clock::{NS_PER_MS, NS_PER_S, Stamp};

/// More than the stamps of one source are ahead of another's for being less late.
const AHEAD_NS: i64 = 500 * NS_PER_MS;
/// More than an image is late, with another source that far ahead.
const BEHIND_NS: i64 = NS_PER_S;
/// Who has logged nothing for so long has no say in whether the clock has jumped.
const SILENT_NS: i64 = NS_PER_S;
/// By so many messages at its beginning it is told where a bag's time begins.
const FIRST_MESSAGES: usize = 100;

/// Makes one steady time of the stamps of several topics.
#[derive(Debug)]
pub struct BagClock {
    /// Added to stamps.
    shift: i64,
    /// The newest time in step, and when it was logged.
    now: (Stamp, i64),
    /// By topic: when its last message was logged, if it was in step.
    in_step: Vec<Option<i64>>,
}

/// What tells a message's time.
#[derive(Clone, Copy, Debug)]
pub struct Stamped {
    /// Index of the topic in the bag.
    pub topic: usize,
    /// The header's stamp; 0 is none.
    pub stamp: Stamp,
    /// When it was logged.
    pub log_time: i64,
}

/// A message's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The bag's time when it came.
    pub at: Stamp,
    /// Its stamp, in the bag's time.
    pub time: Stamp,
    /// Whether its source is in step; else `time` is anywhere.
    pub in_step: bool,
    /// The clock has jumped since the last message; what came before is of another time.
    pub jumped: bool,
}

impl BagClock {
    /// For these topics of a bag, whose beginning is read.
    pub fn of(bag: &Bag, topics: &Topics) -> Result<Self, BagError> {
        let sources: Vec<(usize, Role)> =
            topics.roles.iter().copied().filter(|(_, role)| *role != Role::Prompt).collect();
        let indices: Vec<usize> = sources.iter().map(|(index, _)| *index).collect();
        // What cannot be read is told by who reads it all.
        let records = bag.records(&indices)?.map_while(Result::ok).take(FIRST_MESSAGES);
        let first = records.filter_map(|record| {
            let (_, role) = sources.iter().find(|(index, _)| *index == record.topic)?;
            let stamp = Message::decode(*role, &record.payload).ok()?.stamp();
            Some(Stamped { topic: record.topic, stamp, log_time: record.log_time })
        });
        Ok(Self::new(bag.topics().len(), &first.collect::<Vec<_>>()))
    }

    /// For a bag of this many topics that begins with these messages. Its time begins with the first one that others
    /// agree with.
    pub fn new(topics: usize, first: &[Stamped]) -> Self {
        let agree = |a: &Stamped, b: &Stamped| {
            let logged = a.log_time.saturating_sub(b.log_time);
            a.stamp.since(b.stamp).saturating_sub(logged).saturating_abs() <= AHEAD_NS
        };
        let stamped: Vec<Stamped> = first.iter().copied().filter(|message| message.stamp.0 != 0).collect();
        let mut sources: Vec<usize> = stamped.iter().map(|message| message.topic).collect();
        sources.sort_unstable();
        sources.dedup();
        // Two of each source are enough: one that is alone is wrong, and a busy one has no greater say.
        let count = |a: &Stamped| -> usize {
            let of = |&topic| stamped.iter().filter(|b| b.topic == topic && agree(a, b)).take(2).count();
            sources.iter().map(of).sum()
        };
        let counts: Vec<usize> = stamped.iter().map(count).collect();
        let most = counts.iter().max().copied().unwrap_or(0);
        // Half will do: in a simulation that is not as fast as the log, none agrees with many.
        let origin = stamped.iter().zip(&counts).find(|&(_, count)| 2 * count >= most);
        let mut in_step = vec![None; topics];
        let now = match (origin, first.first()) {
            (Some((origin, _)), _) => {
                for message in stamped.iter().filter(|message| agree(origin, message)) {
                    if let Some(in_step) = in_step.get_mut(message.topic) {
                        *in_step = Some(message.log_time);
                    }
                }
                (origin.stamp, origin.log_time)
            }
            (None, Some(first)) => (Stamp(first.log_time), first.log_time),
            (None, None) => (Stamp(0), 0),
        };
        Self { shift: 0, now, in_step }
    }

    /// The time of the next message, in the order of log times.
    pub fn read(&mut self, message: Stamped) -> Reading {
        let Stamped { topic, stamp, log_time } = message;
        let (now, logged) = self.now;
        let passed = log_time.saturating_sub(logged);
        let expected = Stamp(now.0.saturating_add(passed));
        if stamp.0 == 0 {
            return Reading { at: expected.max(now), time: expected, in_step: true, jumped: false };
        }
        let mut time = self.shifted(stamp);
        let step = -BEHIND_NS..=passed.max(0).saturating_add(AHEAD_NS);
        let mut in_step = step.contains(&time.since(now));
        let jumped = !in_step && !self.others_in_step(topic, log_time);
        if jumped {
            self.shift = expected.max(now).since(stamp);
            self.in_step.fill(None);
            time = self.shifted(stamp);
            in_step = true;
        }
        if in_step && time >= now {
            self.now = (time, log_time);
        }
        if let Some(own) = self.in_step.get_mut(topic) {
            *own = in_step.then_some(log_time);
        }
        Reading { at: self.now.0, time, in_step, jumped }
    }

    fn shifted(&self, stamp: Stamp) -> Stamp {
        Stamp(stamp.0.saturating_add(self.shift))
    }

    /// Whether a source other than this one is in step, as far as has been heard lately.
    fn others_in_step(&self, topic: usize, log_time: i64) -> bool {
        let lately = |logged: i64| log_time.saturating_sub(logged) <= SILENT_NS;
        let mut others = self.in_step.iter().enumerate().filter(|(other, _)| *other != topic);
        others.any(|(_, logged)| logged.is_some_and(lately))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const S: i64 = NS_PER_S;
    const MS: i64 = NS_PER_MS;
    const T0: i64 = 1_700_000_000 * S;
    const WILD: usize = 2;

    /// Joints at 50 Hz, images at 20 Hz that come 30 ms late, a third source at 25 Hz; stamped and logged rightly.
    fn healthy(seconds: i64) -> Vec<Stamped> {
        let source = |topic, every: i64, late: i64| {
            (0..seconds * S / (every * MS)).map(move |k| {
                let stamp = Stamp(T0 + k * every * MS);
                Stamped { topic, stamp, log_time: stamp.0 + late * MS }
            })
        };
        let mut all: Vec<Stamped> =
            source(0, 20, 0).chain(source(1, 50, 30)).chain(source(2, 40, 1)).collect();
        all.sort_by_key(|message| message.log_time);
        all
    }

    fn read(messages: &[Stamped]) -> Vec<Reading> {
        let mut clock = BagClock::new(3, &messages[..messages.len().min(FIRST_MESSAGES)]);
        messages.iter().map(|message| clock.read(*message)).collect()
    }

    fn jumps(readings: &[Reading]) -> usize {
        readings.iter().filter(|reading| reading.jumped).count()
    }

    /// A stamp of the true one, the one before, and any number.
    type Wild = fn(i64, i64, i64) -> i64;

    /// What a source's stamps may be.
    fn wild() -> impl Strategy<Value = Wild> {
        prop_oneof![
            Just((|truth, _, _| truth) as Wild),
            Just((|_, _, _| 0) as Wild),
            Just((|_, _, any| any) as Wild),
            Just((|_, before, _| before) as Wild), // frozen
            Just((|truth, _, any| truth - T0 + any % S) as Wild), // since it began
            Just((|truth, _, any| truth + any % (400 * MS)) as Wild), // no further ahead than what is in step
        ]
    }

    proptest! {
        #[test]
        fn whatever_one_source_is_stamped_the_others_keep_their_times(
            kinds in vec((1..30_usize, wild()), 1..8), any in vec(any::<i64>(), 100),
        ) {
            let mut messages = healthy(4);
            let mut kinds = kinds.iter().flat_map(|(times, kind)| std::iter::repeat_n(kind, *times)).cycle();
            let mut before = T0;
            let theirs = messages.iter_mut().filter(|message| message.topic == WILD);
            for ((message, kind), any) in theirs.zip(&mut kinds).zip(&any) {
                before = kind(message.stamp.0, before, *any);
                message.stamp = Stamp(before);
            }
            let readings = read(&messages);
            prop_assert_eq!(jumps(&readings), 0);
            for (message, reading) in messages.iter().zip(&readings) {
                prop_assert!(reading.at.0 <= message.log_time + AHEAD_NS, "{message:?} {reading:?}");
                if message.topic != WILD {
                    prop_assert!(reading.in_step && reading.time == message.stamp, "{message:?} {reading:?}");
                }
            }
        }

        #[test]
        fn a_leap_of_all_is_one_jump_and_time_goes_on(by in 2 * S..=T0 - S, back: bool, at in 200..2800_i64) {
            let mut messages = healthy(4);
            for message in messages.iter_mut().filter(|message| message.stamp.0 >= T0 + at * MS) {
                message.stamp.0 += if back { -by } else { by };
            }
            let readings = read(&messages);
            prop_assert_eq!(jumps(&readings), 1);
            for (message, reading) in messages.iter().zip(&readings) {
                prop_assert!((reading.at.0 - message.log_time).abs() <= 100 * MS, "{message:?} {reading:?}");
                if !(0..200 * MS).contains(&(message.log_time - T0 - at * MS)) {
                    prop_assert!(reading.in_step && (reading.time.0 - message.log_time).abs() <= 60 * MS);
                }
            }
        }

        #[test]
        fn stamps_that_go_on_are_right_whatever_the_log_says(passed in vec(prop_oneof![Just(0), 0..S, any::<i64>()], 500)) {
            let mut messages = healthy(4);
            let mut log_time = T0;
            for (message, passed) in messages.iter_mut().zip(passed) {
                log_time = log_time.saturating_add(passed.saturating_abs());
                message.log_time = log_time;
            }
            for (message, reading) in messages.iter().zip(read(&messages)) {
                prop_assert_eq!((reading.time, reading.jumped), (message.stamp, false));
            }
        }

        #[test]
        fn a_gap_is_no_jump(gap in 0..1_000_000 * S, at in 0..4000_i64) {
            let mut messages = healthy(4);
            for message in messages.iter_mut().filter(|message| message.stamp.0 >= T0 + at * MS) {
                message.stamp.0 += gap;
                message.log_time += gap;
            }
            messages.sort_by_key(|message| message.log_time);
            for (message, reading) in messages.iter().zip(read(&messages)) {
                prop_assert_eq!((reading.time, reading.jumped), (message.stamp, false));
            }
        }

        #[test]
        fn time_never_goes_back_nor_further_than_the_log_did(
            messages in vec((0..3_usize, -T0..2 * T0, prop_oneof![0..S, 0..1_000_000 * S]), 1..80)
        ) {
            let mut log_time = T0;
            let messages: Vec<Stamped> = messages.into_iter().map(|(topic, stamp, passed)| {
                log_time += passed;
                Stamped { topic, stamp: Stamp(stamp.max(1)), log_time }
            }).collect();
            let readings = read(&messages);
            for (pair, logged) in readings.windows(2).zip(messages.windows(2)) {
                let passed = pair[1].at.since(pair[0].at);
                // What went by since the newest stamp in step, at most all.
                prop_assert!((0..=logged[1].log_time - T0 + AHEAD_NS).contains(&passed), "{pair:?}");
            }
        }
    }

    #[test]
    fn without_stamps_log_times_count() {
        let mut messages = healthy(2);
        messages.iter_mut().for_each(|message| message.stamp = Stamp(0));
        for (message, reading) in messages.iter().zip(read(&messages)) {
            assert_eq!((reading.at.0, reading.time.0), (message.log_time, message.log_time));
        }
    }

    #[test]
    fn a_first_stamp_that_is_wrong_is_not_where_time_begins() {
        for wrong in [1, T0 - 5 * S, T0 + 800 * MS, T0 + 5 * S, i64::from(i32::MAX) * S] {
            let mut messages = healthy(2);
            messages[0].stamp = Stamp(wrong);
            let readings = read(&messages);
            assert_eq!((jumps(&readings), readings[0].in_step), (0, false), "{wrong}");
            assert!(readings[1..].iter().all(|reading| reading.in_step));
            assert!((T0..T0 + 100 * MS).contains(&readings[0].at.0));
        }
    }

    #[test]
    fn a_source_that_is_gone_is_not_waited_for() {
        let mut messages = healthy(5);
        messages.retain(|message| message.topic == 0 || message.stamp.0 < T0 + S);
        messages
            .iter_mut()
            .filter(|message| message.stamp.0 >= T0 + 3 * S)
            .for_each(|message| message.stamp.0 -= T0);
        let readings = read(&messages);
        assert_eq!(jumps(&readings), 1);
        let last = readings.last().unwrap();
        assert_eq!((last.at, last.in_step), (Stamp(T0 + 4980 * MS), true));
    }
}
