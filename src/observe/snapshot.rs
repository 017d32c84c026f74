//! The newest image of every camera and the newest joint state, and whether they belong together.
//!
//! Whoever receives messages puts decoded parts in; the inference asks for a [`Snapshots::snapshot`] and gets either
//! an [`Observation`] whose parts are all fresh and of the same moment, or one line that says what is wrong.
//! Judged on message stamps alone; never on a clock of its own.

use std::sync::Arc;

use super::{Observation, RgbImage};
use crate::clock::{FUTURE_TOLERANCE_NS, NS_PER_MS, Stamp};

/// Pixels that have not changed for so long, or for the camera's maximum age if that is longer, are a frozen camera's:
/// real ones are never without noise.
pub const FROZEN_NS: i64 = 1_000 * NS_PER_MS;
/// A camera that was lost is used again from this image on, if none of them came late.
const FRESH_IMAGES: u32 = 3;

/// A camera that the robot has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Camera {
    /// The model's name of the slot, for messages: `base_0_rgb`.
    pub name: String,
    /// Oldest image that an inference may use, nanoseconds.
    pub max_age_ns: i64,
}

/// Why a part was not taken. The caller counts these; what was there before stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Stamped like the one that is there: sent twice, or the source's clock or driver has stopped.
    #[error("{part}: a second one with stamp {stamp}")]
    Duplicate {
        /// The camera's name, or `joints`.
        part: String,
        /// Its stamp.
        stamp: Stamp,
    },
    /// Stamped before the one that is there: arrived out of order, or the clock jumped back (then call
    /// [`Snapshots::clear`]).
    #[error("{part}: {:.3} ms older than the newest one", ms(*.behind_ns))]
    Older {
        /// The camera's name, or `joints`.
        part: String,
        /// How much older, nanoseconds; positive.
        behind_ns: i64,
    },
    /// No camera is configured for the slot.
    #[error("camera slot {slot} is masked: no camera is configured for it")]
    NoCamera {
        /// Index of the slot.
        slot: usize,
    },
}

impl Refused {
    /// The same without numbers, so that equal ones can be counted together.
    pub fn reason(&self) -> String {
        match self {
            Refused::Duplicate { part, .. } => format!("{part}: stamped like the one before"),
            Refused::Older { part, .. } => format!("{part}: older than the newest one"),
            Refused::NoCamera { .. } => self.to_string(),
        }
    }
}

/// Why there is no observation now, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// Nothing has arrived from this source, or not since [`Snapshots::clear`].
    #[error("{part}: nothing received yet")]
    Missing {
        /// The camera's name, or `joints`.
        part: String,
    },
    /// Stamped too far ahead of now. The part has been let go, so that good stamps can follow it.
    #[error(
        "{part}: stamped {:.3} ms in the future (at most {:.0} ms allowed): synchronise the clocks",
        ms(*.ahead_ns), ms(FUTURE_TOLERANCE_NS)
    )]
    Future {
        /// The camera's name, or `joints`.
        part: String,
        /// How far ahead, nanoseconds.
        ahead_ns: i64,
    },
    /// The newest one is older than its maximum age.
    #[error("{part}: {:.3} ms old (at most {:.3} ms allowed)", ms(*.age_ns), ms(*.max_age_ns))]
    TooOld {
        /// The camera's name, or `joints`.
        part: String,
        /// Its age, nanoseconds.
        age_ns: i64,
        /// The most allowed, nanoseconds.
        max_age_ns: i64,
    },
    /// A camera goes on sending the same pixels.
    #[error(
        "{part}: frozen: the same pixels for {:.0} ms (at most {:.0} ms allowed)",
        ms(*.same_ns), ms(*.max_ns)
    )]
    Frozen {
        /// The camera's name.
        part: String,
        /// For how long, nanoseconds.
        same_ns: i64,
        /// The most allowed, nanoseconds.
        max_ns: i64,
    },
    /// A camera that was lost has not sent enough images in a row since.
    #[error("{part}: back, with {found} of {FRESH_IMAGES} fresh images in a row")]
    Returning {
        /// The camera's name.
        part: String,
        /// Images so far.
        found: u32,
    },
    /// The oldest and the newest part are not of the same moment.
    #[error(
        "{oldest} and {newest} are {:.3} ms apart (at most {:.3} ms allowed)",
        ms(*.skew_ns), ms(*.max_skew_ns)
    )]
    Skewed {
        /// The older part.
        oldest: String,
        /// The newer part.
        newest: String,
        /// Time between them, nanoseconds.
        skew_ns: i64,
        /// The most allowed, nanoseconds.
        max_skew_ns: i64,
    },
}

impl NotReady {
    /// The same without numbers, so that equal ones can be counted together.
    pub fn reason(&self) -> String {
        match self {
            NotReady::Missing { part } => format!("{part}: nothing received"),
            NotReady::Future { part, .. } => format!("{part}: stamped in the future"),
            NotReady::TooOld { part, .. } => format!("{part}: too old"),
            NotReady::Frozen { part, .. } => format!("{part}: frozen"),
            NotReady::Returning { part, .. } => format!("{part}: back for less than {FRESH_IMAGES} images"),
            NotReady::Skewed { oldest, .. } => format!("{oldest}: too far behind the others"),
        }
    }

    /// The source that is to blame: the camera's name, or `joints`.
    pub fn part(&self) -> &str {
        match self {
            NotReady::Missing { part }
            | NotReady::Future { part, .. }
            | NotReady::TooOld { part, .. }
            | NotReady::Frozen { part, .. }
            | NotReady::Returning { part, .. } => part,
            NotReady::Skewed { oldest, .. } => oldest,
        }
    }
}

/// The newest of everything. One thread's at a time; put it in a mutex to share it (every call is short).
#[derive(Clone, Debug)]
pub struct Snapshots {
    /// By slot of the model; `None` is masked.
    cameras: Vec<Option<Source<Picture>>>,
    joints: Source<Vec<f64>>,
    max_skew_ns: i64,
}

impl Snapshots {
    /// One entry of `cameras` per slot of the model, in its order; `None` is a camera that the robot does not have.
    /// `max_skew_ns` is the most that the oldest and the newest part may be apart.
    pub fn new(cameras: Vec<Option<Camera>>, joints_max_age_ns: i64, max_skew_ns: i64) -> Self {
        let source =
            |camera: Camera| Source { name: camera.name, max_age_ns: camera.max_age_ns, newest: None };
        Self {
            cameras: cameras.into_iter().map(|camera| camera.map(source)).collect(),
            joints: Source { name: "joints".to_owned(), max_age_ns: joints_max_age_ns, newest: None },
            max_skew_ns,
        }
    }

    /// Changes what was given to [`Snapshots::new`]; `camera_max_age_ns` gets the slot of each camera. What has arrived
    /// stays.
    pub fn set_limits(
        &mut self,
        camera_max_age_ns: impl Fn(usize) -> i64,
        joints_max_age_ns: i64,
        max_skew_ns: i64,
    ) {
        for (slot, camera) in self.cameras.iter_mut().enumerate() {
            if let Some(camera) = camera {
                camera.max_age_ns = camera_max_age_ns(slot);
            }
        }
        self.joints.max_age_ns = joints_max_age_ns;
        self.max_skew_ns = max_skew_ns;
    }

    /// Takes a camera's image, if it is newer than the one that is there.
    pub fn put_image(&mut self, slot: usize, stamp: Stamp, image: Arc<RgbImage>) -> Result<(), Refused> {
        let Some(Some(camera)) = self.cameras.get_mut(slot) else {
            return Err(Refused::NoCamera { slot });
        };
        camera.check_newer(stamp)?;
        let (same_since, fresh) = match &camera.newest {
            None => (stamp, FRESH_IMAGES), // the first of all
            Some((before, old)) => {
                let same = old.image == image; // differing images differ early: cheap
                let lost = stamp.since(*before) > camera.max_age_ns;
                (
                    if same { old.same_since } else { stamp },
                    if lost { 1 } else { old.fresh.saturating_add(1) },
                )
            }
        };
        camera.newest = Some((stamp, Picture { image, same_since, fresh }));
        Ok(())
    }

    /// Takes joint positions in configured order, if they are newer than those that are there.
    pub fn put_joints(&mut self, stamp: Stamp, positions: Vec<f64>) -> Result<(), Refused> {
        self.joints.check_newer(stamp)?;
        self.joints.newest = Some((stamp, positions));
        Ok(())
    }

    /// The observation at `now`, or why there is none. Its stamp is the newest among its parts.
    ///
    /// A part from the future is let go here: it would otherwise refuse everything with a good stamp as older.
    pub fn snapshot(&mut self, now: Stamp) -> Result<Observation, NotReady> {
        let observation = self.observe(now);
        if matches!(observation, Err(NotReady::Future { .. })) {
            self.joints.forget_future(now);
            self.cameras.iter_mut().flatten().for_each(|camera| camera.forget_future(now));
        }
        observation
    }

    /// Lets go of what a camera (by slot) or the joints (`None`) stamped later than `now` can be: whatever they send after
    /// it would be older.
    pub fn forget_future(&mut self, slot: Option<usize>, now: Stamp) {
        match slot {
            Some(slot) => {
                if let Some(Some(camera)) = self.cameras.get_mut(slot) {
                    camera.forget_future(now);
                }
            }
            None => self.joints.forget_future(now),
        }
    }

    fn observe(&self, now: Stamp) -> Result<Observation, NotReady> {
        let (joints_stamp, state) = self.joints.fresh(now)?;
        let (mut oldest, mut newest) = ((joints_stamp, &self.joints.name), (joints_stamp, &self.joints.name));
        let mut images = vec![None; self.cameras.len()];
        let mut image_stamps = vec![None; self.cameras.len()];
        for (slot, camera) in self.cameras.iter().enumerate() {
            let Some(camera) = camera else { continue };
            let (stamp, picture) = camera.fresh(now)?;
            picture.check(stamp, camera)?;
            images[slot] = Some(Arc::clone(&picture.image));
            image_stamps[slot] = Some(stamp);
            if stamp < oldest.0 {
                oldest = (stamp, &camera.name);
            }
            if stamp > newest.0 {
                newest = (stamp, &camera.name);
            }
        }
        let skew_ns = newest.0.since(oldest.0);
        if skew_ns > self.max_skew_ns {
            let (oldest, newest) = (oldest.1.clone(), newest.1.clone());
            return Err(NotReady::Skewed { oldest, newest, skew_ns, max_skew_ns: self.max_skew_ns });
        }
        Ok(Observation { stamp: newest.0, images, image_stamps, state: state.clone(), joints_stamp })
    }

    /// The newest image of each camera, fresh or not.
    pub fn newest_images(&self) -> Vec<Option<Arc<RgbImage>>> {
        let newest = |camera: &Option<Source<Picture>>| {
            camera.as_ref()?.newest.as_ref().map(|(_, picture)| Arc::clone(&picture.image))
        };
        self.cameras.iter().map(newest).collect()
    }

    /// How long a camera has been showing exactly the same pixels, nanoseconds between the first and the newest image
    /// that had them: 0 while it moves (a real camera's noise is enough), growing when it is frozen.
    /// `None` for a masked slot and before the first image.
    pub fn unchanged_for(&self, slot: usize) -> Option<i64> {
        let (stamp, picture) = self.cameras.get(slot)?.as_ref()?.newest.as_ref()?;
        Some(stamp.since(picture.same_since))
    }

    /// Forgets every part, as if nothing had been received: for a clock that jumped back.
    pub fn clear(&mut self) {
        self.joints.newest = None;
        self.cameras.iter_mut().flatten().for_each(|camera| camera.newest = None);
    }
}

/// Where one part of an observation comes from, and the newest of it.
#[derive(Clone, Debug)]
struct Source<T> {
    name: String,
    max_age_ns: i64,
    newest: Option<(Stamp, T)>,
}

#[derive(Clone, Debug)]
struct Picture {
    image: Arc<RgbImage>,
    /// Stamp of the first image of the unbroken run with these pixels.
    same_since: Stamp,
    /// Images since the camera was lost, this one included, none of them late.
    fresh: u32,
}

impl Picture {
    /// Whether what is stamped `stamp` may be used: the camera is neither frozen nor only just back.
    fn check(&self, stamp: Stamp, camera: &Source<Picture>) -> Result<(), NotReady> {
        let part = || camera.name.clone();
        let (same_ns, max_ns) = (stamp.since(self.same_since), camera.max_age_ns.max(FROZEN_NS));
        if same_ns > max_ns {
            return Err(NotReady::Frozen { part: part(), same_ns, max_ns });
        }
        if self.fresh < FRESH_IMAGES {
            return Err(NotReady::Returning { part: part(), found: self.fresh });
        }
        Ok(())
    }
}

impl<T> Source<T> {
    fn check_newer(&self, stamp: Stamp) -> Result<(), Refused> {
        match self.newest {
            Some((newest, _)) if stamp == newest => {
                Err(Refused::Duplicate { part: self.name.clone(), stamp })
            }
            Some((newest, _)) if stamp < newest => {
                Err(Refused::Older { part: self.name.clone(), behind_ns: newest.since(stamp) })
            }
            _ => Ok(()),
        }
    }

    /// The newest, if its age at `now` is allowed.
    fn fresh(&self, now: Stamp) -> Result<(Stamp, &T), NotReady> {
        let part = || self.name.clone();
        let Some((stamp, newest)) = &self.newest else {
            return Err(NotReady::Missing { part: part() });
        };
        let age_ns = now.since(*stamp);
        if age_ns < -FUTURE_TOLERANCE_NS {
            return Err(NotReady::Future { part: part(), ahead_ns: stamp.since(now) });
        }
        if age_ns.max(0) > self.max_age_ns {
            return Err(NotReady::TooOld { part: part(), age_ns, max_age_ns: self.max_age_ns });
        }
        Ok((*stamp, newest))
    }

    fn forget_future(&mut self, now: Stamp) {
        self.newest.take_if(|(stamp, _)| now.since(*stamp) < -FUTURE_TOLERANCE_NS);
    }
}

fn ms(ns: i64) -> f64 {
    ns as f64 / NS_PER_MS as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: i64 = 1_700_000_000 * crate::clock::NS_PER_S;

    fn at(ms: i64) -> Stamp {
        Stamp(T0 + ms * NS_PER_MS)
    }

    fn image(value: u8) -> Arc<RgbImage> {
        Arc::new(RgbImage::new(2, 1, vec![value; 6]).unwrap())
    }

    /// Two cameras (200 ms) around a masked slot, joints (100 ms), at most 150 ms apart.
    fn snapshots() -> Snapshots {
        let camera = |name: &str| Some(Camera { name: name.to_owned(), max_age_ns: 200 * NS_PER_MS });
        Snapshots::new(vec![camera("base"), None, camera("wrist")], 100 * NS_PER_MS, 150 * NS_PER_MS)
    }

    /// All parts put at these times.
    fn filled(base: i64, wrist: i64, joints: i64) -> Snapshots {
        let mut all = snapshots();
        all.put_image(0, at(base), image(1)).unwrap();
        all.put_image(2, at(wrist), image(2)).unwrap();
        all.put_joints(at(joints), vec![0.5]).unwrap();
        all
    }

    fn why(all: &mut Snapshots, now: i64) -> String {
        all.snapshot(at(now)).unwrap_err().to_string()
    }

    #[test]
    fn an_observation_has_every_part_and_the_newest_stamp() {
        let mut all = filled(10, 30, 20);
        let seen = all.snapshot(at(40)).unwrap();
        assert_eq!(seen.stamp, at(30));
        assert_eq!(seen.images, [Some(image(1)), None, Some(image(2))]);
        assert_eq!(seen.state, [0.5]);
        assert_eq!((seen.image_stamps, seen.joints_stamp), (vec![Some(at(10)), None, Some(at(30))], at(20)));
        all.put_joints(at(50), vec![0.7]).unwrap();
        let seen = all.snapshot(at(50)).unwrap();
        assert_eq!((seen.stamp, seen.state), (at(50), vec![0.7]));
    }

    #[test]
    fn a_missing_part_is_named() {
        let mut all = snapshots();
        assert_eq!(why(&mut all, 0), "joints: nothing received yet");
        all.put_joints(at(0), vec![]).unwrap();
        all.put_image(0, at(0), image(1)).unwrap();
        assert_eq!(why(&mut all, 0), "wrist: nothing received yet");
    }

    #[test]
    fn a_camera_that_drops_out_ends_the_observations_at_its_max_age_until_it_is_back_for_good() {
        let mut all = filled(0, 0, 0);
        let others = |all: &mut Snapshots, now: i64| {
            all.put_joints(at(now), vec![0.5]).unwrap();
            all.put_image(0, at(now), image(now as u8)).unwrap();
        };
        others(&mut all, 150);
        assert!(all.snapshot(at(200)).is_ok());
        assert_eq!(why(&mut all, 201), "wrist: 201.000 ms old (at most 200.000 ms allowed)");
        let long = 10_000 * NS_PER_MS;
        all.set_limits(|slot| if slot == 2 { 200 * NS_PER_MS } else { long }, long, long);
        for (now, found) in [(201, 1), (234, 2), (500, 1), (533, 2)] {
            others(&mut all, now);
            all.put_image(2, at(now), image(now as u8)).unwrap();
            assert_eq!(why(&mut all, now), format!("wrist: back, with {found} of 3 fresh images in a row"));
        }
        all.put_image(2, at(566), image(5)).unwrap();
        assert!(all.snapshot(at(566)).is_ok());
    }

    #[test]
    fn a_camera_that_sends_the_same_pixels_again_and_again_is_frozen() {
        let mut all = snapshots();
        for ms in (0..=1033).step_by(33) {
            all.put_joints(at(ms), vec![0.5]).unwrap();
            all.put_image(0, at(ms), image(ms as u8)).unwrap();
            all.put_image(2, at(ms), image(7)).unwrap();
            assert_eq!(all.snapshot(at(ms)).is_ok(), ms <= 1000, "{ms}");
        }
        assert_eq!(
            why(&mut all, 1033),
            "wrist: frozen: the same pixels for 1023 ms (at most 1000 ms allowed)"
        );
        all.put_image(2, at(1040), image(8)).unwrap();
        assert!(all.snapshot(at(1040)).is_ok(), "it moves again");
        // One that may be old may be still as long.
        let mut all = snapshots();
        all.set_limits(|_| 5_000 * NS_PER_MS, 5_000 * NS_PER_MS, 5_000 * NS_PER_MS);
        all.put_joints(at(0), vec![0.5]).unwrap();
        for (ms, usable) in [(0, true), (2_500, true), (5_000, true), (5_001, false)] {
            for slot in [0, 2] {
                all.put_image(slot, at(ms), image(7)).unwrap();
            }
            assert_eq!(all.snapshot(at(ms.min(5_000))).is_ok(), usable, "{ms}");
        }
    }

    #[test]
    fn stale_joints_are_named_with_their_own_limit() {
        assert_eq!(why(&mut filled(100, 100, 0), 101), "joints: 101.000 ms old (at most 100.000 ms allowed)");
    }

    #[test]
    fn parts_of_different_moments_are_not_mixed() {
        assert!(filled(0, 100, 150).snapshot(at(150)).is_ok());
        let skewed = why(&mut filled(0, 100, 151), 151);
        assert_eq!(skewed, "base and joints are 151.000 ms apart (at most 150.000 ms allowed)");
    }

    #[test]
    fn a_stamp_slightly_ahead_has_age_zero() {
        let mut all = filled(100, 100, 100);
        assert_eq!(all.snapshot(at(0)).unwrap().stamp, at(100));
    }

    #[test]
    fn a_stamp_from_the_future_is_a_clock_problem_and_does_not_lock_the_slot() {
        let mut all = filled(0, 0, 0);
        all.put_image(2, Stamp(i64::MAX), image(9)).unwrap();
        assert!(all.put_image(2, at(10), image(3)).is_err());
        assert!(matches!(all.snapshot(at(10)), Err(NotReady::Future { part, .. }) if part == "wrist"));
        all.put_image(2, at(20), image(3)).unwrap();
        assert!(all.snapshot(at(20)).is_ok());

        assert!(
            filled(0, 101, 0)
                .snapshot(at(0))
                .unwrap_err()
                .to_string()
                .starts_with("wrist: stamped 101.000 ms in the future (at most 100 ms allowed)")
        );
    }

    #[test]
    fn old_and_repeated_stamps_are_refused_and_change_nothing() {
        let mut all = filled(10, 10, 10);
        assert!(matches!(all.put_image(0, at(10), image(9)), Err(Refused::Duplicate { .. })));
        assert_eq!(
            all.put_joints(at(7), vec![9.0]),
            Err(Refused::Older { part: "joints".to_owned(), behind_ns: 3 * NS_PER_MS })
        );
        for slot in [1, 3, usize::MAX] {
            assert_eq!(all.put_image(slot, at(20), image(9)), Err(Refused::NoCamera { slot }));
        }
        let seen = all.snapshot(at(10)).unwrap();
        assert_eq!((seen.images[0].clone(), seen.state), (Some(image(1)), vec![0.5]));
    }

    #[test]
    fn after_a_clock_jump_everything_must_come_again() {
        let mut all = filled(1000, 1000, 1000);
        assert!(all.put_joints(at(0), vec![0.1]).is_err());
        all.clear();
        all.put_joints(at(0), vec![0.1]).unwrap();
        assert_eq!(why(&mut all, 0), "base: nothing received yet");
    }

    #[test]
    fn a_frozen_camera_shows() {
        let mut all = snapshots();
        assert_eq!(all.unchanged_for(0), None);
        for (ms, value, unchanged) in [(0, 1, 0), (33, 1, 33), (66, 1, 66), (99, 2, 0), (132, 2, 33)] {
            all.put_image(0, at(ms), image(value)).unwrap();
            assert_eq!(all.unchanged_for(0), Some(unchanged * NS_PER_MS));
        }
        assert_eq!((all.unchanged_for(1), all.unchanged_for(9)), (None, None));
    }

    #[test]
    fn stamps_at_the_ends_of_time_do_not_overflow() {
        for (stamp, now) in [(i64::MIN, i64::MAX), (i64::MAX, i64::MIN), (i64::MIN, 0), (i64::MAX, 0)] {
            let mut all = filled(0, 0, 0);
            all.clear();
            all.put_joints(Stamp(stamp), vec![]).unwrap();
            all.put_image(0, Stamp(stamp), image(1)).unwrap();
            all.put_image(2, Stamp(stamp), image(1)).unwrap();
            assert!(all.snapshot(Stamp(now)).is_err());
        }
    }
}
