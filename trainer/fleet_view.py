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
        return sum(heard.telemetry.windows for heard in self._heard.values())

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
            self._trainer = messages.decode(TrainerStatus, incoming.payload)
        elif address.device is not None and address.kind is Kind.STATUS:
            self._follow(address.device, incoming.payload)
        elif address.device is not None:
            self._heard[address.device] = _Heard(messages.decode(Telemetry, incoming.payload), incoming.received_s)

    def _follow(self, device: str, payload: bytes) -> None:
        if payload:
            self._states[device] = messages.decode(DeviceStatus, payload).state
        else:  # its retained status was taken away: the device has left the fleet
            self._states.pop(device, None)
            self._heard.pop(device, None)

    def trainer(self) -> str:
        """The trainer in one line."""
        told = self._trainer
        if told is None:
            return "no trainer was heard of"
        return f"trainer {told.state}, weights version {told.weights_version} of run {told.run}"

    def table(self, *, now_s: float | None = None) -> Table:
        """One line a device, in 80 columns. ``steps``: answered of sent; ``ms``: a step's median to the embedding.

        ``now_s``, on this process's monotonic clock: a column more says how many seconds ago each was heard.
        """
        table = Table(expand=False, padding=(0, 1, 0, 0), box=None, header_style="underline")
        for heading in ("device", "state"):
            table.add_column(heading, no_wrap=True)
        figures = ("cut", "windows", "steps", "late", "lost", "local", "loss", "MiB", "ms", "CPU")
        for heading in figures if now_s is None else (*figures, "ago"):
            table.add_column(heading, justify="right", no_wrap=True)
        for device, state in sorted(self._states.items()):
            heard = self._heard.get(device)
            cells = _cells(heard.telemetry) if heard else [""] * len(figures)
            if now_s is not None:
                cells.append(f"{now_s - heard.at_s:.0f} s" if heard else "")
            table.add_row(device, state, *cells)
        return table


def _cells(heard: Telemetry) -> list[str]:
    return [
        str(heard.cut),
        f"{heard.windows:,}",
        f"{heard.steps_answered}/{heard.steps_sent}",
        str(heard.steps_late + heard.steps_stale),
        str(heard.steps_lost),
        str(heard.local_steps),
        "" if heard.loss is None else f"{heard.loss:.2f}",
        f"{(heard.bytes_up + heard.bytes_down) / MIB:.1f}",
        "" if heard.embedding_ms is None else f"{heard.embedding_ms:.0f}",
        f"{heard.cpu:.0%}",
    ]
