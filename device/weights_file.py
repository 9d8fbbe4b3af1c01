"""The device's weights on its own disk, so that it starts and learns without a network.

One file, replaced atomically: a power cut leaves the old one or the new one, never a half.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import msgpack

from common.change_blob import State, pack_blocks, unpack_blocks
from common.errors import MessageError

FILE_VERSION = 3


@dataclass(frozen=True, slots=True)
class SentChange:
    """A change that was published and that no manifest has named yet.

    ``blocks`` are dequantised: exactly what the trainer adds, so that the rounding error stays in the unsent change.
    """

    boot: str
    seq: int
    blocks: dict[str, State]
    windows: int
    local_windows: int


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """What the file holds: the fleet's weights at ``version`` of ``run`` and the change learned here since.

    ``windows``, ``local_windows``: on how many the change was learned. ``sent``, oldest first: what of the change was
    published and may have been merged while the device was away.
    """

    run: str
    version: int
    base: dict[str, State]
    change: dict[str, State]
    windows: int = 0
    local_windows: int = 0
    sent: tuple[SentChange, ...] = ()


def write(path: Path, stored: StoredWeights, *, fingerprint: str) -> None:
    """Write atomically: temporary file, fsync, rename."""
    body = msgpack.packb(
        {
            "file": FILE_VERSION,
            "fingerprint": fingerprint,
            "run": stored.run,
            "version": stored.version,
            "base": pack_blocks(stored.base, "fp32"),
            "change": pack_blocks(stored.change, "fp32"),
            "windows": (stored.windows, stored.local_windows),
            "sent": [
                (one.boot, one.seq, pack_blocks(one.blocks, "fp32"), one.windows, one.local_windows)
                for one in stored.sent
            ],
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as file:
        file.write(hashlib.sha256(body).digest() + body)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read(path: Path, shapes: dict[str, State], *, fingerprint: str) -> StoredWeights | None:
    """Read what `write` wrote; None if there is no file, or one of another fingerprint.

    Raises:
        MessageError: the file is damaged; the caller says so and starts from the fleet's weights.
    """
    if not path.exists():
        return None
    raw = path.read_bytes()
    if hashlib.sha256(raw[32:]).digest() != raw[:32]:
        raise MessageError(f"{path}: damaged (its digest does not match)")
    content = msgpack.unpackb(raw[32:])
    if content.get("file") != FILE_VERSION or content["fingerprint"] != fingerprint:
        return None
    base, change = unpack_blocks(content["base"], shapes), unpack_blocks(content["change"], shapes)
    sent = tuple(
        SentChange(boot, seq, unpack_blocks(blob, shapes), windows, local_windows)
        for boot, seq, blob, windows, local_windows in content["sent"]
    )
    windows, local_windows = content["windows"]
    return StoredWeights(content["run"], content["version"], base, change, windows, local_windows, sent)
