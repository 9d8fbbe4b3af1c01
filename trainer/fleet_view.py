"""The live table of a fleet, from the status and telemetry that its devices and its trainer publish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from common import messages
from common.errors import MessageError
from common.link import Incoming, Link
from common.messages import DeviceStatus, Telemetry, TrainerStatus
from common.topics import Kind, Topics

MIB = 2**20
TROUBLE = {"lost", "paused", "no-audio"}
NAME_WIDTH = 12
FIGURES = ("cut", "windows", "steps", "late", "lost", "local", "loss", "MiB", "ms", "CPU", "ago")


@dataclass(frozen=True, slots=True)
class _Heard:
    telemetry: Telemetry
    at_s: float


class FleetView:
    """Listens to status and telemetry, and draws what it heard. ``devices``: those that are expected."""

    def __init__(self, link: Link, topics: Topics, *, devices: Sequence[str] = ()) -> None:
        self._link = link
        self._topics = topics
        self._heard: dict[str, _Heard] = {}
        self._states: dict[str, str] = dict.fromkeys(devices, "starting")
        self._trainer: TrainerStatus | None = None
        for kind in (Kind.STATUS, Kind.TELEMETRY):
            link.subscribe(topics.every_device(kind), qos=0)
        link.subscribe(topics.trainer_status(), qos=0)

    @property
    def windows(self) -> int:
        """Windows that all devices together have captured, each since it started."""
        return sum(heard.telemetry.windows for device, heard in self._heard.items() if device in self._states)

    def listen(self, timeout_s: float) -> None:
        """Take what comes within ``timeout_s``, and whatever waits behind it."""
        incoming = self._link.receive(timeout_s)
        while incoming is not None:
            try:
                self._take(incoming)
            except MessageError:
                pass  # the trainer counts and reports what is malformed; a table has nothing to add
            incoming = self._link.receive(0.0)

    def _take(self, incoming: Incoming) -> None:
        address = self._topics.parse(incoming.topic)
        if address.kind is Kind.TRAINER_STATUS:
            self._trainer = messages.decode(TrainerStatus, incoming.payload) if incoming.payload else None
        elif address.device is not None and address.kind is Kind.STATUS:
            self._follow(address.device, incoming.payload)
        elif address.device is not None:
            self._heard[address.device] = _Heard(messages.decode(Telemetry, incoming.payload), incoming.received_s)

    def _follow(self, device: str, payload: bytes) -> None:
        if payload:
            self._states[device] = messages.decode(DeviceStatus, payload).state
        else:  # its retained status was taken away: the device has left the fleet
            self._states.pop(device, None)

    def trainer(self) -> str:
        """The trainer in one line."""
        told = self._trainer
        if told is None:
            return "no trainer was heard of"
        return f"trainer {told.state}, weights version {told.weights_version} of run {told.run}"

    def table(self, *, now_s: float) -> Table:
        """One line a device, those in trouble first, in 80 columns.

        ``steps``: answered of sent; ``ms``: a step's median to the embedding; ``ago``: since it was heard.
        ``now_s`` is on this process's monotonic clock.
        """
        rows = {device: _cells(self._heard.get(device), now_s) for device in self._in_order()}
        table = Table(expand=False, padding=(0, 1, 0, 0), box=None, header_style="underline")
        table.add_column("device", overflow="ellipsis", min_width=NAME_WIDTH)  # a long name gives way to the figures
        table.add_column("state", no_wrap=True)
        for heading in FIGURES:
            table.add_column(heading, justify="right", no_wrap=True)
        for device, cells in rows.items():
            table.add_row(device, self._states[device], *cells)
        return table

    def _in_order(self) -> list[str]:
        return sorted(self._states, key=lambda device: (self._states[device] not in TROUBLE, device))


def _cells(heard: _Heard | None, now_s: float) -> list[str]:
    """`FIGURES` of a device; empty for one that was not heard."""
    if heard is None:
        return [""] * len(FIGURES)
    told = heard.telemetry
    return [
        str(told.cut),
        _short(told.windows),
        f"{_short(told.steps_answered)}/{_short(told.steps_sent)}",
        _short(told.steps_late + told.steps_stale),
        _short(told.steps_lost),
        _short(told.local_steps),
        "" if told.loss is None else f"{told.loss:.2f}",
        _short((told.bytes_up + told.bytes_down) / MIB, digits=1),
        "" if told.embedding_ms is None else f"{told.embedding_ms:.0f}",
        f"{told.cpu:.0%}",
        _ago(now_s - heard.at_s),
    ]


def _short(value: float, *, digits: int = 0) -> str:
    """In thousands from ten thousand on, in millions from a million on."""
    unit, suffix = (1.0, "") if value < 1e4 else (1e3, "k") if value < 1e6 else (1e6, "M")
    return f"{value / unit:.{digits if value < 1e2 else 0}f}{suffix}"


def _ago(seconds: float) -> str:
    for bound_s, unit_s, suffix in ((120.0, 1.0, "s"), (7200.0, 60.0, "min"), (172_800.0, 3600.0, "h")):
        if seconds < bound_s:
            return f"{seconds / unit_s:.0f} {suffix}"
    return f"{seconds / 86_400.0:.0f} d"
