"""Reading the configuration: one YAML file each for the fleet, the trainer, every device and every profile.

Everything that is wrong, in a file and in the files it points to, is reported at once, one line each:
``file:line: dotted.key: what is wrong; allowed: ...``.

    python -m common.config check FILE...    validate files of any kind; exit status 78 and all errors if one is wrong
    python -m common.config reference        the configuration reference as Markdown
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from common.config_device import DeviceConfig
from common.config_errors import did_you_mean, explain
from common.config_fleet import SHARED_KEYS, FleetConfig
from common.config_profile import Profile
from common.config_reference import KeyRow, markdown, reference
from common.config_trainer import TrainerConfig
from common.config_types import PointsTo, Settings, unusable
from common.errors import ConfigError
from common.output import to_any_reader
from common.topics import PROTOCOL
from common.yaml_tree import Document, Problem, read_document

if TYPE_CHECKING:
    from collections.abc import Sequence

    from common.config_fleet import BrokerConfig

__all__ = [
    "EXIT_CONFIG",
    "PROFILES",
    "KeyRow",
    "check",
    "fingerprint",
    "fingerprint_fields",
    "load_device",
    "load_fleet",
    "load_profile",
    "load_trainer",
    "read_password",
    "reference",
]

EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h
PROFILES = Path(__file__).resolve().parent.parent / "configs" / "profiles"
MODELS: dict[str, type[Settings]] = {
    "fleet": FleetConfig,
    "trainer": TrainerConfig,
    "device": DeviceConfig,
    "profile": Profile,
}
M = TypeVar("M", bound=Settings)


def load_fleet(path: str | Path) -> FleetConfig:
    """Raises ConfigError that lists everything wrong with the file."""
    return _load(Path(path), FleetConfig)


def load_trainer(path: str | Path) -> TrainerConfig:
    """Raises ConfigError that lists everything wrong with the file and the fleet file it names."""
    return _load(Path(path), TrainerConfig)


def load_device(path: str | Path) -> DeviceConfig:
    """Raises ConfigError that lists everything wrong with the file, the fleet file and the profile it names."""
    return _load(Path(path), DeviceConfig)


def load_profile(name_or_path: str | Path) -> Profile:
    """A shipped profile by its name, or a profile file (anything with a slash or a ``.yaml`` suffix).

    Raises:
        ConfigError: no such profile, or everything wrong with the file.
    """
    path = _profile_path(str(name_or_path), Path())
    if isinstance(path, str):
        msg = f"profile: {path}"
        raise ConfigError(msg)
    return _load(path, Profile)


def check(paths: Sequence[str | Path]) -> list[Problem]:
    """Everything wrong with these files, of whatever kind each is, and with the files they name; each problem once."""
    problems: list[Problem] = []
    for path in map(Path, paths):
        document = read_document(path)
        model = _kind(document.values or {})
        if model is None and document.values is not None:
            document.refuse((), "neither a fleet, a trainer, a device nor a profile; allowed: the keys of one of them")
        if model is None:
            problems += document.problems
        else:
            _validate(document, model, problems)
    return list(dict.fromkeys(problems))


def fingerprint_fields(config: FleetConfig) -> dict[str, Any]:
    """What both ends must share, by name, for a message in words."""
    from common.log_mel import describe
    from common.mixture_memory import FORMAT

    shared = config.model_dump(mode="json", include=set(SHARED_KEYS))
    return {"protocol": PROTOCOL, "log_mel": describe(), "mixture": FORMAT, **shared}


def fingerprint(config: FleetConfig) -> str:
    """SHA-256 in hexadecimal over `fingerprint_fields`: two ends that differ in it refuse each other."""
    text = json.dumps(fingerprint_fields(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_password(broker: BrokerConfig) -> str | None:
    """The first line of ``password_file``, or None where none is configured.

    Raises:
        ConfigError: the file cannot be read, or its first line is empty.
    """
    if broker.password_file is None:
        return None
    try:
        lines = broker.password_file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{broker.password_file}: cannot be read: {error}"
        raise ConfigError(msg) from error
    if not lines or not lines[0]:
        msg = f"{broker.password_file}: empty; allowed: the password in the first line"
        raise ConfigError(msg)
    return lines[0]


def _load(path: Path, model: type[M]) -> M:
    problems: list[Problem] = []
    settings = _validate(read_document(path), model, problems)
    if settings is None or problems:
        raise ConfigError("\n".join(map(str, problems)))
    return settings


def _validate(document: Document, model: type[M], problems: list[Problem]) -> M | None:
    """The settings, or None; adds to ``problems`` all of this file first, then those of the files it names."""
    elsewhere: list[Problem] = []
    settings: M | None = None
    if document.values is not None:
        values = document.values | _pointed(document, model, elsewhere)
        try:
            settings = model.model_validate(values, context={"directory": document.file.parent})
        except ValidationError as error:
            for details in error.errors(include_url=False):
                _report(document, model, details)
    problems += sorted(document.problems, key=lambda problem: problem.line or 0)
    problems += elsewhere
    return settings


def _report(document: Document, model: type[Settings], details: Any) -> None:
    location, message = explain(model, details)
    if not any(location[:length] in document.refused for length in range(1, len(location) + 1)):
        # Two findings about one key are both worth saying, so this one does not silence the next.
        document.problems.append(document.problem(location, message))


def _pointed(document: Document, model: type[Settings], elsewhere: list[Problem]) -> dict[str, Any]:
    """The files that keys like ``fleet`` name, read; a key that names none is refused and left as it is."""
    found: dict[str, Any] = {}
    for key, field in model.model_fields.items():
        notes = [note for note in field.metadata if isinstance(note, PointsTo)]
        value = (document.values or {}).get(key)
        if not notes or value is None:
            continue
        path = _pointed_path(notes[0], value, document.file.parent)
        if isinstance(path, str):
            document.refuse((key,), path)
            continue
        found[key] = _validate(read_document(path), MODELS[notes[0].kind], elsewhere)
        if found[key] is None:
            document.refused.add((key,))  # said in the other file's name
    return found


def _pointed_path(note: PointsTo, value: object, directory: Path) -> Path | str:
    if not isinstance(value, str) or not value:
        return f"expected a {note.text}; allowed: one line of text"
    if note.kind == "profile":
        return _profile_path(value, directory)
    path = directory / value
    wrong = unusable(path)
    return f"{wrong}; allowed: {note.text}" if wrong else path


def _profile_path(name_or_path: str, directory: Path) -> Path | str:
    """The file of a profile, or what is wrong with the name."""
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        path = directory / name_or_path
        wrong = unusable(path)
        return f"{wrong}; allowed: path of a profile file" if wrong else path
    shipped = sorted(path.stem for path in PROFILES.glob("*.yaml"))
    if name_or_path in shipped:
        return PROFILES / f"{name_or_path}.yaml"
    return f'no profile "{name_or_path}"{did_you_mean(name_or_path, shipped)}; allowed: {", ".join(shipped)}, or a path'


def _kind(values: dict[str, Any]) -> type[Settings] | None:
    """Which kind of file this is: the one that knows most of its keys."""
    known = {model: len(values.keys() & model.model_fields.keys()) for model in MODELS.values()}
    best = max(known, key=lambda model: known[model])
    return best if known[best] else None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m common.config", description="Check and document configuration.")
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser("check", help="validate files; exit status 78 if one is wrong")
    checking.add_argument("files", nargs="+", metavar="FILE")
    commands.add_parser("reference", help="print the configuration reference as Markdown")
    options = parser.parse_args(arguments)
    if options.command == "reference":
        print("\n\n".join(f"### `{kind}`\n\n{markdown(reference(model))}" for kind, model in MODELS.items()))
        return 0
    problems = check(options.files)
    for problem in problems:
        print(problem, file=sys.stderr)
    return EXIT_CONFIG if problems else 0


if __name__ == "__main__":
    sys.exit(to_any_reader(main))
