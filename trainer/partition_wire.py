"""What a window's tensors cost on the wire, measured by sending made-up ones through the codecs."""

from __future__ import annotations

import time

import torch

from common.codec import Codec, decode, encode
from common.split import VALUE_BITS, VIEWS, WINDOW_BYTES
from trainer.partition_prices import BITS, Wire

SAMPLE_SHAPE = (VIEWS, 48, 8, 12)  # the activations of `mobile` at cut 3
REPEATS = 5
HEADER_BYTES = 180.0  # of a part or a gradient beside its tensor, MQTT's and TCP's own included: tests/bench/codec.py


def measure_wire(up: Codec, down: Codec, *, change_codec: str, delta_codec: str) -> Wire:
    """Bits of a value either way and the time the codecs take here, processor time of one thread; normal values.

    ``change_codec``, ``delta_codec``: of the weights, up and down.
    """
    sample = torch.randn(SAMPLE_SHAPE, generator=torch.Generator().manual_seed(0))
    seconds, bits = 0.0, []
    for codec in (up, down):
        encoded = encode(sample, codec)
        bits.append(BITS * (len(encoded.data) + len(encoded.scale)) / sample.numel())
        start_s = time.thread_time()
        for _ in range(REPEATS):
            decode(encode(sample, codec))
        seconds += (time.thread_time() - start_s) / REPEATS
    return Wire(
        up_bits=bits[0],
        down_bits=bits[1],
        codec_ns=1e9 * seconds / sample.numel(),
        header_bytes=HEADER_BYTES,
        weight_bits=float(VALUE_BITS[change_codec] + VALUE_BITS[delta_codec]) / 2,
        input_bytes=float(WINDOW_BYTES),
    )
