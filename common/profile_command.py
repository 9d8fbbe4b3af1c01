"""``streamsplit profile``: what an encoder costs on this machine, block by block, and the file the planner reads."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.compute_profile import ComputeProfile, Cost, as_json, save
from common.encoder import ENCODERS, build_encoder
from common.errors import ConfigError
from common.profiling import cache_folder, cached_profile


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, or take from the cache, and print; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="streamsplit profile",
        description="Measure forward and backward time, values, parameters and memory of an encoder on this machine.",
    )
    parser.add_argument("--encoder", choices=ENCODERS, default="mobile")
    parser.add_argument("--out", type=Path, help="write the profile to this file too")
    parser.add_argument("--fresh", action="store_true", help="measure anew, whatever the cache holds")
    parser.add_argument("--json", action="store_true", help="print the profile's file instead of a table")
    given = parser.parse_args(argv)
    encoder = build_encoder(given.encoder, seed=0)
    try:
        profile = cached_profile(encoder, cache_folder(), nodes=True, fresh=given.fresh)
        if given.out is not None:
            save(profile, given.out)
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be written: {error.strerror}") from error
    print(as_json(profile) if given.json else format_profile(profile))
    return 0


def format_profile(profile: ComputeProfile) -> str:
    """The blocks as aligned text, one line each, and what the whole costs."""
    header = ("block", "forward ms", "backward ms", "values", "parameters", "memory B")
    lines = [header, *(_cells(cost) for cost in profile.blocks)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    whole_ms = sum(cost.train_ms for cost in profile.blocks)
    where = f"{profile.encoder} on {profile.hardware}, torch {profile.torch}"
    whole = f"one window, two views: {whole_ms:.1f} ms forward and backward; {len(profile.nodes)} nodes in its graph"
    memory = f"largest memory of the process: {profile.peak_bytes / 2**20:.0f} MiB"
    return "\n".join([*table, where, whole, memory])


def _cells(cost: Cost) -> tuple[str, ...]:
    times = f"{cost.forward_ms:.2f}", f"{cost.backward_ms:.2f}"
    counts = (f"{value:,}" for value in (cost.output_values, cost.parameters, cost.memory_bytes))
    return (cost.name, *times, *counts)
