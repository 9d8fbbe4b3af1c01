"""``kill -9`` of every process of a fleet in turn, each at a step drawn from the seed: the rest carry on."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fleet import Fleet, digests

CUT = 5
SEEDS = [1, 2, 3]
BUDGET = 40  # windows of the device's last life: it ends by itself


def drawn(rng: random.Random) -> int:
    """How many more steps the fleet takes before somebody dies; three make a version."""
    return rng.randrange(1, 7)


def take_steps(fleet: Fleet, device: str, count: int) -> None:
    before = fleet.answered(device)
    fleet.until(lambda: fleet.answered(device) >= before + count, f"{device} takes {count} more steps")


def learn_alone(fleet: Fleet, device: str) -> None:
    before = fleet.local_steps(device)
    fleet.until(lambda: fleet.local_steps(device) > before, f"{device} learns alone")


def assert_not_torn(fleet: Fleet, device: str) -> None:
    """What lies on the device's disk is one published version, not a mixture of two."""
    stored = fleet.stored_weights(device)
    if stored is None:  # killed before it was written for the first time
        return
    published = {(one.run, one.weights_version): one for one in fleet.seen.manifests}[stored.run, stored.version]
    held = digests(stored, CUT)
    assert held == {name: published.entries[name].digest for name in held}


def assert_never_back(fleet: Fleet) -> None:
    versions = [one.weights_version for one in fleet.seen.manifests]
    assert versions == sorted(versions), "a manifest of the run was older than the one before"
    assert len({one.run for one in fleet.seen.manifests}) == 1, "the run changed its name"
    by_version = {one.weights_version: one.entries for one in fleet.seen.manifests}
    assert all(one.entries == by_version[one.weights_version] for one in fleet.seen.manifests), (
        "one version, two contents"
    )


def assert_only_published_versions(fleet: Fleet, device: str) -> None:
    published = {one.weights_version for one in fleet.seen.manifests}
    life: list[int] = []
    for line in [*fleet.journal(device), {"kind": "start"}]:
        if line["kind"] == "start":
            assert life == sorted(life), f"{device} went back to an older version"
            assert set(life) <= published, f"{device} worked with a version that nobody published"
            life = []
        elif line["kind"] == "step":
            life.append(line["weights_version"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_whoever_is_killed_the_rest_carry_on_and_the_run_finishes(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with Fleet(tmp_path, parts_per_step=4) as fleet:
        fleet.start_trainer()
        fleet.start_device("a", windows=None)
        fleet.start_device("b", windows=None)
        fleet.until(lambda: fleet.seen.version >= 1, "the first merge")
        survivor = fleet.processes["a"].pid

        take_steps(fleet, "a", drawn(rng))
        fleet.kill("trainer")
        version, run = fleet.seen.version, fleet.seen.manifests[-1].run
        learn_alone(fleet, "a")
        fleet.start_trainer()
        fleet.until(lambda: fleet.seen.version > version, "the trainer publishes above what was there")
        take_steps(fleet, "a", drawn(rng))
        assert fleet.seen.trainer[-1].run == run
        steps = [line["step"] for line in fleet.metrics()]
        assert steps == list(range(1, len(steps) + 1)), "steps were lost or done twice"

        fleet.kill_broker()
        learn_alone(fleet, "a")
        fleet.restart_broker()
        take_steps(fleet, "a", drawn(rng))

        fleet.kill("b")
        assert_not_torn(fleet, "b")
        take_steps(fleet, "a", 2)
        lost = fleet.answered("b")
        fleet.start_device("b", windows=BUDGET)
        assert fleet.exit_status("b") == 0
        assert fleet.answered("b") > lost, "the device that was killed took no part any more"

        assert fleet.processes["a"].pid == survivor
        fleet.ask_to_stop("a")
        assert fleet.exit_status("a") == 0
        assert [fleet.journal(device)[-1]["kind"] for device in "ab"] == ["end", "end"]
        fleet.settle()
        fleet.retained_weights()
        fleet.ask_to_stop("trainer")
        assert fleet.exit_status("trainer") == 0
        assert_never_back(fleet)
        for device in "ab":
            assert_not_torn(fleet, device)
            assert_only_published_versions(fleet, device)
