"""Message types by name: their classes for rclpy, and their definitions for a bag."""

import importlib
import os
import re
from pathlib import Path

from rosbags.typesys import Stores, get_types_from_msg, get_typestore


def message_class(type_name):
    """`sensor_msgs/msg/Image` as rclpy has it; None where its package is not installed."""
    package, _, name = type_name.partition("/msg/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name, None)
    except ImportError:
        return None


class Definitions:
    """rosbags' types of Jazzy, and whatever else is installed here, by its .msg file."""

    def __init__(self):
        self.store = get_typestore(Stores.ROS2_JAZZY)

    def know(self, type_name):
        """Whether the type and all that it contains are known, after looking for them."""
        if type_name in self.store.fielddefs:
            return True
        package, _, name = type_name.partition("/msg/")
        file = next((f for f in (Path(p, "share", package, "msg", f"{name}.msg") for p in prefixes()) if f.exists()), None)
        if file is None:
            return False
        text = file.read_text()
        types = get_types_from_msg(text, type_name)
        contained = {found for _, fields in types.values() for _, field in fields for found in names_in(field)}
        if not all(self.know(found) for found in contained - set(types)):
            return False
        self.store.register(types)
        return True


def names_in(field):
    """Names of message types in a field's description, however nested."""
    return set(re.findall(r"[a-z][a-z0-9_]*/msg/[A-Za-z0-9_]+", repr(field)))


def prefixes():
    return [prefix for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(":") if prefix]
