"""What lies before and after a cut: block names, their weights, and what each cut costs on the wire."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from common.config_types import DEFAULT_CHANGE_CODEC
from common.encoder import Encoder

if TYPE_CHECKING:
    from common.codec import Codec

VIEWS = 2
# Before entropy coding; of ecsq after it, measured on normal values.
VALUE_BITS = {"fp32": 32.0, "fp16": 16.0, "int8": 8.0, "int4": 4.0, "ecsq": 2.1, "ternary": 1.6}
BEFORE_STEM = -1  # where a part enters whose device runs nothing: in the place of a cut, only inside a program
WINDOW_BYTES = 30_720  # a window of 15,360 samples as PCM16: what a cut has to beat


@dataclass(frozen=True, slots=True)
class CutRow:
    """What one cut costs.

    Attributes:
        cut: blocks that run on the device.
        shape: of the activations of one window, both views.
        up_bytes: activations of one window after the codec, tensor and scales, without headers.
        down_bytes: gradient of one window, likewise.
        device_parameters: parameters on the device, the stem included.
        exchange_bytes: one weight exchange, the device's change up and the step to the next version down; values only.
    """

    cut: int
    shape: tuple[int, ...]
    up_bytes: int
    down_bytes: int
    device_parameters: int
    exchange_bytes: int


def names(encoder: Encoder) -> tuple[str, ...]:
    """Names of everything that has weights, in the order it runs: stem, blocks, head."""
    return ("stem", *(str(index) for index in range(encoder.depth)), "head")


def client_names(cut: int) -> tuple[str, ...]:
    """Names of what runs on a device at this cut; `BEFORE_STEM`: nothing does."""
    return () if cut == BEFORE_STEM else ("stem", *(str(index) for index in range(cut)))


def server_names(encoder: Encoder, cut: int) -> tuple[str, ...]:
    """Names of what runs on the trainer for a part with this cut."""
    return names(encoder)[1 + cut :]


def block(encoder: Encoder, name: str) -> nn.Module:
    """The module of that name.

    Raises:
        KeyError: no such block.
    """
    if name not in names(encoder):
        raise KeyError(f"{encoder.name} has no block {name!r}, it has {', '.join(names(encoder))}")
    if name == "stem":
        return encoder.stem
    return encoder.head if name == "head" else encoder.blocks[int(name)]


def block_parameters(encoder: Encoder, name: str) -> list[nn.Parameter]:
    """The parameters of one block, in a fixed order."""
    return list(block(encoder, name).parameters())


def block_state(encoder: Encoder, name: str) -> dict[str, Tensor]:
    """A copy of one block's weights, detached; names are relative to the block."""
    return {key: value.detach().clone() for key, value in block(encoder, name).state_dict().items()}


def block_shapes(encoder: Encoder, name: str) -> dict[str, torch.Size]:
    """Names and shapes of one block's weights: what to expect of received ones."""
    return {key: value.shape for key, value in block(encoder, name).state_dict().items()}


def merge_periods(encoder: Encoder, values_per_merge: int) -> dict[str, int]:
    """Block name -> in every how many-th version it is merged: the larger, the more seldom (measured: the first blocks,
    which are small, are those that must not wait).
    """
    sizes = {name: sum(value.numel() for value in block_parameters(encoder, name)) for name in names(encoder)}
    return {name: max(1, math.ceil(size / values_per_merge)) for name, size in sizes.items()}


def load_block(encoder: Encoder, name: str, state: Mapping[str, Tensor]) -> None:
    """Write weights into one block in place, all or nothing; optimizers keep pointing at the same parameters.

    Raises:
        ValueError: names or shapes differ from the block's; nothing is changed.
    """
    expected = block_shapes(encoder, name)
    if expected != {key: value.shape for key, value in state.items()}:
        raise ValueError(f"block {name!r} of {encoder.name} has other names or shapes than the given weights")
    block(encoder, name).load_state_dict(dict(state), strict=True)


def cut_table(
    encoder: Encoder,
    codec: Codec,
    *,
    gradient_codec: Codec | None = None,
    change_codec: str = "fp32",
    delta_codec: str = "fp32",
) -> list[CutRow]:
    """The cost of every cut, bytes measured by encoding a random tensor; ``gradient_codec`` None = the same codec."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for cut in range(encoder.depth + 1):
        shape = (VIEWS, *encoder.activation_shape(cut))
        sample = torch.randn(shape, generator=generator)
        parameters = sum(p.numel() for name in client_names(cut) for p in block_parameters(encoder, name))
        row = CutRow(
            cut=cut,
            shape=shape,
            up_bytes=_encoded_bytes(sample, codec),
            down_bytes=_encoded_bytes(sample, gradient_codec or codec),
            device_parameters=parameters,
            exchange_bytes=round(parameters * (VALUE_BITS[change_codec] + VALUE_BITS[delta_codec]) / 8),
        )
        rows.append(row)
    return rows


def _encoded_bytes(sample: Tensor, codec: Codec) -> int:
    from common.codec import encode  # here: what cuts and blocks are is known without the wire

    encoded = encode(sample, codec)
    return len(encoded.scale) + len(encoded.data)


def format_cut_table(rows: Sequence[CutRow]) -> str:
    """The table as aligned text, one line per cut; ``of PCM16`` compares both directions with a window of raw audio."""
    header = ("cut", "activations", "up B/window", "down B/window", "of PCM16", "device params", "exchange B")
    lines = [header, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _cells(row: CutRow) -> tuple[str, ...]:
    share = (row.up_bytes + row.down_bytes) / WINDOW_BYTES
    shape = " x ".join(map(str, row.shape))
    counts = (f"{value:,}" for value in (row.up_bytes, row.down_bytes))
    return (str(row.cut), shape, *counts, f"{share:.1%}", f"{row.device_parameters:,}", f"{row.exchange_bytes:,}")


def main(argv: Sequence[str] | None = None) -> int:
    """``plan-cuts``: print what each cut of an encoder costs on the wire; returns the exit status."""
    import argparse

    from common.codec import DEFAULT_ACTIVATIONS_CODEC, DEFAULT_GRADIENT_CODEC, Codec
    from common.encoder import ENCODERS, build_encoder

    parser = argparse.ArgumentParser(
        prog="streamsplit plan-cuts",
        description="For every cut: activation shape, bytes per window and direction, parameters, one weight exchange.",
    )
    parser.add_argument("--encoder", choices=ENCODERS, default="mobile")
    parser.add_argument("--codec", default=DEFAULT_ACTIVATIONS_CODEC, help="of the activations")
    parser.add_argument("--gradient-codec", default=DEFAULT_GRADIENT_CODEC)
    parser.add_argument(
        "--change-codec", choices=VALUE_BITS, default=DEFAULT_CHANGE_CODEC, help="of the changes of weights, up"
    )
    parser.add_argument(
        "--delta-codec", choices=VALUE_BITS, default=DEFAULT_CHANGE_CODEC, help="of the steps of versions, down"
    )
    given = parser.parse_args(argv)
    try:
        codec, gradient_codec = Codec.parse(given.codec), Codec.parse(given.gradient_codec)
    except ValueError as error:
        parser.error(str(error))
    rows = cut_table(
        build_encoder(given.encoder, seed=0),
        codec,
        gradient_codec=gradient_codec,
        change_codec=given.change_codec,
        delta_codec=given.delta_codec,
    )
    print(format_cut_table(rows))
    return 0
