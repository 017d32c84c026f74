"""What the arm hears: commands of each type within limits, and the services pause, stop and reset."""

import threading

import pytest

from peers import ACCELERATION, JOINTS, VELOCITY, robot_parameters, to_ns
from process import wait_for


def speeds_of(commands):
    """(seconds before the last command, seconds between two, speed of each joint) between consecutive JointStates."""
    stamps = [to_ns(command.header.stamp) for command in commands]
    assert all(b > a for a, b in zip(stamps, stamps[1:])), "stamps increase"
    speeds = []
    for before, after, t0, t1 in zip(commands, commands[1:], stamps, stamps[1:]):
        seconds = (t1 - t0) * 1e-9
        speeds.append(((stamps[-1] - t0) * 1e-9, seconds, [(b - a) / seconds for a, b in zip(before.position, after.position)]))
    return speeds


def assert_within_limits(commands):
    """Positions and speeds of recorded JointStates, judged on their own stamps."""
    assert all(abs(position) <= 3.0 + 1e-9 for command in commands for position in command.position)
    for _, _, speed in speeds_of(commands):
        assert all(abs(v) <= VELOCITY * (1 + 1e-6) for v in speed), speed


def assert_ends_at_rest(commands):
    """Within limits, and no command is faster than what can still stop, within limits, until the last one."""
    assert_within_limits(commands)
    speeds = speeds_of(commands)
    for left, seconds, speed in speeds:
        assert all(abs(v) <= ACCELERATION * (left + seconds) for v in speed), (left, speed)


def test_joint_states_come_per_tick_on_the_grid_within_limits(world):
    _robot, arm, _policy = world.running()
    commands = arm.wait_for_more(200, timeout=60)
    assert all(list(command.name) == JOINTS for command in commands)
    assert_within_limits(commands)
    stamps = [to_ns(command.header.stamp) for command in commands]
    assert any(commands[0].position[j] != commands[-1].position[j] for j in range(3)), "it moves"
    gaps = sorted(b - a for a, b in zip(stamps, stamps[1:]))
    assert abs(gaps[len(gaps) // 2] - 10_000_000) < 2_000_000, "100 Hz"


def test_float64_multi_arrays_have_one_value_per_joint(world):
    _robot, arm, _policy = world.running(robot_parameters(control__command="float64_multi_array"), "float64_multi_array")
    for command in arm.wait_for_more(50):
        assert len(command.data) == len(JOINTS) and not command.layout.dim
        assert all(abs(position) <= 3.0 for position in command.data)
    arm.wait_for_motion()


def test_joint_trajectories_come_per_chunk_and_always_end_at_rest(world):
    robot, arm = world.robot(), world.arm("joint_trajectory")
    robot.start(10)
    policy = world.start(robot_parameters(control__command="joint_trajectory"))
    assert policy.change("configure"), policy.reason()
    assert policy.change("activate"), policy.reason()
    for trajectory in arm.wait_for_more(5):
        assert list(trajectory.joint_names) == JOINTS
        assert len(trajectory.points) > 1
        times = [to_ns(point.time_from_start) for point in trajectory.points]
        assert times[0] >= 0 and times == sorted(set(times)), "time goes on"
        for point in trajectory.points:
            assert len(point.positions) == len(JOINTS) and all(abs(position) <= 3.0 for position in point.positions)
        last, before = trajectory.points[-1], trajectory.points[-2]
        if len(last.velocities):
            assert list(last.velocities) == [0.0] * len(JOINTS)
        dt = (times[-1] - times[-2]) * 1e-9
        steps = [abs(b - a) for a, b in zip(before.positions, last.positions)]
        assert all(step <= ACCELERATION * dt * dt * 1.01 for step in steps), "the end is at rest"
    assert policy.trigger("stop")[0]
    policy.wait_for_control("stopped")
    wait_for(lambda: arm.silent_for(1.0), "no trajectory after the stop")


def test_pause_brakes_and_holds_while_commands_go_on_and_resumes(world):
    _robot, arm, policy = world.running()
    arm.wait_for_motion()
    before = len(arm.received)
    assert policy.pause()[0]
    policy.wait_for_control("paused")
    arm.wait_for_rest()
    assert_within_limits(arm.messages[before:])
    held = arm.positions()[-1]
    later = arm.wait_for_more(50)
    assert all(list(command.position) == held for command in later), "commands go on and do not move"
    assert policy.state() == "active"
    assert policy.pause(False)[0]
    policy.wait_for_control("running")
    arm.wait_for_motion()
    assert_within_limits(arm.messages[before:])


def test_stop_brakes_then_is_silent_until_reset(world):
    _robot, arm, policy = world.running()
    arm.wait_for_motion()
    before = len(arm.received)
    assert policy.trigger("stop")[0]
    policy.wait_for_control("stopped")
    wait_for(lambda: arm.silent_for(1.0), "silence")
    assert_ends_at_rest(arm.messages[before:])
    assert policy.state() == "active"
    assert policy.status.last.control == "stopped" and policy.reason()
    assert policy.trigger("reset")[0]
    policy.wait_for_control("running")
    resumed = len(arm.received)
    arm.wait_for_motion()
    assert_within_limits(arm.messages[resumed:])


def test_a_word_that_changes_nothing_is_answered_with_the_reason(world):
    _robot, _arm, policy = world.running()
    assert policy.trigger("stop")[0]
    for success, message in (policy.pause(), policy.pause(False)):
        assert not success and "stopped" in message and "~/reset" in message
    assert policy.trigger("reset")[0] and policy.pause()[0]
    success, message = policy.trigger("reset")
    assert not success and "~/pause" in message
    assert policy.pause(False)[0]
    policy.wait_for_control("running")


@pytest.mark.parametrize("word", ["stop", "pause"])
def test_what_a_person_has_stopped_is_still_stopped_after_another_activation(world, word):
    _robot, arm, policy = world.running()
    arm.wait_for_motion()
    assert (policy.pause() if word == "pause" else policy.trigger("stop"))[0]
    state = "paused" if word == "pause" else "stopped"
    status = policy.wait_for_control(state)
    assert policy.change("deactivate") and policy.change("activate"), policy.reason()
    policy.status.wait_until(lambda again: (again.lifecycle, again.control, again.reason) == ("active", state, status.reason))
    assert policy.change("deactivate") and policy.change("cleanup") and policy.change("configure"), policy.reason()
    wait_for(lambda: policy.change("activate"), policy.reason)
    policy.wait_for_control(state)
    commands = len(arm.received)
    wait_for(lambda: arm.silent_for(1.0), "silence")
    assert len(arm.received) == commands
    assert (policy.pause(False) if word == "pause" else policy.trigger("reset"))[0]
    policy.wait_for_control("running")
    arm.wait_for_motion()


def test_pause_stop_and_reset_are_refused_by_a_node_that_is_not_active(world):
    policy = world.start()
    for _ in range(2):
        for success, message in (policy.pause(), policy.trigger("stop"), policy.trigger("reset")):
            assert not success and message and "\n" not in message
        assert policy.state() in ("inactive", "unconfigured")
        policy.change("configure")


def test_a_stop_before_the_arm_may_move_is_kept_for_then(world):
    policy = world.start(robot_parameters(autostart=True))
    policy.status.wait_until(lambda status: status.lifecycle == "inactive" and status.reason, "it waits for its robot")
    success, message = policy.trigger("stop")
    assert (success, message) == (True, "stopped")
    robot, arm = world.robot(), world.arm()
    robot.start(20)
    robot.follow = arm
    policy.wait_for_control("stopped")
    wait_for(lambda: arm.silent_for(1.0), "silence")
    assert not arm.received
    assert policy.trigger("reset")[0]
    policy.wait_for_control("running")
    arm.wait_for_motion()


def test_a_stop_has_the_last_word_over_a_reset_of_the_same_moment(world):
    _robot, arm, policy = world.running()
    arm.wait_for_motion()
    for _ in range(5):
        words = [threading.Thread(target=policy.trigger, args=(word,)) for word in ("stop", "reset", "stop")]
        for word in words:
            word.start()
        for word in words:
            word.join()
        assert policy.trigger("stop")[0]
        assert policy.status.last.control == "stopped" or policy.wait_for_control("stopped")
        assert policy.trigger("reset")[0]
        policy.wait_for_control("running")


def test_open_loop_computes_one_chunk_of_the_arm_at_rest_at_a_time(world):
    _robot, arm, policy = world.running(robot_parameters(control__execution="open_loop", control__open_loop_steps=5))
    policy.chunks.wait_for_more(4)
    commands, seen = list(arm.messages), [to_ns(chunk.header.stamp) for chunk in policy.chunks.messages]
    moved = [to_ns(b.header.stamp) for a, b in zip(commands, commands[1:]) if a.position != b.position]
    for before, after in zip(seen, seen[1:]):
        if after < moved[-1]:
            assert any(before < stamp < after for stamp in moved), "executed before the next one is observed"
            assert not any(after <= stamp < after + 20e6 for stamp in moved), "observed at rest"
    policy.diagnostics.wait_for_more(2)
    control = policy.health()["control"][2]
    refused = {name: count for name, count in control.items() if name.startswith("chunks_") and name != "chunks_accepted"}
    assert all(int(count) == 0 for count in refused.values()), refused


def test_deactivate_brakes_before_the_commands_end(world):
    _robot, arm, policy = world.running()
    arm.wait_for_motion()
    before = len(arm.received)
    assert policy.change("deactivate")
    wait_for(lambda: arm.silent_for(0.5), "silence")
    assert_ends_at_rest(arm.messages[before:])
    assert policy.state() == "inactive"
    assert policy.change("activate"), policy.reason()
    arm.wait_for_motion()


def test_an_arm_that_takes_long_to_rest_is_waited_for(world):
    # Velocities that end at zero after eleven seconds: nothing may end sooner, or the joints would go on moving.
    slow = {"joints__velocity_max": [0.5] * 3, "joints__acceleration_max": [0.04] * 3, "joints__velocity_controlled": [True] * 3}
    steady = {"control__policy_rate_hz": 0.1, "control__execution": "open_loop", "control__first_step_max": 1000.0}
    robot, arm = world.robot(), world.arm()
    robot.start(20)
    policy = world.start(robot_parameters(**slow, **steady))
    assert policy.change("configure"), policy.reason()
    assert policy.change("activate"), policy.reason()
    wait_for(lambda: arm.received and max(map(abs, arm.positions()[-1])) > 0.44, "full speed")
    deactivated = []
    braking = threading.Thread(target=lambda: deactivated.append(policy.change("deactivate")))
    braking.start()
    wait_for(lambda: "still braking" in policy.process.log, "a person sees why it takes long")
    assert policy.trigger("stop")[0] and not policy.change("activate"), "one control at a time"
    braking.join()
    assert deactivated == [True]
    wait_for(lambda: arm.silent_for(0.5), "silence")
    assert arm.positions()[-1] == [0.0] * 3, "at rest"
    assert policy.change("activate"), policy.reason()
    policy.wait_for_control("stopped")  # as a person said while it was on its way


@pytest.mark.parametrize("rate", [20.0, 250.0])
def test_commands_come_at_the_configured_rate(world, rate):
    _robot, arm, _policy = world.running(robot_parameters(control__rate_hz=rate))
    commands = arm.wait_for_more(60)
    stamps = [to_ns(command.header.stamp) for command in commands]
    gaps = sorted(b - a for a, b in zip(stamps, stamps[1:]))
    assert gaps[len(gaps) // 2] == pytest.approx(1e9 / rate, rel=0.3)


def test_blend_steps_and_seed_change_while_it_runs(world):
    _robot, arm, policy = world.running()
    assert policy.set(control__blend_steps=0, sampler__seed=99) == [(True, ""), (True, "")]
    policy.chunks.wait_for_more(3)
    arm.wait_for_motion()
    assert_within_limits(arm.wait_for_more(50))
