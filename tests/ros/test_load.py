"""Sources at full rate for long: the node uses the newest data, and its memory stays as it is."""

from load import Watched

# Allocators keep some of what they got; a leak of one image in ten would be 500 MiB in the flood.
FLAT_MIB = 24.0


def test_in_a_flood_every_chunk_is_of_the_newest_data_and_memory_is_flat(world):
    watched = Watched(world, seconds=20, camera_hz=60, joints_hz=500, chunks=12)
    assert watched.state == "active"
    sent = dict(zip(("camera 0", "camera 1", "camera 2", "joints"), watched.sent))
    print(f"sent {sent}, chunks {len(watched.ages)}, ages {min(watched.ages):.3f} to {max(watched.ages):.3f} s, growth {watched.growth_mib():.1f} MiB")
    third = len(watched.ages) // 3
    early, late = sorted(watched.ages[:third]), sorted(watched.ages[-third:])
    assert late[third // 2] < early[third // 2] + 0.5, "a queue would grow older and older"
    assert late[third // 2] < 1.5, "the newest data, on the slowest machine: a queue of its own rate would be as old as the test"
    assert watched.growth_mib() < FLAT_MIB, watched.memory
    for slot in ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb", "joints"):
        assert int(watched.health[slot][2]["refused"]) == 0, watched.health


def say(seconds, mib, chunks):
    print(f"{seconds:7.1f} s  {mib:7.1f} MiB  {chunks:6} chunks", flush=True)


def test_memory_is_flat_over_a_soak(world, request):
    seconds = request.config.getoption("--soak-seconds")
    watched = Watched(world, seconds=seconds, camera_hz=30, joints_hz=100, say=say, every=max(0.5, seconds / 60))
    assert watched.state == "active"
    print(f"{seconds:.0f} s: chunks {len(watched.ages)}, growth {watched.growth_mib():.1f} MiB")
    assert watched.growth_mib() < FLAT_MIB, watched.memory
