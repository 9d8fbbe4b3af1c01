"""Bytes, error and time of every codec on activations and gradients of `mobile` that has learnt for a while.

    python -m tests.bench.codec [--quick] [--json]

The last line is one JSON object. The tensors: windows of the synthetic soundscape, two crops each, after some steps of
InfoNCE; ``gradient-t`` has Student's t (3 degrees of freedom) instead, a heavier tail than any measured. The figures
are means over parts: ``bytes_per_value`` with scales, ``error`` relative L2, ``stochastic_error`` with stochastic
rounding, ``header_bytes`` what the message adds. Entropy coding: ``huffman`` is what the codec calls zlib (DEFLATE,
Z_HUFFMAN_ONLY, level 1), ``deflate`` zlib's default level, ``zstd`` level 3 where it is installed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.codec import Codec, EncodedTensor, decode, encode, quantisation_error
from common.encoder import Encoder, build_encoder
from common.log_mel import SAMPLE_RATE_HZ, WINDOW_SAMPLES, LogMel
from common.messages import Activations
from common.messages import encode as encode_message
from common.soundscape import CLASSES, clip

CUTS = (3, 5)
CODECS = ("fp32", "fp16", "int8", "int8-channel", "int4", "int4-channel", "int4-deviation")
Entropy = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Row:
    """One codec on one kind of tensor."""

    tensor: str
    shape: tuple[int, ...]
    codec: str
    entropy: str
    bytes_per_value: float
    part_bytes: float
    header_bytes: float
    error: float
    stochastic_error: float
    encode_us: float
    decode_us: float


def main() -> int:
    """Measure, print a table (or not, with ``--json``) and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="fewer training steps, parts and repetitions")
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts, steps, repetitions = (4, 2, 3) if arguments.quick else (16, 60, 30)
    rows = [
        row
        for name, tensors in _tensors(parts, steps).items()
        for codec in CODECS
        for row in _measure(name, tensors, Codec.parse(codec), repetitions)
    ]
    if not arguments.json:
        _print(rows)
    sys.stdout.write(json.dumps({"bench": "codec", "rows": [asdict(row) for row in rows]}) + "\n")
    return 0


def _tensors(parts: int, steps: int) -> dict[str, list[Tensor]]:
    """For each kind of tensor ``parts`` examples [2, C, H, W]."""
    encoder = build_encoder("mobile", seed=0)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
    rng = np.random.default_rng(0)
    pool = _views(64, rng)
    for _ in range(steps):
        optimizer.zero_grad()
        _loss(encoder, pool[rng.choice(len(pool), 16, replace=False)], {})
        optimizer.step()
    optimizer.zero_grad()
    kept: dict[int, Tensor] = {}
    _loss(encoder, pool[:parts], kept)
    made: dict[str, list[Tensor]] = {}
    generator = torch.distributions.StudentT(3.0)
    torch.manual_seed(0)
    for cut, h in kept.items():
        shape = (parts, 2, *h.shape[1:])
        made[f"activations-{cut}"] = list(h.detach().reshape(shape))
        if h.grad is not None:
            made[f"gradient-{cut}"] = list(h.grad.reshape(shape))
    made["gradient-t"] = list(generator.sample(torch.Size(shape)) * 1e-5)
    return made


def _views(windows: int, rng: np.random.Generator) -> Tensor:
    """Two crops of each window's clip, [windows, 2, 1, 64, 96]."""
    crops = []
    for index in range(windows):
        samples = clip(CLASSES[index % len(CLASSES)], 3.0, rng)
        starts = rng.integers(0, 3 * SAMPLE_RATE_HZ - WINDOW_SAMPLES, 2)
        crops += [samples[start : start + WINDOW_SAMPLES] for start in starts]
    spectra: Tensor = LogMel()(torch.from_numpy(np.stack(crops)))
    return spectra.reshape(windows, 2, *spectra.shape[1:])


def _loss(encoder: Encoder, views: Tensor, kept: dict[int, Tensor]) -> None:
    """InfoNCE over the batch and its backward pass; the tensors at `CUTS` and their gradients stay in ``kept``."""
    h, start = views.flatten(0, 1), 0
    for cut in CUTS:
        h = encoder.forward_to(h, cut) if start == 0 else encoder.forward_between(h, start, cut)
        h.retain_grad()
        kept[cut], start = h, cut
    z = encoder.project(encoder.forward_from(h, start))
    similarity = (z @ z.T / 0.1).masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
    F.cross_entropy(similarity, torch.arange(len(z)) ^ 1).backward()


def _measure(name: str, tensors: list[Tensor], codec: Codec, repetitions: int) -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    encoded = [encode(tensor, codec) for tensor in tensors]
    decoded = [decode(each) for each in encoded]
    stochastic = [decode(encode(tensor, codec, generator)) for tensor in tensors]
    error = float(np.mean([quantisation_error(*pair) for pair in zip(tensors, decoded)]))
    stochastic_error = float(np.mean([quantisation_error(*pair) for pair in zip(tensors, stochastic)]))
    encode_us = _microseconds(lambda: encode(tensors[0], codec), repetitions)
    decode_us = _microseconds(lambda: decode(encoded[0]), repetitions)
    header = float(np.mean([_header_bytes(each) for each in encoded]))
    scale = len(encoded[0].scale)
    for entropy, (compress, expand) in _entropies().items():
        coded = [compress(each.data) for each in encoded]
        part = scale + float(np.mean([len(data) for data in coded]))
        yield Row(
            tensor=name,
            shape=tuple(tensors[0].shape),
            codec=str(codec),
            entropy=entropy,
            bytes_per_value=part / tensors[0].numel(),
            part_bytes=part,
            header_bytes=header,
            error=error,
            stochastic_error=stochastic_error,
            encode_us=encode_us + _microseconds(partial(compress, encoded[0].data), repetitions),
            decode_us=decode_us + _microseconds(partial(expand, coded[0]), repetitions),
        )


def _header_bytes(encoded: EncodedTensor) -> int:
    """What a part adds to scale and data, late in a long run."""
    part = Activations("0123456789abcdef", 70_000, 7, False, 5, 9_000, 2_000, 9_000, 600_000, 10**9, "kitchen", encoded)
    return len(encode_message(part)) - len(encoded.scale) - len(encoded.data)


def _entropies() -> dict[str, tuple[Entropy, Entropy]]:
    found: dict[str, tuple[Entropy, Entropy]] = {
        "none": (bytes, bytes),
        "huffman": (_huffman, lambda data: zlib.decompress(data, -15)),
        "deflate": (zlib.compress, zlib.decompress),
    }
    try:
        zstandard: Any = importlib.import_module("zstandard")
    except ImportError:
        return found
    found["zstd"] = zstandard.ZstdCompressor(level=3).compress, zstandard.ZstdDecompressor().decompress
    return found


def _huffman(data: bytes) -> bytes:
    stream = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return stream.compress(data) + stream.flush()


def _microseconds(work: Callable[[], object], repetitions: int) -> float:
    """The median of single calls."""
    taken_s = []
    for _ in range(repetitions):
        start_s = time.perf_counter()
        work()
        taken_s.append(time.perf_counter() - start_s)
    return float(np.median(taken_s)) * 1e6


def _print(rows: list[Row]) -> None:
    heading = f"{'tensor':14}{'codec':14}{'entropy':9}{'B/value':>8}{'part B':>8}{'header':>8}{'error':>9}{'stoch.':>9}"
    sys.stdout.write(f"{heading}{'enc us':>8}{'dec us':>8}\n")
    for row in rows:
        sizes = f"{row.bytes_per_value:8.3f}{row.part_bytes:8.0f}{row.header_bytes:8.0f}"
        errors = f"{row.error:9.4f}{row.stochastic_error:9.4f}"
        times = f"{row.encode_us:8.0f}{row.decode_us:8.0f}"
        sys.stdout.write(f"{row.tensor:14}{row.codec:14}{row.entropy:9}{sizes}{errors}{times}\n")


if __name__ == "__main__":
    sys.exit(main())
