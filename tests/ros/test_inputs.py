"""What the node sees and feels: cameras of every kind and number, joints in any order."""

import time

import pytest

import pictures
from peers import JOINTS, SENSOR, SLOTS, robot_parameters, to_ns, to_ros
from process import ROOT, wait_for
from sensor_msgs.msg import CompressedImage, Image

RED, BLUE = (200, 40, 40), (40, 60, 210)


class Eye:
    """One camera by hand, and the first chunk that the policy makes of each of its pictures."""

    def __init__(self, world, kind, topic="cam_0"):
        self.publisher = world.node.create_publisher(kind, topic, SENSOR)
        self.robot = world.robot(cameras=0)
        world.arm()
        self.policy = world.start(robot_parameters(cameras=1, sampler__seed=3, cameras__base_0_rgb__topic=topic))
        assert self.policy.change("configure"), self.policy.reason()

    def actions(self, image):
        """The chunk of an activation that saw nothing but `image`; the same noise every time."""
        chunks = len(self.policy.chunks.received)

        def seen():
            ns = time.time_ns()
            image.header.stamp = to_ros(ns)
            self.publisher.publish(image)
            self.robot.publish(ns)
            return self.policy.change("activate")

        wait_for(seen, self.policy.reason)
        wait_for(lambda: len(self.policy.chunks.received) > chunks, "a chunk")
        chunk = self.policy.chunks.messages[chunks]
        assert chunk.id == 0
        assert self.policy.change("deactivate")
        return list(chunk.actions)


def difference(a, b):
    assert len(a) == len(b) > 0
    return max(abs(x - y) for x, y in zip(a, b))


def image(encoding, rgb, padding=0):
    step, data = pictures.raw(encoding, rgb, padding=padding)
    return Image(width=pictures.WIDTH, height=pictures.HEIGHT, encoding=encoding, step=step, data=data)


def test_every_raw_encoding_shows_the_same_picture_whatever_its_padding(world):
    eye = Eye(world, Image)
    red, blue = eye.actions(image("rgb8", RED)), eye.actions(image("rgb8", BLUE))
    assert difference(red, eye.actions(image("rgb8", RED))) == 0, "the same picture and noise give the same chunk"
    apart = difference(red, blue)
    assert apart > 1e-4, "the policy sees colours"
    for encoding in pictures.RAW:
        if encoding == "mono8":
            continue
        seen = eye.actions(image(encoding, RED, padding=6))
        exact = encoding.startswith(("rgb", "bgr"))
        assert difference(red, seen) <= (0 if exact else apart / 4), encoding
    grey = eye.actions(image("rgb8", (90, 90, 90)))
    assert difference(grey, eye.actions(image("mono8", (90, 90, 90), padding=1))) == 0


def test_a_camera_that_is_there_but_silent_is_called_so(world):
    robot = world.robot(cameras=1)
    world.arm()
    policy = world.start(robot_parameters(cameras=1))
    assert policy.change("configure"), policy.reason()
    robot.silent = {0}
    robot.start(20)
    silent = "cam_0 has a publisher, but nothing of it arrives"
    wait_for(lambda: not policy.change("activate") and silent in policy.reason(), policy.reason)
    robot.silent = set()
    wait_for(lambda: policy.change("activate"), policy.reason)
    policy.status.wait_until(lambda status: status.reason == "")


def test_compressed_pictures_show_what_raw_ones_do(world):
    raw = Eye(world, Image)
    expected = raw.actions(image("rgb8", RED))
    raw.policy.process.close()
    eye = Eye(world, CompressedImage, "cam_0/compressed")
    for format in ("png", "", "rgb8; png compressed bgr8"):
        assert difference(expected, eye.actions(CompressedImage(format=format, data=pictures.png(RED)))) == 0, format
    jpeg = (ROOT / "tests" / "data" / "images" / "progressive.jpg").read_bytes()
    named = eye.actions(CompressedImage(format="jpeg", data=jpeg))
    assert difference(expected, named) > 0
    assert difference(named, eye.actions(CompressedImage(format="", data=jpeg))) == 0, "an empty format is that of its content"


@pytest.mark.parametrize("cameras", [1, 2, 3])
def test_one_to_three_cameras_and_the_others_are_masked(world, cameras):
    robot, _arm = world.robot(cameras=cameras, compressed=[cameras - 1]), world.arm()
    robot.start(20)
    policy = world.start(robot_parameters(cameras=cameras))
    assert policy.change("configure"), policy.reason()
    assert policy.change("activate"), policy.reason()
    for chunk in policy.chunks.wait_for_more(3):
        stamps = [to_ns(stamp) for stamp in chunk.image_stamps]
        assert len(stamps) == len(SLOTS)
        assert [stamp != 0 for stamp in stamps] == [slot < cameras for slot in range(len(SLOTS))]
        newest = max(*stamps, to_ns(chunk.joints_stamp))
        assert to_ns(chunk.header.stamp) == newest, "a chunk counts from the newest part of its observation"


def test_a_topic_that_turns_out_to_be_compressed_is_heard(world):
    """The node is up first and cannot know the type yet."""
    policy = world.start()
    assert policy.change("configure"), policy.reason()
    robot, _arm = world.robot(compressed=[0, 2]), world.arm()
    robot.start(20)
    wait_for(lambda: policy.change("activate"), policy.reason)
    policy.chunks.wait_for_more(2)


def test_joints_are_matched_by_name_in_any_order_among_others(world):
    robot, arm = world.robot(), world.arm()
    policy = world.start()
    assert policy.change("configure"), policy.reason()

    def first(names, positions):
        robot.names, robot.positions = names, positions
        before = len(arm.received)

        def seen():
            robot.publish()
            return policy.change("activate")

        wait_for(seen, policy.reason)
        wait_for(lambda: len(arm.received) > before, "a command")
        command = arm.messages[before]
        assert policy.change("deactivate")
        return dict(zip(command.name, command.position))

    # The first command is at most one tick's movement away from where the joints are.
    near = 2 * 1.0 / 100.0
    for names, positions in [
        (JOINTS, [0.5, -0.6, 0.7]),
        (["gripper", "shoulder", "elbow"], [0.7, 0.5, -0.6]),
        (["wheel", "elbow", "gripper", "lift", "shoulder"], [9.0, -0.6, 0.7, float("nan"), 0.5]),
    ]:
        command = first(names, positions)
        assert list(command) == JOINTS, "commands are in the configured order"
        assert abs(command["shoulder"] - 0.5) < near and abs(command["elbow"] + 0.6) < near and abs(command["gripper"] - 0.7) < near, (names, command)


def test_each_chunk_is_of_the_newest_data_and_says_everything_about_itself(world):
    _robot, _arm, policy = world.running()
    chunks = policy.chunks.wait_for_more(5)
    assert [chunk.id for chunk in chunks] == list(range(chunks[0].id, chunks[0].id + 5))
    for chunk in chunks:
        assert list(chunk.joint_names) == JOINTS
        assert chunk.steps == 50 and len(chunk.actions) == 50 * len(JOINTS)
        assert chunk.period == pytest.approx(1 / 50)
        assert chunk.prompt == "transfer the cube" and chunk.tokens > 0
        assert min(chunk.encode_ms, chunk.vision_ms, chunk.prefix_ms, chunk.denoise_ms, chunk.decode_ms) >= 0
        assert chunk.vision_ms > 0 and chunk.denoise_ms > 0
    stamps = [to_ns(chunk.header.stamp) for chunk in chunks]
    assert stamps == sorted(set(stamps)), "one inference per observation"
