"""The device's copy of the fleet's weights: the version it stands on, its own unsent change, and what is arriving.

Four sets of numbers: ``base`` is what the fleet published, the encoder holds ``base`` plus the optimizer steps taken
here, ``summed`` is what was learned without moving the encoder (gradients that a merge will take its step with), and
``sent`` remembers the quantised changes that were published but not yet seen in a manifest. A version is applied
only when the digest of every block the device needs matches the manifest, all at once, so a torn set can never be used.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from common.change_blob import State, most_bytes, pack_blocks, unpack_blocks
from common.chunks import Assembler
from common.codec import digest
from common.delta import advance
from common.encoder import Encoder
from common.errors import MessageError
from common.messages import DeltaChunk, Manifest, WeightsChunk
from common.packed_change import ChangeCodec
from common.split import block, block_state, load_block, names
from common.state_blob import WeightsDtype, pack_state, unpack_state
from common.weights_file import SentChange, StoredWeights

LOG = logging.getLogger(__name__)
SENT_KEPT = 4  # updates of which a manifest may still speak; one a merge is normal


@dataclass(frozen=True, slots=True)
class Change:
    """What was learned here since ``base_version`` of ``run``, packed for the wire."""

    run: str
    seq: int
    base_version: int
    local_windows: int
    blob: bytes


class Replica:
    """Weights on one device. Only the main thread touches it."""

    def __init__(
        self, encoder: Encoder, *, device: str, boot: str, dtype: WeightsDtype, change_codec: ChangeCodec
    ) -> None:
        self._encoder = encoder
        self._device = device
        self._boot = boot
        self._dtype: WeightsDtype = dtype
        self._change_codec: ChangeCodec = change_codec
        self._assemblers: dict[str, Assembler] = {}
        self._deltas: dict[str, Assembler] = {}
        self._arrived: dict[str, tuple[str, bytes]] = {}  # name -> digest, bytes: complete, not applied yet
        self._held: dict[str, str] = {}  # name -> digest of the bytes its base was made from
        self._base: dict[str, State] = {}
        self._summed: dict[str, State] = {}
        self._trained: set[str] = set()  # since the newest change was packed
        self._sent: OrderedDict[tuple[str, int], SentChange] = OrderedDict()  # by boot and seq
        self._restored: SentChange | None = None  # all that came from the disk, until something is merged
        self._manifest: Manifest | None = None
        self._applied: dict[str, str] = {}  # name -> digest in the version held
        self._seq = 0
        self.version = -1
        self.run = ""
        self.local_windows = 0
        self.chunks = 0  # of weights that came and could be used

    def offer_chunk(self, chunk: WeightsChunk) -> None:
        """Take one chunk of a block's weights.

        Raises:
            MessageError: an unknown block, or chunks that contradict each other.
        """
        if chunk.name not in names(self._encoder):
            raise MessageError(f"weights: unknown block {chunk.name!r}")
        most = most_bytes({chunk.name: block_state(self._encoder, chunk.name)})
        assembler = self._assemblers.setdefault(chunk.name, Assembler(max_bytes=most))
        blob = assembler.add((chunk.run, chunk.weights_version), chunk.index, chunk.count, chunk.data)
        self.chunks += 1
        if blob is not None:
            self._arrived[chunk.name] = (digest(blob), blob)

    def offer_built(self) -> None:
        """Let the encoder as it was built count as received: if the fleet begins with it, nothing has to travel."""
        for name in names(self._encoder):
            blob = pack_state(block_state(self._encoder, name), self._dtype)
            self._arrived[name] = (digest(blob), blob)

    def offer_delta(self, chunk: DeltaChunk) -> None:
        """Take one chunk of what leads a block to its next version; passed over without the version it starts from.

        Whether it led there is for the manifest to say, which names the digest of the bytes that it must give.

        Raises:
            MessageError: an unknown block, chunks that contradict each other, or no delta of this block.
        """
        if chunk.name not in names(self._encoder):
            raise MessageError(f"delta: unknown block {chunk.name!r}")
        most = most_bytes({chunk.name: block_state(self._encoder, chunk.name)})
        assembler = self._deltas.setdefault(chunk.name, Assembler(max_bytes=most))
        delta = assembler.add((chunk.run, chunk.weights_version, chunk.base), chunk.index, chunk.count, chunk.data)
        start = self._standing_at(chunk.name, chunk.base) if delta is not None else None
        if delta is not None and start is not None:
            blob = advance(start, delta, self._dtype)
            self._arrived[chunk.name] = (digest(blob), blob)

    def _standing_at(self, name: str, wanted: str) -> State | None:
        """The weights of a block whose digest is ``wanted``, arrived or held."""
        if name in self._arrived and self._arrived[name][0] == wanted:
            return self._unpack(name)
        return self._base[name] if self._held.get(name) == wanted else None

    def offer_manifest(self, manifest: Manifest) -> None:
        """Take the newest manifest; `apply` uses it once every block it is asked for is here."""
        self._manifest = manifest

    @property
    def announced(self) -> bool:
        """Whether the fleet has said which version there is."""
        return self._manifest is not None

    @property
    def announced_version(self) -> int:
        """The version the newest manifest names, or the one already held."""
        return self._manifest.weights_version if self._manifest else self.version

    @property
    def another_run(self) -> bool:
        """Whether the newest manifest is of another run than the weights held: none of them says anything there."""
        return self._manifest is not None and self._manifest.run != self.run

    @property
    def initialised(self) -> bool:
        """Whether every block has a base, from the fleet or from the disk."""
        return len(self._base) == len(names(self._encoder))

    def missing(self, needed: Iterable[str]) -> list[str]:
        """The blocks among ``needed`` whose bytes do not match the newest manifest yet."""
        return [name for name in needed if not (self._is_held(name) or self._has_arrived(name))]

    def current(self, needed: Iterable[str]) -> bool:
        """Whether every base among ``needed`` belongs to the version held: the cut may move this deep."""
        return all(name in self._held and self._held[name] == self._applied.get(name) for name in needed)

    def _wanted(self, name: str) -> str | None:
        entry = self._manifest.entries.get(name) if self._manifest else None
        return entry.digest if entry else None

    def _is_held(self, name: str) -> bool:
        return name in self._held and self._held[name] == self._wanted(name)

    def _has_arrived(self, name: str) -> bool:
        return name in self._arrived and self._arrived[name][0] == self._wanted(name)

    def apply(self, needed: Iterable[str]) -> bool:
        """Move to the announced version if every ``needed`` block is here; True if so. What was learned since stays.

        Raises:
            MessageError: bytes that match their digest but not this encoder; then nothing at all is changed.
        """
        manifest = self._manifest
        if manifest is None or self.missing(needed):
            return False
        arrived = [name for name in manifest.entries if self._has_arrived(name) and not self._is_held(name)]
        if not arrived and (manifest.run, manifest.weights_version) == (self.run, self.version):
            self._applied = {name: entry.digest for name, entry in manifest.entries.items()}
            return False
        fresh = {name: self._unpack(name) for name in arrived}
        if self._base and self.run != manifest.run:
            self._forget_change()
        merged = self._take_merged(manifest)
        for name in names(self._encoder):
            self._rebase(name, fresh.get(name), merged.get(name))
        for name in arrived:
            self._held[name] = self._arrived.pop(name)[0]
        self._applied = {name: entry.digest for name, entry in manifest.entries.items()}
        self.version, self.run = manifest.weights_version, manifest.run
        return True

    def _forget_change(self) -> None:
        """What was learned in another run is a change of other weights: it would be noise in this one."""
        LOG.warning("the trainer is in another run: what was learned since version %d is dropped", self.version)
        for name, base in self._base.items():
            load_block(self._encoder, name, base)
        self._sent.clear()
        self._restored = None
        self._summed.clear()
        self._trained.clear()
        self.local_windows = 0

    def _unpack(self, name: str) -> State:
        shapes = {key: value.shape for key, value in block_state(self._encoder, name).items()}
        try:
            return unpack_state(self._arrived[name][1], shapes)
        except MessageError:
            del self._arrived[name]  # it will not fit the next time either
            raise

    def _take_merged(self, manifest: Manifest) -> dict[str, State]:
        merged, restored = manifest.merged.get(self._device), self._restored
        if merged is None:
            return {}
        if merged in self._sent:
            sent = self._sent[merged]
            while merged in self._sent:
                self._sent.popitem(last=False)
        elif restored is not None and merged[0] == restored.boot and merged[1] > restored.seq:
            sent = restored  # the power failed after a change that the disk knows nothing of: it held all the disk has
            for key in [key for key in self._sent if key[0] == restored.boot]:
                del self._sent[key]
        else:
            return {}
        self._restored = None
        self.local_windows -= sent.local_windows
        return sent.blocks

    def _rebase(self, name: str, fresh: State | None, merged: State | None) -> None:
        if fresh is None and merged is None:
            return
        base = self._base.get(name)
        if base is None:
            assert fresh is not None, f"a change of {name} was merged that has no base"
            self._base[name] = fresh
            load_block(self._encoder, name, fresh)
            return
        local = block_state(self._encoder, name)
        learned = {key: local[key] - base[key] for key in local}
        if merged is not None:
            learned = {key: learned[key] - merged[key] for key in local}
        if merged is not None and name in self._summed:  # the rest waits beside the encoder, not in it
            self._summed[name] = {key: value + learned[key] for key, value in self._summed[name].items()}
            learned = {key: torch.zeros_like(value) for key, value in learned.items()}
        target = base if fresh is None else fresh
        self._base[name] = target
        load_block(self._encoder, name, {key: target[key] + learned[key] for key in local})

    def sum_up(self, blocks: Iterable[str], rate: float) -> None:
        """Add the gradients that ``blocks`` hold to the change, as steps of ``rate`` would, without taking them."""
        for name in blocks:
            if name not in self._summed:
                self._summed[name] = {key: torch.zeros_like(v) for key, v in block_state(self._encoder, name).items()}
            for key, parameter in block(self._encoder, name).named_parameters():
                if parameter.grad is not None:
                    self._summed[name][key].sub_(parameter.grad, alpha=rate)

    def trained(self, blocks: Iterable[str], *, local_windows: int = 0) -> None:
        """Note that ``blocks`` learned here; windows that were answered are the trainer's to count."""
        self._trained.update(blocks)
        self.local_windows += local_windows

    def change(self, *, negligible: float = 0.0, periods: Mapping[str, int] | None = None) -> Change | None:
        """The whole change since the base, packed; it stays unsent until a manifest names it.

        With ``periods`` only of the blocks that are due in the next version, and of those in the newest change, which
        this one replaces. None without one, and where it is shorter than ``negligible`` times the blocks it changes.
        """
        every = periods or {}
        due = {name for name in self._trained if (self.version + 1) % every.get(name, 1) == 0}
        changed = sorted(due | self._waiting())
        blocks = self._unsent(changed)
        if not changed or _length(blocks) < negligible * _length({name: self._base[name] for name in changed}):
            return None
        blob = pack_blocks(blocks, self._change_codec)
        self._seq += 1
        self._trained.difference_update(changed)
        arriving = unpack_blocks(blob, blocks)
        self._remember(SentChange(self._boot, self._seq, arriving, self.local_windows))
        return Change(self.run, self._seq, self.version, self.local_windows, blob)

    def nothing(self) -> Change:
        """What says that there is no change worth sending."""
        self._seq += 1
        return Change(self.run, self._seq, self.version, 0, pack_blocks({}, self._change_codec))

    def _remember(self, sent: SentChange) -> None:
        self._sent[sent.boot, sent.seq] = sent
        while len(self._sent) > SENT_KEPT:
            self._sent.popitem(last=False)

    def _changed(self) -> set[str]:
        """Blocks with more than a rounding error to tell: trained since, or in the newest change and not merged yet."""
        return self._trained | self._waiting()

    def _waiting(self) -> set[str]:
        """Blocks of the newest change that was published and is not merged yet."""
        return set(next(reversed(self._sent.values())).blocks) if self._sent else set()

    def _unsent(self, blocks: Iterable[str]) -> dict[str, State]:
        unsent = self._learned(blocks)
        for name in unsent.keys() & self._summed.keys():
            unsent[name] = {key: value + self._summed[name][key] for key, value in unsent[name].items()}
        return unsent

    def _learned(self, blocks: Iterable[str]) -> dict[str, State]:
        states = {name: block_state(self._encoder, name) for name in blocks}
        return {
            name: {key: value - self._base[name][key] for key, value in state.items()} for name, state in states.items()
        }

    def snapshot(self) -> StoredWeights:
        """For the disk: every block, what was learned since, and what of it was published."""
        return StoredWeights(
            run=self.run,
            version=self.version,
            base=self._base,
            change=self._learned(sorted(self._changed())),
            summed=dict(self._summed),
            local_windows=self.local_windows,
            sent=tuple(self._sent.values()),
            boot=self._boot,
            seq=self._seq,
        )

    def restore(self, stored: StoredWeights) -> None:
        """Stand where a snapshot stood; the change is unsent again, but for what a manifest says was merged."""
        for name, state in stored.base.items():
            self._base[name] = state
            self._held[name] = digest(pack_state(state, self._dtype))
            extra = stored.change.get(name)
            load_block(self._encoder, name, {k: v + extra[k] for k, v in state.items()} if extra else state)
        self._summed = {name: dict(state) for name, state in stored.summed.items()}
        self._trained = set(stored.change)
        for sent in stored.sent:
            self._remember(sent)
        self.local_windows = stored.local_windows
        self.run, self.version = stored.run, stored.version
        self._restored = SentChange(
            stored.boot, stored.seq, self._unsent(stored.change.keys() | stored.summed.keys()), stored.local_windows
        )


def _length(blocks: Mapping[str, State]) -> float:
    return math.sqrt(sum(float(value.square().sum()) for state in blocks.values() for value in state.values()))
