//! From "a message of a source arrived" to "here is an observation for the next inference".
//!
//! Shared by `node` and `replay`, so that both begin their inferences by the same rule ([`Intake::next_observation`]).
//! What cannot be used changes nothing and is counted, by source and reason. One thread's at a time: every call is
//! short, images are decoded before. Reads no clock; all stamps and `now` are of one time that never jumps, or
//! [`Intake::clear`] is called when it does.

use std::fmt::Display;
use std::sync::Arc;

use super::counters::Counters;
use super::joints::{JointError, JointMap};
use super::snapshot::{Camera, NotReady, Snapshots};
use super::{Observation, RgbImage};
use crate::clock::{FUTURE_TOLERANCE_NS, NS_PER_MS, Stamp};
use crate::config::Config;

/// Where the robot's joints stood.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Stamp of the message.
    pub stamp: Stamp,
    /// Positions in configured order (rad, m).
    pub positions: Vec<f64>,
}

/// Is it time for an inference?
#[derive(Clone, Debug)]
pub enum Next {
    /// Yes: of this.
    Ready(Observation),
    /// All is well, but this was seen before, at least in part.
    NotYet {
        /// From when on the answer changes even if nothing arrives; `None`: not before something new arrives.
        ask_again: Option<Stamp>,
    },
    /// Something is missing, or too old.
    NotReady(NotReady),
}

/// What has come from one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceStatistics {
    /// The camera's slot, or `joints`.
    pub name: String,
    /// Messages taken.
    pub taken: u64,
    /// Messages refused; why is in [`Intake::counters`].
    pub refused: u64,
    /// Why the last one was, if none was taken since.
    pub last_refusal: Option<String>,
    /// What is the matter with its topic, as far as somebody has looked.
    pub trouble: Option<String>,
    /// Stamp of the newest one taken; `None` before the first, and after [`Intake::clear`].
    pub newest: Option<Stamp>,
}

/// The newest of everything, and what was used of it.
#[derive(Debug)]
pub struct Intake {
    joint_map: JointMap,
    snapshots: Snapshots,
    measured: Option<Measured>,
    joints_max_age_ns: i64,
    max_skew_ns: i64,
    /// By slot of the model.
    cameras: Vec<Option<SourceStatistics>>,
    joints: SourceStatistics,
    counters: Counters,
    last: Option<Last>,
    /// Why there is no observation, while there is none: the source to blame, and the reason.
    waiting_for: Option<(String, String)>,
    /// An inference has begun, ever.
    started: bool,
    ended: bool,
}

/// The observation before.
#[derive(Debug)]
struct Last {
    /// When its inference began.
    begun: Stamp,
    image_stamps: Vec<Option<Stamp>>,
    joints_stamp: Stamp,
}

impl Intake {
    /// `slots` are the model's cameras; `cameras` tells for each which of the configured ones it is
    /// (`policy::cameras::CameraSlots::assign`).
    pub fn new(config: &Config, slots: &[String], cameras: &[Option<usize>]) -> Result<Self, JointError> {
        let statistics = |name: &str| SourceStatistics {
            name: name.to_owned(),
            taken: 0,
            refused: 0,
            last_refusal: None,
            trouble: None,
            newest: None,
        };
        let camera = |(slot, index): (&String, &Option<usize>)| {
            let camera = config.cameras.get((*index)?)?;
            Some(Camera { name: slot.clone(), max_age_ns: camera.max_age_ms * NS_PER_MS })
        };
        let cameras: Vec<Option<Camera>> = slots.iter().zip(cameras).map(camera).collect();
        let joints_max_age_ns = config.joints.max_age_ms * NS_PER_MS;
        let max_skew_ns = config.observe.max_skew_ms * NS_PER_MS;
        Ok(Self {
            joint_map: JointMap::new(config.joints.names.clone())?,
            cameras: cameras.iter().map(|camera| Some(statistics(&camera.as_ref()?.name))).collect(),
            snapshots: Snapshots::new(cameras, joints_max_age_ns, max_skew_ns),
            measured: None,
            joints_max_age_ns,
            max_skew_ns,
            joints: statistics("joints"),
            counters: Counters::default(),
            last: None,
            waiting_for: None,
            started: false,
            ended: false,
        })
    }

    /// Takes the image of a slot, or counts why not.
    pub fn take_image<I: Into<Arc<RgbImage>>, E: Display>(
        &mut self,
        slot: usize,
        stamp: Stamp,
        image: Result<I, E>,
    ) {
        let image = match image {
            Ok(image) => image.into(),
            Err(error) => return self.refuse_image(slot, &error),
        };
        match self.snapshots.put_image(slot, stamp, image) {
            Ok(()) => {
                if let Some(Some(camera)) = self.cameras.get_mut(slot) {
                    camera.take(stamp);
                }
            }
            Err(refused) => {
                let why = refused.reason();
                self.counters.count(IMAGE_DROPPED, &why);
                self.refused(slot, why);
            }
        }
    }

    /// Counts an image that could not be decoded.
    pub fn refuse_image(&mut self, slot: usize, why: &dyn Display) {
        let name = self.cameras.get(slot).and_then(|camera| Some(camera.as_ref()?.name.as_str()));
        self.counters.count(IMAGE_DROPPED, &format!("{}: {why}", name.unwrap_or("masked camera")));
        self.refused(slot, why.to_string());
    }

    /// Takes the `name` and `position` of a joint state, or counts why not. Tells whether it was taken.
    pub fn take_joints<S: AsRef<str>>(&mut self, stamp: Stamp, names: &[S], positions: &[f64]) -> bool {
        let positions = match self.joint_map.positions(names, positions) {
            Ok(positions) => positions,
            Err(error) => {
                self.refuse_joints(&error);
                return false;
            }
        };
        match self.snapshots.put_joints(stamp, positions.clone()) {
            Ok(()) => {
                self.joints.take(stamp);
                self.measured = Some(Measured { stamp, positions });
                true
            }
            Err(refused) => {
                self.refuse_joints(&refused.reason());
                false
            }
        }
    }

    /// See [`Snapshots::forget_future`]. To be called before what arrives from the same source at `now` is taken.
    pub fn forget_future(&mut self, slot: Option<usize>, now: Stamp) {
        self.snapshots.forget_future(slot, now);
    }

    /// Counts a joint state that could not be decoded.
    pub fn refuse_joints(&mut self, why: &dyn Display) {
        let why = why.to_string();
        self.counters.count(JOINTS_DROPPED, &why);
        self.joints.refuse(why);
    }

    /// Counts any other event.
    pub fn count(&mut self, what: &str, why: &str) {
        self.counters.count(what, why);
    }

    /// What the next inference should start from, if it should start at `now` and none is under way.
    ///
    /// One inference per complete new observation: it begins as soon as every camera and the joints are newer than in
    /// the observation before. If only some are, it begins once `observe.max_skew_ms` have passed since the last
    /// inference began: a slow or lost camera must not stop the policy before its `max_age_ms`.
    ///
    /// The answer [`Next::Ready`] counts as used.
    pub fn next_observation(&mut self, now: Stamp) -> Next {
        let observation = match self.snapshots.snapshot(now) {
            Ok(observation) => observation,
            Err(not_ready) => {
                self.wait_for(&not_ready);
                return Next::NotReady(not_ready);
            }
        };
        if let Some(last) = &self.last {
            let fallback = Stamp(last.begun.0.saturating_add(self.max_skew_ns));
            match last.news(&observation) {
                News::Nothing => return Next::NotYet { ask_again: None },
                News::Some if now < fallback => return Next::NotYet { ask_again: Some(fallback) },
                News::Some | News::Everything => {}
            }
        }
        self.waiting_for = None;
        self.started = true;
        self.last = Some(Last {
            begun: now,
            image_stamps: observation.image_stamps.clone(),
            joints_stamp: observation.joints_stamp,
        });
        Next::Ready(observation)
    }

    /// The newest images, by slot, as they would be in an observation now if there were one. Counts nothing.
    pub fn newest_images(&self) -> Vec<Option<Arc<RgbImage>>> {
        self.snapshots.newest_images()
    }

    /// Whether there is an observation at `now`, new or not; else why not, in one line, with what its source sent
    /// instead.
    pub fn ready(&mut self, now: Stamp) -> Result<(), String> {
        let Err(not_ready) = self.snapshots.snapshot(now) else { return Ok(()) };
        Err(self.explained(not_ready.part(), not_ready.to_string()))
    }

    /// The newest joint positions, unless they are too old (or from the future) at `now`.
    pub fn measured(&self, now: Stamp) -> Option<&Measured> {
        let age = |measured: &Measured| now.since(measured.stamp);
        let fresh = -FUTURE_TOLERANCE_NS..=self.joints_max_age_ns;
        self.measured.as_ref().filter(|measured| fresh.contains(&age(measured)))
    }

    /// The newest joint positions, however old.
    pub fn last_measured(&self) -> Option<&Measured> {
        self.measured.as_ref()
    }

    /// What inferences wait for, without numbers; `None` while they begin.
    pub fn waiting_for(&self) -> Option<&str> {
        self.waiting_for.as_ref().map(|(_, reason)| reason.as_str())
    }

    /// The same, with what the source sent instead, or what is the matter with its topic.
    pub fn waiting_because(&self) -> Option<String> {
        self.waiting_for.as_ref().map(|(part, reason)| self.explained(part, reason.clone()))
    }

    /// The sources that sent messages of which none was taken, each with its most frequent reason, in one line.
    pub fn refused_throughout(&self) -> Option<String> {
        let sources = self.sources().filter(|source| source.taken == 0 && source.refused > 0);
        let told = sources.map(|source| {
            let name = &source.name;
            let event = match name == &self.joints.name {
                true => format!("{JOINTS_DROPPED}: "),
                false => format!("{IMAGE_DROPPED}: {name}: "),
            };
            let reasons =
                self.counters.iter().filter_map(|(key, count)| Some((count, key.strip_prefix(&event)?)));
            let all = format!("{name}: {} of {} messages taken", source.taken, source.refused);
            reasons.max().map_or(all.clone(), |(count, why)| {
                format!("{all}; the reason most often ({count} times): {why}")
            })
        });
        Some(told.collect::<Vec<_>>().join("; ")).filter(|told| !told.is_empty())
    }

    /// Whether any message of a camera (by slot) or of the joints (`None`) has come, taken or refused.
    pub fn has_heard(&self, slot: Option<usize>) -> bool {
        let source = slot.map_or(Some(&self.joints), |slot| self.cameras.get(slot)?.as_ref());
        source.is_some_and(|source| source.taken + source.refused > 0)
    }

    /// Somebody has looked at the topic of a camera (by slot) or of the joints (`None`): what is the matter with it.
    pub fn set_trouble(&mut self, slot: Option<usize>, trouble: Option<String>) {
        match slot {
            Some(slot) => {
                if let Some(Some(camera)) = self.cameras.get_mut(slot) {
                    camera.trouble = trouble;
                }
            }
            None => self.joints.trouble = trouble,
        }
    }

    /// See [`Snapshots::unchanged_for`].
    pub fn unchanged_for(&self, slot: usize) -> Option<i64> {
        self.snapshots.unchanged_for(slot)
    }

    /// Every configured camera in the model's order, then the joints.
    pub fn sources(&self) -> impl Iterator<Item = &SourceStatistics> {
        self.cameras.iter().flatten().chain([&self.joints])
    }

    /// Everything counted so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Changes the ages and the skew that are allowed (live parameters); `cameras` as in [`Intake::new`].
    pub fn set_limits(&mut self, config: &Config, cameras: &[Option<usize>]) {
        self.joints_max_age_ns = config.joints.max_age_ms * NS_PER_MS;
        self.max_skew_ns = config.observe.max_skew_ms * NS_PER_MS;
        let max_age_ns = |slot: usize| {
            let camera = cameras.get(slot).copied().flatten().and_then(|index| config.cameras.get(index));
            camera.map_or(0, |camera| camera.max_age_ms * NS_PER_MS)
        };
        self.snapshots.set_limits(max_age_ns, self.joints_max_age_ns, self.max_skew_ns);
    }

    /// Forgets everything that has a stamp: the clock has jumped. Counts stay.
    pub fn clear(&mut self) {
        self.snapshots.clear();
        self.measured = None;
        self.last = None;
        self.cameras.iter_mut().flatten().chain([&mut self.joints]).for_each(|source| source.newest = None);
    }

    /// No message will come any more: what is missing from here on is not counted.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// Counts each time that observations stop, not each time somebody asks in vain.
    fn wait_for(&mut self, not_ready: &NotReady) {
        let reason = not_ready.reason();
        if self.waiting_for() != Some(&reason) && !self.ended {
            if self.started {
                self.counters.count("no_observation", &reason);
            }
            self.waiting_for = Some((not_ready.part().to_owned(), reason));
        }
    }

    fn explained(&self, part: &str, what: String) -> String {
        match self.sources().find(|source| source.name == part).and_then(SourceStatistics::explanation) {
            Some(why) => format!("{what}; {why}"),
            None => what,
        }
    }

    fn refused(&mut self, slot: usize, why: String) {
        if let Some(Some(camera)) = self.cameras.get_mut(slot) {
            camera.refuse(why);
        }
    }
}

const IMAGE_DROPPED: &str = "image_dropped";
const JOINTS_DROPPED: &str = "joints_dropped";

impl SourceStatistics {
    /// Why nothing is taken of it, as far as that is known.
    pub fn explanation(&self) -> Option<String> {
        let refusal = self.last_refusal.as_ref().map(|why| format!("the last message refused: {why}"));
        refusal.or_else(|| self.trouble.clone())
    }

    fn refuse(&mut self, why: String) {
        self.refused += 1;
        self.last_refusal = Some(why);
    }

    fn take(&mut self, stamp: Stamp) {
        self.taken += 1;
        self.newest = Some(stamp);
        self.last_refusal = None;
    }
}

/// How much of an observation was not in the one before.
enum News {
    Nothing,
    Some,
    Everything,
}

impl Last {
    fn news(&self, observation: &Observation) -> News {
        let images = observation.image_stamps.iter().zip(&self.image_stamps);
        let configured = images.filter_map(|(now, before)| Some(now.as_ref()? > before.as_ref()?));
        let newer = configured.chain([observation.joints_stamp > self.joints_stamp]);
        let (all, any) = newer.fold((true, false), |(all, any), newer| (all && newer, any || newer));
        match (all, any) {
            (true, _) => News::Everything,
            (_, true) => News::Some,
            _ => News::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: i64 = 1_700_000_000 * crate::clock::NS_PER_S;

    fn at(ms: i64) -> Stamp {
        Stamp(T0 + ms * NS_PER_MS)
    }

    /// Two cameras (200 ms), a masked slot between them, joints `a` and `b` (100 ms); skew 50 ms.
    fn intake() -> Intake {
        let yaml = "/**:
  ros__parameters:
    robot: generic
    cameras:
      base_0_rgb: {topic: base, max_age_ms: 200}
      right_wrist_0_rgb: {topic: wrist, max_age_ms: 200}
    observe: {max_skew_ms: 50}
    joints:
      max_age_ms: 100
      names: [a, b]
      position_min: [-1.0, -1.0]
      position_max: [1.0, 1.0]
      velocity_max: [1.0, 1.0]
      acceleration_max: [5.0, 5.0]
";
        let config = Config::from_yaml(yaml, "test").unwrap();
        let slots = ["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"].map(str::to_owned);
        Intake::new(&config, &slots, &[Some(0), None, Some(1)]).unwrap()
    }

    fn image(intake: &mut Intake, slot: usize, ms: i64) {
        intake.take_image(slot, at(ms), Ok::<_, JointError>(RgbImage::new(1, 1, vec![ms as u8; 3]).unwrap()));
    }

    fn joints(intake: &mut Intake, ms: i64) -> bool {
        intake.take_joints(at(ms), &["b", "a"], &[0.2, ms as f64 * 1e-3])
    }

    /// All parts, stamped alike, and the inference begun.
    fn started() -> Intake {
        let mut intake = intake();
        image(&mut intake, 0, 0);
        image(&mut intake, 2, 0);
        assert!(joints(&mut intake, 0));
        assert!(matches!(intake.next_observation(at(0)), Next::Ready(_)));
        intake
    }

    fn counted(intake: &Intake, words: &str) -> u64 {
        intake.counters().iter().filter(|(name, _)| name.contains(words)).map(|(_, n)| n).sum()
    }

    #[test]
    fn the_first_inference_begins_when_every_part_is_there() {
        let mut intake = intake();
        image(&mut intake, 0, 0);
        joints(&mut intake, 0);
        assert!(matches!(intake.next_observation(at(0)), Next::NotReady(NotReady::Missing { .. })));
        assert_eq!(intake.waiting_for(), Some("right_wrist_0_rgb: nothing received"));
        image(&mut intake, 2, 1);
        let Next::Ready(seen) = intake.next_observation(at(1)) else { panic!() };
        assert_eq!((seen.stamp, seen.joints_stamp), (at(1), at(0)));
        assert_eq!(seen.image_stamps, [Some(at(0)), None, Some(at(1))]);
        assert_eq!(seen.state, [0.0, 0.2]);
        assert_eq!((intake.waiting_for(), counted(&intake, "no_observation")), (None, 0));
    }

    #[test]
    fn the_next_one_waits_for_the_whole_set() {
        let mut intake = started();
        assert!(matches!(intake.next_observation(at(1)), Next::NotYet { ask_again: None }));
        image(&mut intake, 0, 20);
        joints(&mut intake, 20);
        let Next::NotYet { ask_again } = intake.next_observation(at(20)) else { panic!() };
        assert_eq!(ask_again, Some(at(50)), "begun at 0, skew 50 ms");
        image(&mut intake, 2, 20);
        let Next::Ready(seen) = intake.next_observation(at(21)) else { panic!() };
        assert_eq!(seen.image_stamps, [Some(at(20)), None, Some(at(20))]);
        assert!(matches!(intake.next_observation(at(22)), Next::NotYet { ask_again: None }), "used");
    }

    #[test]
    fn a_lost_camera_delays_inferences_until_its_max_age_stops_them_and_its_return_resumes_them() {
        let mut intake = started();
        for ms in [40, 49, 50, 99, 100, 140, 150, 190] {
            image(&mut intake, 0, ms);
            joints(&mut intake, ms);
            let ready = matches!(intake.next_observation(at(ms)), Next::Ready(_));
            // The lost camera's image is of 0 ms: beyond the skew of 50 ms it no longer fits the others.
            assert_eq!(ready, ms == 50, "{ms}");
        }
        assert_eq!(counted(&intake, "no_observation: right_wrist_0_rgb: too far behind the others"), 1);
        joints(&mut intake, 201);
        assert!(matches!(intake.next_observation(at(201)), Next::NotReady(NotReady::TooOld { .. })));
        for (ms, back) in [(202, false), (210, false), (220, true)] {
            image(&mut intake, 2, ms);
            assert_eq!(matches!(intake.next_observation(at(ms)), Next::Ready(_)), back, "{ms}");
        }
    }

    #[test]
    fn what_is_refused_changes_nothing_and_is_counted_by_source() {
        let mut intake = started();
        image(&mut intake, 0, 0);
        image(&mut intake, 0, -3);
        image(&mut intake, 0, -4);
        image(&mut intake, 1, 5);
        intake.take_image(2, at(5), Err::<RgbImage, _>("no image"));
        assert!(!joints(&mut intake, -1));
        assert!(!intake.take_joints(at(9), &["a"], &[0.0]));
        intake.refuse_joints(&"cut");
        assert!(matches!(intake.next_observation(at(9)), Next::NotYet { ask_again: None }));
        for (words, n) in [
            ("image_dropped: base_0_rgb: older than the newest one", 2),
            ("image_dropped: base_0_rgb: stamped like the one before", 1),
            ("image_dropped: right_wrist_0_rgb: no image", 1),
            ("image_dropped: camera slot 1 is masked", 1),
            ("joints_dropped: joints: older than the newest one", 1),
            ("joints_dropped: joint state of 1 joints lacks \"b\"", 1),
            ("joints_dropped: cut", 1),
        ] {
            assert_eq!(counted(&intake, words), n, "{words} in {:?}", intake.counters());
        }
        let sources: Vec<_> =
            intake.sources().map(|s| (s.name.as_str(), s.taken, s.refused, s.newest)).collect();
        let newest = Some(at(0));
        assert_eq!(
            sources,
            [("base_0_rgb", 1, 3, newest), ("right_wrist_0_rgb", 1, 1, newest), ("joints", 1, 3, newest)]
        );
    }

    #[test]
    fn what_was_stamped_in_the_future_does_not_push_out_what_comes_after_it() {
        let mut intake = started();
        assert!(joints(&mut intake, 600_000), "whether it is of the future is seen when it is used");
        assert!(!joints(&mut intake, 10));
        intake.forget_future(Some(0), at(10));
        assert!(!joints(&mut intake, 10), "of another source");
        intake.forget_future(None, at(10));
        assert!(joints(&mut intake, 10));
        image(&mut intake, 0, 600_000);
        intake.forget_future(Some(0), at(10));
        image(&mut intake, 0, 10);
        assert_eq!(intake.sources().next().unwrap().newest, Some(at(10)));
    }

    #[test]
    fn what_is_waited_for_comes_with_what_its_source_sent_instead() {
        let mut intake = started();
        intake.set_trouble(Some(0), Some("nobody publishes base".to_owned()));
        image(&mut intake, 2, 190);
        joints(&mut intake, 290);
        assert!(matches!(intake.next_observation(at(300)), Next::NotReady(NotReady::TooOld { .. })));
        assert_eq!(intake.waiting_because().unwrap(), "base_0_rgb: too old; nobody publishes base");
        intake.refuse_image(0, &"no image");
        let why = "base_0_rgb: too old; the last message refused: no image";
        assert_eq!(intake.waiting_because().unwrap(), why);
        assert!(intake.ready(at(300)).unwrap_err().ends_with("allowed); the last message refused: no image"));
        assert_eq!(
            intake.waiting_for(),
            Some("base_0_rgb: too old"),
            "without what differs from one to the next"
        );
        image(&mut intake, 0, 310);
        assert_eq!(intake.sources().next().unwrap().last_refusal, None, "it sends well again");
    }

    #[test]
    fn old_joints_are_not_measured_any_more() {
        let intake = started();
        assert_eq!(intake.measured(at(100)).unwrap().positions, [0.0, 0.2]);
        assert!(intake.measured(at(101)).is_none() && intake.last_measured().is_some());
        assert!(intake.measured(at(-101)).is_none(), "from the future");
    }

    #[test]
    fn after_a_clock_jump_everything_must_come_again() {
        let mut intake = started();
        intake.clear();
        assert!(intake.last_measured().is_none() && intake.sources().all(|source| source.newest.is_none()));
        image(&mut intake, 0, -5000);
        image(&mut intake, 2, -5000);
        assert!(matches!(intake.next_observation(at(-5000)), Next::NotReady(NotReady::Missing { .. })));
        joints(&mut intake, -5000);
        assert!(matches!(intake.next_observation(at(-5000)), Next::Ready(_)), "at once");
    }

    #[test]
    fn after_the_end_nothing_is_missed() {
        let mut intake = started();
        intake.end();
        assert!(matches!(intake.next_observation(at(500)), Next::NotReady(NotReady::TooOld { .. })));
        assert_eq!(intake.counters().iter().count(), 0);
    }
}
