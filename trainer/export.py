"""``streamsplit export``: what a fleet learned as one file that torch runs without this project."""

from __future__ import annotations

import argparse
import io
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from common.atomic_file import write_atomically
from common.config import EXIT_CONFIG
from common.encoder import Encoder
from common.errors import ConfigError
from common.log_mel import WINDOW_SAMPLES, LogMel
from trainer.checkpoint import load_given
from trainer.evaluate import restore_encoder

MOST_WINDOWS = 65_536


class SoundEncoder(nn.Module):
    """Waveforms ``[N, 15360]`` float32 in [-1, 1] at 16 kHz to embeddings ``[N, D]``: front end and encoder in one."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.log_mel = LogMel()
        self.encoder = encoder

    def forward(self, waveforms: Tensor) -> Tensor:
        """Embeddings of waveforms."""
        embeddings: Tensor = self.encoder(self.log_mel(waveforms))
        return embeddings


def exported(encoder: Encoder) -> bytes:
    """`SoundEncoder` of ``encoder`` as torch.export writes it, for any number of windows from 1 to 65,536."""
    windows = torch.export.Dim("windows", min=1, max=MOST_WINDOWS)
    example = torch.zeros(2, WINDOW_SAMPLES)
    program = torch.export.export(SoundEncoder(encoder).eval(), (example,), dynamic_shapes={"waveforms": {0: windows}})
    file = io.BytesIO()
    with warnings.catch_warnings():  # torch warns of views in its own table of constants
        warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)
        torch.export.save(program, file)
    return file.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file and say what it takes and gives; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="streamsplit export", description="Write the encoder of a checkpoint for use without this project."
    )
    parser.add_argument("checkpoint", type=Path, help="a checkpoint file, or a folder of them (its newest)")
    parser.add_argument("--out", type=Path, default=Path("encoder.pt2"), help="the file (default encoder.pt2)")
    given = parser.parse_args(argv)
    try:
        file, checkpoint = load_given(given.checkpoint)
        encoder = restore_encoder(checkpoint)
        write_atomically(given.out, exported(encoder))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIG
    except OSError as error:
        print(f"--out {given.out}: {error.strerror}; allowed: a file in a folder to write in", file=sys.stderr)
        return EXIT_CONFIG
    print(f"{file}: {checkpoint.encoder_name}, weights version {checkpoint.weights_version}")
    print(f"{given.out}: waveforms [N, {WINDOW_SAMPLES}] float32 at 16 kHz to embeddings [N, {encoder.embedding_dim}]")
    return 0
