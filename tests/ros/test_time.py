"""`use_sim_time`: ROS time and control's ticks come from /clock."""

import signal
import time

from clock import SimulatedClock
from peers import LATCHED, robot_parameters, to_ns
from process import wait_for
from std_msgs.msg import String

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


def run(robot, clock, policy, arm, until, what):
    """Time goes on at its usual pace, with an observation now and then, until something is so."""
    deadline = time.monotonic() + 40
    tick = 0
    while not until():
        assert time.monotonic() < deadline, f"{what}; the status is {policy.status.last}"
        clock.set(clock.now + TICK)
        if tick % 5 == 0:
            robot.publish(clock.now)
        tick += 1
        time.sleep(TICK * 1e-9)


def test_without_a_clock_there_is_no_time_and_no_activation(world):
    robot, arm, _clock, policy = simulated(world)
    robot.publish(START)
    assert not policy.change("activate")
    assert "/clock" in policy.status.wait_until(lambda status: status.reason).reason
    assert not arm.received


def test_before_there_is_a_time_the_newest_prompt_counts(world):
    _robot, _arm, clock, policy = simulated(world)
    said = world.node.create_publisher(String, "prompt", LATCHED)
    wait_for(said.get_subscription_count, "a subscription to the prompt")
    for number in range(15):
        said.publish(String(data=f"task {number}"))
        time.sleep(0.02)
    policy.status.wait_until(lambda status: status.prompt == "task 14")
    clock.set(START)
    clock.settle(policy)
    assert policy.get("prompt") == "task 14"


def test_commands_are_stamped_with_simulated_time_one_per_clock_message_at_most(world):
    robot, arm, clock, policy = simulated(world)
    active(robot, arm, clock, policy)
    time_stands = len(arm.received)
    clock.settle(policy)
    assert len(arm.received) == time_stands, "while time stands still nothing is commanded"
    run(robot, clock, policy, arm, lambda: len(arm.received) > 100, "commands")
    clock.settle(policy)
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
    run(robot, clock, policy, arm, lambda: policy.status.last.control == "running" and arm.moves(), "it runs")
    clock.set(START - 500 * TICK)
    clock.settle(policy)
    policy.wait_for_control("braking", "holding")
    # An inference that was under way ends, and is not followed.
    wait_for(lambda: "clock" in policy.reason(), "the reason")
    time.sleep(1)
    chunks = len(policy.chunks.received)
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
    run(robot, clock, policy, arm, lambda: policy.status.last.control == "running", "it runs again")
    assert len(policy.chunks.received) > chunks


def test_a_signal_ends_it_while_simulated_time_stands(world):
    robot, arm, clock, policy = simulated(world)
    active(robot, arm, clock, policy)
    run(robot, clock, policy, arm, lambda: policy.status.last.control == "running" and arm.moves(), "it runs")
    policy.process.signal(signal.SIGTERM)  # as when the simulator was ended first
    assert policy.process.wait(4) == 0
    assert "panicked" not in policy.process.log


def test_a_deactivation_ends_while_simulated_time_stands_and_nothing_is_left_of_it(world):
    robot, arm, clock, policy = simulated(world)
    active(robot, arm, clock, policy)
    run(robot, clock, policy, arm, lambda: policy.status.last.control == "running" and arm.moves(), "it runs")
    began = time.monotonic()
    assert policy.change("deactivate")
    assert time.monotonic() - began < 5 and policy.state() == "inactive"
    clock.settle(policy)
    commands = len(arm.received)
    for _ in range(50):
        clock.set(clock.now + TICK)
        robot.publish(clock.now)
        time.sleep(0.005)
    assert len(arm.received) == commands, "an inactive node is silent when time goes on"
    assert policy.change("activate"), policy.reason()
