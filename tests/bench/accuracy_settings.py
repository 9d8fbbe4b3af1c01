"""What makes a row's results its own: every setting of the files that its run is made of, defaults included.

So a default that changes makes results out of date, and so does any change asked for on the command line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from common import config, log_mel
from common.errors import ConfigError
from tests.bench.accuracy_rows import ROWS, Row
from trainer.dataset_layouts import ESC10_HELP
from trainer.demo_files import write_files

REVISION = 1
"""To be raised when the pipeline learns, or the evaluation measures, otherwise although no setting says so."""

# Where a run happens and what is the case's own: no part of what makes a row.
_PLACES = {
    "demo.data",
    "demo.fold",
    "demo.seed",
    "demo.out",
    "fleet.broker.url",
    "fleet.first_seed",
    "trainer.compute",
    "trainer.state_directory",
    "trainer.seed",
    "device.id",
    "device.seed",
    "device.state_directory",
    "device.source.kind",
    "device.source.path",
    "device.source.list",
    "device.source.seed",
}


def add_changes(parser: argparse.ArgumentParser) -> None:
    """Options that make another experiment of a row: to tune it, or to try it quickly."""
    parser.add_argument("--windows", type=int, help="windows of all devices together, instead of 16,000")
    parser.add_argument("--esc10", action="store_true", help=ESC10_HELP)
    for option, file in (("--set", "trainer"), ("--set-fleet", "fleet"), ("--set-device", "device")):
        parser.add_argument(
            option, action="append", default=[], metavar="KEY=VALUE", help=f"a key of the {file}'s file, for every row"
        )


def changes(given: argparse.Namespace) -> list[str]:
    """The options of `add_changes` as they were given, to be handed on."""
    found = [] if given.windows is None else ["--windows", str(given.windows)]
    found += ["--esc10"] if given.esc10 else []
    for option in ("set", "set_fleet", "set_device"):
        for text in getattr(given, option):
            found += [f"--{option.replace('_', '-')}", text]
    return found


def changed_row(name: str, given: argparse.Namespace) -> Row:
    """The row of that name with what was asked for on the command line.

    Raises:
        ConfigError: no such row, or a setting without a value.
    """
    rows = {row.name: row for row in ROWS}
    if name not in rows:
        raise ConfigError(f"no row {name}; there are {', '.join(rows)}")
    row = rows[name]
    options = replace(
        row.options,
        esc10=given.esc10,
        windows=row.options.windows if given.windows is None else given.windows,
        trainer_settings=row.options.trainer_settings + tuple(map(_setting, given.set)),
        fleet_settings=row.options.fleet_settings + tuple(map(_setting, given.set_fleet)),
        device_settings=row.options.device_settings + tuple(map(_setting, given.set_device)),
    )
    return replace(row, options=options)


def settings(row: Row) -> dict[str, Any]:
    """Everything that decides what a run of this row learns, by dotted key, as plain JSON.

    Raises:
        ConfigError: settings that do not exist, or do not fit each other.
    """
    front_end = {f"log_mel.{key}": value for key, value in log_mel.describe().items()} | {"revision": REVISION}
    if not row.trained:
        return front_end | {"demo.encoder": row.options.encoder}
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(replace(row.options, out=Path(folder)), "mqtt://127.0.0.1", None)
        trainer = config.load_trainer(files.trainer).model_dump(mode="json")
        device = config.load_device(next(iter(files.devices.values()))).model_dump(mode="json")
    read: dict[str, Any] = {"fleet": trainer.pop("fleet"), "trainer": trainer, "device": device}
    device.pop("fleet")
    asked = {key: value for key, value in asdict(row.options).items() if not key.endswith("_settings")}
    found = dict(_flat({"demo": asked, **read}))
    found["row.hostile"] = row.hostile
    return front_end | {key: value for key, value in found.items() if key not in _PLACES}


def digest(found: Mapping[str, Any]) -> str:
    """Short name of these settings."""
    text = json.dumps(found, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def same_settings(stored: Mapping[str, Any], now: Mapping[str, Any], plain: Mapping[str, Any]) -> bool:
    """Whether results under ``stored`` settings are results of today's.

    A key that did not exist then counts as having had the value it has in the ``plain`` row today: new keys come with
    defaults that change nothing (else `REVISION` is raised). A key that is gone is no difference.
    """
    return all(stored[key] == value if key in stored else plain.get(key) == value for key, value in now.items())


def _setting(text: str) -> tuple[str, object]:
    key, separator, value = text.partition("=")
    if not separator:
        raise ConfigError(f"{text}: a setting is KEY=VALUE")
    return key, yaml.safe_load(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.loads(json.dumps(value, default=str))
