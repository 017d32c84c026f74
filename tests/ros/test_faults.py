"""What goes wrong around the node, caused for real: killed, signalled, fed rubbish, left alone."""

import math
import random
import signal
import threading
import time

import pytest

from peers import SAID, SENSOR, robot_parameters, to_ros
from process import wait_for
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String
from test_commands import assert_ends_at_rest


# Chunks that last ten seconds, computed in a fifth of the time: for a machine that computes for others too.
SLOW = {"control__policy_rate_hz": 5.0, "sampler__steps": 2}


def test_after_kill_minus_9_it_starts_unconfigured_and_replays_nothing(world):
    robot, arm, policy = world.running()
    arm.wait_for_motion()
    policy.process.kill()
    wait_for(lambda: arm.silent_for(0.5), "a dead node is silent")
    before = len(arm.received)
    again = world.start()
    assert again.state() == "unconfigured"
    assert again.change("configure"), again.reason()
    time.sleep(1)  # something would have to come: nothing may
    assert len(arm.received) == before, "nothing is replayed"
    assert again.change("activate"), again.reason()
    wait_for(lambda: len(arm.received) > before, "commands")
    first, last = arm.positions()[before], robot.positions
    assert all(abs(a - b) <= 0.1 for a, b in zip(first, last)), "it sets out from where the arm is"
    assert again.chunks.messages[0].id == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_in_mid_motion_brakes_and_ends_with_exit_code_0(world, number):
    _robot, arm, policy = world.running()
    arm.wait_for_motion()
    before = len(arm.received)
    policy.process.signal(number)
    assert policy.process.wait() == 0
    wait_for(lambda: arm.silent_for(0.3), "silence")
    assert len(arm.received) > before
    assert_ends_at_rest(arm.messages[before:])
    assert "panicked" not in policy.process.log


def test_under_nohup_a_terminal_that_closes_changes_nothing(world):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does; a child inherits it
    try:
        _robot, arm, policy = world.running()
    finally:
        signal.signal(signal.SIGHUP, before)
    policy.process.signal(signal.SIGHUP)
    arm.wait_for_more(50)
    assert policy.state() == "active"


@pytest.mark.parametrize("how, why", [("error", "GPU: cuStreamSynchronize: "), ("panic", "the engine panicked")])
def test_an_engine_that_breaks_is_a_fault_then_a_brake_then_the_process_ends_with_exit_code_1(world, monkeypatch, how, why):
    monkeypatch.setenv("PI05_BREAK_ENGINE", f"{how}:30")
    _robot, arm, policy = world.running()
    arm.wait_for_motion()
    assert policy.process.wait() == 1
    wait_for(lambda: arm.silent_for(0.3), "silence")
    assert_ends_at_rest(arm.messages)
    faults = [status for status in policy.status.messages if status.control == "fault"]
    assert faults and why in faults[0].reason, policy.status.messages
    assert any(line.startswith("pi05: " + why) and line.endswith("the arm was braked") for line in policy.process.lines), policy.process.log


def test_a_camera_that_stops_brakes_after_its_max_age_and_resumes_when_it_returns(world):
    robot, arm, policy = world.running(robot_parameters(cameras__left_wrist_0_rgb__max_age_ms=500, observe__max_skew_ms=400))
    policy.wait_for_control("running")
    robot.silent = {1}
    status = policy.wait_for_control("braking", "holding")
    arm.wait_for_rest()
    policy.status.wait_until(lambda status: "left_wrist_0_rgb" in status.reason, "the camera's name")
    assert status.lifecycle == "active"
    robot.silent = set()
    policy.wait_for_control("running")
    arm.wait_for_motion()


def test_a_camera_that_shows_the_same_pixels_brakes_and_resumes_when_it_moves(world):
    robot, arm, policy = world.running(robot_parameters(cameras__left_wrist_0_rgb__max_age_ms=500))
    policy.wait_for_control("running")
    picture = robot.image
    robot.image = lambda index, ns, grey=None: picture(index, ns, grey=77 if index == 1 else None)
    policy.wait_for_control("braking", "holding")
    policy.status.wait_until(lambda status: "left_wrist_0_rgb: frozen" in status.reason, "the camera's name")
    arm.wait_for_rest()
    robot.image = picture
    policy.wait_for_control("running")
    arm.wait_for_motion()


def test_a_camera_that_sends_what_cannot_be_read_is_named_with_the_cause(world):
    robot, arm, policy = world.running(robot_parameters(cameras__left_wrist_0_rgb__max_age_ms=500))
    policy.wait_for_control("running")
    picture = robot.image

    def depth(index, ns, grey=None):
        message = picture(index, ns, grey)
        message.encoding = "16UC1" if index == 1 else message.encoding
        return message

    robot.image = depth
    words = ("left_wrist_0_rgb: too old", "16UC1")
    policy.status.wait_until(lambda status: all(word in status.reason for word in words), words)
    arm.wait_for_rest()
    robot.image = picture
    policy.status.wait_until(lambda status: (status.control, status.reason) == ("running", ""))


def test_a_camera_that_changes_its_type_is_named_with_what_to_do(world):
    robot, _arm, policy = world.running()
    policy.wait_for_control("running")
    robot.stop()
    while robot.cameras:
        world.node.destroy_publisher(robot.cameras.pop())
    time.sleep(1)  # rclpy's executor lets go of them, and with them of the type
    world.robot(compressed=[0, 1, 2]).start(20)
    words = ("cam_0 carries sensor_msgs/msg/CompressedImage now", "listens to sensor_msgs/msg/Image", "start the node anew")
    policy.status.wait_until(lambda status: all(word in status.reason for word in words), words)
    assert policy.change("deactivate") and policy.change("cleanup")
    assert not policy.change("configure")
    policy.status.wait_until(lambda status: "CompressedImage" in status.reason and "start the node anew" in status.reason)


@pytest.mark.parametrize("elbows", [0, 2], ids=["missing", "twice"])
def test_a_joint_that_is_missing_or_there_twice_mid_run_brakes_and_its_return_resumes(world, elbows):
    robot, arm, policy = world.running(robot_parameters(**SLOW, joints__max_age_ms=1000, joints__fault_after_ms=60000))
    policy.wait_for_control("running")
    arm.wait_for_motion()
    whole = robot.joint_state

    def other_elbows(ns):
        message = whole(ns)
        order = [0] + [1] * elbows + [2]
        message.name, message.position = [message.name[k] for k in order], [message.position[k] for k in order]
        return message

    robot.joint_state = other_elbows
    policy.status.wait_until(lambda status: status.control in ("braking", "holding") and "joint" in status.reason, "the joints' brake")
    policy.wait_for_count("joints_dropped", "elbow")
    arm.wait_for_rest()
    robot.joint_state = whole
    policy.wait_for_control("running")
    arm.wait_for_motion()


def test_joints_that_stop_brake_at_once_and_resume_when_they_return(world):
    robot, arm, policy = world.running(robot_parameters(joints__max_age_ms=300))
    policy.wait_for_control("running")
    arm.wait_for_motion()
    robot.silent = {"joints"}
    policy.status.wait_until(lambda status: status.control in ("braking", "holding", "fault") and "joint" in status.reason, "why")
    wait_for(lambda: any("WARN" in line and "joint states are stale" in line for line in policy.process.lines), "a line in the log")
    arm.wait_for_rest()
    robot.silent = set()

    def runs():
        if policy.status.last.control == "fault":
            policy.trigger("reset")
        return policy.status.last.control == "running"

    wait_for(runs, lambda: f"it runs again: {policy.status.last}")
    arm.wait_for_motion()


def test_when_nobody_hears_the_commands_any_more_it_brakes_and_says_why(world):
    robot, arm, policy = world.running()
    robot.follow = None
    arm.drop()
    status = policy.wait_for_control("braking", "holding")
    policy.status.wait_until(lambda status: "commands" in status.reason and ("nobody" in status.reason or "subscri" in status.reason), "why")
    assert status.lifecycle == "active" and policy.process.is_alive()
    robot.positions = [position - 0.3 for position in robot.positions]  # somebody has moved it meanwhile
    arm = world.arm()
    arm.wait_for_more(1)
    first = arm.positions()[0]
    assert all(abs(a - b) < 0.15 for a, b in zip(first, robot.positions)), "sets out from where it is"
    robot.follow = arm
    policy.wait_for_control("running")
    arm.wait_for_motion()


@pytest.mark.parametrize("word", ["pause", "deactivate"])
def test_who_comes_to_listen_hears_nothing_of_a_brake_that_began_before(world, word):
    robot, arm, policy = world.running(robot_parameters(joints__acceleration_max=[0.2] * 3, joints__velocity_max=[0.3] * 3))
    arm.wait_for_motion()
    robot.follow = None
    arm.drop()
    policy.wait_for_control("braking", "holding")
    if word == "pause":
        assert policy.pause()[0]
    else:
        threading.Thread(target=policy.change, args=("deactivate",)).start()
    late = world.arm()
    time.sleep(3)
    assert not late.received, "nor of where it then rests"


def test_a_joint_state_from_the_future_is_forgotten_with_the_next_one(world):
    robot, arm, policy = world.running(robot_parameters(joints__fault_after_ms=1500))
    arm.wait_for_motion()
    assert policy.pause()[0]
    robot.joints.publish(robot.joint_state(time.time_ns() + 600 * 10**9))
    time.sleep(2)
    assert policy.pause(False)[0]
    policy.wait_for_control("running")
    assert policy.status.last.control != "fault"


def garbage(rng):
    """Serialized rubbish: nothing, noise, a header that is cut, lengths beyond everything."""
    yield b""
    yield b"\x00"
    yield b"\x00\x01\x00\x00"
    yield b"\x00\x01\x00\x00" + b"\xff" * 64
    yield b"\x00\x01\x00\x00" + bytes(8) + b"\xff\xff\xff\x7f"
    yield b"\xff\xff\xff\xff" * 8
    yield b"\x00\x01\x00\x00" + bytes(8) + b"\x04\x00\x00\x00abcd" * 10
    for length in (3, 17, 64, 500, 5000):
        yield b"\x00\x01\x00\x00" + rng.randbytes(length)
        yield rng.randbytes(length)


def test_rubbish_on_every_topic_is_counted_and_good_data_goes_on(world):
    rng = random.Random(5)
    robot, arm, policy = world.running()
    node = world.node
    sources = [
        node.create_publisher(Image, "cam_0", SENSOR),
        node.create_publisher(JointState, "joint_states", SENSOR),
        node.create_publisher(String, "prompt", SAID),
    ]
    for publisher in sources:
        wait_for(lambda: publisher.get_subscription_count() > 0, f"a subscription to {publisher.topic_name}")
        for payload in garbage(rng):
            publisher.publish(payload)
            time.sleep(0.02)  # each is to be the newest for a moment, not to be replaced by the next
    policy.wait_for_count("image_dropped", "base_0_rgb", at_least=3)
    policy.wait_for_count("joints_dropped", at_least=3)
    policy.wait_for_count("prompt_dropped", at_least=1)
    policy.chunks.wait_for_more(3)
    assert policy.state() == "active" and policy.process.is_alive()
    assert "panicked" not in policy.process.log


def stamp(message):
    message.header.stamp = to_ros(time.time_ns())
    return message


BAD_IMAGES = [
    ("data shorter than its rows", "needs", dict(width=32, height=24, encoding="rgb8", step=96, data=bytes(100))),
    ("a size beyond everything", "sides must be", dict(width=2**31, height=2**31, encoding="rgb8", step=2**32 - 1, data=b"x")),
    ("no size", "sides must be", dict(width=0, height=0, encoding="rgb8", step=0, data=b"")),
    ("an encoding that is none", "not supported", dict(width=2, height=2, encoding="rgb\x1b[2J", step=6, data=bytes(12))),
    ("an empty encoding", "not supported", dict(width=2, height=2, encoding="", step=6, data=bytes(12))),
    ("rows that overlap", "step is", dict(width=32, height=24, encoding="rgb8", step=5, data=bytes(5000))),
    ("half a pair of pixels", "even", dict(width=3, height=2, encoding="yuyv", step=6, data=bytes(12))),
]

BAD_JOINTS = [
    ("NaN", "finite", dict(name=["shoulder", "elbow", "gripper"], position=[0.1, math.nan, 0.3])),
    ("infinity", "finite", dict(name=["shoulder", "elbow", "gripper"], position=[0.1, math.inf, 0.3])),
    ("a missing joint", "lacks", dict(name=["shoulder", "elbow"], position=[0.1, 0.2])),
    ("a joint twice", "twice", dict(name=["shoulder", "elbow", "gripper", "elbow"], position=[0.1, 0.2, 0.3, 0.4])),
    ("fewer positions than names", "names", dict(name=["shoulder", "elbow", "gripper"], position=[0.1])),
    ("nothing", "lacks", dict(name=[], position=[])),
    ("empty names", "joint state", dict(name=["", "", ""], position=[0.1, 0.2, 0.3])),
]


def test_malformed_messages_are_counted_by_name_and_change_nothing(world):
    _robot, _arm, policy = world.running()
    node = world.node
    images = node.create_publisher(Image, "cam_1", SENSOR)
    joints = node.create_publisher(JointState, "joint_states", SENSOR)
    wait_for(lambda: images.get_subscription_count() and joints.get_subscription_count(), "subscriptions")

    old = Image(width=2, height=2, encoding="rgb8", step=6, data=bytes(12))
    old.header.stamp = to_ros(10**9)
    wanted = [(images, ("left_wrist_0_rgb", word), lambda fields=fields: stamp(Image(**fields))) for _, word, fields in BAD_IMAGES]
    wanted += [(joints, ("joints_dropped", word), lambda fields=fields: stamp(JointState(**fields))) for _, word, fields in BAD_JOINTS]
    wanted.append((images, ("image_dropped", "left_wrist_0_rgb", "older"), lambda: old))

    def all_counted():
        # Best effort, and the newest counts: each is said again until it was heard.
        for publisher, words, make in wanted:
            if not policy.counted(*words):
                publisher.publish(make())
                time.sleep(0.03)
        return all(policy.counted(*words) for _, words, _ in wanted)

    wait_for(all_counted, lambda: f"counts of {[w for _, w, _ in wanted if not policy.counted(*w)]}: {policy.health()}")
    policy.chunks.wait_for_more(3)
    assert policy.state() == "active"
    assert policy.health()["left_wrist_0_rgb"][2]["refused"] != "0"


def test_compressed_rubbish_is_counted(world):
    robot = world.robot(compressed=[0])
    arm = world.arm()
    robot.follow = arm
    robot.start(20)
    policy = world.start()
    assert policy.change("configure")
    wait_for(lambda: policy.change("activate"), policy.reason)
    publisher = world.node.create_publisher(CompressedImage, "cam_0", SENSOR)
    jpeg = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(200) + b"\xff\xd9"
    bombs = [
        CompressedImage(format="jpeg", data=b""),
        CompressedImage(format="jpeg", data=jpeg),
        CompressedImage(format="png", data=b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x7f\xff\xff\xff\x7f\xff\xff\xff\x08\x02\x00\x00\x00"),
        CompressedImage(format="h264", data=b"\x00\x00\x01"),
        CompressedImage(format="jpeg", data=b"GIF89a"),
    ]

    def heard():
        for bomb in bombs:
            publisher.publish(stamp(bomb))
            time.sleep(0.05)
        return policy.counted("image_dropped", "base_0_rgb") >= len(bombs)

    wait_for(heard, lambda: f"counts: {policy.health()}")
    policy.chunks.wait_for_more(3)
    assert policy.process.rss_mib() < 2000 and policy.state() == "active"


def test_a_camera_that_changes_its_size_is_followed(world):
    _robot, _arm, policy = world.running()
    robot = world.node.create_publisher(Image, "cam_2", SENSOR)
    for width, height in ((64, 48), (10, 200), (1, 1)):
        robot.publish(stamp(Image(width=width, height=height, encoding="rgb8", step=3 * width, data=bytes(3 * width * height))))
        policy.chunks.wait_for_more(1)
    assert policy.counted("image_dropped", "size") == 0
    assert policy.state() == "active"


def test_stamps_of_zero_count_as_now_and_those_of_the_future_are_not_used(world):
    robot, _arm = world.robot(), world.arm()
    policy = world.start()
    assert policy.change("configure")

    def now():
        robot.publish(0)
        return policy.change("activate")

    wait_for(now, policy.reason)
    chunk = wait_for(lambda: policy.chunks.last, "a chunk")
    assert abs(chunk.header.stamp.sec - time.time()) < 60
    count = len(policy.chunks.received)
    robot.publish(time.time_ns() + 3600 * 10**9)
    policy.wait_for_count("future")
    # And a good one is taken after it.
    def good():
        robot.publish()
        return len(policy.chunks.received) > count

    wait_for(good, "a chunk of good stamps")
    assert abs(policy.chunks.last.header.stamp.sec - time.time()) < 60
