"""What surrounds the node on a robot, in rclpy: cameras and joints, an arm that hears commands, a person at a console."""

import itertools
import threading
import time
from collections import deque

import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import TransitionEvent
from lifecycle_msgs.srv import ChangeState, GetAvailableStates, GetAvailableTransitions, GetState
from pi05_thor.msg import ActionChunk, PolicyStatus
from rcl_interfaces.msg import Parameter, ParameterEvent, ParameterValue
from rcl_interfaces.srv import (
    DescribeParameters,
    GetParameters,
    GetParameterTypes,
    ListParameters,
    SetParameters,
    SetParametersAtomically,
)
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float64MultiArray, String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

import pictures
from process import NodeProcess, wait_for

RELIABLE = QoSProfile(depth=2000, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.VOLATILE)
LATCHED = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
SAID = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
SENSOR = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT, durability=DurabilityPolicy.VOLATILE)

COMMAND_TYPES = {"float64_multi_array": Float64MultiArray, "joint_state": JointState, "joint_trajectory": JointTrajectory}

# A small arm. It takes up to half a second to come to rest, so that braking can be seen.
JOINTS = ["shoulder", "elbow", "gripper"]
SLOTS = ["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"]
VELOCITY, ACCELERATION = 1.0, 2.0


def robot_parameters(cameras=3, **overrides):
    """Parameters of the small arm; `joints__max_age_ms=…` overrides `joints.max_age_ms`."""
    parameters = {
        "checkpoint": "synth:tiny",
        "backend": "cpu",
        "robot": "generic",
        "prompt": "transfer the cube",
        "joints.names": JOINTS,
        "joints.position_min": [-3.0] * 3,
        "joints.position_max": [3.0] * 3,
        "joints.velocity_max": [VELOCITY] * 3,
        "joints.acceleration_max": [ACCELERATION] * 3,
        # A loaded machine sends late; tests of ages set their own.
        "joints.max_age_ms": 2000,
        "observe.max_skew_ms": 1000,
        "control.rate_hz": 100.0,
        "control.command": "joint_state",
    }
    for index in range(cameras):
        parameters[f"cameras.{SLOTS[index]}.topic"] = f"cam_{index}"
        parameters[f"cameras.{SLOTS[index]}.max_age_ms"] = 2000
    parameters.update({name.replace("__", "."): value for name, value in overrides.items()})
    return parameters


def to_ros(ns):
    return Time(sec=ns // 10**9, nanosec=ns % 10**9)


def to_ns(stamp):
    return stamp.sec * 10**9 + stamp.nanosec


def value(thing):
    """A parameter's value as a message."""
    message = ParameterValue()
    first = thing[0] if isinstance(thing, list) and thing else thing
    kinds = {bool: (1, "bool"), int: (2, "integer"), float: (3, "double"), str: (4, "string")}
    if thing is None:
        return message
    if isinstance(thing, bytes):
        message.type, message.byte_array_value = 5, [bytes([byte]) for byte in thing]
        return message
    number, name = kinds.get(type(first), (4, "string"))
    if isinstance(thing, list):
        message.type = number + 5
        setattr(message, f"{name}_array_value", thing)
    else:
        message.type = number
        setattr(message, f"{name}_value", thing)
    return message


def plain(message):
    """The value in a message."""
    names = [None, "bool_value", "integer_value", "double_value", "string_value", "byte_array_value"]
    names += [f"{kind}_array_value" for kind in ("bool", "integer", "double", "string")]
    if message.type == 0:
        return None
    found = getattr(message, names[message.type])
    return found if isinstance(found, (bool, int, float, str)) else list(found)


class World:
    """One namespace: rclpy peers that spin in a thread, and the node processes among them."""

    _numbers = itertools.count()

    def __init__(self):
        self.namespace = f"/t{next(self._numbers)}"
        self.node = rclpy.create_node("peer", namespace=self.namespace)
        self.processes = []
        self._closing = []
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self):
        try:
            self._executor.spin()
        except ExternalShutdownException:
            pass

    def start(self, parameters=None, **keywords):
        """A node process in this namespace, and what a person sees of it."""
        namespace = keywords.pop("namespace", self.namespace)
        name = keywords.pop("name", "policy")
        parameters = robot_parameters() if parameters is None else parameters
        process = NodeProcess(parameters, namespace=namespace, **keywords)
        self.processes.append(process)
        return Policy(self.node, process, f"{namespace}/{name}")

    def robot(self, **keywords):
        robot = Robot(self.node, **keywords)
        self._closing.append(robot)
        return robot

    def arm(self, command="joint_state", topic="commands"):
        return Arm(self.node, command, topic)

    def running(self, parameters=None, command="joint_state", rate_hz=20, **keywords):
        """Robot, arm and an active node that moves it."""
        robot, arm = self.robot(), self.arm(command)
        robot.follow = arm
        robot.start(rate_hz)
        policy = self.start(parameters, **keywords)
        assert policy.change("configure")
        assert policy.change("activate"), policy.reason()
        arm.wait_for_more(5)
        return robot, arm, policy

    def close(self):
        for peer in self._closing:
            peer.stop()
        for process in self.processes:
            process.close()
        self._executor.shutdown(timeout_sec=10)
        self._thread.join(10)
        if any(process.killed for process in self.processes):
            # Fast DDS 2.14 finds the dead within two seconds and opens its shared memory anew; the participant that is
            # destroyed meanwhile dies of it (SharedMemChannelResource::release locks a mutex that is mapped no more).
            time.sleep(3)
        self.node.destroy_node()


class Recorder:
    """Every message of a topic with the time of its arrival, monotonic seconds."""

    def __init__(self, node, kind, topic, qos=RELIABLE, keep=None):
        self.received = deque(maxlen=keep)
        self._node = node
        self._subscription = node.create_subscription(kind, topic, self._take, qos)

    def _take(self, message):
        self.received.append((time.monotonic(), message))

    @property
    def messages(self):
        return [message for _, message in list(self.received)]

    @property
    def last(self):
        return self.received[-1][1] if self.received else None

    def wait_for_more(self, count=1, timeout=40.0):
        """Waits for `count` messages that come from now on, and gives them."""
        before = len(self.received)
        wait_for(lambda: len(self.received) >= before + count, f"{count} messages of {self._subscription.topic_name}", timeout)
        return self.messages[before:]

    def wait_until(self, condition, what=None, timeout=40.0):
        """Waits for the last message to fulfil `condition`, and gives it."""
        def said():
            return f"{self._subscription.topic_name}: expected {what or 'something else'}, last is {str(self.last)[:1500]}"

        wait_for(lambda: self.last is not None and condition(self.last), said, timeout)
        return self.last

    def drop(self):
        """Listens no more."""
        self._node.destroy_subscription(self._subscription)


class Arm(Recorder):
    """Hears the commands."""

    def __init__(self, node, command="joint_state", topic="commands"):
        super().__init__(node, COMMAND_TYPES[command], topic)

    @staticmethod
    def positions_of(message):
        return list(message.data) if isinstance(message, Float64MultiArray) else list(message.position)

    def positions(self):
        """One list of values per command."""
        return [self.positions_of(message) for message in self.messages]

    def moves(self):
        """Whether the last commands differ from each other."""
        return len(self.received) >= 2 and self.positions()[-1] != self.positions()[-2]

    def silent_for(self, seconds):
        """Whether no command has come for so long."""
        return not self.received or time.monotonic() - self.received[-1][0] > seconds

    def wait_for_motion(self):
        self.wait_for_more(3)
        wait_for(self.moves, "the commands move")

    def wait_for_rest(self):
        """Waits until commands go on coming and do not change."""
        def resting():
            last = self.positions()[-20:]
            return len(last) == 20 and all(position == last[0] for position in last)

        self.wait_for_more(20)
        wait_for(resting, "the commands rest")


class Robot:
    """Cameras and joints, by hand or at a rate. Everything of one publication has the same stamp."""

    def __init__(self, node, cameras=3, compressed=(), names=None, joints_topic="joint_states", camera_topic="cam_{}"):
        self._node = node
        self.names = list(names or JOINTS)
        self.positions = [0.1 * (index + 1) for index in range(len(self.names))]
        self.follow = None
        self.silent = set()
        self.tick = 0
        self.compressed = set(compressed)
        self.cameras = [
            node.create_publisher(CompressedImage if index in self.compressed else Image, camera_topic.format(index), SENSOR)
            for index in range(cameras)
        ]
        self.joints = node.create_publisher(JointState, joints_topic, SENSOR)
        self._stop = threading.Event()
        self._thread = None

    def image(self, index, ns, grey=None):
        """A picture of a camera; a new grey each time, so that it is not frozen."""
        grey = (self.tick * 7 + index * 40) % 256 if grey is None else grey
        if index in self.compressed:
            message = CompressedImage(format="png", data=pictures.png([grey] * 3))
        else:
            step, data = pictures.raw("rgb8", [grey] * 3)
            message = Image(width=pictures.WIDTH, height=pictures.HEIGHT, encoding="rgb8", step=step, data=data)
        message.header.stamp = to_ros(ns)
        return message

    def joint_state(self, ns):
        if self.follow is not None and self.follow.last is not None and len(self.names) == len(JOINTS):
            self.positions = self.follow.positions_of(self.follow.last)
        message = JointState(name=self.names, position=[float(position) for position in self.positions])
        message.header.stamp = to_ros(ns)
        return message

    def publish(self, ns=None):
        """Everything that is not in `silent`: camera numbers and "joints"."""
        ns = time.time_ns() if ns is None else ns
        self.tick += 1
        for index, camera in enumerate(self.cameras):
            if index not in self.silent:
                camera.publish(self.image(index, ns))
        if "joints" not in self.silent:
            self.joints.publish(self.joint_state(ns))

    def start(self, rate_hz):
        def run():
            due = time.monotonic()
            while not self._stop.is_set():
                self.publish()
                due = max(due + 1 / rate_hz, time.monotonic())
                self._stop.wait(due - time.monotonic())

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def stop(self):
        self._stop.set()
        if self._thread:
            self._thread.join(10)


class Policy:
    """What a person, a lifecycle manager or a logger sees of one node."""

    def __init__(self, node, process, name):
        self._node, self.process, self.name = node, process, name
        self._clients = {}
        self._met = False
        self.status = Recorder(node, PolicyStatus, f"{name}/status", LATCHED)
        self.chunks = Recorder(node, ActionChunk, f"{name}/chunks")
        self.events = Recorder(node, TransitionEvent, f"{name}/transition_event")
        self.parameter_events = Recorder(node, ParameterEvent, "/parameter_events")
        self.diagnostics = Recorder(node, DiagnosticArray, "/diagnostics")

    def call(self, kind, service, request=None, timeout=40.0):
        """One request and its answer."""
        if not self._met:
            self._meet()
        answer = self._ask(kind, service, request or kind.Request(), timeout)
        assert answer, f"{self.name}/{service} did not answer in {timeout} s; the node said:\n{self.process.log}"
        return answer

    def _meet(self):
        """Waits for this very process to answer: one of its name that was killed looks alive for a while."""
        wait_for(lambda: self.status.last or not self.process.is_alive(), lambda: f"a status; the node said:\n{self.process.log}")
        wait_for(lambda: self._ask(GetState, "get_state", GetState.Request(), 1.0), lambda: f"an answer; the node said:\n{self.process.log}")
        self._met = True

    def _ask(self, kind, service, request, timeout):
        key = (kind, service)
        if key not in self._clients:
            self._clients[key] = self._node.create_client(kind, f"{self.name}/{service}")
        client = self._clients[key]
        wait_for(client.service_is_ready, lambda: f"service {self.name}/{service}; the node said:\n{self.process.log}")
        answered = threading.Event()
        future = client.call_async(request)
        future.add_done_callback(lambda _: answered.set())
        if answered.wait(timeout):
            return future.result()
        client.remove_pending_request(future)
        return None

    # The lifecycle.

    def change(self, transition):
        """Asks for a transition by label or number; tells whether it was made."""
        request = ChangeState.Request()
        if isinstance(transition, int):
            request.transition.id = transition
        else:
            request.transition.label = transition
        return self.call(ChangeState, "change_state", request).success

    def state(self):
        return self.call(GetState, "get_state").current_state.label

    def states(self):
        return {state.id: state.label for state in self.call(GetAvailableStates, "get_available_states").available_states}

    def transitions(self, service="get_available_transitions"):
        """(id, label, start, goal) of each."""
        found = self.call(GetAvailableTransitions, service).available_transitions
        return {(t.transition.id, t.transition.label, t.start_state.label, t.goal_state.label) for t in found}

    def event_labels(self):
        return [(m.transition.label, m.start_state.label, m.goal_state.label) for m in self.events.messages]

    def reason(self):
        return self.status.last.reason if self.status.last else ""

    def wait_for_state(self, lifecycle):
        return self.status.wait_until(lambda status: status.lifecycle == lifecycle, lifecycle)

    def wait_for_control(self, *states):
        return self.status.wait_until(lambda status: status.control in states, " or ".join(states))

    # Parameters.

    def set(self, atomically=False, **changes):
        """(successful, reason) of each change, or of all together; `joints__max_age_ms` is `joints.max_age_ms`."""
        changes = [(name.replace("__", "."), change) for name, change in changes.items()]
        return self.set_list(changes, atomically)

    def set_list(self, changes, atomically=False):
        kind = SetParametersAtomically if atomically else SetParameters
        request = kind.Request(
            parameters=[Parameter(name=name, value=thing if isinstance(thing, ParameterValue) else value(thing)) for name, thing in changes]
        )
        answer = self.call(kind, "set_parameters_atomically" if atomically else "set_parameters", request)
        if atomically:
            return answer.result.successful, answer.result.reason
        results = [(result.successful, result.reason) for result in answer.results]
        return results[0] if len(results) == 1 else results

    def get(self, *names):
        values = [plain(v) for v in self.call(GetParameters, "get_parameters", GetParameters.Request(names=names)).values]
        return values[0] if len(names) == 1 else values

    def types(self, *names):
        return list(self.call(GetParameterTypes, "get_parameter_types", GetParameterTypes.Request(names=names)).types)

    def describe(self, *names):
        found = self.call(DescribeParameters, "describe_parameters", DescribeParameters.Request(names=names)).descriptors
        return found[0] if len(names) == 1 else found

    def list(self, *prefixes, depth=0):
        result = self.call(ListParameters, "list_parameters", ListParameters.Request(prefixes=prefixes, depth=depth)).result
        return list(result.names), list(result.prefixes)

    # What a person does.

    def pause(self, pause=True):
        answer = self.call(SetBool, "pause", SetBool.Request(data=pause))
        return answer.success, answer.message

    def trigger(self, service):
        answer = self.call(Trigger, service)
        return answer.success, answer.message

    def say(self, prompt, topic="prompt"):
        """A task on the topic; the publisher is given, so that it lives on."""
        publisher = self._node.create_publisher(String, topic, SAID)
        publisher.publish(String(data=prompt))
        return publisher

    # What it tells of its health.

    def health(self):
        """{part: (level, message, {key: value})} of the last report of this node."""
        prefix = self.name.lstrip("/") + ": "
        for message in reversed(self.diagnostics.messages):
            parts = {
                status.name.removeprefix(prefix): (status.level[0], status.message, {v.key: v.value for v in status.values})
                for status in message.status
                if status.name.startswith(prefix)
            }
            if parts:
                return parts
        return {}

    def says(self):
        """Status and diagnostics, for who wonders why something did not happen."""
        return f"{self.status.last} and {self.health()}"

    def counted(self, *words):
        """How often the node has counted an event whose name has all these words."""
        values = {}
        for _, _, found in self.health().values():
            values.update(found)
        return sum(int(number) for name, number in values.items() if number.isdigit() and all(word in name for word in words))

    def wait_for_count(self, *words, at_least=1):
        wait_for(lambda: self.counted(*words) >= at_least, lambda: f"diagnostics count {words}: {self.health()}")
