"""The device's side of the weights: what it fetches, when it moves to a version, what it publishes and stores."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from common import messages, weights_file
from common.change_blob import State
from common.chunks import split
from common.codec import digest
from common.encoder import Encoder
from common.errors import MessageError
from common.link import Link
from common.mixture_memory import MIXTURE
from common.split import block_state, client_names, names
from common.topics import Topics
from common.weights_file import StoredWeights
from device.following import Following
from device.mixture_replica import MixtureReplica
from device.replica import Change, Replica

LOG = logging.getLogger(__name__)
# How seldom the blocks beyond the cut are fetched again, for learning without the link: at cut 5 of `mobile` that is
# 0.9 MB, with 48 windows a version 0.15 % of PCM16.
REFRESH_VERSIONS = 400
# How seldom who follows every version fetches the mixture: 35 KB each time. It remembers some 30 batches; a version is
# one of them at first, later `merge_every` (6), and a round of every device in mode federated.
MIXTURE_VERSIONS = 4
SAVE_VERSIONS = 40  # how seldom the disk is written: a memory card wears


class WeightsExchange:
    """Keeps the replica up to date and the fleet informed.

    ``follow_all``: every block follows every version, also those beyond the cut, for a device that goes on using them.
    """

    def __init__(
        self,
        link: Link,
        topics: Topics,
        replica: Replica,
        encoder: Encoder,
        mixture: MixtureReplica,
        *,
        device: str,
        boot: str,
        fingerprint: str,
        path: Path,
        follow_all: bool = False,
        negligible_change: float = 0.0,
        refresh_versions: int = REFRESH_VERSIONS,
        save_versions: int = SAVE_VERSIONS,
        periods: Mapping[str, int] | None = None,
    ) -> None:
        """``periods``: block name -> in every how many-th merge it takes part; None: all in every one."""
        self._link = link
        self._topics = topics
        self._replica = replica
        self._mixture = mixture
        self._names = names(encoder)
        self._shapes: dict[str, State] = {name: block_state(encoder, name) for name in self._names}
        self._device = device
        self._boot = boot
        self._fingerprint = fingerprint
        self._path = path
        self._follow_all = follow_all
        self._negligible = negligible_change
        self._refresh_versions = refresh_versions
        self._save_versions = save_versions
        self._periods = periods
        self._following = Following(link, topics)
        self._refreshed_version = -1
        self._mixture_version = -MIXTURE_VERSIONS
        self._saved_version = -1

    def keep_up(self, *, cut: int, target: int) -> bool:
        """Between steps: move to the newest version if all that ``cut`` needs is here; True if the weights moved.

        Into another run it moves with every block: beyond the cut as well there must be nothing left of the old one.
        """
        if self._replica.another_run:
            self._refreshed_version = self._saved_version = -1
        needed = self._names if self._needs_all() else client_names(cut)
        moved = not (self._needs_all() and self._mixture_is_due()) and self._apply(needed)
        self._apply_mixture()
        if not self._replica.missing(self._names) and not self._mixture.missing:
            self._refreshed_version = self._replica.version
        deepest = max(cut, target)
        followed = self._names if self._follow_all else client_names(deepest)
        self._following.follow(followed, whole=self._fetched(deepest))
        if moved and (self._saved_version < 0 or self._replica.version - self._saved_version >= self._save_versions):
            self.save()
        return moved

    def stay(self) -> None:
        """Hear of no version any more: what is here is this device's own."""
        self._following.follow((), whole=())

    def begin_anew(self) -> None:
        """Start from the encoder as it was built, where no fleet and no disk gave any weights."""
        own = {name: {key: value.clone() for key, value in state.items()} for name, state in self._shapes.items()}
        self._replica.restore(StoredWeights(run="", version=-1, base=own, change={}))

    def _apply(self, needed: tuple[str, ...]) -> bool:
        try:
            return self._replica.apply(needed)
        except MessageError as error:
            LOG.warning("weights version %d is not applied: %s", self._replica.announced_version, error)
            return False

    def _apply_mixture(self) -> None:
        try:
            if self._mixture.apply():
                self._mixture_version = self._replica.announced_version
        except MessageError as error:
            LOG.warning("the mixture of version %d is not taken over: %s", self._replica.announced_version, error)

    def _needs_all(self) -> bool:
        return self._follow_all or self._replica.another_run or not self._replica.initialised

    def _fetched(self, deepest: int) -> list[str]:
        """What must come whole: all that is missing once the version that should be here is known."""
        if not self._replica.announced:
            return []
        every = self._refresh_is_due() or self._needs_all()
        mixture = [MIXTURE] if self._mixture_is_due() else []
        return self._replica.missing(self._names if every else client_names(deepest)) + mixture

    def _refresh_is_due(self) -> bool:
        return self._replica.announced_version - self._refreshed_version >= self._refresh_versions

    def _mixture_is_due(self) -> bool:
        if not self._mixture.missing:
            return False
        age = self._replica.announced_version - self._mixture_version
        aged = not 0 <= age < MIXTURE_VERSIONS  # below 0: the trainer went back to an older checkpoint
        return not self._mixture.held or self._refresh_is_due() or (self._follow_all and aged)

    def answer_merge(self) -> None:
        """A merge asks: publish the change, or that there is none worth sending, so that nobody waits for it."""
        self._publish_heard()
        self._publish(
            self._replica.change(negligible=self._negligible, periods=self._periods) or self._replica.nothing()
        )

    def publish_change(self) -> bool:
        """Publish everything learned here and not merged yet; True if there was anything."""
        self._publish_heard()
        change = self._replica.change()
        if change is not None:
            self._publish(change)
        return change is not None

    def _publish_heard(self) -> None:
        """What was heard in local steps goes before the change: the trainer may merge as soon as it has that."""
        heard = self._mixture.statistics()
        if heard is not None:
            self._link.publish(self._topics.mixture(self._device), messages.encode(heard), qos=1)

    def _publish(self, change: Change) -> None:
        chunks = split(change.blob)
        whole = digest(change.blob)
        for index, data in enumerate(chunks):
            chunk = messages.UpdateChunk(
                run=change.run,
                boot=self._boot,
                seq=change.seq,
                base_version=change.base_version,
                local_windows=change.local_windows,
                digest=whole,
                index=index,
                count=len(chunks),
                data=data,
            )
            self._link.publish(self._topics.update(self._device, index), messages.encode(chunk), qos=1)

    def save(self) -> None:
        """Write what this device knows to its disk; one that does not take it is no reason to stop learning."""
        try:
            weights_file.write(self._path, self._replica.snapshot(), fingerprint=self._fingerprint)
            self._mixture.save()
        except OSError as error:
            LOG.warning("%s: what was learned is not kept: %s", self._path.parent, error.strerror)
        self._saved_version = self._replica.version  # also where it was not: the next try is as seldom

    def load(self) -> bool:
        """Start from the disk, if it holds weights of this configuration.

        Raises:
            MessageError: the file is damaged.
        """
        stored = weights_file.read(self._path, self._shapes, fingerprint=self._fingerprint)
        if stored is None:
            return False
        self._replica.restore(stored)
        self._mixture.load(run=stored.run)
        return True
