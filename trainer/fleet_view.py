"""The live table of a fleet, from the telemetry that its devices publish."""

from __future__ import annotations

from collections.abc import Sequence

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from common import messages
from common.errors import MessageError
from common.link import Link
from common.messages import DeviceStatus, Telemetry
from common.topics import Kind, Topics

MIB = 2**20


class FleetView:
    """Listens to status and telemetry, and draws what it heard."""

    def __init__(self, link: Link, topics: Topics, *, devices: Sequence[str], windows: int) -> None:
        self._link = link
        self._topics = topics
        self._telemetry: dict[str, Telemetry] = {}
        self._states: dict[str, str] = dict.fromkeys(devices, "starting")
        self._progress = Progress(
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} windows"), BarColumn(), TimeRemainingColumn()
        )
        self._task = self._progress.add_task("windows", total=windows)
        for kind in (Kind.STATUS, Kind.TELEMETRY):
            link.subscribe(topics.every_device(kind), qos=0)

    @property
    def progress(self) -> Progress:
        """The bar beside the table."""
        return self._progress

    def listen(self, timeout_s: float) -> None:
        """Take what came within ``timeout_s``."""
        incoming = self._link.receive(timeout_s)
        while incoming is not None:
            try:
                address = self._topics.parse(incoming.topic)
                assert address.device is not None
                if address.kind is Kind.STATUS:
                    self._states[address.device] = messages.decode(DeviceStatus, incoming.payload).state
                else:
                    self._telemetry[address.device] = messages.decode(Telemetry, incoming.payload)
            except MessageError:
                pass  # the trainer counts and reports what is malformed; a table has nothing to add
            incoming = self._link.receive(0.0)
        self._progress.update(self._task, completed=sum(one.windows for one in self._telemetry.values()))

    def table(self) -> Table:
        """One line a device, in 80 columns. ``steps``: answered of sent; ``ms``: a step's median to the embedding."""
        table = Table(expand=False, padding=(0, 1, 0, 0), box=None, header_style="underline")
        for heading in ("device", "state"):
            table.add_column(heading, no_wrap=True)
        for heading in ("cut", "windows", "steps", "late", "lost", "local", "loss", "MiB", "ms", "CPU"):
            table.add_column(heading, justify="right", no_wrap=True)
        for device, state in sorted(self._states.items()):
            heard = self._telemetry.get(device)
            table.add_row(device, state, *(_cells(heard) if heard else ()))
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
