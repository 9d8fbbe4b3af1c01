"""Numbers of a command line, with the range that is allowed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

N = TypeVar("N", int, float)


def between(kind: Callable[[str], N], least: N, most: N | None = None) -> Callable[[str], N]:
    """An argparse type: a number from ``least`` to ``most`` (None: no end), refused in words where it is not."""

    def parse(text: str) -> N:
        value = kind(text)
        if not (value >= least and (most is None or value <= most)):
            allowed = f"{least} and more" if most is None else f"{least} to {most}"
            raise argparse.ArgumentTypeError(f"{text}: allowed are {allowed}")
        return value

    parse.__name__ = kind.__name__
    return parse
