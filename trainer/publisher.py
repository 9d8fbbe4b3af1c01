"""Publishes versions of the weights: what leads from the last one to this, then every block whole, the manifest last.

Whole blocks are retained, for newcomers and for who missed a version; nobody else listens to them. Who holds the
version before follows the deltas, which are not retained: a fraction of the bytes, and the same weights bit for bit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from common import messages
from common.change_blob import State
from common.chunks import split
from common.codec import digest
from common.delta import advance, pack_delta
from common.encoder import Encoder
from common.errors import MessageError
from common.link import Link
from common.messages import DeltaChunk, Manifest, ManifestEntry, WeightsChunk
from common.mixture_memory import MIXTURE, MixtureMemory
from common.packed_change import ChangeCodec
from common.split import block_state, names
from common.state_blob import WeightsDtype, pack_state, unpack_state
from common.topics import Topics


class Publisher:
    """Owner of ``_weights/#`` on the broker. ``delta_codec`` None: every version travels whole."""

    def __init__(
        self,
        link: Link,
        topics: Topics,
        *,
        run: str,
        fingerprint: str,
        dtype: WeightsDtype,
        delta_codec: ChangeCodec | None,
    ) -> None:
        self._link = link
        self._topics = topics
        self._run = run
        self._fingerprint = fingerprint
        self._dtype: WeightsDtype = dtype
        self._delta_codec: ChangeCodec | None = delta_codec
        self._published: dict[str, bytes] = {}

    def publish(
        self,
        encoder: Encoder,
        *,
        version: int,
        merged: Mapping[str, tuple[str, int]],
        mixture: MixtureMemory | None = None,
        moved: Collection[str] | None = None,
    ) -> None:
        """Publish every block of ``encoder`` as ``version``; ``merged`` names the changes it holds.

        Blocks that are not in ``moved`` stay as they were published (None: all have moved).

        The first time whole; after that as near to it as the deltas lead, the rest with the versions to come.
        So is ``mixture`` once it has started, always whole and in half precision: 35 KB for 64 components.
        """
        outgoing: list[tuple[str, bytes]] = []
        entries: dict[str, ManifestEntry] = {}
        states = {name: block_state(encoder, name) for name in names(encoder)}
        blobs = {
            name: self._published[name]
            if moved is not None and name not in moved and name in self._published
            else self._move(name, {key: value.cpu() for key, value in state.items()}, version)
            for name, state in states.items()
        }
        if mixture is not None and mixture.started:
            blobs[MIXTURE] = pack_state(mixture.state_dict(), "fp16")
        for name, blob in blobs.items():
            chunks = split(blob)
            entries[name] = ManifestEntry(digest(blob), len(chunks), len(blob))
            for index, data in enumerate(chunks):
                chunk = WeightsChunk(self._run, version, name, index, len(chunks), data)
                outgoing.append((self._topics.weights(name, index), messages.encode(chunk)))
        manifest = Manifest(self._run, self._fingerprint, version, entries, dict(merged))
        outgoing.append((self._topics.manifest(), messages.encode(manifest)))
        self._link.retain_many(outgoing)

    def _move(self, name: str, wanted: State, version: int) -> bytes:
        """The bytes of the block in this version; publishes what leads there from the bytes before."""
        before = self._published.get(name)
        step = None if before is None else self._step(before, wanted)
        if before is None or step is None:
            self._published[name] = pack_state(wanted, self._dtype)
            return self._published[name]
        delta, blob = step
        if blob != before:
            self._publish_delta(name, digest(before), delta, version)
        self._published[name] = blob
        return blob

    def _step(self, before: bytes, wanted: State) -> tuple[bytes, bytes] | None:
        """The delta and where it leads; None where the block must travel whole."""
        if self._delta_codec is None:
            return None
        published = unpack_state(before, {key: value.shape for key, value in wanted.items()})
        try:
            delta = pack_delta(published, wanted, self._delta_codec)
            return delta, advance(published, delta, self._dtype)
        except (ValueError, MessageError):  # at the end of the dtype's range, where a rounding leads beyond it
            return None

    def _publish_delta(self, name: str, base: str, delta: bytes, version: int) -> None:
        chunks = split(delta)
        for index, data in enumerate(chunks):
            chunk = DeltaChunk(self._run, version, name, base, index, len(chunks), data)
            self._link.publish(self._topics.delta(name, index), messages.encode(chunk), qos=1)
