"""Publishes versions of the weights, retained: the chunks of every block first, the manifest last."""

from __future__ import annotations

from collections.abc import Mapping

from common import messages
from common.chunks import split
from common.codec import digest
from common.encoder import Encoder
from common.link import Link
from common.messages import Manifest, ManifestEntry, WeightsChunk
from common.split import block_state, names
from common.state_blob import WeightsDtype, pack_state
from common.topics import Topics


class Publisher:
    """Owner of ``_weights/#`` on the broker."""

    def __init__(self, link: Link, topics: Topics, *, run: str, fingerprint: str, dtype: WeightsDtype) -> None:
        self._link = link
        self._topics = topics
        self._run = run
        self._fingerprint = fingerprint
        self._dtype: WeightsDtype = dtype

    def publish(self, encoder: Encoder, *, version: int, merged: Mapping[str, tuple[str, int]]) -> None:
        """Publish every block of ``encoder`` as ``version``; ``merged`` names the changes it holds."""
        outgoing: list[tuple[str, bytes]] = []
        entries: dict[str, ManifestEntry] = {}
        for name in names(encoder):
            state = {key: value.cpu() for key, value in block_state(encoder, name).items()}
            blob = pack_state(state, self._dtype)
            chunks = split(blob)
            entries[name] = ManifestEntry(digest(blob), len(chunks), len(blob))
            for index, data in enumerate(chunks):
                chunk = WeightsChunk(self._run, version, name, index, len(chunks), data)
                outgoing.append((self._topics.weights(name, index), messages.encode(chunk)))
        manifest = Manifest(self._run, self._fingerprint, version, entries, dict(merged))
        outgoing.append((self._topics.manifest(), messages.encode(manifest)))
        self._link.retain_many(outgoing)
