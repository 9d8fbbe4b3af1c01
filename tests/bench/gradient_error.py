"""How far quantised activations and gradients turn the client segment's parameter gradients away from fp32's, per cut.

    python -m tests.bench.gradient_error [--quick] [--json]

The last line is one JSON object. An encoder that has learnt for a while on the synthetic soundscape, two devices with
eight windows each, the Hybrid Loss at its defaults; the weights do not move while this measures. ``error`` is
``|g - g_fp32| / |g_fp32|`` over all parameters of the client segment, ``cosine`` of the angle between the two, both
means over batches; ``server_error`` the same error behind the cut, where only the activations are quantised; ``blocks``
the client's error block by block. Gradients are rounded stochastically, as the trainer rounds them: their
error has no bias, and averages out over steps.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from common.block_optimizer import BlockOptimizers
from common.codec import DEFAULT_ACTIVATIONS_CODEC, DEFAULT_GRADIENT_CODEC, Codec, decode, encode
from common.config_trainer import TrainerConfig
from common.contrastive import info_nce
from common.encoder import ENCODERS, Encoder, build_encoder
from common.log_mel import SAMPLE_RATE_HZ, WINDOW_SAMPLES, LogMel
from common.soundscape import CLASSES, clip
from common.split import block_parameters, client_names, names, server_names
from device.client_step import ClientStep
from tests.client_steps import learn
from trainer.batcher import Part
from trainer.hybrid_loss import HybridLoss
from trainer.objective import Hybrid
from trainer.server_step import ServerStep
from trainer.temporal_buffer import TemporalBuffer

DEVICES, WINDOWS = 2, 8
CODECS = (
    ("fp16", "fp16"),
    ("int8", "int8"),
    ("int4", "int4"),
    (DEFAULT_ACTIVATIONS_CODEC, DEFAULT_GRADIENT_CODEC),
)
Gradients = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Row:
    """One cut with one codec each way."""

    encoder: str
    cut: int
    activations_codec: str
    gradient_codec: str
    error: float
    cosine: float
    server_error: float
    blocks: dict[str, float]


def main() -> int:
    """Measure, print a table (or not, with ``--json``) and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="fewer training steps and batches, `mobile` only")
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps, batches = (4, 1) if arguments.quick else (60, 4)
    rows = [row for name in (ENCODERS[:1] if arguments.quick else ENCODERS) for row in measure(name, steps, batches)]
    if not arguments.json:
        _print(rows)
    sys.stdout.write(json.dumps({"bench": "gradient_error", "rows": [asdict(row) for row in rows]}) + "\n")
    return 0


def measure(name: str, steps: int, batches: int) -> list[Row]:
    """Every cut with every pair of codecs."""
    rng = np.random.default_rng(0)
    pool = views(32 if steps < 10 else 96, rng)
    encoder = learnt(name, pool, steps if name == "mobile" else steps // 3, rng)
    draws = range(batches if name == "mobile" else max(1, batches // 2))
    batch = [pool[rng.choice(len(pool), DEVICES * WINDOWS, replace=False)] for _ in draws]
    rows = []
    for cut in range(encoder.depth + 1):
        exact = [gradients(encoder, windows, cut, Codec("fp32"), Codec("fp32")) for windows in batch]
        for up, down in dict.fromkeys(CODECS):
            coded = [gradients(encoder, windows, cut, Codec.parse(up), Codec.parse(down)) for windows in batch]
            rows.append(_row(encoder, cut, up, down, coded, exact))
    return rows


def views(windows: int, rng: np.random.Generator) -> Tensor:
    """Two crops of each window's clip, [windows, 2, 1, 64, 96]."""
    crops = []
    for index in range(windows):
        samples = clip(CLASSES[index % len(CLASSES)], 3.0, rng)
        starts = rng.integers(0, 3 * SAMPLE_RATE_HZ - WINDOW_SAMPLES, 2)
        crops += [samples[start : start + WINDOW_SAMPLES] for start in starts]
    spectra: Tensor = LogMel()(torch.from_numpy(np.stack(crops)))
    return spectra.reshape(windows, 2, *spectra.shape[1:])


def learnt(name: str, pool: Tensor, steps: int, rng: np.random.Generator) -> Encoder:
    """An encoder after some steps of InfoNCE: gradients of untrained weights are another thing."""
    encoder = build_encoder(name, seed=0)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
    alone = torch.eye(16, dtype=torch.bool)
    for _ in range(steps):
        two = pool[rng.choice(len(pool), 16, replace=False)].transpose(0, 1)
        z = encoder.project(encoder(two.flatten(0, 1)))
        optimizer.zero_grad()
        info_nce(z[:16], z[16:], temperature=0.1, excluded=alone).mean.backward()
        optimizer.step()
    return encoder


def gradients(encoder: Encoder, windows: Tensor, cut: int, up: Codec, down: Codec) -> Gradients:
    """Every block's parameter gradients, flat, as a step computes them; ``windows`` [N, 2, 1, 64, 96]."""
    optimizers = BlockOptimizers(encoder, kind="sgd", weight_decay=0.0, warmup_steps=0)
    client, rounding = ClientStep(encoder, optimizers.step), torch.Generator().manual_seed(1)
    parts = [_part(client, pair, number, cut, up) for number, pair in enumerate(windows)]
    result = _server(encoder, optimizers).run(parts, learning_rate=0.0)
    server = _flat(encoder, server_names(encoder, cut))
    stochastic = rounding if down.dtype in ("int8", "int4") else None
    sent = {number: decode(encode(gradient, down, stochastic)) for number, gradient in enumerate(result.gradients)}
    learn(client, sent, learning_rate=0.0)
    return _flat(encoder, client_names(cut)) | server


def _part(client: ClientStep, pair: Tensor, number: int, cut: int, up: Codec) -> Part:
    activations = decode(encode(client.forward(pair, part=number, cut=cut), up))
    device, index = f"d{number // WINDOWS}", number % WINDOWS
    # Windows 10 s apart and in segments of their own: every other window is a negative, and no edge joins two.
    return Part(
        device, "0" * 16, 0, index, index + 1 == WINDOWS, cut, 0, 1.0, index, index, 10.0 * index, "", activations
    )


def _server(encoder: Encoder, optimizers: BlockOptimizers) -> ServerStep:
    default = TrainerConfig.model_fields
    loss = HybridLoss(
        temperature=default["temperature"].default,
        sw_weight=default["sw_weight"].default,
        sw_projections=default["sw_projections"].default,
        laplacian_weight=0.0,
    )
    directions = torch.Generator().manual_seed(2)
    return ServerStep(
        encoder,
        optimizers,
        Hybrid(loss, TemporalBuffer(), false_negative_s=0.0, directions=directions),
        compute=torch.device("cpu"),
    )


def _flat(encoder: Encoder, blocks: Sequence[str]) -> Gradients:
    return {
        name: torch.cat([p.grad.flatten() for p in block_parameters(encoder, name) if p.grad is not None])
        for name in blocks
    }


def _row(encoder: Encoder, cut: int, up: str, down: str, coded: Sequence[Gradients], exact: Sequence[Gradients]) -> Row:
    client, server = client_names(cut), [name for name in names(encoder) if name not in client_names(cut)]
    pairs = list(zip(coded, exact, strict=True))
    return Row(
        encoder=encoder.name,
        cut=cut,
        activations_codec=up,
        gradient_codec=down,
        error=float(np.mean([_error(_join(a, client), _join(b, client)) for a, b in pairs])),
        cosine=float(np.mean([torch.cosine_similarity(_join(a, client), _join(b, client), dim=0) for a, b in pairs])),
        server_error=float(np.mean([_error(_join(a, server), _join(b, server)) for a, b in pairs])),
        blocks={
            name: float(np.mean([_error(_join(a, [name]), _join(b, [name])) for a, b in pairs])) for name in client
        },
    )


def _join(gradients: Gradients, blocks: Sequence[str]) -> Tensor:
    return torch.cat([gradients[name] for name in blocks]).double()


def _error(measured: Tensor, reference: Tensor) -> float:
    return float((measured - reference).norm() / reference.norm())


def _print(rows: Sequence[Row]) -> None:
    sys.stdout.write(f"{'encoder':10}{'cut':>4}  {'up':10}{'down':14}{'error':>9}{'cosine':>9}{'server':>9}\n")
    for row in rows:
        codecs = f"{row.activations_codec:10}{row.gradient_codec:14}"
        figures = f"{row.error:9.4f}{row.cosine:9.4f}{row.server_error:9.4f}"
        sys.stdout.write(f"{row.encoder:10}{row.cut:4}  {codecs}{figures}\n")


if __name__ == "__main__":
    sys.exit(main())
