"""One source at full rate, as a process of its own: a 640x480 rgb8 camera, or joint states.

    python3 flood_source.py NAMESPACE camera INDEX RATE_HZ
    python3 flood_source.py NAMESPACE joints 0 RATE_HZ

Ends with SIGTERM and says how many messages it sent.
"""

import array
import signal
import sys
import time

import rclpy
from peers import JOINTS, SENSOR, to_ros
from sensor_msgs.msg import Image, JointState

WIDTH, HEIGHT = 640, 480


def main():
    namespace, kind, index, rate_hz = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    ending = []
    rclpy.init()
    signal.signal(signal.SIGTERM, lambda *_: ending.append(True))
    node = rclpy.create_node(f"{kind}_{index}", namespace=namespace)
    if kind == "camera":
        publisher = node.create_publisher(Image, f"cam_{index}", SENSOR)
        message = Image(width=WIDTH, height=HEIGHT, encoding="rgb8", step=3 * WIDTH)
        message.data = array.array("B", bytes(3 * WIDTH * HEIGHT))
    else:
        publisher = node.create_publisher(JointState, "joint_states", SENSOR)
        message = JointState(name=JOINTS, position=[0.1, 0.2, 0.3])
    sent = 0
    due = time.monotonic()
    while not ending:
        if kind == "camera":
            message.data[sent % len(message.data)] = (sent * 7) % 256
        message.header.stamp = to_ros(time.time_ns())
        publisher.publish(message)
        sent += 1
        due = max(due + 1 / rate_hz, time.monotonic() - 0.1)
        time.sleep(max(0.0, due - time.monotonic()))
    print(sent, flush=True)


main()
