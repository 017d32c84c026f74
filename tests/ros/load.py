"""The node under full-rate sources, watched: how old its observations are, and its memory."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from peers import SLOTS, robot_parameters, to_ns
from process import wait_for

SOURCE = Path(__file__).with_name("flood_source.py")


class Sources:
    """Three cameras and the joints, each a process of its own."""

    def __init__(self, namespace, camera_hz, joints_hz):
        wanted = [("camera", index, camera_hz) for index in range(3)] + [("joints", 0, joints_hz)]
        self.processes = [
            subprocess.Popen([sys.executable, str(SOURCE), namespace, kind, str(index), str(rate)], stdout=subprocess.PIPE, text=True)
            for kind, index, rate in wanted
        ]

    def stop(self):
        """Messages that each sent."""
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        sent = []
        for process in self.processes:
            try:
                out, _ = process.communicate(timeout=20)
                sent.append(int(out.strip() or 0))
            except (subprocess.TimeoutExpired, ValueError):
                process.kill()
                sent.append(0)
        return sent


# A chunk lasts 100 s, so that however slow the machine is, none comes when it is over: the node would be right to discard
# it. For the same reason nothing is too old before that of a robot would be long.
PATIENT = {"control__policy_rate_hz": 0.5, "sampler__steps": 2, "joints__max_age_ms": 10000, "observe__max_skew_ms": 10000}
PATIENT.update({f"cameras__{slot}__max_age_ms": 10000 for slot in SLOTS})

# Of all waits: a chunk takes a third of a second, on a loaded machine ten.
LONG = 600.0


class Watched:
    """What was seen of a node in so many seconds, and for longer if fewer chunks than `chunks` came."""

    def __init__(self, world, seconds, camera_hz, joints_hz, chunks=0, say=None, every=0.5):
        self.memory, self.ages = [], []
        arm = world.arm()
        sources = Sources(world.namespace, camera_hz, joints_hz)
        try:
            policy = self.policy = world.start(robot_parameters(autostart=True, **PATIENT))
            policy.wait_for_state("active")
            wait_for(lambda: len(arm.received) >= 20, lambda: f"20 commands; the node says {policy.says()}", LONG)
            taken = len(policy.chunks.received)
            start = time.monotonic()
            offset = time.time() - time.monotonic()
            while (passed := time.monotonic() - start) < seconds or len(policy.chunks.received) < taken + chunks:
                assert passed < seconds + LONG, f"{len(policy.chunks.received) - taken} chunks; the node says {policy.says()}"
                time.sleep(min(every, max(0.01, seconds - passed)))
                assert policy.process.is_alive(), policy.process.log
                self.memory.append((time.monotonic() - start, policy.process.rss_mib()))
                if say:
                    say(*self.memory[-1], len(policy.chunks.received) - taken)
            for arrival, chunk in list(policy.chunks.received)[taken:]:
                stamps = [to_ns(stamp) * 1e-9 for stamp in (*chunk.image_stamps, chunk.joints_stamp)]
                # How old the observation was as its inference began: how long that takes is the machine's matter.
                inference = chunk.encode_ms + chunk.vision_ms + chunk.prefix_ms + chunk.denoise_ms + chunk.decode_ms
                self.ages.append(arrival + offset - inference * 1e-3 - min(stamps))
            self.state = policy.state()
            wait_for(lambda: "rate_hz" in policy.health().get("joints", (0, "", {}))[2], lambda: f"rates; the node says {policy.says()}")
            self.health = policy.health()
        finally:
            self.sent = sources.stop()

    def growth_mib(self):
        """Resident memory at the end less that after a fifth of the time, by the medians of tenths."""
        values = [mib for _, mib in self.memory]
        tenth = max(1, len(values) // 10)

        def median(part):
            return sorted(part)[len(part) // 2]

        return median(values[-tenth:]) - median(values[2 * tenth : 3 * tenth] or values[:tenth])
