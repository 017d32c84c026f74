"""Names and QoS: namespaces, remapping, two nodes side by side, and what every endpoint offers or asks for."""

from rclpy.qos import DurabilityPolicy, HistoryPolicy, ReliabilityPolicy

import pytest

from peers import robot_parameters
from process import wait_for

RELIABLE, BEST_EFFORT = ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT
VOLATILE, LATCHED = DurabilityPolicy.VOLATILE, DurabilityPolicy.TRANSIENT_LOCAL


def endpoints(world, topic, namespace, kind, name="policy"):
    """The node's own endpoints of a topic."""
    ask = world.node.get_publishers_info_by_topic if kind == "publishes" else world.node.get_subscriptions_info_by_topic
    return [info for info in ask(topic) if info.node_name == name and info.node_namespace == namespace]


@pytest.mark.parametrize("command", ["float64_multi_array", "joint_state", "joint_trajectory"])
def test_every_endpoint_has_the_type_and_qos_that_ros_2_users_expect(world, command):
    types = {
        "float64_multi_array": "std_msgs/msg/Float64MultiArray",
        "joint_state": "sensor_msgs/msg/JointState",
        "joint_trajectory": "trajectory_msgs/msg/JointTrajectory",
    }
    world.robot()
    policy = world.start(robot_parameters(control__command=command))
    assert policy.change("configure"), policy.reason()
    namespace = world.namespace
    expected = [
        ("publishes", f"{namespace}/commands", types[command], RELIABLE, VOLATILE),
        ("publishes", f"{namespace}/policy/chunks", "pi05_thor/msg/ActionChunk", RELIABLE, VOLATILE),
        ("publishes", f"{namespace}/policy/status", "pi05_thor/msg/PolicyStatus", RELIABLE, LATCHED),
        ("publishes", f"{namespace}/policy/transition_event", "lifecycle_msgs/msg/TransitionEvent", RELIABLE, VOLATILE),
        ("publishes", "/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", RELIABLE, VOLATILE),
        ("publishes", "/parameter_events", "rcl_interfaces/msg/ParameterEvent", RELIABLE, VOLATILE),
        ("hears", f"{namespace}/cam_0", "sensor_msgs/msg/Image", BEST_EFFORT, VOLATILE),
        ("hears", f"{namespace}/cam_1", "sensor_msgs/msg/Image", BEST_EFFORT, VOLATILE),
        ("hears", f"{namespace}/cam_2", "sensor_msgs/msg/Image", BEST_EFFORT, VOLATILE),
        ("hears", f"{namespace}/joint_states", "sensor_msgs/msg/JointState", BEST_EFFORT, VOLATILE),
        ("hears", f"{namespace}/prompt", "std_msgs/msg/String", RELIABLE, LATCHED),
    ]
    for kind, topic, type_name, reliability, durability in expected:
        wait_for(lambda: endpoints(world, topic, namespace, kind), f"the node {kind} {topic}")
        [info] = endpoints(world, topic, namespace, kind)
        found = (info.topic_type, info.qos_profile.reliability, info.qos_profile.durability)
        assert found == (type_name, reliability, durability), topic
        # The middleware does not tell others about depths; where it does, they are as they should be.
        if info.qos_profile.history == HistoryPolicy.KEEP_LAST:
            assert info.qos_profile.depth in ((10,) if "chunks" in topic else (1, 10, 1000)), topic
    services = {name for name, _ in world.node.get_service_names_and_types_by_node("policy", namespace)}
    assert {f"{namespace}/policy/{service}" for service in ("pause", "stop", "reset", "change_state", "get_state")} <= services
    assert {
        f"{namespace}/policy/{service}"
        for service in ("list_parameters", "get_parameters", "set_parameters", "describe_parameters", "get_parameter_types", "set_parameters_atomically")
    } <= services


def test_the_prompt_that_was_said_before_the_node_came_is_heard(world):
    policy = world.start()
    policy.say("pick up the cup")
    assert policy.change("configure"), policy.reason()
    policy.status.wait_until(lambda status: status.prompt == "pick up the cup", "the prompt")


def test_cleanup_takes_the_topics_away(world):
    world.robot().start(20)
    policy = world.start()
    assert policy.change("configure"), policy.reason()
    topic = f"{world.namespace}/joint_states"
    wait_for(lambda: endpoints(world, topic, world.namespace, "hears"), "a subscription")
    assert policy.change("cleanup")
    wait_for(lambda: not endpoints(world, topic, world.namespace, "hears"), "no subscription")
    wait_for(lambda: not endpoints(world, f"{world.namespace}/commands", world.namespace, "publishes"), "no publisher")


def test_two_nodes_in_two_namespaces_do_not_meet(world):
    peers = {}
    for side in ("left", "right"):
        robot, arm = world.robot(camera_topic=f"{side}/cam_{{}}", joints_topic=f"{side}/joint_states"), world.arm(topic=f"{side}/commands")
        robot.follow = arm
        robot.start(10)
        peers[side] = robot, arm, world.start(robot_parameters(autostart=True), namespace=f"{world.namespace}/{side}")
    for _, arm, policy in peers.values():
        policy.wait_for_state("active")
        arm.wait_for_more(10)
    left, right = peers["left"], peers["right"]
    assert left[2].change("deactivate")
    wait_for(lambda: left[1].silent_for(0.5), "the left arm is silent")
    right[1].wait_for_more(20)
    assert right[2].state() == "active"
    assert left[2].set(prompt="left only")[0]
    assert right[2].get("prompt") == "transfer the cube"


def test_topics_services_and_the_node_itself_can_be_remapped(world):
    robot = world.robot(camera_topic="eyes/e{}_raw", joints_topic="/elsewhere/joints")
    arm = world.arm(topic="arm_controller/commands")
    robot.follow = arm
    robot.start(20)
    remap = ["__node:=brain", "joint_states:=/elsewhere/joints", "commands:=arm_controller/commands", "~/chunks:=plans"]
    remap += [f"cam_{index}:=eyes/e{index}_raw" for index in range(3)]
    policy = world.start(name="brain", remap=remap)
    assert policy.change("configure")
    assert policy.change("activate"), policy.reason()
    arm.wait_for_more(10)
    wait_for(lambda: endpoints(world, f"{world.namespace}/plans", world.namespace, "publishes", "brain"), "the chunks' topic")


def test_without_a_namespace_names_are_at_the_root(world):
    policy = world.start(robot_parameters() | {"joints.topic": "lonely_joints"}, namespace="")
    assert policy.change("configure"), policy.reason()
    wait_for(lambda: endpoints(world, "/lonely_joints", "/", "hears"), "a subscription at the root")
