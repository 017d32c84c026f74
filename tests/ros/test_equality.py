"""The same inputs give the same actions and the same commands, in the node as in `pi05 replay`."""

import subprocess
from pathlib import Path

import pytest
import yaml
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

import rclpy
from clock import SimulatedClock
from peers import RELIABLE, SENSOR, to_ns
from process import BAGS, ROOT, parameter_file, program, wait_for
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage, JointState
from trajectory_msgs.msg import JointTrajectory

STORE = get_typestore(Stores.ROS2_JAZZY)
TICK = 10_000_000
# Not on the grid of ticks, so that nothing depends on what comes first within an instant.
LATENCY_MS = 7
CAMERAS = ["/cam_high/image_raw/compressed", "/cam_left_wrist/image_raw/compressed", "/cam_right_wrist/image_raw/compressed"]
JOINT_STATES = "/joint_states"
# Of the sample bag's 100 moments with all four messages.
EVERY = 4


def moments():
    """Every n-th stamp at which the sample bag has all cameras and the joints, with their serialized messages."""
    sets = {}
    with AnyReader([BAGS / "aloha_sim"]) as reader:
        for connection, _, payload in reader.messages():
            stamp = to_ns(reader.deserialize(payload, connection.msgtype).header.stamp)
            sets.setdefault(stamp, {})[connection.topic] = (connection.msgtype, bytes(payload))
    whole = sorted(stamp for stamp, messages in sets.items() if len(messages) == len(CAMERAS) + 1)
    return [(stamp, sets[stamp]) for stamp in whole[::EVERY]]


def write_bag(path, sets):
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {}
        for stamp, messages in sets:
            for topic, (kind, payload) in messages.items():
                if topic not in connections:
                    connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
                writer.write(connections[topic], stamp, payload)


def parameters(**overrides):
    """config/aloha.yaml, for observations that are further apart than a robot's."""
    text = (ROOT / "config" / "aloha.yaml").read_text()
    tree = yaml.safe_load(text)["/**"]["ros__parameters"]
    tree["control"]["command"] = "joint_state"
    tree["joints"]["max_age_ms"] = 60_000
    tree["observe"]["max_skew_ms"] = 1
    for camera in tree["cameras"].values():
        camera["max_age_ms"] = 60_000
    tree.setdefault("replay", {})["latency_ms"] = LATENCY_MS
    for name, thing in overrides.items():
        group, _, field = name.partition("__")
        tree[group][field] = thing
    return tree


def replayed(bag, tree, out):
    """(stamp, values) of every command, and the actions of every chunk, of `pi05 replay`."""
    command = [program("pi05"), "replay", str(bag), "--config", parameter_file(tree, out.parent), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    commands, chunks = [], []
    with AnyReader([Path(out) / "commands.mcap"]) as reader:
        for connection, _, payload in reader.messages():
            if connection.topic == "/commands":
                message = deserialize_message(bytes(payload), JointState)
                commands.append((to_ns(message.header.stamp), list(message.position)))
            elif connection.topic == "/chunks":
                message = deserialize_message(bytes(payload), JointTrajectory)
                chunks.append([value for point in message.points for value in point.positions])
    return commands, chunks


class Lockstep:
    """A node whose time stands still while it computes."""

    def __init__(self, world, tree):
        self.node = world.node
        kinds = {**{topic: CompressedImage for topic in CAMERAS}, JOINT_STATES: JointState}
        self.publishers = {topic: self.node.create_publisher(kind, world.namespace + topic, SENSOR) for topic, kind in kinds.items()}
        self.arm = world.arm()
        self.clock = SimulatedClock(self.node)
        self.policy = world.start(tree | {"use_sim_time": True})
        assert self.policy.change("configure"), self.policy.reason()
        self.clock.wait_for_listeners(1)

    def deliver(self, messages):
        for topic, (_, payload) in messages.items():
            self.publishers[topic].publish(payload)

    def chunk_of(self, index, messages):
        """The chunk of a moment, which is delivered anew if it got lost."""
        for _ in range(20):
            try:
                wait_for(lambda: len(self.policy.chunks.received) > index, "a chunk", timeout=2)
                break
            except AssertionError:
                self.deliver(messages)
        chunk = self.policy.chunks.messages[index]
        assert chunk.id == index
        return chunk

    def tick(self, stamp):
        """One tick, and its command."""
        before = len(self.arm.received)
        for attempt in range(20):
            self.clock.set(stamp)
            try:
                wait_for(lambda: len(self.arm.received) > before, "a command", timeout=2)
                break
            except AssertionError:
                pass
        wait_for(lambda: len(self.arm.received) > before, f"a command at {stamp}")

    def play(self, sets, end):
        """Everything up to the tick at `end`; gives commands and chunks."""
        start = sets[0][0]

        def activated():
            self.clock.set(start)
            self.clock.settle(self.policy)
            self.deliver(sets[0][1])
            return self.policy.change("activate")

        wait_for(activated, self.policy.reason)
        self.chunk_of(0, sets[0][1])
        due = [(stamp + LATENCY_MS * 1_000_000, index, messages) for index, (stamp, messages) in enumerate(sets)][1:]
        for stamp in range(start + TICK, end + 1, TICK):
            while due and due[0][0] < stamp:
                arrival, index, messages = due.pop(0)
                self.clock.set(arrival)
                self.clock.settle(self.policy)
                self.deliver(messages)
                self.chunk_of(index, messages)
            self.tick(stamp)
        commands = [(to_ns(command.header.stamp), list(command.position)) for command in self.arm.messages]
        return commands, [list(chunk.actions) for chunk in self.policy.chunks.messages]


def farthest(a, b):
    assert len(a) == len(b) > 0
    return max(abs(x - y) for x, y in zip(a, b))


@pytest.mark.parametrize("blend", ["at once", "as configured"])
def test_the_sample_bag_gives_the_commands_of_a_replay(world, tmp_path, blend):
    overrides = {"control__blend_steps": 0} if blend == "at once" else {}
    tree = parameters(**overrides)
    sets = moments()
    write_bag(tmp_path / "bag", sets)
    expected, expected_chunks = replayed(tmp_path / "bag", tree, tmp_path / "out")
    assert len(expected_chunks) == len(sets)
    commands, chunks = Lockstep(world, tree).play(sets, expected[-1][0])

    assert len(chunks) == len(expected_chunks)
    for index, (ours, theirs) in enumerate(zip(chunks, expected_chunks)):
        assert farthest(ours, theirs) < 1e-6, f"chunk {index}"
    assert [stamp for stamp, _ in commands] == [stamp for stamp, _ in expected]
    first = 0
    if blend == "as configured":
        # The node's first chunk is there before its first tick, the replay's 7 ms later, and the first fade begins
        # with it: compared is from the first later chunk's fade on.
        first = next(i for i, (stamp, _) in enumerate(expected) if stamp > sets[1][0] + LATENCY_MS * 1_000_000)
    worst = max(farthest(ours, theirs) for (_, ours), (_, theirs) in zip(commands[first:], expected[first:]))
    assert worst < 1e-6
    moved = max(farthest(a, b) for (_, a), (_, b) in zip(expected, expected[50:]))
    assert moved > 1e-2, "the arm moves in this bag"
