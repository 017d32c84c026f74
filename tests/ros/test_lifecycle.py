"""The node's lifecycle, as `ros2 lifecycle` and lifecycle managers drive it."""

import signal

import pytest

from lifecycle_msgs.msg import State
from peers import SENSOR, robot_parameters
from process import wait_for
from sensor_msgs.msg import Image
from std_msgs.msg import String

STATES = {
    0: "unknown",
    1: "unconfigured",
    2: "inactive",
    3: "active",
    4: "finalized",
    10: "configuring",
    11: "cleaningup",
    12: "shuttingdown",
    13: "activating",
    14: "deactivating",
    15: "errorprocessing",
}


def test_a_whole_life_from_unconfigured_to_finalized(world):
    robot, arm = world.robot(), world.arm()
    robot.start(20)
    policy = world.start()
    assert policy.state() == "unconfigured"
    assert policy.change("configure")
    assert policy.state() == "inactive"
    assert policy.change("activate"), policy.reason()
    assert policy.state() == "active"
    arm.wait_for_more(10)
    assert policy.change("deactivate")
    assert policy.state() == "inactive"
    wait_for(lambda: arm.silent_for(0.5), "an inactive node is silent")
    assert policy.change("cleanup")
    assert policy.state() == "unconfigured"

    # And all of it again: nothing is left over.
    chunks = len(policy.chunks.received)
    assert policy.change("configure")
    assert policy.change("activate"), policy.reason()
    first = policy.chunks.wait_for_more(1)[0]
    assert first.id == 0 and len(policy.chunks.received) > chunks, "inferences are numbered since the activation"
    arm.wait_for_more(10)
    assert policy.change("shutdown")
    assert policy.state() == "finalized"
    policy.wait_for_state("finalized")
    assert not policy.change("configure"), "the end"
    policy.process.signal(signal.SIGINT)
    assert policy.process.wait() == 0


def test_every_way_is_announced_on_transition_event(world):
    robot, _arm = world.robot(), world.arm()
    robot.start(20)
    policy = world.start()
    wait_for(lambda: world.node.count_publishers(f"{policy.name}/transition_event"), "the topic")
    policy.state()
    for transition in ("configure", "activate", "deactivate", "cleanup", "shutdown"):
        assert policy.change(transition), (transition, policy.reason())
    expected = [
        ("configure", "unconfigured", "configuring"),
        ("transition_success", "configuring", "inactive"),
        ("activate", "inactive", "activating"),
        ("transition_success", "activating", "active"),
        ("deactivate", "active", "deactivating"),
        ("transition_success", "deactivating", "inactive"),
        ("cleanup", "inactive", "cleaningup"),
        ("transition_success", "cleaningup", "unconfigured"),
        ("shutdown", "unconfigured", "shuttingdown"),
        ("transition_success", "shuttingdown", "finalized"),
    ]
    wait_for(lambda: policy.event_labels() == expected, lambda: f"events: {policy.event_labels()}")
    assert all(event.timestamp > 0 for event in policy.events.messages)


def test_graph_states_and_available_transitions_are_those_of_lifecycle_msgs(world):
    policy = world.start()
    assert policy.states() == STATES
    assert {label: number for number, label in STATES.items()}["active"] == State.PRIMARY_STATE_ACTIVE
    assert policy.transitions() == {
        (1, "configure", "unconfigured", "configuring"),
        (5, "shutdown", "unconfigured", "shuttingdown"),
    }
    graph = policy.transitions("get_transition_graph")
    assert {
        (1, "configure", "unconfigured", "configuring"),
        (2, "cleanup", "inactive", "cleaningup"),
        (3, "activate", "inactive", "activating"),
        (4, "deactivate", "active", "deactivating"),
        (5, "shutdown", "unconfigured", "shuttingdown"),
        (6, "shutdown", "inactive", "shuttingdown"),
        (7, "shutdown", "active", "shuttingdown"),
        (10, "transition_success", "configuring", "inactive"),
        (11, "transition_failure", "configuring", "unconfigured"),
        (12, "transition_error", "configuring", "errorprocessing"),
    } <= graph
    assert policy.change(1), "by number"
    assert {label for _, label, _, _ in policy.transitions()} == {"cleanup", "activate", "shutdown"}


def test_what_is_not_allowed_is_refused_and_changes_nothing(world):
    policy = world.start()
    for transition in ("activate", "deactivate", "cleanup", "nonsense", 99, 10, 60):
        assert not policy.change(transition), transition
        assert policy.state() == "unconfigured"
    policy.status.wait_until(lambda status: "expected configure or shutdown" in status.reason)


def test_an_active_node_that_refuses_a_transition_is_as_healthy_as_before(world):
    _robot, _arm, policy = world.running()
    policy.wait_for_control("running")
    for transition in ("activate", "nonsense", 99):
        assert not policy.change(transition)
    wait_for(lambda: "nonsense" in policy.process.log, "the refusal is in the log")
    policy.diagnostics.wait_for_more(2)
    assert policy.health()["policy"][:2] == (0, "active")
    policy.status.wait_until(lambda status: (status.control, status.reason) == ("running", ""))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"checkpoint": "/there/is/no/such/folder"}, ["no/such/folder"]),
        ({"prompt": "word " * 500}, ["tokens"]),
    ],
)
def test_configure_is_refused_with_the_reason(world, overrides, words):
    policy = world.start(robot_parameters() | overrides)
    assert not policy.change("configure")
    assert policy.state() == "unconfigured"
    policy.status.wait_until(lambda status: all(word in status.reason for word in words), words)
    assert "\n" not in policy.reason()
    assert ("transition_failure", "configuring", "unconfigured") in policy.event_labels()
    # The cause is removed: it goes on.
    assert policy.set_list([("checkpoint", "synth:tiny")])[0] and policy.set(prompt="fold the towel")[0]
    assert policy.change("configure"), policy.reason()


def test_activate_is_refused_while_nobody_hears_the_commands(world):
    robot = world.robot()
    robot.start(20)
    policy = world.start()
    assert policy.change("configure")
    assert not policy.change("activate")
    assert policy.state() == "inactive"
    policy.status.wait_until(lambda status: "nobody subscribes" in status.reason and "commands" in status.reason)
    assert ("transition_failure", "activating", "inactive") in policy.event_labels()
    world.arm()
    assert policy.change("activate"), policy.reason()


def test_activate_is_refused_without_fresh_inputs_and_names_the_first(world):
    robot, _arm = world.robot(), world.arm()
    robot.silent = {1, "joints"}
    robot.start(20)
    policy = world.start()
    assert policy.change("configure")
    assert not policy.change("activate")
    policy.status.wait_until(lambda status: "joints" in status.reason, "joints")
    robot.silent = {1}
    assert not policy.change("activate")
    policy.status.wait_until(lambda status: "left_wrist_0_rgb" in status.reason, "the camera's name")
    robot.silent = set()
    assert policy.change("activate"), policy.reason()


def test_activate_is_refused_where_a_camera_has_another_type_and_names_topic_and_types(world):
    robot, _arm = world.robot(cameras=2), world.arm()
    robot.start(20)
    _text = world.node.create_publisher(String, "cam_2", SENSOR)
    policy = world.start()
    assert policy.change("configure")
    assert not policy.change("activate")
    words = ("right_wrist_0_rgb", f"{world.namespace}/cam_2", "sensor_msgs/msg/Image", "std_msgs/msg/String")
    policy.status.wait_until(lambda status: all(word in status.reason for word in words), words)


def listeners(world, topic):
    infos = world.node.get_subscriptions_info_by_topic(f"{world.namespace}/{topic}")
    return sum(info.node_name == "policy" for info in infos)


def test_however_often_it_is_configured_it_listens_once_to_topics_that_are_silent(world):
    _cameras = [world.node.create_publisher(Image, f"cam_{index}", SENSOR) for index in range(3)]
    policy = world.start()
    for _ in range(3):
        assert policy.change("configure"), policy.reason()
        assert policy.change("cleanup")
    assert policy.change("configure"), policy.reason()
    topics = ("joint_states", "prompt", "cam_0", "cam_1", "cam_2")
    wait_for(lambda: [listeners(world, topic) for topic in topics] == [1] * 5, "one subscription each")


def test_after_cleanup_it_listens_no_more_to_a_topic_that_is_heard(world):
    robot = world.robot()
    robot.start(20)
    policy = world.start()
    assert policy.change("configure"), policy.reason()
    wait_for(lambda: listeners(world, "joint_states") == listeners(world, "cam_0") == 1, "it listens")
    assert policy.change("cleanup")
    wait_for(lambda: not listeners(world, "joint_states") and not listeners(world, "cam_0"), "no subscription")


def test_a_configure_that_fails_leaves_nothing_and_names_topic_and_types(world):
    policy = world.start(robot_parameters(prompt_topic="joint_states"))
    for _ in range(3):
        assert not policy.change("configure")
    words = (f"{world.namespace}/joint_states", "std_msgs/msg/String", "sensor_msgs/msg/JointState")
    policy.status.wait_until(lambda status: all(word in status.reason for word in words), words)
    wait_for(lambda: not world.node.count_publishers(f"{world.namespace}/commands"), "no publisher")
    assert listeners(world, "joint_states") <= 1
    assert policy.set_list([("prompt_topic", "prompt")])[0]
    assert policy.change("configure"), policy.reason()


@pytest.mark.parametrize("names", [["shoulder", "gripper", "wheel"], ["shoulder", "elbow", "gripper", "elbow"]], ids=["missing", "twice"])
def test_activate_is_refused_while_a_joint_is_missing_or_there_twice_and_names_it(world, names):
    robot, _arm = world.robot(names=names), world.arm()
    robot.start(20)
    policy = world.start()
    assert policy.change("configure")
    assert not policy.change("activate")
    policy.status.wait_until(lambda status: "elbow" in status.reason, "the joint's name")
    robot.names = ["wheel", "gripper", "elbow", "shoulder"]
    robot.positions = [9.0, 0.3, 0.2, 0.1]
    assert policy.change("activate"), policy.reason()


def test_autostart_configures_and_activates_once_everything_is_there(world):
    policy = world.start(robot_parameters(autostart=True))
    policy.wait_for_state("inactive")
    policy.status.wait_until(lambda status: status.reason != "", "why it is not active yet")
    said = len(policy.status.received)
    again = policy.event_labels().count(("transition_failure", "activating", "inactive")) + 2
    wait_for(lambda: policy.event_labels().count(("transition_failure", "activating", "inactive")) >= again, "other attempts")
    assert len(policy.status.received) == said and policy.process.log.count("nobody subscribes") == 1, "said once"
    arm, robot = world.arm(), world.robot()
    robot.start(20)
    policy.wait_for_state("active")
    arm.wait_for_more(10)
    # A person's word ends it: the node does not start again by itself.
    assert policy.change("deactivate")
    wait_for(lambda: arm.silent_for(2.0), "the node stays inactive")
    assert policy.state() == "inactive"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_node_that_is_not_active_with_exit_code_0(world, number):
    policy = world.start()
    policy.state()
    if number == signal.SIGTERM:
        assert policy.change("configure")
    policy.process.signal(number)
    assert policy.process.wait() == 0
