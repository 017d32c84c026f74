"""/clock, moved by hand."""

from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock

from peers import to_ros
from process import wait_for


class SimulatedClock:
    """Publishes the time. `settle` waits until a node has surely read it."""

    def __init__(self, node):
        self._publisher = node.create_publisher(Clock, "/clock", QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE))
        self._node = node
        self.now = None

    def wait_for_listeners(self, count):
        wait_for(lambda: self._publisher.get_subscription_count() >= count, f"{count} nodes that hear /clock")

    def set(self, ns):
        self.now = ns
        self._publisher.publish(Clock(clock=to_ros(ns)))

    def settle(self, *policies):
        """Two answers later the message before them has been read: requests and topics are taken in turn."""
        for policy in policies:
            policy.state()
            policy.state()
