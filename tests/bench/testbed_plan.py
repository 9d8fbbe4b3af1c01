"""What a testbed file says: the fleet, the rows, what happens; and what each row is to `trainer.demo_files`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from common.config import load_profile
from common.config_device import SplitterConfig
from common.config_types import Settings
from common.errors import ConfigError
from device.conditions import Condition, write_conditions
from trainer.demo_files import DemoFiles, DemoOptions
from trainer.link_traces import TraceKind

FILE = Path(__file__).with_name("testbed.yaml")
Mode = Literal["split", "server-only", "edge-only"]


class Board(Settings):
    """A device's board and the link in front of it."""

    profile: str
    uplink_mbps: float = Field(gt=0)
    downlink_mbps: float = Field(gt=0)
    round_trip_ms: float = Field(ge=0)
    jitter_ms: float = Field(ge=0)

    @property
    def link(self) -> str:
        """The link's class, for people."""
        return f"{self.uplink_mbps:g} Mbit/s, {self.round_trip_ms:g} ms"


class RowPlan(Settings):
    """One row; ``device``: settings of every device's file, a dot leads into a block."""

    name: str
    title: str
    mode: Mode
    splitter: list[str] = Field(default=["5"])
    device: dict[str, object] = Field(default={})

    @property
    def cut(self) -> str:
        """The first of ``splitter`` that there is: a number, or a kind of splitter."""
        known = get_args(SplitterConfig.model_fields["kind"].annotation)
        return next(kind for kind in self.splitter if kind.isdigit() or kind in known)


class Traced(Settings):
    """A trace of `trainer.link_traces`."""

    kind: TraceKind
    seed: int


class Happening(Settings):
    """What happens to one device: each change is `Condition`'s fields that differ from the board's own link.

    With ``trace`` link and load are the trace's all the time, and ``changes`` none.
    """

    name: str
    title: str
    changes: list[dict[str, float | bool]] = Field(default=[])
    profile: str | None = None
    trace: Traced | None = None

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Happening:
        if self.trace is not None and self.changes:
            raise ValueError("a device follows a trace or has changes, not both")
        return self


class Happenings(Settings):
    """The run in which something happens; the first windows are left out where a device follows a trace."""

    windows: int = Field(ge=1)
    warm_up_windows: int = Field(ge=0)
    link: Board
    devices: list[Happening]


class Quick(Settings):
    """The smaller run of the same kind."""

    windows: int = Field(ge=1)
    warm_up_windows: int = Field(ge=0)
    rows: list[str]
    event_windows: int = Field(ge=1)


class Plan(Settings):
    """A whole testbed file."""

    seed: int
    encoder: str
    windows: int = Field(ge=1)
    warm_up_windows: int = Field(ge=0)
    devices: list[Board]
    rows: list[RowPlan]
    subject: str
    baseline: str
    opus: str
    events: Happenings
    quick: Quick

    def row(self, name: str) -> RowPlan:
        """The row of that name; StopIteration where there is none."""
        return next(row for row in self.rows if row.name == name)

    def quickly(self) -> Plan:
        """The plan of ``--quick``."""
        kept = [row for row in self.rows if row.name in self.quick.rows]
        changes = {"windows": self.quick.windows, "warm_up_windows": self.quick.warm_up_windows, "rows": kept}
        events = self.events.model_copy(update={"windows": self.quick.event_windows})
        return self.model_copy(update={**changes, "events": events})


def read_plan(path: Path = FILE) -> Plan:
    """The plan in a file.

    Raises:
        ConfigError: not such a file; says what is wrong.
    """
    try:
        return TypeAdapter(Plan).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"{path}: {error}") from error


def options(
    plan: Plan, row: RowPlan, *, boards: int, windows: int, out: Path, data: Path | None, esc10: bool
) -> DemoOptions:
    """What a row is started with; boards and links come after (`put_boards`)."""
    return DemoOptions(
        devices=boards,
        windows=windows * boards,
        data=data,
        fold=1,
        order="stream",
        shard="iid",
        profiles=(),
        cut=row.cut,
        codec=None,
        encoder=plan.encoder,
        speed="realtime",
        seed=plan.seed,
        out=out,
        mode=row.mode,
        trainer_settings=(("threads", 1), ("compute", "cpu")),
        device_settings=tuple(row.device.items()),
        esc10=esc10,
    )


def put_boards(files: DemoFiles, boards: Sequence[Board], conditions: Sequence[Sequence[Condition]]) -> None:
    """Make each device of a written run play its board, behind its link, under its conditions."""
    for (name, path), board, happening in zip(files.devices.items(), boards, conditions, strict=True):
        played = path.with_name(f"{name}-conditions.csv")
        write_conditions(played, happening)
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        settings |= {"profile": board.profile, "emulate": True, "emulate_conditions": str(played.resolve())}
        path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def steady(board: Board) -> Condition:
    """The board's own link, and nobody else on its processor."""
    return Condition(0.0, board.uplink_mbps, board.downlink_mbps, board.round_trip_ms, board.jitter_ms)


def conditions(board: Board, changes: Sequence[Mapping[str, float | bool]]) -> tuple[Condition, ...]:
    """The board's own link, and what each change says differs from it from then on."""
    base = steady(board)
    return (base, *(dataclasses.replace(base, **_typed(change)) for change in changes))


def _typed(change: Mapping[str, float | bool]) -> dict[str, Any]:
    unknown = sorted(set(change) - {field.name for field in dataclasses.fields(Condition)})
    if unknown:
        raise ConfigError(f"events: no such condition: {', '.join(unknown)}")
    return dict(change)


def joules_per_megabyte(board: Board) -> tuple[float, float]:
    """What the radio costs per 10^6 bytes, (up, down), where it is on for as long as this link takes.

    The profile's figures are watts for the time a megabyte takes at the profile's own rate.
    """
    profile = load_profile(board.profile)
    return (
        profile.power.radio_joules_per_megabyte_up * profile.uplink_mbps / board.uplink_mbps,
        profile.power.radio_joules_per_megabyte_down * profile.downlink_mbps / board.downlink_mbps,
    )
