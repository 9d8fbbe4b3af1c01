from __future__ import annotations

import argparse

import pytest

from common.arguments import between


def test_a_number_within_its_range_is_taken() -> None:
    assert between(int, 0, 8)("8") == 8
    assert between(float, 0.0)("1e9") == 1e9


@pytest.mark.parametrize("text", ["-1", "9"])
def test_one_outside_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"{text}: allowed are 0 to 8"):
        between(int, 0, 8)(text)


@pytest.mark.parametrize("text", ["nan", "-0.1"])
def test_what_is_no_number_is_in_no_range(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"allowed are 0\.0 and more"):
        between(float, 0.0)(text)
