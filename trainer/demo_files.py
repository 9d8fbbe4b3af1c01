"""What a demonstration run is made of on disk: lists of recordings, and the YAML files of fleet, trainer and devices.

The demonstration starts the same programs on the same files as a real fleet; whoever wants to see what a configuration
looks like finds it in the run's folder.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer.dataset import ShardMode, Split, shards

FLEET = "demo"
COMPRESSED = "static-compression"
OWN_ENCODERS = frozenset({"edge-only", COMPRESSED})  # modes in which every device ends with an encoder of its own
# Where devices take steps of their own, a merge is made of these, and they are of every block: seldom, and finer.
AVERAGED = {"client_updates": "averaged", "change_codec": "int4", "delta_codec": "int4"}
AVERAGED_EVERY = 50  # batches between two merges, if all were sent
MODES = ("split", "server-only", "federated", "edge-only", COMPRESSED)


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What was asked for on the command line."""

    devices: int
    windows: int
    data: Path | None
    fold: int
    order: str
    shard: ShardMode
    profiles: tuple[str, ...]
    cut: str
    codec: str | None
    encoder: str
    speed: str
    seed: int
    out: Path
    mode: str = "split"
    trainer_settings: tuple[tuple[str, object], ...] = ()
    fleet_settings: tuple[tuple[str, object], ...] = ()
    device_settings: tuple[tuple[str, object], ...] = ()
    esc10: bool = False


@dataclass(frozen=True, slots=True)
class DemoFiles:
    """Where the files of a run are."""

    trainer: Path
    trainer_state: Path
    devices: dict[str, Path]
    device_states: dict[str, Path]


def device_names(count: int) -> list[str]:
    """``device-1`` and so on."""
    width = len(str(count))
    return [f"device-{number:0{width}d}" for number in range(1, count + 1)]


def write_files(options: DemoOptions, broker_url: str, split: Split | None) -> DemoFiles:
    """Write every file of the run into ``options.out``.

    Raises:
        ConfigError: fewer recordings than devices.
    """
    folder = options.out / "configs"
    folder.mkdir(parents=True, exist_ok=True)
    names = device_names(options.devices)
    _write(folder / "fleet.yaml", _with(_fleet(options, broker_url), options.fleet_settings))
    _write(folder / "trainer.yaml", _with(_trainer(options), options.trainer_settings))
    lists = _write_lists(options, split, names)
    for number, name in enumerate(names):
        device = _device(options, name, number, lists.get(name))
        _write(folder / f"{name}.yaml", _with(device, options.device_settings))
    return DemoFiles(
        trainer=folder / "trainer.yaml",
        trainer_state=options.out / "trainer",
        devices={name: folder / f"{name}.yaml" for name in names},
        device_states={name: options.out / name for name in names},
    )


def windows_of(options: DemoOptions) -> list[int]:
    """The windows of each device: they add up to what was asked for."""
    share, rest = divmod(options.windows, options.devices)
    return [share + (number < rest) for number in range(options.devices)]


def windows_sent(options: DemoOptions) -> int:
    """The windows that travel, all devices together: the share of the captured ones that the devices send."""
    return max(1, int(0.5 + options.windows * _share(options)))


def _share(options: DemoOptions) -> float:
    """What the devices' configuration says; it also says what is wrong with another value."""
    share = _sending(options).get("share", 1.0)
    return float(share) if isinstance(share, (int, float)) and 0 < share <= 1 else 1.0


def _sending(options: DemoOptions) -> dict[str, object]:
    """The block ``sending`` of the devices' files, as far as it was asked for."""
    sending = _with({"sending": {}}, options.device_settings)["sending"]
    return sending if isinstance(sending, dict) else {}


def _learns_alone(options: DemoOptions) -> bool:
    """Whether devices take steps of their own on what they do not send, and those are what there is to merge."""
    return _share(options) < 1 and _sending(options).get("unsent", "learn") == "learn"


def _merging(options: DemoOptions) -> dict[str, int]:
    """As many merges over the captured windows whatever the share that is sent: devices drift by what they learn alone.

    And the sooner the first one comes, the sooner they hold the mixture that tells them what is worth sending.
    """
    return {"merge_every": max(1, round(AVERAGED_EVERY * _share(options)))} if _learns_alone(options) else {}


def _fleet(options: DemoOptions, broker_url: str) -> dict[str, Any]:
    narrow = options.mode == COMPRESSED and options.encoder == "mobile"
    return {
        "fleet": FLEET,
        "broker": {"url": broker_url},
        "encoder": "mobile-half" if narrow else options.encoder,
        "first_seed": options.seed,
        **({"mode": options.mode} if options.mode in {"server-only", "federated"} else {}),
        **(AVERAGED if _learns_alone(options) else {}),
    }


def _raw_audio(options: DemoOptions) -> dict[str, Any]:
    """The permission that both ends must give; only these files give it."""
    return {"baseline_raw_audio": True} if options.mode == "server-only" else {}


def _trainer(options: DemoOptions) -> dict[str, Any]:
    return {
        "fleet": "fleet.yaml",
        "state_directory": str(options.out.resolve() / "trainer"),
        "threads": 2,
        "seed": options.seed,
        "schedule": "anneal",
        "budget_windows": windows_sent(options),  # what is answered, so that the schedule ends with the run
        "speed": options.speed,
        "expected_devices": options.devices,
        "plan_cuts": False,  # its devices tell no times
        **_raw_audio(options),
        **_merging(options),
    }


def _device(options: DemoOptions, name: str, number: int, recordings: Path | None) -> dict[str, Any]:
    seed = options.seed * 1_000 + number
    source: dict[str, Any] = {"kind": "soundscape", "order": options.order, "seed": seed}
    if options.data is not None:
        source = {"kind": "folder", "path": str(options.data.resolve()), "order": options.order, "seed": seed}
        source["list"] = str(recordings)
    settings: dict[str, Any] = {
        "id": name,
        "fleet": "fleet.yaml",
        "source": source,
        "speed": options.speed,
        "windows": windows_of(options)[number],
        "splitter": {"kind": "local"} if options.mode in OWN_ENCODERS else _splitter(options.cut),
        "state_directory": str(options.out.resolve() / name),
        "seed": seed,
        "measure_compute": False,  # all at once on one machine they would measure each other
        **_raw_audio(options),
    }
    settings["min_cut"] = min(3, settings["splitter"].get("cut", 3))
    if options.codec is not None:
        settings["codec"] = options.codec
    if options.profiles:
        settings |= {"profile": options.profiles[number % len(options.profiles)], "emulate": True}
    return settings


def _splitter(cut: str) -> dict[str, Any]:
    return {"kind": "fixed", "cut": int(cut)} if cut.isdigit() else {"kind": cut}


def _write_lists(options: DemoOptions, split: Split | None, names: Sequence[str]) -> dict[str, Path]:
    if split is None:
        return {}
    folder = options.out.resolve() / "recordings"
    folder.mkdir(parents=True, exist_ok=True)
    lists = {}
    for name, shard in zip(names, shards(split.training, len(names), options.shard, options.seed), strict=True):
        lists[name] = folder / f"{name}.txt"
        lists[name].write_text("".join(f"{clip.relative}\n" for clip in shard), encoding="utf-8")
    return lists


def _with(values: dict[str, Any], settings: Sequence[tuple[str, object]]) -> dict[str, Any]:
    """``values`` with some keys set; a dot leads into a block. The configuration says whether there is such a key."""
    changed = copy.deepcopy(values)
    for dotted, value in settings:
        *blocks, key = dotted.split(".")
        place = changed
        for name in blocks:
            inner = place.get(name)
            place[name] = inner if isinstance(inner, dict) else {}
            place = place[name]
        place[key] = value
    return changed


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
