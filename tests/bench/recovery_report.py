"""What a whole run of `tests.bench.recovery` leaves: kept beside the other results, and README's part made from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.atomic_file import write_atomically
from tests.bench.accuracy_results import RESULTS

RESULT, PICTURE = "recovery.json", "recovery.png"
COMMAND = "python -m tests.bench.recovery --json"
WORDS = {"unsaid": "go on saying their old speed", "said": "say their new speed"}
HEADINGS = (
    "devices that", "before", "frozen", "learning, last third", "best policy known", "oracle",
    "of that gap won back", "half of it after, decisions", "paid more than frozen",
)  # fmt: skip


def keep(result: Mapping[str, Any], folder: Path = RESULTS) -> dict[str, Any]:
    """Write figures and curves; cases that an earlier call of the same setting kept stay beside them."""
    from tests.bench.recovery_picture import draw  # matplotlib is slow to load

    path = folder / RESULT
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    alike = {name: value for name, value in before.items() if name != "cases"} == {
        name: value for name, value in result.items() if name != "cases"
    }
    kept = {**result, "cases": (before["cases"] if alike else {}) | dict(result["cases"])}
    write_atomically(path, (json.dumps(kept) + "\n").encode())
    draw(kept, folder / PICTURE)
    return kept


def markdown(folder: Path = RESULTS) -> str:
    """README's part."""
    path = folder / RESULT
    if not path.exists():
        return f"Not run yet: `{COMMAND}` writes the figures to `tests/bench/results/{RESULT}`."
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
    rows = [HEADINGS, ["---"] * len(HEADINGS), *(_line(WORDS[name], cases[name]) for name in WORDS if name in cases)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"{table}\n\n![Reward of a decision before and after the change](tests/bench/results/{PICTURE})"


def _line(words: str, one: Mapping[str, Any]) -> tuple[str, ...]:
    share, half = one["share_won_back"], one["decisions_to_half"]
    return (
        words,
        f"{one['reward_before']:.3f}",
        f"{one['reward_after_change']:.3f}",
        _spread(one["reward_recovered"], ".3f"),
        f"{one['reward_after_change'] + one['gap']:.3f}",
        f"{one['level']['oracle']:.3f}",
        "-" if share is None else _spread(share, ".2f"),
        "-" if half is None else f"{half:,}",
        _spread(one["paid_more_than_frozen"], ".3f"),
    )


def _spread(value: Mapping[str, float], form: str) -> str:
    return f"{value['mean']:{form}} (sd {value['sd']:{form}})"
