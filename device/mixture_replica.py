"""The device's copy of the fleet's mixture memory: fetched like a block of the weights, but replaced and not merged.

Between two fetches it goes on learning from the device's own local steps, and what it learned is reported to the
trainer in a few kilobytes (`common.mixture_statistics`). It lies on the disk beside the weights.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import msgpack
from torch import Tensor

from common.atomic_file import write_atomically
from common.chunks import Assembler
from common.codec import digest
from common.errors import MessageError
from common.messages import Manifest, MixtureStatistics, WeightsChunk
from common.mixture_memory import FORMAT, MIXTURE, MixtureMemory
from common.mixture_statistics import Tally, to_message
from common.state_blob import pack_state, unpack_state

LOG = logging.getLogger(__name__)
HEADER_BYTES = 1024  # of a blob, beyond its values as fp32


class MixtureReplica:
    """Only the main thread touches it. ``mixture`` is changed in place, so that others may hold on to it."""

    def __init__(self, mixture: MixtureMemory, *, boot: str, fingerprint: str, path: Path) -> None:
        self.mixture = mixture
        self._boot = boot
        self._fingerprint = fingerprint
        self._path = path
        self._fresh = {key: value.clone() for key, value in mixture.state_dict().items()}
        self._assembler = Assembler(max_bytes=HEADER_BYTES + 4 * sum(value.numel() for value in self._fresh.values()))
        self._arrived: tuple[str, bytes] | None = None
        self._wanted: str | None = None  # digest in the newest manifest
        self._run = ""  # of the newest manifest
        # Run in which it learned, and digest of the mixture that it was made from; "" where there was none.
        self._held: tuple[str, str] = ("", "")
        self._tally = Tally(*mixture.means.shape)
        self._seq = 0

    def offer_chunk(self, chunk: WeightsChunk) -> None:
        """Take one chunk of the fleet's mixture.

        Raises:
            MessageError: chunks that contradict each other, or too many bytes.
        """
        blob = self._assembler.add((chunk.run, chunk.weights_version), chunk.index, chunk.count, chunk.data)
        if blob is not None:
            self._arrived = (digest(blob), blob)

    def offer_manifest(self, manifest: Manifest) -> None:
        """Take the newest manifest: which mixture the fleet has, if any yet."""
        entry = manifest.entries.get(MIXTURE)
        self._wanted, self._run = entry.digest if entry else None, manifest.run

    @property
    def held(self) -> bool:
        """Whether it was made from a mixture of the fleet's present run."""
        return self._held[0] == self._run and bool(self._held[1])

    @property
    def missing(self) -> bool:
        """Whether the fleet has a mixture that is neither held nor here to be applied."""
        here = (self._held[1], self._arrived[0] if self._arrived else None)
        return self._wanted is not None and self._wanted not in here

    def apply(self) -> bool:
        """Replace the mixture by the fleet's, if that is here and another one; True if so.

        Raises:
            MessageError: bytes that match their digest but are no mixture of this size.
        """
        if self._run and self._held[0] != self._run:
            self._forget()
        if self._arrived is None or self._arrived[0] != self._wanted:
            return False
        (name, blob), self._arrived = self._arrived, None
        if name == self._held[1]:
            return False
        self.mixture.take_over(unpack_state(blob, {key: value.shape for key, value in self._fresh.items()}))
        self._held = (self._run, name)
        return True

    def _forget(self) -> None:
        """The projections of another run, or of none, say nothing in this one; what is heard from now on does."""
        self.mixture.take_over(self._fresh)
        self._tally.take()
        self._held = (self._run, "")

    def hear(self, z: Tensor) -> None:
        """Learn from the projections ``[N, d]`` of a local step."""
        if self.mixture.started:
            self._tally.add(z, self.mixture.nearest(z))
        self.mixture.update(z)

    def statistics(self) -> MixtureStatistics | None:
        """What was heard in local steps since the last call; None if that is nothing."""
        heard = self._tally.take()
        if heard is None:
            return None
        self._seq += 1
        return to_message(heard, boot=self._boot, seq=self._seq)

    def save(self) -> None:
        """Write it to the disk, atomically, once it has started."""
        if not self.mixture.started:
            return
        blob = pack_state(self.mixture.state_dict(), "fp32")
        body = msgpack.packb({"file": FORMAT, "fingerprint": self._fingerprint, "held": self._held, "state": blob})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, hashlib.sha256(body).digest() + body)

    def load(self, *, run: str = "") -> bool:
        """Start from the disk, if it holds a mixture of this configuration.

        ``run``: of the weights beside it, where no mixture of a fleet says more.

        Raises:
            MessageError: the file is damaged.
        """
        self._held = (run, "")
        if not self._path.exists():
            return False
        raw = self._path.read_bytes()
        if hashlib.sha256(raw[32:]).digest() != raw[:32]:
            raise MessageError(f"{self._path}: damaged (its digest does not match)")
        content = msgpack.unpackb(raw[32:])
        if content.get("file") != FORMAT or content["fingerprint"] != self._fingerprint:
            return False
        self.mixture.take_over(unpack_state(content["state"], {k: v.shape for k, v in self._fresh.items()}))
        held_run, name = content["held"]
        self._held = (held_run or run, name)
        return True
