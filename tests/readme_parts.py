"""The parts of README.md that are generated from the code: ``python -m tests.readme_parts`` writes them anew."""

from __future__ import annotations

import sys
from pathlib import Path

from common.config import MODELS
from common.config_reference import markdown, reference
from common.config_types import DEFAULT_CHANGE_CODEC
from common.split import cut_table, format_cut_table
from trainer.metrics import METRICS

README = Path(__file__).parent.parent / "README.md"


def configuration() -> str:
    """Every key of every kind of file."""
    return "\n\n".join(f"#### `{kind}`\n\n{markdown(reference(model))}" for kind, model in MODELS.items())


def metrics() -> str:
    """Every field of a line of ``metrics.jsonl``."""
    rows = "\n".join(f"| `{name}` | {meaning} |" for name, meaning in METRICS.items())
    return f"| metric | meaning |\n| --- | --- |\n{rows}"


def cuts() -> str:
    """What ``streamsplit plan-cuts`` prints for the default encoder."""
    from common.codec import DEFAULT_ACTIVATIONS_CODEC, DEFAULT_GRADIENT_CODEC, Codec
    from common.encoder import build_encoder

    rows = cut_table(
        build_encoder("mobile", seed=0),
        Codec.parse(DEFAULT_ACTIVATIONS_CODEC),
        gradient_codec=Codec.parse(DEFAULT_GRADIENT_CODEC),
        change_codec=DEFAULT_CHANGE_CODEC,
        delta_codec=DEFAULT_CHANGE_CODEC,
    )
    return f"```\n{format_cut_table(rows)}\n```"


def in_short() -> str:
    """What was published, asked for and measured."""
    from tests.bench.in_short import markdown  # needs all rooms: only who makes this part pays

    return markdown()


def accuracy() -> str:
    """The table of methods, from the results that are committed."""
    from tests.bench.accuracy_report import markdown  # needs all rooms, as above

    return markdown()


def testbed() -> str:
    """What the committed run of the testbed says."""
    from tests.bench.testbed_report import markdown  # needs all rooms, as above

    return markdown()


def policy() -> str:
    """What the committed run of the policy bench says."""
    from tests.bench.policy_report import markdown  # needs all rooms, as above

    return markdown()


def recovery() -> str:
    """What the committed run of the recovery bench says."""
    from tests.bench.recovery_report import markdown  # needs all rooms, as above

    return markdown()


def privacy() -> str:
    """What the committed run of the privacy bench says."""
    from tests.bench.privacy_report import markdown  # needs all rooms, as above

    return markdown()


PARTS = {
    "configuration": configuration,
    "metrics": metrics,
    "cuts": cuts,
    "in short": in_short,
    "accuracy": accuracy,
    "testbed": testbed,
    "policy": policy,
    "recovery": recovery,
    "privacy": privacy,
}


def replaced(text: str) -> str:
    """``text`` with every generated part written anew.

    Raises:
        ValueError: a part has no place in it.
    """
    for name, make in PARTS.items():
        begin, end = f"<!-- {name}: generated -->\n", f"\n<!-- /{name} -->"
        before, found, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        if not found or not ended:
            raise ValueError(f"README.md has no place for {name}: {begin.strip()} … {end.strip()}")
        text = f"{before}{begin}{make()}{end}{after}"
    return text


if __name__ == "__main__":
    README.write_text(replaced(README.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(0)
