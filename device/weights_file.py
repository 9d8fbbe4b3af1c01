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
from device.replica import SentChange

FILE_VERSION = 2


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """What the file holds: the fleet's weights at ``version`` of ``run`` and the change learned here since.

    ``sent``: what of the change was published and may have been merged while the device was away.
    """

    run: str
    version: int
    base: dict[str, State]
    change: dict[str, State]
    sent: SentChange | None = None


def write(path: Path, stored: StoredWeights, *, fingerprint: str) -> None:
    """Write atomically: temporary file, fsync, rename."""
    sent = stored.sent
    body = msgpack.packb(
        {
            "file": FILE_VERSION,
            "fingerprint": fingerprint,
            "run": stored.run,
            "version": stored.version,
            "base": pack_blocks(stored.base, "fp32"),
            "change": pack_blocks(stored.change, "fp32"),
            "sent": (sent.boot, sent.seq, pack_blocks(sent.blocks, "fp32")) if sent else None,
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
    sent = None
    if content["sent"]:
        boot, seq, blob = content["sent"]
        sent = SentChange(boot, seq, unpack_blocks(blob, shapes))
    return StoredWeights(content["run"], content["version"], base, change, sent)
