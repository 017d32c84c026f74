#!/usr/bin/env python3
"""Records topics into a rosbag2 folder (mcap), where there is no `ros2 bag record`. Ends with SIGINT or SIGTERM.

    python3 scripts/ros/record_bag.py out/recorded --all
    python3 scripts/ros/record_bag.py out/recorded --topics /commands /policy/chunks

Messages are written as they come, serialized, with the time of their arrival. A topic that appears later is recorded
from then on, with the QoS that its publishers offer.
"""

import argparse
import signal
import sys
import time
from pathlib import Path

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rosbags.rosbag2 import StoragePlugin, Writer

from messages import Definitions, message_class

# How often the network is asked for new topics, seconds.
LOOK_EVERY = 0.1


class Recorder:
    """Topics of the network, into a bag."""

    def __init__(self, node, writer, wanted):
        self.node, self.writer, self.wanted = node, writer, wanted
        self.definitions = Definitions()
        self.counts, self.passed_over = {}, set()

    def look(self):
        """Subscribes to topics that are new."""
        for topic, types in self.node.get_topic_names_and_types():
            if topic in self.counts or topic in self.passed_over or (self.wanted and topic not in self.wanted):
                continue
            publishers = [info for info in self.node.get_publishers_info_by_topic(topic) if info.node_name != self.node.get_name()]
            if not publishers:
                continue
            type_name = publishers[0].topic_type
            kind = message_class(type_name)
            if kind is None or not self.definitions.know(type_name) or len(types) > 1:
                self.passed_over.add(topic)
                print(f"record_bag: {topic}: {' and '.join(types)} cannot be recorded", file=sys.stderr)
                continue
            self.subscribe(topic, type_name, kind, [info.qos_profile for info in publishers])

    def subscribe(self, topic, type_name, kind, offered):
        connection = self.writer.add_connection(topic, type_name, typestore=self.definitions.store)
        reliable = all(qos.reliability == ReliabilityPolicy.RELIABLE for qos in offered)
        latched = all(qos.durability == DurabilityPolicy.TRANSIENT_LOCAL for qos in offered)
        qos = QoSProfile(
            depth=1000 if reliable else 10,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        )
        self.counts[topic] = 0

        def write(payload):
            self.writer.write(connection, time.time_ns(), payload)
            self.counts[topic] += 1

        self.node.create_subscription(kind, topic, write, qos, raw=True)
        print(f"record_bag: {topic} ({type_name})", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bag", type=Path, help="folder to write; must not exist")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--all", action="store_true", help="every topic")
    which.add_argument("--topics", nargs="+", help="these topics, as the network has them")
    arguments, ros_arguments = parser.parse_known_args()
    if arguments.bag.exists():
        sys.exit(f"{arguments.bag}: expected a folder that is not there yet; choose another, or remove it")

    ending = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ending.append(True))
    rclpy.init(args=ros_arguments, signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("record_bag")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    with Writer(arguments.bag, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        recorder = Recorder(node, writer, arguments.topics)
        looked = 0.0
        while not ending:
            if time.monotonic() - looked > LOOK_EVERY:
                looked = time.monotonic()
                recorder.look()
            executor.spin_once(timeout_sec=LOOK_EVERY)
    print(f"record_bag: {sum(recorder.counts.values())} messages of {len(recorder.counts)} topics", file=sys.stderr)
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()
