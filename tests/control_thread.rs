//! What the control thread promises: its ticks on a simulated clock to the nanosecond, on the real one to a period;
//! nothing that is handed over is lost or blocks; whoever waits for it hears of its end.

#![allow(clippy::unwrap_used, clippy::panic)] // in functions that the tests share

use std::sync::Arc;
use std::time::{Duration, Instant};

use pi05_thor::clock::Steady;
use pi05_thor::control::thread::{
    ControlHandle, Due, Form, NotCarriedOut, Options, Outlet, Received, Request, SimulatedTime, TickClock,
    monotonic,
};
use pi05_thor::control::{
    Chunk, ControlConfig, ControlMode, Execution, Guards, JointLimit, JointLimits, Reason, Rejected,
    Scheduler, Splice, State, Trajectory, Wants,
};

const MS: i64 = 1_000_000;
const TICK: i64 = 10 * MS;
const START: i64 = 5_000 * MS;
const SOON: Duration = Duration::from_secs(10);

const LIMIT: JointLimit = JointLimit {
    mode: ControlMode::Position,
    position_min: -1.0,
    position_max: 1.0,
    velocity_max: 1.0,
    acceleration_max: 5.0,
    jerk_max: f64::INFINITY,
};

fn scheduler() -> Scheduler {
    let limits = JointLimits::new(vec![LIMIT; 2]).unwrap();
    let measured_index = vec![Some(0), Some(1)];
    Scheduler::new(ControlConfig {
        rate_hz: 100.0,
        splice: Splice { blend_steps: 3, ..Splice::default() },
        guards: Guards::default(),
        max_steps: 50,
        limits,
        measured_index,
        measured: 2,
    })
    .unwrap()
}

fn options(clock: TickClock, form: Form) -> Options {
    Options::new(clock, form, 100 * MS)
}

/// A ramp of 0.5 per s for a second.
fn ramp(id: u64, epoch: u64, observed: Steady) -> Chunk {
    let actions = (0..50).map(|k| vec![f64::from(k) * 0.01, 0.1]).collect();
    Chunk { id, epoch, observed, period_ns: 20 * MS, actions }
}

/// A thread on simulated time.
struct Arm {
    time: Arc<SimulatedTime>,
    handle: ControlHandle,
    outlet: Outlet,
    now: i64,
}

impl Arm {
    fn new(form: Form) -> Self {
        let time = Arc::new(SimulatedTime::new());
        let clock = TickClock::Simulated(Arc::clone(&time));
        let (handle, outlet) = ControlHandle::start(scheduler(), options(clock, form)).unwrap();
        Self { time, handle, outlet, now: START - TICK }
    }

    /// Running since a tick or two.
    fn running(form: Form) -> Self {
        let mut arm = Self::new(form);
        arm.tick();
        arm.handle.send_chunk(&ramp(0, 0, Steady(arm.now))).unwrap();
        arm.tick();
        arm.tick();
        assert_eq!(arm.handle.status().state, State::Running);
        arm
    }

    /// Fresh joints, then one tick that has run when this returns.
    fn tick(&mut self) {
        self.handle.put_joints(Steady(self.now + TICK), &[0.0, 0.1]);
        self.tick_without_joints();
    }

    fn tick_without_joints(&mut self) {
        self.now += TICK;
        self.time.advance(Steady(self.now));
        self.wait_for_tick();
    }

    fn wait_for_tick(&self) {
        let give_up = Instant::now() + SOON;
        while self.handle.is_alive() && self.handle.status().tick < Some(Steady(self.now)) {
            assert!(Instant::now() < give_up, "no tick at {}", self.now);
            std::thread::yield_now();
        }
    }

    fn command(&mut self) -> Option<(i64, Vec<f64>, State)> {
        match self.outlet.receive(Duration::ZERO) {
            Received::Command(sent) => Some((sent.at.0, sent.values.to_vec(), sent.state)),
            _ => None,
        }
    }

    fn trajectory(&mut self) -> Option<Trajectory> {
        match self.outlet.receive(Duration::ZERO) {
            Received::Trajectory(trajectory) => Some(trajectory),
            _ => None,
        }
    }
}

impl Drop for Arm {
    /// Time goes on until it rests: a handle that is let go waits for that.
    fn drop(&mut self) {
        let _ended = self.handle.request(Request::Deactivate);
        for _ in 0..100 {
            self.now += TICK;
            self.time.advance(Steady(self.now));
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

#[test]
fn ticks_are_on_the_grid_and_give_what_the_scheduler_gives() {
    let mut arm = Arm::new(Form::PerTick);
    let mut peer = scheduler();
    for k in 0..200 {
        if k == 3 || k == 40 {
            let chunk = ramp(k, 0, Steady(arm.now));
            peer.accept(&chunk, Steady(arm.now + TICK)).unwrap();
            arm.handle.send_chunk(&chunk).unwrap();
        }
        arm.tick();
        let expected = peer.tick(Steady(arm.now), Some(&[0.0, 0.1])).map(|c| (arm.now, c.values.to_vec()));
        assert_eq!(arm.command().map(|(at, values, _)| (at, values)), expected);
    }
    let status = arm.handle.status();
    assert_eq!(status.counters, *peer.counters());
    assert_eq!((status.timing.ticks, status.timing.overruns, status.timing.lost), (200, 0, 0));
    assert_eq!(status.timing.sent, 197);
}

#[test]
fn a_leap_of_the_clock_is_one_tick_and_the_others_are_counted() {
    let mut arm = Arm::running(Form::PerTick);
    arm.command();
    arm.now += 4 * TICK;
    arm.handle.put_joints(Steady(arm.now), &[0.0, 0.1]);
    arm.time.advance(Steady(arm.now + 7 * MS)); // between two points of the grid
    arm.wait_for_tick();
    assert_eq!(arm.command().unwrap().0, arm.now);
    let status = arm.handle.status();
    assert_eq!((status.timing.ticks, status.timing.overruns), (4, 3));
    assert_eq!(status.counters.skipped_ticks, 3);
}

#[test]
fn each_chunk_comes_back_with_what_became_of_it() {
    let mut arm = Arm::running(Form::PerTick);
    let ids: Vec<_> = arm.handle.outcomes().map(|o| (o.chunk, o.at.0, o.result.is_ok())).collect();
    assert_eq!(ids, [(0, START + TICK, true)]);
    arm.handle.send_chunk(&ramp(1, 7, Steady(arm.now))).unwrap();
    arm.handle.send_chunk(&ramp(2, 0, Steady(arm.now - 10_000 * MS))).unwrap();
    arm.tick();
    let results: Vec<_> = arm.handle.outcomes().map(|o| o.result.unwrap_err()).collect();
    assert!(
        matches!(results[..], [Rejected::OldEpoch { id: 1, .. }, Rejected::Late { id: 2, .. }]),
        "{results:?}"
    );
    // Nobody asks what became of them: then no more are taken, and the sender hears of it.
    let mut sent = 0;
    for _ in 0..50 {
        sent += usize::from(arm.handle.send_chunk(&ramp(3, 0, Steady(arm.now))).is_ok());
        arm.tick();
    }
    assert!((8..=12).contains(&sent), "{sent}");
    assert_eq!(arm.handle.outcomes().count(), 8);
}

#[test]
fn stop_is_a_brake_and_silence_and_an_older_chunk_is_never_executed() {
    let mut arm = Arm::running(Form::PerTick);
    let epoch = arm.handle.wants().1;
    arm.command();
    let status = arm.handle.ask(Request::Stop(Reason::new("stop service")), SOON).unwrap();
    assert_eq!((status.state, status.reason.as_str()), (State::Stopped, "stop service"), "without a tick");
    assert_eq!(arm.handle.wants().0, Wants::Nothing);
    arm.handle.send_chunk(&ramp(1, epoch, Steady(arm.now))).unwrap();
    let mut commands = 0;
    for _ in 0..100 {
        arm.tick();
        commands += usize::from(arm.command().is_some());
    }
    assert!((1..30).contains(&commands), "{commands}");
    assert_eq!(arm.handle.ask(Request::Reset, SOON).unwrap().state, State::Armed);
    arm.handle.send_chunk(&ramp(2, epoch, Steady(arm.now))).unwrap();
    arm.tick();
    assert!(arm.command().is_none(), "begun before the stop");
    let epoch = arm.handle.wants().1;
    arm.handle.send_chunk(&ramp(3, epoch, Steady(arm.now))).unwrap();
    arm.tick();
    assert_eq!(arm.command().unwrap().2, State::Running);
    assert_eq!(arm.handle.status().counters.chunks_of_old_epoch, 2);
}

#[test]
fn anew_is_from_the_measured_positions_whatever_was_sent_before() {
    for rests in [false, true] {
        let mut arm = Arm::running(Form::PerTick);
        let why = Reason::new("as if the controller had been gone");
        if rests {
            arm.handle.request(Request::Brake(why)).unwrap();
            (0..100).for_each(|_| arm.tick());
        }
        arm.handle.ask(Request::BeginAnew(why), SOON).unwrap();
        (0..100).for_each(|_| arm.tick());
        let status = arm.handle.status();
        assert_eq!((status.state, status.reason.as_str()), (State::Armed, why.as_str()));
        while arm.command().is_some() {}
        arm.handle.send_chunk(&ramp(1, arm.handle.wants().1, Steady(arm.now))).unwrap();
        arm.handle.put_joints(Steady(arm.now + TICK), &[0.7, 0.8]); // moved by somebody else
        arm.tick_without_joints();
        let (_, first, state) = arm.command().unwrap();
        assert!((first[0] - 0.7).abs() < 0.01 && (first[1] - 0.8).abs() < 0.01, "{first:?}");
        assert_eq!(state, State::Running);
        arm.handle.ask(Request::Brake(why), SOON).unwrap();
        (0..100).for_each(|_| arm.tick());
        assert_eq!(arm.handle.status().state, State::Holding, "a brake after it holds as ever");
    }
}

#[test]
fn a_pause_goes_on_sending_and_ends_with_a_fresh_chunk() {
    let mut arm = Arm::running(Form::PerTick);
    assert_eq!(arm.handle.ask(Request::Pause, SOON).unwrap().state, State::Paused);
    let mut last = None;
    for _ in 0..100 {
        arm.tick();
        last = arm.command();
        assert_eq!(last.as_ref().unwrap().2, State::Paused);
    }
    assert_eq!(arm.handle.ask(Request::Resume, SOON).unwrap().state, State::Holding);
    arm.tick();
    assert_eq!(arm.command().unwrap().1, last.unwrap().1);
    arm.handle.send_chunk(&ramp(1, arm.handle.wants().1, Steady(arm.now))).unwrap();
    arm.tick();
    assert_eq!(arm.command().unwrap().2, State::Running);
}

#[test]
fn joints_that_stay_away_brake_after_their_max_age() {
    let mut arm = Arm::running(Form::PerTick);
    for _ in 0..10 {
        arm.tick_without_joints();
        assert_eq!(arm.handle.status().state, State::Running);
    }
    arm.tick_without_joints();
    let status = arm.handle.status();
    assert_eq!((status.state, status.reason.as_str()), (State::Braking, "joint states are stale"));
    arm.handle.set_joints_max_age(1_000 * MS);
    arm.tick_without_joints();
    assert_eq!(arm.handle.status().counters.joints_stale, 1);
    arm.handle.send_chunk(&ramp(1, 1, Steady(arm.now))).unwrap();
    arm.tick_without_joints();
    assert_eq!(arm.handle.status().state, State::Running);
}

#[test]
fn no_request_is_lost_however_many_threads_ask_at_once() {
    let mut arm = Arm::running(Form::PerTick);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    arm.handle.request(Request::Brake(Reason::new("test"))).unwrap();
                }
            });
        }
    });
    arm.tick();
    let status = arm.handle.status();
    assert_eq!((status.requests_taken, status.epoch), (2000, 2000));
}

#[test]
fn a_slow_publisher_gets_the_newest_and_the_lost_are_counted() {
    let mut arm = Arm::running(Form::PerTick);
    for _ in 0..10 {
        arm.tick();
    }
    assert_eq!(arm.command().unwrap().0, arm.now);
    assert!(arm.command().is_none());
    let timing = arm.handle.status().timing;
    assert_eq!((timing.sent, timing.lost), (12, 11));
}

#[test]
fn each_chunk_and_each_brake_is_one_trajectory_that_joins_the_one_before() {
    let mut arm = Arm::new(Form::Trajectory);
    arm.tick();
    arm.handle.send_chunk(&ramp(0, 0, Steady(arm.now))).unwrap();
    arm.tick();
    assert!(arm.trajectory().is_none(), "taken, but the arm has not set out");
    arm.tick();
    let mut before = arm.trajectory().unwrap();
    let at = |trajectory: &Trajectory, now: i64| {
        let point = trajectory.points().find(|(after, _)| trajectory.start.0 + after == now);
        point.map(|(_, values)| values.to_vec()).unwrap()
    };
    for event in 1..4 {
        for _ in 0..5 {
            arm.tick();
            assert!(arm.trajectory().is_none(), "only when something changes");
        }
        match event {
            3 => drop(arm.handle.ask(Request::Pause, SOON).unwrap()), // between two ticks: begins at the last one
            id => {
                arm.handle.send_chunk(&ramp(id, 0, Steady(arm.now))).unwrap();
                arm.tick();
            }
        }
        let next = arm.trajectory().unwrap();
        assert_eq!(next.start, Steady(arm.now));
        for (now, sent) in at(&next, arm.now).iter().zip(at(&before, arm.now)) {
            assert!((now - sent).abs() < 1e-12, "seamless: {now} after {sent}");
        }
        let points: Vec<_> = next.points().collect();
        let [.., (_, a), (_, b)] = points[..] else { panic!("two points at least") };
        assert!((b[0] - a[0]).abs() < 5.0 * 0.01 * 0.01 + 1e-9, "ends at rest: {a:?} {b:?}");
        before = next;
    }
    assert_eq!(arm.handle.status().timing.sent, 4);
}

#[test]
fn a_trajectory_after_ticks_that_were_skipped_begins_where_the_one_before_has_brought_the_arm() {
    for skipped in [1, 3, 30, 300] {
        let mut arm = Arm::running(Form::Trajectory);
        let before = arm.trajectory().unwrap();
        arm.now += skipped * TICK;
        arm.handle.send_chunk(&ramp(1, 0, Steady(arm.now))).unwrap();
        arm.tick();
        let next = arm.trajectory().unwrap();
        assert_eq!(next.start, Steady(arm.now));
        let point = before.points().take_while(|(after, _)| before.start.0 + after <= arm.now).last();
        let (_, reached) = point.unwrap();
        assert_eq!(next.points().next().unwrap().1, reached, "{skipped} ticks skipped");
    }
}

#[test]
fn joints_that_are_stamped_in_the_future_are_not_fresh_until_then() {
    let mut arm = Arm::running(Form::PerTick);
    arm.handle.put_joints(Steady(arm.now + 3_600_000 * MS), &[0.0, 0.1]);
    arm.tick_without_joints();
    let status = arm.handle.status();
    assert_eq!(status.counters.joints_stale, 1);
    assert_eq!(status.reason.as_str(), "joint states are stale");
    arm.tick();
    assert_eq!(arm.handle.status().counters.joints_stale, 1, "one in order ends it");
}

#[test]
fn deactivated_it_brakes_and_ends_at_rest() {
    let mut arm = Arm::running(Form::PerTick);
    arm.handle.request(Request::Deactivate).unwrap();
    let mut last = vec![];
    for _ in 0..100 {
        arm.tick();
        last.extend(arm.command().map(|(_, values, _)| values[0]));
    }
    assert!(arm.handle.wait_for_end(SOON));
    assert!((1..30).contains(&last.len()), "{}", last.len());
    assert_eq!(arm.outlet.receive(SOON), Received::Ended);
    let status = arm.handle.status();
    assert_eq!((status.state, status.counters.chunks_accepted), (State::Idle, 1));
    assert_eq!(arm.handle.ask(Request::Reset, SOON), Err(NotCarriedOut::Ended));
    assert!(arm.handle.send_chunk(&ramp(1, 0, Steady(arm.now))).is_err());
}

#[test]
fn a_latch_outlasts_the_end_whenever_it_was_asked_for() {
    let (stop, fault) = (Request::Stop(Reason::new("a stop")), Request::Fault(Reason::new("a fault")));
    for (before, after, latch) in [
        (None, None, None),
        (Some(Request::Pause), None, Some(Request::Pause)),
        (Some(stop), None, Some(stop)),
        (Some(stop), Some(fault), Some(fault)),
        (None, Some(stop), Some(stop)),
        (Some(fault), Some(stop), Some(fault)),
    ] {
        let mut arm = Arm::running(Form::PerTick);
        // All in the same tick, or while it brakes.
        for request in before.into_iter().chain([Request::Deactivate]).chain(after) {
            arm.handle.request(request).unwrap();
        }
        for _ in 0..100 {
            arm.tick();
        }
        assert!(arm.handle.wait_for_end(SOON));
        assert_eq!(arm.handle.status().latch, latch, "{before:?}, {after:?}");
    }
}

#[test]
fn open_loop_wants_no_second_chunk_while_the_first_is_on_its_way() {
    let (mut ticker, handle, _outlet) =
        ControlHandle::without_thread(scheduler(), options(TickClock::Monotonic, Form::PerTick));
    let splice = Splice { execution: Execution::OpenLoop, ..Splice::default() };
    handle.request(Request::Splice(splice, Guards::default())).unwrap();
    let mut tick = |at: i64| {
        handle.put_joints(Steady(at), &[0.0, 0.1]);
        ticker.step(Due { at: Steady(at), late_ns: 0, skipped: 0 })
    };
    assert!(tick(START));
    assert_eq!(handle.wants(), (Wants::After(Steady(i64::MIN)), 0));
    handle.send_chunk(&ramp(0, 0, Steady(START))).unwrap();
    assert_eq!(handle.wants().0, Wants::Nothing);
    assert!(tick(START + TICK));
    assert_eq!((handle.wants().0, handle.status().state), (Wants::Nothing, State::Running));
}

#[test]
fn a_slow_tick_keeps_nobody_waiting() {
    let slow = Scheduler::new(ControlConfig {
        rate_hz: 0.1,
        splice: Splice::default(),
        guards: Guards::default(),
        max_steps: 50,
        limits: JointLimits::new(vec![LIMIT]).unwrap(),
        measured_index: vec![None],
        measured: 0,
    });
    let (handle, _outlet) =
        ControlHandle::start(slow.unwrap(), options(TickClock::Monotonic, Form::PerTick)).unwrap();
    assert!(handle.wait_until(SOON, |status| status.tick.is_some()).is_some());
    let begin = Instant::now();
    assert_eq!(handle.ask(Request::Pause, SOON).map(|status| status.state), Ok(State::Paused));
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}

#[test]
fn an_armed_thread_without_any_time_ends_at_once_when_let_go() {
    let clock = TickClock::Simulated(Arc::new(SimulatedTime::new()));
    let (handle, mut outlet) = ControlHandle::start(scheduler(), options(clock, Form::PerTick)).unwrap();
    let begin = Instant::now();
    drop(handle);
    assert!(begin.elapsed() < Duration::from_secs(1));
    assert_eq!(outlet.receive(SOON), Received::Ended);
}

#[test]
fn a_thread_that_dies_is_noticed_by_everybody() {
    let (ticker, handle, mut outlet) =
        ControlHandle::without_thread(scheduler(), options(TickClock::Monotonic, Form::PerTick));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| handle.wait_until(SOON, |status| status.state == State::Fault));
        let receiving = scope.spawn(|| assert_eq!(outlet.receive(SOON), Received::Ended));
        let died = scope.spawn(move || {
            let _ticker = ticker;
            std::panic::resume_unwind(Box::new("as if by a bug"));
        });
        assert!(died.join().is_err());
        receiving.join().unwrap();
        let status = waiting.join().unwrap().unwrap();
        assert!(status.reason.as_str().contains("unexpectedly"));
    });
    assert!(!handle.is_alive());
    assert_eq!(handle.request(Request::Pause), Err(NotCarriedOut::Ended));
}

#[test]
fn without_ticks_a_request_is_refused_in_time_and_not_forgotten() {
    let (mut ticker, handle, _outlet) =
        ControlHandle::without_thread(scheduler(), options(TickClock::Monotonic, Form::PerTick));
    let refused = handle.ask(Request::Pause, Duration::from_millis(20));
    assert_eq!(refused, Err(NotCarriedOut::NoTick));
    assert!(ticker.step(Due { at: Steady(0), late_ns: 0, skipped: 0 }));
    assert_eq!(handle.status().state, State::Paused);
}

#[test]
fn on_the_real_clock_commands_come_once_per_period() {
    let (handle, mut outlet) =
        ControlHandle::start(scheduler(), options(TickClock::Monotonic, Form::PerTick)).unwrap();
    handle.set_joints_max_age(1_000_000 * MS);
    let begin = monotonic();
    handle.put_joints(begin, &[0.0, 0.1]);
    handle.send_chunk(&ramp(0, 0, begin)).unwrap();
    let mut times = vec![];
    while monotonic().0 - begin.0 < 400 * MS {
        if let Received::Command(sent) = outlet.receive(SOON) {
            times.push(sent.at.0);
            assert!(monotonic() >= sent.at);
        }
    }
    assert!(times.len() > 10, "{}", times.len()); // a loaded machine may skip, and says so
    assert!(times.windows(2).all(|pair| pair[1] > pair[0] && (pair[1] - pair[0]) % TICK == 0));
    let timing = handle.status().timing;
    assert!(timing.ticks + timing.overruns >= 40 && timing.late_max_ns > 0 && timing.work_max_ns > 0);
    drop(handle);
    assert!(
        std::iter::from_fn(|| Some(outlet.receive(SOON) == Received::Ended)).take(200).any(|ended| ended)
    );
}
