from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.config import load_fleet
from common.errors import ConfigError
from common.yaml_tree import read_document

if TYPE_CHECKING:
    from pathlib import Path

START = "fleet: a\nbroker: {url: mqtt://x}\n"
PIECES = [
    *"{}[]'\"1|\t#~=%\n",
    "fleet",
    "broker",
    "url",
    "on",
    "mqtt://x",
    ": ",
    "  ",
    "- ",
    "&a ",
    "*a",
    "!!",
    "? ",
    "<<",
    "---",
]


def errors(directory: Path, text: str) -> list[str]:
    path = directory / "fleet.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_fleet(path)
    return str(caught.value).replace(f"{directory}/", "").splitlines()


YAML_CASES: list[tuple[str, str, str]] = [
    ("a key twice", START + "fleet: b\n", "fleet.yaml:3: fleet: the key stands twice, first in line 1"),
    (
        "a key twice deep down",
        "fleet: a\nbroker:\n  url: mqtt://x\n  url: mqtt://y\n",
        "4: broker.url: the key stands twice, first",
    ),
    ("a tab", "fleet: a\nbroker:\n\turl: mqtt://x\n", "fleet.yaml:3: a tab character; allowed: spaces only"),
    ("a list at the top", "- fleet\n", "the file is no mapping"),
    ("one word", "fleet\n", "the file is no mapping"),
    ("nothing", "# only a comment\n", "the file is empty"),
    ("two documents", "fleet: a\n---\nfleet: b\n", "a second document"),
    ("an open bracket", "fleet: [a\nbroker: 1\n", "not valid YAML"),
    ("a control character", "fleet: a\nbroker: \x07\n", "fleet.yaml:2: a control character"),
    ("a tag", "fleet: !!python/object/apply:os.getcwd []\nbroker: {url: mqtt://x}\n", "1: fleet: the tag"),
    ("a merge key", "fleet: a\nbroker: &b {url: mqtt://x}\noptimizer:\n  <<: *b\n", "4: optimizer.<<: merge keys"),
    ("a mapping as a key", START + "{a: b}: c\n", "3: a key that is a list or a mapping"),
    ("an octal number", START + "parts_per_step: 010\n", "3: parts_per_step: 010 is no plain"),
    ("a number that ends in an underscore", START + "parts_per_step: 1_\n", "3: parts_per_step: 1_ is no plain"),
    ("a number with two underscores", START + "parts_per_step: 1__0\n", "3: parts_per_step: 1__0 is no plain"),
    ("a character beyond all others", 'fleet: "\\UFFFFFFFF"\n', "fleet.yaml: not valid YAML: an escaped"),
    ("a character beyond Unicode", 'fleet: "\\U00110000"\n', "fleet.yaml: not valid YAML: an escaped"),
    ("an enormous version", f"%YAML 1.{'1' * 5000}\n---\n{START}", "fleet.yaml: not valid YAML: an escaped"),
    ("a time", START + "parts_per_step: 1:30\n", "3: parts_per_step: 1:30 is no plain"),
    ("an enormous number", START + f"parts_per_step: {'9' * 9999}\n", "is no plain decimal"),
    ("a quoted exponent", START + 'optimizer: {weight_decay: "1e-3"}\n', "3: optimizer.weight_decay"),
    ("deep nesting", "fleet: " + "[" * 5000, "nested too deeply"),
    ("a recursive alias", "fleet: &a [*a]\nbroker: {url: mqtt://x}\n", "too many values"),
    ("too large", "# " + "x" * 300_000, "too large; allowed: at most 256 KiB"),
]


@pytest.mark.parametrize(("text", "said"), [case[1:] for case in YAML_CASES], ids=[case[0] for case in YAML_CASES])
def test_yaml_is_read_strictly(tmp_path: Path, text: str, said: str) -> None:
    (line,) = errors(tmp_path, text)
    assert said in line


def test_aliases_that_grow_without_bound_are_refused(tmp_path: Path) -> None:
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    laughs += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    (line,) = errors(tmp_path, laughs)
    assert "too many values" in line


def test_an_underscore_may_stand_between_digits(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 1_000\nb: -1_0_0\n", encoding="utf-8")
    assert read_document(tmp_path / "a.yaml").values == {"a": 1000, "b": -100}


def test_a_few_aliases_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text("fleet: &name home\nbroker: {url: mqtt://x, username: *name}\n", encoding="utf-8")
    assert load_fleet(path).broker.username == "home"


def test_a_file_that_is_absent_a_folder_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_fleet(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_fleet(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"fleet: a\nroom: k\xfcche\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml:2: not UTF-8"):
        load_fleet(tmp_path / "latin.yaml")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=30).map("".join),
)
def test_whatever_a_file_holds_only_a_config_error_comes_out(tmp_path: Path, text: str) -> None:
    (tmp_path / "fuzz.yaml").write_text(text, encoding="utf-8", newline="")
    with contextlib.suppress(ConfigError):
        load_fleet(tmp_path / "fuzz.yaml")
