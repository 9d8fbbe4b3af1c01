"""The simulated fleet: which boards run along which traces, with what an encoder was measured to cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.compute_profile import load
from common.config import PROFILES, load_profile
from common.config_fleet import FleetConfig
from common.encoder import Encoder, build_encoder
from common.errors import ConfigError
from common.power_model import PowerModel
from common.topics import Topics
from trainer.link_traces import KINDS, TraceKind, generate
from trainer.simulated_costs import Board, CutCosts, Tables, cut_costs, tables

BOARDS = ("raspberry-pi-zero-2w", "raspberry-pi-4", "raspberry-pi-5")
COMPUTE = PROFILES.parent / "compute"
TOPICS = Topics("fleet")  # names as long as usual: they stand in every packet
DEVICE = "kitchen"


@dataclass(frozen=True, slots=True)
class Speed:
    """Milliseconds of one window of one view through `mobile`: as a board's devices say, and as it takes."""

    said_ms: float
    taken_ms: float


def shipped_speeds() -> dict[str, Speed]:
    """Of every board of the simulated fleet, as its profile states it."""
    stated = {name: shipped_board(name).forward_ms for name in BOARDS}
    return {name: Speed(ms, ms) for name, ms in stated.items()}


def shipped_board(name: str) -> Board:
    """A board by the name of its shipped profile; ConfigError for an unknown name."""
    profile = load_profile(name)
    power = PowerModel(**profile.power.model_dump(exclude={"source"}))
    return Board(name, profile.mobile_forward_ms, profile.cores, power)


def encoder_costs(name: str, *, compute: Path | None = None) -> CutCosts:
    """What every cut of an encoder costs; `compute`: its measured profile, else the shipped one of that encoder.

    Raises:
        ConfigError: there is no such file, it is not one that ``streamsplit profile`` wrote, or one of another encoder.
        ValueError: no such encoder.
    """
    encoder: Encoder = build_encoder(name, seed=0)
    shipped = COMPUTE / f"{name}.json"
    if compute is None and not shipped.exists():
        raise ConfigError(
            f"no measured times of {name} are shipped: `streamsplit profile --encoder {name} --out FILE` measures, "
            "--compute FILE reads them"
        )
    profile = load(compute or shipped)
    if profile.encoder != name:
        raise ConfigError(f"{compute or shipped}: a profile of {profile.encoder}, not of {name}")
    if name != "mobile" and profile.mobile_forward_ms is None:
        raise ConfigError(
            f"{compute or shipped}: no mobile_forward_ms: `streamsplit profile --encoder {name} --out FILE` adds it"
        )
    return cut_costs(
        encoder,
        profile,
        values_per_merge=FleetConfig.model_fields["values_per_merge"].default,
        topics=TOPICS,
        device=DEVICE,
    )


def shipped_fleet_tables(
    traces: Sequence[tuple[TraceKind, int]],
    costs: CutCosts,
    *,
    steps: int,
    speeds: Mapping[str, Speed] | None = None,
) -> list[Tables]:
    """`fleet_tables` of the shipped boards, which follow every block or those before the cut.

    `speeds`: of those that turned out to be others than their profiles state, by name.
    """
    known = shipped_speeds() | dict(speeds or {})
    boards = [
        replace(shipped_board(name), forward_ms=known[name].taken_ms, said_ms=known[name].said_ms) for name in BOARDS
    ]
    return fleet_tables(traces, costs, steps=steps, boards=boards, follows=(False, True))


def fleet_tables(
    traces: Sequence[tuple[TraceKind, int]],
    costs: CutCosts,
    *,
    steps: int,
    boards: Sequence[Board],
    follows: Sequence[bool] = (False,),
) -> list[Tables]:
    """A device a trace, for every entry of `follows` (see `Tables`); boards take turns: every kind meets each."""
    return [
        tables(
            generate(kind, seed, steps=steps), boards[(seed + KINDS.index(kind)) % len(boards)], costs, follows=follow
        )
        for follow in follows
        for kind, seed in traces
    ]
