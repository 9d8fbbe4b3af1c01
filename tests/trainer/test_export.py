"""`streamsplit export`: the file gives what the encoder gives, in a process that knows nothing of this project."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import streamsplit
from common.encoder import build_encoder
from common.log_mel import WINDOW_SAMPLES, LogMel
from trainer.checkpoint import Checkpoint, save

ELSEWHERE = """
import sys, torch
sound = torch.load(sys.argv[2])
program = torch.export.load(sys.argv[1]).module()
torch.save([program(sound), program(sound[:1])], sys.argv[3])
assert not {"common", "trainer"} & set(sys.modules)
"""


def checkpoint(directory: Path, encoder: str) -> Path:
    state = dict(build_encoder(encoder, seed=3).state_dict())
    save(directory, Checkpoint("run-1", "f" * 64, encoder, state, {}, 7, 70, 560))
    return directory


@pytest.mark.parametrize("name", ["mobile", "resnet18", "efficientnet-b0"])
def test_the_file_gives_the_encoders_embeddings_without_this_project(tmp_path: Path, name: str) -> None:
    out = tmp_path / "encoder.pt2"
    assert streamsplit.main(["export", str(checkpoint(tmp_path / "state", name)), "--out", str(out)]) == 0
    sound = 0.1 * torch.randn(5, WINDOW_SAMPLES, generator=torch.Generator().manual_seed(0))
    torch.save(sound, tmp_path / "sound.pt")
    files = [str(tmp_path / file) for file in ("encoder.pt2", "sound.pt", "found.pt")]
    subprocess.run([sys.executable, "-c", ELSEWHERE, *files], cwd=tmp_path, check=True, timeout=120)
    several, one = torch.load(tmp_path / "found.pt")
    with torch.inference_mode():
        wanted = build_encoder(name, seed=3).eval()(LogMel()(sound))
    torch.testing.assert_close(several, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one, wanted[:1], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_exported_is_refused_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert streamsplit.main(["export", str(tmp_path)]) == 78
    assert "no checkpoint in this folder" in capsys.readouterr().err
    (tmp_path / "torn.pt").write_bytes(b"torn")
    assert streamsplit.main(["export", str(tmp_path / "torn.pt")]) == 78
    state = checkpoint(tmp_path / "state", "mobile")
    assert streamsplit.main(["export", str(state), "--out", str(tmp_path / "none" / "encoder.pt2")]) == 78
    assert "allowed: a file in a folder to write in" in capsys.readouterr().err
