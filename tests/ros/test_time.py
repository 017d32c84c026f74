"""`use_sim_time`: ROS time and control's ticks come from /clock."""

import time

from clock import SimulatedClock
from peers import robot_parameters, to_ns
from process import wait_for

START = 1_000 * 10**9
TICK = 10_000_000


def simulated(world, **overrides):
    robot, arm = world.robot(), world.arm()
    clock = SimulatedClock(world.node)
    policy = world.start(robot_parameters(use_sim_time=True, **overrides))
    assert policy.change("configure"), policy.reason()
    clock.wait_for_listeners(1)
    return robot, arm, clock, policy


def active(robot, arm, clock, policy):
    """Active at START, with the first chunk there."""
    def activated():
        clock.set(START)
        clock.settle(policy)
        robot.publish(START)
        return policy.change("activate")

    wait_for(activated, policy.reason)
    wait_for(lambda: policy.chunks.last, "a chunk")


def run(robot, clock, policy, arm, ticks, every=5):
    """So many ticks of the clock, with an observation now and then; waits for the command of each."""
    for tick in range(ticks):
        clock.set(clock.now + TICK)
        if tick % every == 0:
            robot.publish(clock.now)
        time.sleep(0.002)
    wait_for(lambda: arm.last and to_ns(arm.last.header.stamp) > clock.now - 2 * TICK, lambda: f"a command at {clock.now}: {arm.last}")


def test_without_a_clock_there_is_no_time_and_no_activation(world):
    robot, arm, _clock, policy = simulated(world)
    robot.publish(START)
    assert not policy.change("activate")
    assert "/clock" in policy.status.wait_until(lambda status: status.reason).reason
    assert not arm.received


def test_commands_are_stamped_with_simulated_time_one_per_clock_message_at_most(world):
    robot, arm, clock, policy = simulated(world)
    active(robot, arm, clock, policy)
    time_stands = len(arm.received)
    clock.settle(policy)
    assert len(arm.received) == time_stands, "while time stands still nothing is commanded"
    run(robot, clock, policy, arm, 100)
    stamps = [to_ns(command.header.stamp) for command in arm.messages]
    assert stamps == sorted(set(stamps)) and all((stamp - START) % TICK == 0 for stamp in stamps), "on the grid since the activation"
    assert START <= stamps[0] and stamps[-1] <= clock.now
    # A leap of ten ticks gives one command, not ten.
    clock.settle(policy)
    before = len(arm.received)
    clock.set(clock.now + 10 * TICK)
    wait_for(lambda: len(arm.received) > before, "a command")
    clock.settle(policy)
    clock.settle(policy)
    assert len(arm.received) == before + 1


def test_when_time_goes_back_it_brakes_and_goes_on_with_fresh_inputs_only(world):
    robot, arm, clock, policy = simulated(world)
    active(robot, arm, clock, policy)
    run(robot, clock, policy, arm, 50)
    policy.wait_for_control("running")
    chunks = len(policy.chunks.received)
    clock.set(START - 500 * TICK)
    clock.settle(policy)
    before = len(arm.received)
    for _ in range(100):
        clock.set(clock.now + TICK)
        time.sleep(0.002)
    status = policy.wait_for_control("braking", "holding")
    assert "clock" in status.reason, status
    assert len(policy.chunks.received) == chunks, "what was seen before belongs to another time"
    clock.settle(policy)
    tail = [list(command.position) for command in arm.messages[before:]]
    assert len(tail) > 10 and tail[-1] == tail[-2], "it came to rest"
    stamps = [to_ns(command.header.stamp) for command in arm.messages[before:]]
    assert stamps == sorted(stamps) and stamps[-1] <= clock.now, "commands carry the new time"
    run(robot, clock, policy, arm, 50)
    policy.wait_for_control("running")
    assert len(policy.chunks.received) > chunks
