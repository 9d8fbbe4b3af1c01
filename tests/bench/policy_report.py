"""README's tables of the policy bench, from the result that is committed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.bench.accuracy_results import RESULTS
from tests.bench.testbed_report import table

RESULT = RESULTS / "policy.json"
COMMAND = "python -m tests.bench.policy --sb3-seeds 0 --json"
NOT_RUN = f"Not run yet: `{COMMAND}` writes the figures to `tests/bench/results/policy.json`."
ASKED = 0.90
GROUNDS = (
    (None, "held-out traces"),
    ("fresh", "fresh traces"),
    ("following", "held-out traces, devices that follow every block (`own_embedding`): a move fetches nothing"),
)
HEADINGS = ("contender", "reward", "oracle ratio", "the policy is better by (95 %, over traces and seeds)")


def markdown(path: Path = RESULT) -> str:
    """README's part; says so where there is no result."""
    if not path.exists():
        return NOT_RUN
    return report(json.loads(path.read_text(encoding="utf-8")))


def report(result: Mapping[str, Any]) -> str:
    """A table for each ground."""
    parts = []
    for key, words in GROUNDS:
        judged = result if key is None else result[key]
        met = "met" if judged["oracle_ratio"] >= ASKED else "missed"
        parts += [f"**{len(judged['by_trace']['oracle'])} {words}** (asked for {ASKED:.2f}: {met}):", _table(judged)]
    decision = f"A decision takes {result['decision_us']:.0f} us, a policy {result['wire_bytes']:,} bytes on the wire."
    return "\n\n".join((*parts, decision))


def _table(judged: Mapping[str, Any]) -> str:
    reward, by_seed = judged["reward"], judged["oracle_ratio_by_seed"]
    ratio = f"{judged['oracle_ratio']:.3f} ({min(by_seed):.3f} to {max(by_seed):.3f})"
    lines = [
        ("oracle: dynamic programme that knows the trace", f"{reward['oracle']:.3f}", "1", ""),
        (f"**policy**, {len(by_seed)} seeds", f"{reward['policy']:.3f}", ratio, ""),
    ]
    for name, margin in judged["margin"].items():
        low, high = margin["ci95"]
        better = f"{margin['mean']:.3f} ({low:.3f} to {high:.3f})"
        lines.append((name, f"{reward[name]:.3f}", f"{judged['ratio_of_baselines'][name]:.3f}", better))
    return table(HEADINGS, [*lines, ("random", f"{reward['random']:.3f}", "0", "")])
