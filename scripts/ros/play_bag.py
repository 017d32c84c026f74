#!/usr/bin/env python3
"""Plays a bag's messages onto their topics in real time, where there is no `ros2 bag play`.

    python3 scripts/ros/play_bag.py tests/data/bags/aloha_sim --restamp

Messages go out as they are, serialized, when their time has come. Images and joint states are best effort, as drivers
send them; everything else is reliable. Waits until somebody listens.
"""

import argparse
import struct
import sys
import time
from pathlib import Path

import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosbags.highlevel import AnyReader

from messages import message_class

SENSORS = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage", "sensor_msgs/msg/JointState")


def stamp_offset(kind):
    """Where the header's stamp stands in the bytes of a message of this type; None if it has no header first."""
    fields = kind.get_fields_and_field_types()
    return 4 if next(iter(fields.values()), None) == "std_msgs/Header" else None


def restamped(payload, offset, ns):
    """The same message, stamped `ns`. The encapsulation's second byte tells the byte order."""
    order = "<" if payload[1] & 1 else ">"
    return payload[:offset] + struct.pack(f"{order}iI", ns // 10**9, ns % 10**9) + payload[offset + 8 :]


def qos(type_name):
    sensor = type_name in SENSORS
    return QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT if sensor else ReliabilityPolicy.RELIABLE)


def wait_for_listeners(publishers, patience):
    """Waits until every topic is heard, or for so many seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if all(publisher.get_subscription_count() for publisher in publishers):
            return True
        time.sleep(0.02)
    return False


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bag", type=Path, help="rosbag2 folder")
    parser.add_argument("--restamp", action="store_true", help="stamp headers with the time at which they are sent")
    parser.add_argument("--rate", type=float, default=1.0, help="bag seconds per second")
    parser.add_argument("--loop", type=int, default=1, help="how often; 0: until SIGINT")
    parser.add_argument("--topics", nargs="*", help="these only")
    parser.add_argument("--namespace", default="", help="before every topic's name")
    parser.add_argument("--wait", type=float, default=30.0, help="seconds to wait until every topic is heard")
    arguments, ros_arguments = parser.parse_known_args()

    rclpy.init(args=ros_arguments)
    node = rclpy.create_node("play_bag")
    with AnyReader([arguments.bag]) as reader:
        connections = [c for c in reader.connections if not arguments.topics or c.topic in arguments.topics]
        if not connections:
            sys.exit(f"{arguments.bag}: none of the topics; it has {', '.join(sorted({c.topic for c in reader.connections}))}")
        tracks = {}
        for connection in connections:
            kind = message_class(connection.msgtype)
            if kind is None:
                sys.exit(f"{connection.topic}: {connection.msgtype} is not installed; choose others with --topics")
            publisher = node.create_publisher(kind, arguments.namespace + connection.topic, qos(connection.msgtype))
            tracks[connection.id] = publisher, stamp_offset(kind)
        if not wait_for_listeners([publisher for publisher, _ in tracks.values()], arguments.wait):
            print("play_bag: not every topic is heard; playing all the same", file=sys.stderr)
        sent = rounds = 0
        try:
            while arguments.loop == 0 or rounds < arguments.loop:
                sent += play_once(reader, connections, tracks, arguments)
                rounds += 1
        except KeyboardInterrupt:
            pass
    print(f"play_bag: {sent} messages of {len(tracks)} topics", file=sys.stderr)
    time.sleep(0.2)  # the last ones leave the process
    rclpy.try_shutdown()


def play_once(reader, connections, tracks, arguments):
    """Sends every message at its time; tells how many."""
    first, start, sent = None, time.monotonic(), 0
    for connection, log_time, payload in reader.messages(connections=connections):
        first = log_time if first is None else first
        due = start + (log_time - first) * 1e-9 / arguments.rate
        time.sleep(max(0.0, due - time.monotonic()))
        publisher, offset = tracks[connection.id]
        payload = bytes(payload)
        if arguments.restamp and offset is not None:
            payload = restamped(payload, offset, time.time_ns())
        publisher.publish(payload)
        sent += 1
    return sent


if __name__ == "__main__":
    main()
