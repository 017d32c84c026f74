#!/usr/bin/env python3
"""Writes the small bags tests/data/bags/peer_* with other people's writers, and digests.json with another reader.

    pip install rosbags==0.11.9 mcap==1.6.0
    python tests/peers/make_bags.py

Every bag holds the same 30 joint states and 10 mono8 images. digests.json says for each bag under tests/data/bags
what rosbags reads from it: the number of messages and the SHA-256 over topic, NUL, log time (i64), length (u32) and
payload of each.
"""
import hashlib
import json
import pathlib
import shutil
import struct

import numpy as np
from mcap.writer import CompressionType, Writer as McapWriter
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

BAGS = pathlib.Path(__file__).resolve().parent.parent / "data" / "bags"
STORE = get_typestore(Stores.ROS2_JAZZY)
T = STORE.types
START = 1_760_000_000_000_000_000


def header(ns, frame):
    return T["std_msgs/msg/Header"](stamp=T["builtin_interfaces/msg/Time"](sec=ns // 10**9, nanosec=ns % 10**9), frame_id=frame)


def messages():
    for k in range(30):
        ns = START + k * 20_000_000
        state = T["sensor_msgs/msg/JointState"](
            header=header(ns, ""), name=["left", "right"], position=np.array([k / 10, -k / 7]), velocity=np.array([]), effort=np.array([0.5])
        )
        yield "/joint_states", state, ns + 500_000
        if k % 3 == 0:
            data = np.arange(k, k + 8 * 6, dtype=np.uint8)
            image = T["sensor_msgs/msg/Image"](
                header=header(ns, "camera"), height=6, width=7, encoding="mono8", is_bigendian=0, step=8, data=data
            )
            yield "/camera/image_raw", image, ns + 1_500_000


def rosbag(name, plugin, mode=CompressionMode.NONE, little_endian=True):
    path = BAGS / name
    shutil.rmtree(path, ignore_errors=True)
    writer = Writer(path, version=9, storage_plugin=plugin)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        connections = {}
        for topic, message, ns in messages():
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            writer.write(connections[topic], ns, STORE.serialize_cdr(message, kind, little_endian=little_endian))


def split(name, compression):
    """Three files in one bag: the first without chunks, the others with small ones, written backwards in time."""
    path = BAGS / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    everything = list(messages())
    parts = [everything[:13], everything[13:27], everything[27:]]
    for i, part in enumerate(parts):
        with open(path / f"{name}_{i}.mcap", "wb") as file:
            writer = McapWriter(file, chunk_size=400, compression=compression, use_chunking=i > 0)
            writer.start(profile="ros2", library="mcap-python")
            channels = {}
            for topic, message, ns in reversed(part) if i else part:
                kind = message.__msgtype__
                if topic not in channels:
                    definition = STORE.generate_msgdef(kind, ros_version=2)[0]
                    schema = writer.register_schema(name=kind, encoding="ros2msg", data=definition.encode())
                    channels[topic] = writer.register_channel(topic=topic, message_encoding="cdr", schema_id=schema)
                payload = bytes(STORE.serialize_cdr(message, kind))
                writer.add_message(channels[topic], log_time=ns, data=payload, publish_time=ns)
            writer.finish()
    counts = {topic: sum(t == topic for t, _, _ in everything) for topic, _, _ in everything}
    kinds = {topic: message.__msgtype__ for topic, message, _ in everything}
    times = [ns for _, _, ns in everything]
    lines = ["rosbag2_bagfile_information:", "  version: 5", "  storage_identifier: mcap"]
    lines += ["  duration:", f"    nanoseconds: {times[-1] - times[0]}"]
    lines += ["  starting_time:", f"    nanoseconds_since_epoch: {times[0]}", f"  message_count: {len(times)}"]
    lines += ["  topics_with_message_count:"]
    for topic, count in counts.items():
        lines += ["    - topic_metadata:", f"        name: {topic}", f"        type: {kinds[topic]}"]
        lines += ["        serialization_format: cdr", '        offered_qos_profiles: ""', f"      message_count: {count}"]
    lines += ['  compression_format: ""', '  compression_mode: ""', "  relative_file_paths:"]
    lines += [f"    - {name}_{i}.mcap" for i in range(len(parts))]
    (path / "metadata.yaml").write_text("\n".join(lines) + "\n")


def digest(path):
    total, count = hashlib.sha256(), 0
    with Reader(path) as reader:
        for connection, ns, payload in reader.messages():
            payload = bytes(payload)
            total.update(connection.topic.encode() + b"\0" + struct.pack("<qI", ns, len(payload)) + payload)
            count += 1
    return {"messages": count, "sha256": total.hexdigest()}


rosbag("peer_mcap_zstd", StoragePlugin.MCAP, CompressionMode.STORAGE)
rosbag("peer_mcap_messages_zstd", StoragePlugin.MCAP, CompressionMode.MESSAGE)
rosbag("peer_db3_messages_zstd", StoragePlugin.SQLITE3, CompressionMode.MESSAGE)
rosbag("peer_db3_file_zstd", StoragePlugin.SQLITE3, CompressionMode.FILE)
rosbag("peer_big_endian", StoragePlugin.SQLITE3, little_endian=False)
split("peer_split_lz4", CompressionType.LZ4)
digests = {path.name: digest(path) for path in sorted(BAGS.iterdir()) if path.is_dir()}
(BAGS / "digests.json").write_text(json.dumps(digests, indent=2) + "\n")
