from __future__ import annotations

from pathlib import Path

import pytest

from common.change_blob import State
from common.encoder import build_encoder
from common.errors import MessageError
from common.split import block_state, names
from common.weights_file import SentChange, StoredWeights, read, write
from tests.published import FINGERPRINT, everywhere, same

ENCODER = build_encoder("mobile", seed=0)
SHAPES: dict[str, State] = {name: block_state(ENCODER, name) for name in names(ENCODER)}


def stored(version: int = 4) -> StoredWeights:
    learned = everywhere(ENCODER, 1 / 3, ["stem", "7"])
    sent = (SentChange("a" * 16, 2, {"7": learned["7"]}, 3), SentChange("a" * 16, 3, learned, 4))
    return StoredWeights("run-1", version, SHAPES, learned, 5, everywhere(ENCODER, 0.25, ["stem"]), sent, "c" * 16, 7)


def assert_same(got: dict[str, State], wanted: dict[str, State]) -> None:
    assert list(got) == list(wanted)
    assert all(same(got[name], wanted[name]) for name in wanted)


def test_what_was_written_is_read_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "made" / "on the way" / "weights.bin"
    write(path, stored(), fingerprint=FINGERPRINT)
    found = read(path, SHAPES, fingerprint=FINGERPRINT)
    assert found is not None
    assert (found.run, found.version) == ("run-1", 4)
    assert_same(found.base, SHAPES)
    assert_same(found.change, stored().change)
    assert_same(found.summed, stored().summed)
    assert found.local_windows == 5
    for one, wanted in zip(found.sent, stored().sent, strict=True):
        assert (one.boot, one.seq, one.local_windows) == (wanted.boot, wanted.seq, wanted.local_windows)
        assert_same(one.blocks, wanted.blocks)


def test_nothing_learned_and_nothing_sent_is_written_as_such(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    write(path, StoredWeights("run-1", 4, SHAPES, {}), fingerprint=FINGERPRINT)
    found = read(path, SHAPES, fingerprint=FINGERPRINT)
    assert found is not None
    assert (found.change, found.local_windows, found.sent) == ({}, 0, ())


def test_without_a_file_or_with_one_of_another_configuration_there_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    assert read(path, SHAPES, fingerprint=FINGERPRINT) is None
    write(path, stored(), fingerprint="0" * 64)
    assert read(path, SHAPES, fingerprint=FINGERPRINT) is None


@pytest.mark.parametrize("keep", [0, 10, 32, 33, -1])
def test_a_torn_file_is_noticed(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "weights.bin"
    write(path, stored(), fingerprint=FINGERPRINT)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(MessageError, match="damaged"):
        read(path, SHAPES, fingerprint=FINGERPRINT)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path, share: float) -> None:
    path = tmp_path / "weights.bin"
    write(path, stored(), fingerprint=FINGERPRINT)
    content = bytearray(path.read_bytes())
    content[round(share * (len(content) - 1))] ^= 4
    path.write_bytes(content)
    with pytest.raises(MessageError, match="damaged"):
        read(path, SHAPES, fingerprint=FINGERPRINT)


def test_a_crash_before_the_rename_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.bin"
    write(path, stored(4), fingerprint=FINGERPRINT)

    def crash(_: Path, target: Path) -> None:
        raise KeyboardInterrupt(str(target))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            write(path, stored(5), fingerprint=FINGERPRINT)
    found = read(path, SHAPES, fingerprint=FINGERPRINT)
    assert found is not None
    assert found.version == 4
    write(path, stored(6), fingerprint=FINGERPRINT)
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.bin"]
