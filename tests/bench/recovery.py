"""Does a policy recover from what the simulator did not know? ``python -m tests.bench.recovery [--quick] [--json]``

20 simulated devices decide by the shipped policy and publish the telemetry that real ones do; ``streamsplit policy``'s
own process hears it, learns, and publishes versions that the devices take over, all over a broker in memory. After a
stretch with the boards that the policy was learned for, every board becomes three times slower. Two cases: devices
that go on saying how quick their board was (`unsaid`), and devices that say it (`said`: the observation has it). Beside
it a fleet that meets the same traces with the shipped policy frozen.

Reward of a decision. `paid` is what the fleet earned, its drawn decisions included; `greedy` is the version in use on
every trace in order (the fleet's own traces too: nothing is held out from learning here). Levels: `if said` is the
shipped policy where devices say how quick their board is; `taught` the same after as much further learning as
`Teaching` says, in a simulator that knows the slow boards; `scratch` learned there from nothing; `oracle` knows the
traces. A gap is from the frozen policy to the best of the first three.

A run of three seeds with the defaults of ``streamsplit policy`` writes figures, curves and picture to
``tests/bench/results``, from which README's part is made; its cases may be run one by one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.progress import Progress as ProgressBar

from common.policy_network import PolicyNetwork
from device.policy_splitter import shipped_policy
from tests.bench.policy import MIN_CUT, WEIGHTS, returns
from tests.bench.recovery_report import keep
from tests.bench.recovery_runs import Curve, Learning, Pace, World, greedy_reward, learning_run, world
from tests.bench.statistics import mean_sd
from trainer.link_traces import Split, TraceKind, read_split
from trainer.policy_file import load_policy, network_of
from trainer.policy_learning import ONLINE, TEACHING
from trainer.policy_oracle import Oracle
from trainer.policy_pretraining import REFINING, Plan, pretrain
from trainer.ppo import Settings
from trainer.simulated_costs import CutCosts, Tables
from trainer.simulated_fleet import encoder_costs

SLOWER = 3.0
SEEDS = 3
CASES = {"unsaid": False, "said": True}
LEAST_GAP = 0.01  # of a decision's reward: below it there is nothing to win back
LAST = 3  # part of the stretch after the change, at its end, that counts as recovered or not: a third


@dataclass(frozen=True, slots=True)
class Teaching:
    """How long the levels are learned in the simulator, in updates of 8,192 decisions; `oracle`: computed at all."""

    taught: int = 50
    scratch: int = 50
    oracle: bool = True


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured with."""

    network: PolicyNetwork
    split: Split
    costs: CutCosts
    fleet_traces: tuple[tuple[TraceKind, int], ...]
    pace: Pace
    learning: Learning
    teaching: Teaching
    seeds: int

    def world(self, traces: Sequence[tuple[TraceKind, int]], *, slower: float = 1.0, told: bool = True) -> World:
        """Boards that slow, along these traces."""
        return world(traces, self.costs, steps=self.split.steps, slower=slower, told=told)


def levels(setting: Setting, slow: World, *, told: bool) -> dict[str, float]:
    """What is known to be possible after the change."""
    training = setting.world(setting.split.training, slower=SLOWER, told=told).judged
    teaching = setting.teaching
    said = setting.world(setting.fleet_traces, slower=SLOWER)
    found = {
        "if said": greedy_reward(said, setting.network),
        "taught": greedy_reward(slow, _taught(training, teaching.taught, setting.network)),
    }
    if teaching.scratch:
        found["scratch"] = greedy_reward(slow, _taught(training, teaching.scratch, None))
    if teaching.oracle:
        oracle = Oracle(slow.judged, min_cut=MIN_CUT, weights=WEIGHTS)
        found["oracle"] = float(returns(slow.judged, oracle.choose, seed=0).mean())
    return found


def _taught(tables: Sequence[Tables], updates: int, network: PolicyNetwork | None) -> PolicyNetwork:
    plan = replace(Plan(), updates=updates)
    settings = REFINING if network is None else replace(Settings(), entropy=ONLINE.entropy)
    learned = pretrain(tables, plan=plan, settings=settings, weights=WEIGHTS, seed=0, network=network)
    return network_of(learned.model)


def measure_case(setting: Setting, *, told: bool, advance: Callable[[], None]) -> dict[str, Any]:
    """One case: curves of every seed with and without learning, levels, and what was won back."""
    known = setting.world(setting.fleet_traces)
    slow = setting.world(setting.fleet_traces, slower=SLOWER, told=told)

    def run(learning: Learning | None, seed: int) -> Curve:
        return learning_run(
            (known, slow), setting.network, pace=setting.pace, learning=learning, split=setting.split,
            costs=setting.costs, seed=seed, advance=advance,
        )  # fmt: skip

    learned = [run(setting.learning, seed) for seed in range(setting.seeds)]
    frozen = [run(None, seed) for seed in range(setting.seeds)]
    found = levels(setting, slow, told=told)
    advance()
    return summary(learned, frozen, found, setting.pace) | {
        "curve": {
            "learning": _curves(learned),
            "frozen": _curves(frozen),
        }
    }


def summary(
    learned: Sequence[Curve], frozen: Sequence[Curve], found: Mapping[str, float], pace: Pace
) -> dict[str, Any]:
    """The figures of a case, over seeds."""
    change = pace.known // pace.every
    tail = max(1, (len(learned[0].greedy) - change) // LAST)
    before, after = frozen[0].greedy[0], frozen[0].greedy[-1]
    last = [mean(one.greedy[-tail:]) for one in learned]
    paid = [mean(a.paid[-tail:]) - mean(b.paid[-tail:]) for a, b in zip(learned, frozen, strict=True)]
    gap = max(reward for name, reward in found.items() if name != "oracle") - after
    shares = [(one - after) / gap for one in last] if gap >= LEAST_GAP else []
    return {
        "reward_before": before,
        "reward_learning_before_change": _mean_sd([one.greedy[change - 1] for one in learned]),
        "reward_after_change": after,
        "reward_recovered": _mean_sd(last),
        "paid_more_than_frozen": _mean_sd(paid),
        "level": dict(found),
        "gap": gap,
        "share_won_back": _mean_sd(shares) if shares else None,
        "decisions_to_half": half_way([one.greedy[change:] for one in learned], after, gap, pace),
        "published": [one.published for one in learned],
        "withheld": [one.withheld for one in learned],
        "corrected": [one.corrected for one in learned],
    }


def half_way(greedy: Sequence[Sequence[float]], after: float, gap: float, pace: Pace) -> int | None:
    """Decisions of the fleet after the change until the mean over seeds has won back half the gap; None: it has not."""
    means = [mean(values) for values in zip(*greedy, strict=True)]
    reached = [place for place, value in enumerate(means) if gap >= LEAST_GAP and value - after >= gap / 2]
    return (reached[0] + 1) * pace.every * pace.devices if reached else None


def _mean_sd(values: Sequence[float]) -> dict[str, float | None]:
    middle, spread = mean_sd(values)
    return {"mean": middle, "sd": spread}


def _curves(curves: Sequence[Curve]) -> dict[str, list[list[float]]]:
    return {
        "paid": [[round(value, 4) for value in one.paid] for one in curves],
        "greedy": [[round(value, 4) for value in one.greedy] for one in curves],
    }


def show(result: Mapping[str, Any]) -> None:
    """The figures for people."""
    for case, one in result["cases"].items():
        level = ", ".join(f"{name} {value:+.3f}" for name, value in one["level"].items())
        print(f"{case}: before {one['reward_before']:+.3f}, frozen after {one['reward_after_change']:+.3f} ({level})")
        print(
            f"  learning: {_told(one['reward_recovered'])}, paid more than frozen {_told(one['paid_more_than_frozen'])}"
        )
        if one["share_won_back"] is None:
            print(f"  nothing to win back: the gap is {one['gap']:+.3f}")
        else:
            share, half = _told(one["share_won_back"], ".2f"), one["decisions_to_half"]
            print(f"  won back {share} of {one['gap']:+.3f}, half after {half} decisions of the fleet")
        print(f"  published {one['published']}, withheld {one['withheld']}, simulator corrected {one['corrected']}")


def _told(value: Mapping[str, float | None], form: str = "+.3f") -> str:
    return f"{value['mean']:{form}}" + ("" if value["sd"] is None else f" (sd {value['sd']:.3f})")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, draw, and with ``--json`` end with one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.recovery", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, a short while, four traces, without the oracle")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--tolerance", type=float, default=Learning().tolerance, help="of streamsplit policy")
    parser.add_argument("--drawn", type=int, default=Learning().drawn, help="of streamsplit policy")
    parser.add_argument("--png", type=Path, help="draw the curves")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    setting = settings_of(given)
    points = (setting.pace.known + setting.pace.changed) // setting.pace.every
    with ProgressBar(disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("fleets", total=len(given.cases) * (2 * setting.seeds * points + 1))
        cases = {
            case: measure_case(setting, told=CASES[case], advance=lambda: bar.advance(task)) for case in given.cases
        }
    result = {
        "slower": SLOWER,
        "seeds": setting.seeds,
        "decisions_a_point": setting.pace.every * setting.pace.devices,
        "points_before_change": setting.pace.known // setting.pace.every,
        "cases": cases,
    }
    show(result)
    if (setting.seeds, setting.learning, given.quick) == (SEEDS, Learning(), False):
        keep(result)
    if given.png:
        from tests.bench.recovery_picture import draw

        draw(result, given.png)
    if given.json:
        print(json.dumps(result))
    return 0


def settings_of(given: argparse.Namespace) -> Setting:
    """What the options ask for."""
    path = shipped_policy("mobile")
    assert path is not None
    split, costs = read_split(), encoder_costs("mobile")
    pace, teaching, seeds, traces = Pace(), Teaching(), given.seeds, split.held_out
    learning = Learning(given.drawn, given.tolerance)
    if given.quick:
        pace, teaching, seeds = Pace(known=100, changed=300, every=50), Teaching(5, 0, oracle=False), 1
        traces, learning = traces[:4], replace(learning, teaching=replace(TEACHING, updates=10, unvalued=4))
    return Setting(
        network=load_policy(path, actions=costs.depth + 2)[1],
        split=split,
        costs=costs,
        fleet_traces=traces,
        pace=pace,
        learning=learning,
        teaching=teaching,
        seeds=seeds,
    )


if __name__ == "__main__":
    sys.exit(main())
