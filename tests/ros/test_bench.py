"""`pi05 bench ros`, whose figures others rely on."""

import json
import subprocess

from process import program


def bench(*arguments):
    """Runs it for a short time."""
    command = [program("pi05"), "bench", "ros", "--seconds", "4", "-p", "backend=cpu", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=180)


def test_a_robot_is_measured_and_rests_without_cameras():
    # A slow machine looks rarely; that is no reason to stop here.
    ages = [f"cameras.{slot}.max_age_ms=1000" for slot in ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")]
    patient = [argument for parameter in [*ages, "joints.max_age_ms=1000"] for argument in ("-p", parameter)]
    run = bench("--only", "robot", "--json", "-p", "prompt=fold the towel", *patient)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["periods"] == [] and "latency_ms" not in found, "only what was asked for"
    robot = found["robot"]
    assert robot["engine"] == "cpu f32"
    assert robot["chunks"] > 0 and robot["tokens"] > 10
    assert 0 < robot["around_ms"]["p50"] < robot["latency_ms"]["p50"] <= robot["image_age_ms"]["p50"]
    assert robot["period"]["commands"] + robot["period"]["missed"] > 300, "4 s at 100 Hz"
    parts = {part["name"]: part["values"] for part in robot["parts"]}
    assert float(parts["inference"]["p50_ms"]) > 0 and "commands_lost" in parts["control"]
    assert 0 < int(parts["base_0_rgb"]["taken"]) <= robot["images_sent"]
    rest = robot["rest"]
    # Images stay good for a second, and a plan lasts another from its observation on.
    assert 0 <= rest["braking_ms"] < 10_000 and 0 < rest["rest_ms"] < 10_000, rest
    assert rest["reason"] and rest["running_again_ms"] > 0


def test_a_refusal_is_said_in_one_line():
    run = bench("--only", "latency", "-p", "checkpoint=no/such/folder")
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("pi05: configure refused: ") and "no/such/folder" in last, run.stderr


def test_a_parameter_that_is_none_is_wrong_usage():
    run = bench("-p", "backend:=cpu")
    assert run.returncode == 2 and "name=value" in run.stderr
