from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from common.errors import ConfigError
from trainer.checkpoint import Checkpoint, latest, load, load_latest, save


def _checkpoint(version: int, fingerprint: str = "f" * 64) -> Checkpoint:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.fill_(float(version))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state: dict[str, object] = {
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "ranks": [1.0, 2.5],
        "merged": {"pi-1": ("0123456789abcdef", 7)},
        "nothing": None,
    }
    return Checkpoint("run-1", fingerprint, "mobile", model.state_dict(), state, version, version * 10, version * 80)


def _tear(path: Path, keep: float = 0.6) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    saved = _checkpoint(3)
    loaded = load(save(tmp_path / "made" / "on the way", saved))
    assert (loaded.run, loaded.fingerprint, loaded.encoder_name) == (saved.run, saved.fingerprint, "mobile")
    assert (loaded.weights_version, loaded.steps, loaded.windows) == (3, 30, 240)
    assert all(torch.equal(loaded.encoder[name], saved.encoder[name]) for name in saved.encoder)
    assert loaded.state["merged"] == {"pi-1": ("0123456789abcdef", 7)}
    assert torch.equal(loaded.state["rng"], saved.state["rng"])  # type: ignore[arg-type]
    restored = torch.optim.AdamW(nn.Linear(3, 2).parameters())
    restored.load_state_dict(loaded.state["optimizer"])  # type: ignore[arg-type]
    assert restored.state_dict()["state"][0]["step"] == 1


def test_only_the_last_three_stay(tmp_path: Path) -> None:
    for version in (1, 2, 9, 10, 11):
        save(tmp_path, _checkpoint(version))
    assert [load(path).weights_version for path in sorted(tmp_path.iterdir())] == [9, 10, 11]
    newest = latest(tmp_path)
    assert newest is not None
    assert load(newest).weights_version == 11


def test_a_disk_that_takes_no_checkpoint_is_the_operators_business_and_the_ones_before_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, _checkpoint(1))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.checkpoint.write_atomically", full)
    with pytest.raises(ConfigError, match=r"checkpoint-0000000002.*cannot be written: \[Errno 28\]"):
        save(tmp_path, _checkpoint(2))
    newest = load_latest(tmp_path, "f" * 64)
    assert newest is not None
    assert newest.weights_version == 1


def test_an_empty_or_absent_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert load_latest(tmp_path, "f" * 64) is None
    assert load_latest(tmp_path / "absent", "f" * 64) is None
    assert latest(tmp_path) is None


def test_a_crash_between_write_and_rename_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, _checkpoint(1))

    def crash(_: Path, target: Path) -> None:
        raise KeyboardInterrupt(str(target))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, _checkpoint(2))
    assert len(list(tmp_path.glob("*.new"))) == 1
    resumed = load_latest(tmp_path, "f" * 64)
    assert resumed is not None
    assert resumed.weights_version == 1
    save(tmp_path, _checkpoint(3))
    assert not list(tmp_path.glob("*.new"))
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".pt", ".pt"]


def test_file_and_folder_are_on_the_disk_before_save_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def watched_fsync(descriptor: int) -> None:
        events.append("folder" if Path(f"/proc/self/fd/{descriptor}").resolve() == tmp_path.resolve() else "file")
        fsync(descriptor)

    def watched_replace(path: Path, target: Path) -> Path:
        events.append("rename")
        return replace(path, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to tell a folder's descriptor")
    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    save(tmp_path, _checkpoint(1))
    assert events == ["file", "rename", "folder"]


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.6, 0.99])
def test_a_torn_newest_checkpoint_falls_back_to_the_one_before_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, keep: float
) -> None:
    save(tmp_path, _checkpoint(1))
    torn = save(tmp_path, _checkpoint(2))
    _tear(torn, keep)
    resumed = load_latest(tmp_path, "f" * 64)
    assert resumed is not None
    assert resumed.weights_version == 1
    assert torn.name in caplog.text
    assert "trying the one before" in caplog.text
    assert not torn.exists(), "set aside, so that it is met only once"


def test_a_flipped_bit_in_the_weights_is_noticed(tmp_path: Path) -> None:
    saved = _checkpoint(5)
    path = save(tmp_path, saved)
    content = bytearray(path.read_bytes())
    content[content.index(saved.encoder["weight"].numpy().tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="damaged"):
        load(path)


def test_when_none_can_be_read_nothing_starts_anew_silently(tmp_path: Path) -> None:
    _tear(save(tmp_path, _checkpoint(1)))
    for _ in range(2):
        with pytest.raises(ConfigError, match="none of its 1 checkpoints can be read"):
            load_latest(tmp_path, "f" * 64)


def test_another_fingerprint_is_refused_in_words(tmp_path: Path) -> None:
    save(tmp_path, _checkpoint(1, fingerprint="a" * 64))
    with pytest.raises(ConfigError, match=r"other settings \(fingerprint aaaaaaaaaaaa.*configured as ffffffffffff"):
        load_latest(tmp_path, "f" * 64)


def test_another_format_and_foreign_files_are_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"format_version": 99}, path)
    with pytest.raises(ConfigError, match="checkpoint format 99, this StreamSplit reads format 3"):
        load(path)
    torch.save({"weights": torch.ones(1)}, path)
    with pytest.raises(ConfigError, match="not a StreamSplit checkpoint"):
        load(path)
    torch.save({"format_version": 3, "run": "r"}, path)
    with pytest.raises(ConfigError, match="not the fields"):
        load(path)
    with pytest.raises(ConfigError, match="no such checkpoint"):
        load(tmp_path / "absent.pt")


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"format_version": 3, "run": Path("a class that is not plain data")}, path)
    with pytest.raises(ConfigError, match="not a readable checkpoint"):
        load(path)


def test_only_plain_data_is_saved_and_the_error_says_where(tmp_path: Path) -> None:
    checkpoint = _checkpoint(1)
    checkpoint.state["deep"] = {"list": [1, object()]}
    with pytest.raises(TypeError, match=r"checkpoint\['state'\]\['deep'\]\['list'\]\[1\]: object is not plain"):
        save(tmp_path, checkpoint)
    assert not list(tmp_path.iterdir())


def test_a_slice_is_saved_without_the_storage_it_is_cut_from(tmp_path: Path) -> None:
    checkpoint = _checkpoint(1)
    checkpoint.state["slice"] = torch.zeros(1_000_000)[:3]
    assert save(tmp_path, checkpoint).stat().st_size < 100_000


def test_a_checkpoint_that_may_not_be_read_is_not_taken_for_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, _checkpoint(1))

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(ConfigError, match="cannot be read: Too many open files"):
        load_latest(tmp_path, "f" * 64)
    monkeypatch.undo()
    assert path.exists(), "nothing is put aside"
