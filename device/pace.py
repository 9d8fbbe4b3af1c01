"""How a device goes about its work: what the loop and its parts are told once, at the start."""

from __future__ import annotations

from dataclasses import dataclass

from common.audio_codec import AudioCodec


@dataclass(frozen=True, slots=True)
class Pace:
    """How a device goes about its work. ``lockstep``: wait for every version asked for, so that a run repeats.

    ``local_waiting``: windows for local steps that a step in flight holds up; older ones are given up.
    """

    parts_per_step: int
    windows: int | None
    min_cut: int
    first_cut: int
    deadline_s: float
    step_timeout_s: float
    start_timeout_s: float
    local_learning: bool
    learn_unsent: bool
    local_waiting: int
    lockstep: bool
    sound: AudioCodec | None = None  # server-only: windows leave as sound, nothing is learned here, no weights are held
    sends_windows: bool = True  # else the device learns alone
    own_embedding: bool = False  # every window's embedding is computed here as well, at once
    sync_every_windows: int | None = None  # federated: its change of all blocks goes up after so many local windows

    @property
    def learns(self) -> bool:
        """Whether anything is learned here."""
        return self.sound is None

    @property
    def hermit(self) -> bool:
        """Whether it wants nothing of the fleet but the first weights, and gives it nothing (splitter local)."""
        return not self.sends_windows and self.sync_every_windows is None
