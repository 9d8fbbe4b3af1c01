"""The policy against oracle and baselines on held-out traces: ``python -m tests.bench.policy [--jobs N] [--json]``

20 held-out traces (`trainer/link_traces.yaml`), on which no policy learned, but by which settings of the learning were
chosen; and 20 fresh ones, by which nothing was. Five policies, each learned from its own
seed, in the simulator alone, or those of `--policies` (files of ``streamsplit train-policy``). Every contender decides
on what a device would measure, and is paid by the simulator. `oracle_ratio` is (policy - random) / (oracle - random),
the oracle a dynamic programme over the true trace. Margins are paired over traces, with a bootstrap over traces and
seeds. `sb3` is stable-baselines3's masked PPO (sb3-contrib, needs the extra `bench`) on the same environment with the
same network, from rewards alone, for twice as many decisions.

A run of all five seeds writes ``tests/bench/results/policy.json``, from which README's tables are made.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress as ProgressBar

from common import messages
from common.atomic_file import write_atomically
from common.policy import OBSERVATION_NAMES
from common.policy_network import PolicyNetwork, pack_network, unpack_network
from tests.bench.policy_baselines import Heuristic, Planner, constant, uniform
from tests.bench.policy_report import RESULT
from tests.bench.statistics import Estimate
from trainer.link_traces import read_split
from trainer.policy_file import load_policy, network_of, to_message
from trainer.policy_oracle import Oracle
from trainer.policy_pretraining import Plan, pretrain
from trainer.reward import RewardWeights
from trainer.simulated_costs import Board, CutCosts, Tables
from trainer.simulated_device import Counts
from trainer.simulated_fleet import BOARDS, encoder_costs, fleet_tables, shipped_board
from trainer.simulator import Simulator

Values = NDArray[np.float64]
Chooser = Callable[[Simulator], Counts]
Made = TypeVar("Made")

MIN_CUT, FIRST_CUT = 3, 5
WEIGHTS = RewardWeights()
DRAWS = 10_000


def returns(tables: Sequence[Tables], choose: Chooser, *, seed: int) -> Values:
    """Mean reward of a decision along each trace, `[traces]`."""
    fleet = Simulator(
        tables, batch=len(tables), min_cut=MIN_CUT, first_cut=FIRST_CUT, weights=WEIGHTS, seed=seed, in_order=True
    )
    total = np.zeros(len(tables))
    for _ in range(len(tables[0])):
        total += fleet.step(choose(fleet)).reward
    return total / len(tables[0])


def by_network(network: PolicyNetwork) -> Chooser:
    """The likeliest allowed action, as a device takes it."""

    def choose(fleet: Simulator) -> Counts:
        pairs = zip(fleet.observe().tolist(), fleet.mask().tolist(), strict=True)
        return np.array([network.probabilities(seen, mask).argmax() for seen, mask in pairs])

    return choose


def learned(tables: Sequence[Tables], plan: Plan, seed: int) -> PolicyNetwork:
    """A policy as it travels: through half precision."""
    learned = pretrain(tables, plan=plan, weights=WEIGHTS, seed=seed)
    packed = pack_network(network_of(learned.model))
    return unpack_network(packed, inputs=len(OBSERVATION_NAMES), actions=tables[0].depth + 2)


def margin(policy: Values, other: Values, *, seed: int = 0) -> Estimate:
    """Mean of `policy - other` [seeds, traces], and the interval of a bootstrap over seeds and traces."""
    difference = policy - other
    rng = np.random.default_rng(seed)
    seeds, traces = difference.shape
    drawn = [
        difference[rng.integers(seeds, size=seeds)][:, rng.integers(traces, size=traces)].mean() for _ in range(DRAWS)
    ]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Estimate(float(difference.mean()), float(low), float(high))


def decision_us(network: PolicyNetwork, *, rounds: int = 400, calls: int = 25) -> float:
    """Microseconds of one decision, the best round's mean: short rounds, that some are not interrupted."""
    seen, mask = [0.5] * len(OBSERVATION_NAMES), [True] * network.sizes[-1]
    best = min(_timed(network, seen, mask, calls) for _ in range(rounds))
    return best * 1e6


def _timed(network: PolicyNetwork, seen: Sequence[float], mask: Sequence[bool], calls: int) -> float:
    started_s = time.perf_counter()
    for _ in range(calls):
        network.probabilities(seen, mask).argmax()
    return (time.perf_counter() - started_s) / calls


def baselines(tables: Sequence[Tables], boards: Sequence[Board], costs: CutCosts) -> dict[str, Values]:
    """Mean rewards by baseline. `static`: of every trace the cut that was best on it, known only afterwards."""
    statics = {cut: returns(tables, constant(cut), seed=0) for cut in range(MIN_CUT, tables[0].depth + 1)}
    best = max(statics, key=lambda cut: float(statics[cut].mean()))
    heuristic = Heuristic(len(tables), cut=FIRST_CUT)
    planner = Planner(boards, costs, weights=WEIGHTS)
    return {
        "static in hindsight, trace by trace": np.max(list(statics.values()), axis=0),
        f"best static cut ({best})": statics[best],
        "heuristic": returns(tables, heuristic, seed=0),
        "memoryless planner": returns(tables, planner, seed=0),
    }


@dataclass(frozen=True, slots=True)
class Ground:
    """What policies learn on and are judged on.

    Attributes:
        held_out: devices that follow the blocks before their cut; ``following``: the same, following every block.
        fresh: as ``held_out``, on traces by which nothing was chosen.
        boards: those that devices have.
    """

    costs: CutCosts
    training: Sequence[Tables]
    held_out: Sequence[Tables]
    following: Sequence[Tables]
    fresh: Sequence[Tables]
    boards: Sequence[Board]

    def board_of(self, table: Tables) -> Board:
        """Whose device it is that goes along this trace."""
        return next(board for board in self.boards if board.forward_ms == table.forward_ms)


def ground() -> Ground:
    """The committed traces with the shipped boards and costs."""
    split, costs = read_split(), encoder_costs("mobile")
    boards = [shipped_board(name) for name in BOARDS]
    made = partial(fleet_tables, costs=costs, steps=split.steps, boards=boards)
    training = made(split.training, follows=(False, True))
    held_out, following = (made(split.held_out, follows=(follow,)) for follow in (False, True))
    return Ground(costs, training, held_out, following, made(split.fresh, follows=(False,)), boards)


def our_policy(plan: Plan, seed: int) -> PolicyNetwork:
    """One learned policy, in whichever process this runs."""
    torch.set_num_threads(1)
    return learned(ground().training, plan, seed)


def their_returns(plan: Plan, seed: int) -> Values:
    """What a policy by the library earns on each held-out trace."""
    from tests.bench.policy_sb3 import learn

    torch.set_num_threads(1)
    on = ground()
    return returns(on.held_out, learn(on.training, plan, WEIGHTS, seed=seed), seed=seed)


def measure(
    *, policies: Sequence[Path], seeds: int, plan: Plan, sb3: int, jobs: int, advance: Callable[[], None]
) -> dict[str, Any]:
    """Everything the report needs; `policies`: files to judge instead of learning from `seeds` seeds."""
    on = ground()
    networks = [load_policy(path, actions=on.costs.depth + 2)[1] for path in policies]
    networks += _every(our_policy, plan, 0 if policies else seeds, jobs=jobs, advance=advance)
    held_out, policy = judged(networks, on.held_out, on)
    advance()
    result: dict[str, Any] = held_out | {
        "fresh": judged(networks, on.fresh, on)[0],
        "following": judged(networks, on.following, on)[0],
        "decision_us": decision_us(networks[0]),
        "wire_bytes": len(messages.encode(to_message(networks[0], version=1, encoder="mobile"))),
    }
    if sb3:
        theirs = _every(their_returns, plan, sb3, jobs=jobs, advance=advance)
        random, gap = (held_out["by_trace"]["random"], held_out["reward"]["oracle"] - held_out["reward"]["random"])
        result["sb3"] = {
            "seeds": sb3,
            "oracle_ratio": float((np.array(theirs) - random).mean() / gap),
            "oracle_ratio_by_seed": [float((one - random).mean() / gap) for one in theirs],
            "margin": _margin(policy, np.mean(theirs, axis=0)),
        }
    return result


def judged(networks: Sequence[PolicyNetwork], tables: Sequence[Tables], on: Ground) -> tuple[dict[str, Any], Values]:
    """The policies against oracle and baselines along these traces, and what each earned: `[policies, traces]`."""
    random, oracle = bounds(tables)
    others = baselines(tables, [on.board_of(table) for table in tables], on.costs)
    policy = earned(networks, tables)
    gap = (oracle - random).mean()
    found = {
        "oracle_ratio": float((policy - random).mean() / gap),
        "oracle_ratio_by_seed": [float((one - random).mean() / gap) for one in policy],
        "reward": {"random": float(random.mean()), "oracle": float(oracle.mean()), "policy": float(policy.mean())}
        | {name: float(values.mean()) for name, values in others.items()},
        "ratio_of_baselines": {name: float((values - random).mean() / gap) for name, values in others.items()},
        "margin": {name: _margin(policy, values) for name, values in others.items()},
        "by_trace": {"policy": policy.mean(axis=0).tolist(), "oracle": oracle.tolist(), "random": random.tolist()}
        | {name: values.tolist() for name, values in others.items()},
    }
    return found, policy


def bounds(tables: Sequence[Tables]) -> tuple[Values, Values]:
    """What chance and the oracle earn on every trace."""
    random = returns(tables, uniform(np.random.default_rng(0)), seed=0)
    return random, returns(tables, Oracle(tables, min_cut=MIN_CUT, weights=WEIGHTS).choose, seed=0)


def earned(networks: Sequence[PolicyNetwork], tables: Sequence[Tables]) -> Values:
    """What policies earn on every trace: `[policies, traces]`."""
    return np.array([returns(tables, by_network(network), seed=seed) for seed, network in enumerate(networks)])


def _every(
    work: Callable[[Plan, int], Made], plan: Plan, seeds: int, *, jobs: int, advance: Callable[[], None]
) -> list[Made]:
    """What `work` makes of every seed, `jobs` at a time in processes of their own."""
    made = []
    with ExitStack() as stack:
        each: Iterable[Made] = map(partial(work, plan), range(seeds))
        if jobs > 1 and seeds > 1:
            pool = stack.enter_context(ProcessPoolExecutor(jobs, mp_context=get_context("spawn")))
            each = pool.map(partial(work, plan), range(seeds))
        for one in each:
            made.append(one)
            advance()
    return made


def _margin(policy: Values, other: Values) -> dict[str, Any]:
    made = margin(policy, np.broadcast_to(other, policy.shape))
    return {"mean": made.mean, "ci95": [made.low, made.high]}


def show(result: Mapping[str, Any]) -> None:
    """The figures for people."""
    for name, one in (
        ("held-out traces", result),
        ("fresh traces", result["fresh"]),
        ("held-out traces, devices that follow every block", result["following"]),
    ):
        print(f"{name}:")
        _show_judged(one)
    print(f"a decision takes {result['decision_us']:.1f} us, a policy {result['wire_bytes']:,} bytes")
    if "sb3" in result:
        one = result["sb3"]
        low, high = one["margin"]["ci95"]
        mean = one["margin"]["mean"]
        print(f"masked PPO of sb3-contrib: ratio {one['oracle_ratio']:.3f}, we {mean:+.4f} ({low:+.4f} to {high:+.4f})")


def _show_judged(result: Mapping[str, Any]) -> None:
    by_seed = ", ".join(f"{ratio:.3f}" for ratio in result["oracle_ratio_by_seed"])
    print(f"  oracle ratio {result['oracle_ratio']:.3f} (by seed {by_seed})")
    for name, value in result["reward"].items():
        print(f"  reward of {name}: {value:+.3f}")
    for name, one in result["margin"].items():
        low, high = one["ci95"]
        ratio = result["ratio_of_baselines"][name]
        print(f"  over {name} (ratio {ratio:.3f}): {one['mean']:+.4f} ({low:+.4f} to {high:+.4f})")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and with ``--json`` end with one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.policy", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two seeds, a tenth of the learning, without sb3")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sb3-seeds", type=int, default=5, help="0: without the comparison")
    parser.add_argument("--policies", type=Path, nargs="+", default=[], help="files to judge instead of learning")
    parser.add_argument("--jobs", type=int, default=2, help="seeds at a time, one core each (default 2)")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    seeds, plan, sb3 = given.seeds, Plan(), given.sb3_seeds
    if given.quick:
        seeds, plan, sb3 = 2, replace(Plan(), rounds=Plan().rounds // 10, updates=Plan().updates // 10), 0
    with ProgressBar(disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("policies", total=1 + (0 if given.policies else seeds) + sb3)
        result = measure(
            policies=given.policies,
            seeds=seeds,
            plan=plan,
            sb3=sb3,
            jobs=given.jobs,
            advance=lambda: bar.advance(task),
        )
    show(result)
    if not (given.quick or given.policies or given.seeds != parser.get_default("seeds")):
        write_atomically(RESULT, (json.dumps(result, indent=1) + "\n").encode())
    if given.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
