"""A device's weights on its own disk, so that it starts and learns without a network, and whoever evaluates it.

One file, replaced atomically: a power cut leaves the old one or the new one, never a half.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import msgpack

from common.atomic_file import write_atomically
from common.change_blob import State, pack_blocks, unpack_blocks
from common.encoder import Encoder
from common.errors import MessageError
from common.split import block_state, load_block, names

FILE_VERSION = 6


@dataclass(frozen=True, slots=True)
class SentChange:
    """A change that was published and that no manifest has named yet.

    ``blocks`` are dequantised: exactly what the trainer adds, so that the rounding error stays in the unsent change.
    """

    boot: str
    seq: int
    blocks: dict[str, State]
    local_windows: int


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """What the file holds: the fleet's weights at ``version`` of ``run`` and the change learned here since.

    ``summed``: what was learned without moving the weights. ``local_windows``: on how many windows that were never sent
    the change was learned. ``sent``, oldest first: what of the change was published and may have been merged while the
    device was away. ``boot`` and ``seq``: the newest change published before this was written; a later one of that boot
    held all of this.
    """

    run: str
    version: int
    base: dict[str, State]
    change: dict[str, State]
    local_windows: int = 0
    summed: dict[str, State] = field(default_factory=dict)
    sent: tuple[SentChange, ...] = ()
    boot: str = ""
    seq: int = 0


def write(path: Path, stored: StoredWeights, *, fingerprint: str) -> None:
    """Write at once and whole; the folder is made if absent."""
    body = msgpack.packb(
        {
            "file": FILE_VERSION,
            "fingerprint": fingerprint,
            "run": stored.run,
            "version": stored.version,
            "base": pack_blocks(stored.base, "fp32"),
            "change": pack_blocks(stored.change, "fp32"),
            "summed": pack_blocks(stored.summed, "fp32"),
            "local_windows": stored.local_windows,
            "sent": [(one.boot, one.seq, pack_blocks(one.blocks, "fp32"), one.local_windows) for one in stored.sent],
            "boot": stored.boot,
            "seq": stored.seq,
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, hashlib.sha256(body).digest() + body)


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
        SentChange(boot, seq, unpack_blocks(blob, shapes), local_windows)
        for boot, seq, blob, local_windows in content["sent"]
    )
    return StoredWeights(
        run=content["run"],
        version=content["version"],
        base=base,
        change=change,
        local_windows=content["local_windows"],
        summed=unpack_blocks(content["summed"], shapes),
        sent=sent,
        boot=content["boot"],
        seq=content["seq"],
    )


def restore_encoder(path: Path, encoder: Encoder, *, fingerprint: str) -> bool:
    """Load what the device would compute with into ``encoder``; False if there is no file, or of another fingerprint.

    Raises:
        MessageError: the file is damaged.
    """
    stored = read(path, {name: block_state(encoder, name) for name in names(encoder)}, fingerprint=fingerprint)
    if stored is None:
        return False
    for name, base in stored.base.items():
        change = stored.change.get(name)
        load_block(encoder, name, {key: value + change[key] for key, value in base.items()} if change else base)
    return True
