"""The node as a process of its own, as `ros2 launch` would start it."""

import fcntl
import os
import re
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
BAGS = ROOT / "tests" / "data" / "bags"

# A loaded machine with two cores is slow; a condition that holds is never waited for longer than needed.
PATIENCE = 40.0


def wait_for(condition, what, timeout=PATIENCE):
    """Waits until `condition()` is true and gives what it gave."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"within {timeout} s: {what() if callable(what) else what}")
        time.sleep(0.005)


def program(name):
    """`policy_node` or `pi05`, as the package was installed."""
    for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(":"):
        path = Path(prefix) / "lib" / "pi05_thor" / name
        if prefix and path.exists():
            return str(path)
    raise FileNotFoundError(f"{name}: the package pi05_thor is on no prefix of AMENT_PREFIX_PATH; source install/setup.bash")


def parameter_file(parameters, folder=None):
    """A ROS 2 parameter file for any node."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", dir=folder, delete=False) as file:
        yaml.safe_dump({"/**": {"ros__parameters": parameters}}, file)
    return file.name


def drop_dead_segments():
    """Removes Fast DDS's shared memory of processes that were killed: 70 MB each, nobody else does. The living hold a lock."""
    for lock in Path("/dev/shm").glob("fastrtps_*_el"):
        try:
            with lock.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                lock.with_name(lock.name.removesuffix("_el")).unlink(missing_ok=True)
                lock.unlink(missing_ok=True)
        except OSError:
            continue  # in use, gone meanwhile, or another user's


class NodeProcess:
    """policy_node with its parameters; ended by `close`, whatever happened."""

    def __init__(self, parameters=None, namespace="", remap=(), arguments=(), log_level="info"):
        command = [program("policy_node"), "--ros-args", "--log-level", log_level]
        self._file = None
        if parameters is not None:
            self._file = parameter_file(parameters)
            command += ["--params-file", self._file]
        if namespace:
            command += ["-r", f"__ns:={namespace}"]
        for rule in remap:
            command += ["-r", rule]
        self.lines = []
        self.killed = False
        self._process = subprocess.Popen(
            [*command, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def pid(self):
        return self._process.pid

    @property
    def log(self):
        """Everything that it has written so far."""
        return "\n".join(self.lines)

    def is_alive(self):
        return self._process.poll() is None

    def kill(self):
        """SIGKILL: no chance to do anything."""
        self.killed = True
        self._process.kill()
        self._process.wait()

    def signal(self, number):
        self._process.send_signal(number)

    def wait(self, timeout=PATIENCE):
        """Its exit code, once it has ended."""
        code = self._process.wait(timeout)
        self._reader.join(5)
        return code

    def rss_mib(self):
        """Resident memory."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) / 1024

    def close(self):
        if self.is_alive():
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self.kill()
        drop_dead_segments()
        self._reader.join(5)
        if self._file:
            Path(self._file).unlink(missing_ok=True)
