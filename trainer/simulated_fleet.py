"""The simulated fleet: which boards run along which traces, with what an encoder was measured to cost."""

from __future__ import annotations

from collections.abc import Sequence
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


def shipped_board(name: str, *, slower: float = 1.0) -> Board:
    """A board by the name of its shipped profile, or one `slower` times as slow; ConfigError for an unknown name."""
    profile = load_profile(name)
    power = PowerModel(**profile.power.model_dump(exclude={"source"}))
    return Board(name, slower * profile.mobile_forward_ms, profile.cores, power)


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
    return cut_costs(
        encoder,
        profile,
        values_per_merge=FleetConfig.model_fields["values_per_merge"].default,
        topics=TOPICS,
        device=DEVICE,
    )


def shipped_fleet_tables(traces: Sequence[tuple[TraceKind, int]], costs: CutCosts, *, steps: int) -> list[Tables]:
    """`fleet_tables` of the shipped boards, which follow every block or those before the cut."""
    boards = [shipped_board(name) for name in BOARDS]
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
