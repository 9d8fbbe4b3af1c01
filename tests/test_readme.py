"""README.md tells the truth: a topic, a configuration key, a metric or a module that it does not name fails here."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path

import pytest

from common.config import MODELS, reference
from common.topics import Kind
from streamsplit import VERBS
from tests.readme_parts import README, replaced
from trainer.metrics import METRICS

ROOT = README.parent
TEXT = README.read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text under one heading."""
    return re.split(rf"^## {title}$", TEXT, flags=re.MULTILINE)[1].split("\n## ")[0]


def test_generated_parts_are_what_the_code_says_now() -> None:
    assert replaced(TEXT) == TEXT, "run python -m tests.readme_parts"


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_of_topic_stands_in_the_protocol_table(kind: Kind) -> None:
    name = {
        Kind.UPDATE: "<device>/up/update/<n>",
        Kind.WEIGHTS: "_weights/<name>/<n>",
        Kind.DELTA: "_weights/<name>/delta/<n>",
    }.get(kind)
    shown = name or (str(kind) if str(kind).startswith("_") else f"<device>/{kind}")
    assert f"| `{shown}` |" in section("Protocol")


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_every_configuration_key_is_documented(model: type) -> None:
    missing = [row.key for row in reference(model) if f"`{row.key}`" not in section("Configuration")]
    assert not missing


def test_every_metric_is_documented() -> None:
    assert [name for name in METRICS if f"| `{name}` |" not in section("Metrics")] == []


def test_every_verb_is_documented() -> None:
    assert [verb for verb in VERBS if f"streamsplit {verb}" not in section("Commands")] == []


@pytest.mark.parametrize("room", ["common", "device", "trainer", "broker"])
def test_every_module_is_named_in_the_architecture(room: str) -> None:
    lines = section("Architecture").splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(f"| `{room}/`"))
    row = "".join([lines[first], *takewhile(lambda line: line.startswith("| - "), lines[first + 1 :])])
    modules = [path.stem for path in (ROOT / room).glob("*.py") if not path.stem.startswith("__")]
    families = re.findall(r"`(\w+_)\*`", row)
    unnamed = [name for name in modules if f"`{name}`" not in row and not name.startswith(tuple(families) or ("\0",))]
    assert not unnamed


def test_files_that_the_text_names_exist() -> None:
    named = re.findall(r"`((?:common|device|trainer|broker|configs|tests)/[\w./-]+\.(?:py|yaml|conf|md))`", TEXT)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_links_within_the_project_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in link]
    assert [link for link in links if not (Path(ROOT) / link).exists()] == []
