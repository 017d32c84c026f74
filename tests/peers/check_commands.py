#!/usr/bin/env python3
"""Reads a commands.mcap with two independent implementations and prints what is in it; exit 1 if they disagree.

    pip install rosbags==0.11.9 mcap==1.6.0 mcap-ros2-support==0.6.0
    python tests/peers/check_commands.py commands.mcap

rosbags decodes with its own ROS 2 Jazzy types, and with the definitions in the file; mcap_ros2 with the definitions in
the file. Both must give the same messages in the same order, each of the type that Jazzy means by the name.
"""
import collections
import pathlib
import sys
import tempfile

from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

JAZZY = get_typestore(Stores.ROS2_JAZZY)


def plain(value):
    """Numbers, strings, lists and dicts only, so that two implementations compare."""
    if hasattr(value, "__slots__") or hasattr(value, "__dataclass_fields__"):
        names = getattr(value, "__dataclass_fields__", None) or value.__slots__
        return {name: plain(getattr(value, name)) for name in names if not name.startswith("_")}
    if isinstance(value, (str, int, float)):
        return value
    return [plain(item) for item in (value.tolist() if hasattr(value, "tolist") else value)]


def by_rosbags(path):
    with AnyReader([path]) as reader:
        for connection, time, payload in reader.messages():
            message = plain(reader.deserialize(payload, connection.msgtype))
            if message != plain(JAZZY.deserialize_cdr(payload, connection.msgtype)):
                sys.exit(f"{connection.topic} at {time}: the definition in the file is not {connection.msgtype} of Jazzy")
            again = JAZZY.serialize_cdr(JAZZY.deserialize_cdr(payload, connection.msgtype), connection.msgtype)
            if bytes(payload) != bytes(again):
                sys.exit(f"{connection.topic} at {time}: written again, the message has other bytes")
            yield connection.topic, connection.msgtype, time, drop_internals(message)


def by_mcap(path):
    with open(path, "rb") as file:
        reader = make_reader(file, validate_crcs=True, decoder_factories=[DecoderFactory()])
        if reader.get_header().profile != "ros2":
            sys.exit(f"profile {reader.get_header().profile!r}, expected 'ros2'")
        for schema, channel, message, decoded in reader.iter_decoded_messages():
            if channel.metadata["topic_type_hash"] != JAZZY.hash_rihs01(schema.name):
                sys.exit(f"{channel.topic}: {channel.metadata['topic_type_hash']} is not the hash of {schema.name}")
            if message.log_time != message.publish_time:
                sys.exit(f"{channel.topic}: log time {message.log_time}, publish time {message.publish_time}")
            yield channel.topic, schema.name, message.log_time, drop_internals(plain(decoded))


def by_folder(path):
    """The count of a bag folder made of the file and the metadata.yaml inside it, and that of rosbag2's metadata."""
    with open(path, "rb") as file:
        metadata = {m.name: m.metadata for m in make_reader(file).iter_metadata()}
    if list(metadata) != ["rosbag2"]:
        sys.exit(f"metadata {list(metadata)}, expected one named rosbag2")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        text = "\n".join("  " + line for line in metadata["rosbag2"]["serialized_metadata"].splitlines())
        (folder / "metadata.yaml").write_text("rosbag2_bagfile_information:\n" + text + "\n")
        (folder / path.name).symlink_to(path.resolve())
        with Reader(folder) as reader:
            times = [time for _, time, _ in reader.messages()]
            if times and (reader.start_time, reader.end_time) != (times[0], times[-1] + 1):
                sys.exit(f"rosbag2 metadata: from {reader.start_time} to {reader.end_time}, expected {times[0]} to {times[-1]}")
            return reader.message_count


def drop_internals(value):
    """Without what an implementation adds to a message for itself."""
    if isinstance(value, dict):
        return {name: drop_internals(item) for name, item in value.items() if not name.startswith("__")}
    return [drop_internals(item) for item in value] if isinstance(value, list) else value


def main():
    path = pathlib.Path(sys.argv[1])
    counts = collections.Counter()
    previous = 0
    ours, theirs = list(by_rosbags(path)), list(by_mcap(path))
    counted = by_folder(path)
    if not len(ours) == len(theirs) == counted:
        sys.exit(f"rosbags reads {len(ours)} messages, mcap {len(theirs)}, the metadata says {counted}")
    for one, other in zip(ours, theirs):
        if one != other:
            sys.exit(f"rosbags and mcap read different messages:\n{one}\n{other}")
        topic, kind, time, _ = one
        if time < previous:
            sys.exit(f"{topic}: time goes back from {previous} to {time}")
        previous = time
        counts[topic, kind] += 1
    for (topic, kind), count in sorted(counts.items()):
        print(f"{count:7} {topic:15} {kind}")
    print(f"{len(ours):7} messages, the same by rosbags and by mcap")


main()
