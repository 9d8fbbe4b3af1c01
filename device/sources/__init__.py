"""Where a device's audio comes from: a folder of recordings, a microphone, or a synthetic soundscape."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

from common.errors import ConfigError
from device.windows import CONTEXT_S, SourceState, Speed, Window

Order = Literal["stream", "shuffled"]
SourceKind = Literal["folder", "microphone", "soundscape"]


class Source(Protocol):
    """Windows, one by one. Used from the main thread only."""

    @property
    def state(self) -> SourceState:
        """What can be expected of it now."""

    @property
    def dropped(self) -> int:
        """Windows lost because nobody took them in time."""

    @property
    def waiting(self) -> int:
        """Windows that have closed and were not taken yet; 0 where they are made on demand."""

    def next_window(self, timeout_s: float) -> Window | None:
        """The next window, or None when there is none within `timeout_s` (or none ever again: see `state`)."""

    def close(self) -> None:
        """Lets go of what it holds. May be called twice."""


def open_source(
    kind: SourceKind,
    *,
    path: Path | None = None,
    list_file: Path | None = None,
    order: Order = "stream",
    repeat: bool = True,
    card: str | None = None,
    classes: tuple[str, ...] | None = None,
    seed: int = 0,
    speed: Speed = "fast",
    context_s: float = CONTEXT_S,
    captioned: bool = False,
    caption_file: Path | None = None,
) -> Source:
    """The source of that kind; what does not concern it is ignored. Raises ConfigError where it cannot be used.

    `context_s`: how much of the same segment a window carries on either side. `captioned`: its windows carry
    captions, of `caption_file` or whatever else the source knows.
    """
    if kind == "folder":
        from device.captions import captions_of_folder
        from device.sources.folder import FolderSource

        if path is None:
            raise ConfigError("a folder source needs a path")
        if captioned and not path.is_dir():
            raise ConfigError(f"{path}: is not a folder")
        return FolderSource(
            path,
            list_file=list_file,
            order=order,
            repeat=repeat,
            seed=seed,
            speed=speed,
            context_s=context_s,
            captions=captions_of_folder(path, caption_file) if captioned else None,
        )
    if kind == "soundscape":
        from device.sources.soundscape import SoundscapeSource

        return SoundscapeSource(
            classes=classes, order=order, seed=seed, speed=speed, context_s=context_s, captions=captioned
        )
    if kind == "microphone":
        from device.sources.microphone import MicrophoneSource

        return MicrophoneSource(card=card, context_s=context_s)
    raise ConfigError(f"no kind of source {kind!r}: allowed are folder, microphone, soundscape")
