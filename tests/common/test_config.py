from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from common.config import (
    EXIT_CONFIG,
    MODELS,
    PROFILES,
    check,
    fingerprint,
    fingerprint_fields,
    load_device,
    load_fleet,
    load_profile,
    load_trainer,
    main,
    read_password,
    reference,
)
from common.config_device import DeviceConfig, SourceConfig
from common.config_fleet import BrokerConfig, FleetConfig
from common.config_reference import REQUIRED
from common.config_trainer import TrainerConfig
from common.config_types import ENCODER_DEPTH
from common.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
FLEET: dict[str, Any] = {"fleet": "home", "broker": {"url": "mqtt://127.0.0.1:1883"}}
TRAINER: dict[str, Any] = {"fleet": "fleet.yaml", "state_directory": "state"}
DEVICE: dict[str, Any] = {
    "id": "pi-1",
    "fleet": "fleet.yaml",
    "state_directory": "state",
    "source": {"kind": "soundscape"},
}


def write(directory: Path, name: str, content: dict[str, Any] | str) -> Path:
    path = directory / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in change.items():
        result[key] = merged(result[key], value) if isinstance(value, dict) and key in result else value
    return result


def fleet_errors(directory: Path, change: dict[str, Any] | str) -> list[str]:
    content = change if isinstance(change, str) else merged(FLEET, change)
    with pytest.raises(ConfigError) as caught:
        load_fleet(write(directory, "fleet.yaml", content))
    return str(caught.value).replace(f"{directory}/", "").splitlines()


def trainer_errors(directory: Path, change: dict[str, Any] | str) -> list[str]:
    write(directory, "fleet.yaml", FLEET)
    content = change if isinstance(change, str) else merged(TRAINER, change)
    with pytest.raises(ConfigError) as caught:
        load_trainer(write(directory, "trainer.yaml", content))
    return str(caught.value).replace(f"{directory}/", "").splitlines()


def device_errors(directory: Path, change: dict[str, Any] | str) -> list[str]:
    write(directory, "fleet.yaml", FLEET)
    content = change if isinstance(change, str) else merged(DEVICE, change)
    with pytest.raises(ConfigError) as caught:
        load_device(write(directory, "device.yaml", content))
    return str(caught.value).replace(f"{directory}/", "").splitlines()


def load(directory: Path, trainer: dict[str, Any] | None = None) -> TrainerConfig:
    write(directory, "fleet.yaml", FLEET)
    return load_trainer(write(directory, "trainer.yaml", merged(TRAINER, trainer or {})))


# --- what a good file becomes


def test_the_defaults_are_the_ones_the_design_measured(tmp_path: Path) -> None:
    trainer = load(tmp_path)
    device = load_device(write(tmp_path, "device.yaml", DEVICE))
    assert trainer.learning_rate == 2e-3
    assert (trainer.temperature, trainer.sw_weight, trainer.laplacian_weight) == (0.1, 5.0, 0.01)
    assert (trainer.sw_projections, trainer.laplacian_window, trainer.laplacian_neighbours) == (50, 100, 5)
    assert (trainer.merge_every, trainer.merge_deadline_s, trainer.max_lag) == (6, 10.0, 16)
    assert trainer.merge_each_until == 60
    assert (trainer.schedule, trainer.speed, trainer.false_negative_s) == ("constant", "realtime", 6.0)
    assert (trainer.fleet.parts_per_step, trainer.fleet.weights_codec, trainer.fleet.encoder) == (8, "fp16", "mobile")
    assert (trainer.fleet.optimizer.kind, trainer.fleet.optimizer.weight_decay) == ("adamw", 1e-4)
    assert trainer.fleet.optimizer.warmup_steps == 20
    assert (device.min_cut, device.splitter.cut, device.splitter.kind) == (3, 5, "fixed")
    assert (device.deadline_ms, device.step_timeout_s, device.speed) == (2000, 30.0, "realtime")
    assert device.codec.startswith("int4")
    assert (trainer.gradient_codec, trainer.device_rate_share) == ("ternary-zlib", 0.3)


def test_paths_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "devices").mkdir()
    write(tmp_path, "fleet.yaml", FLEET)
    (tmp_path / "clips.txt").touch()
    source = {"kind": "folder", "path": "../sounds", "list": "../clips.txt"}
    content = DEVICE | {"fleet": "../fleet.yaml", "state_directory": "/var/lib/x", "source": source}
    device = load_device(write(tmp_path / "devices", "a.yaml", content))
    assert device.source.path == tmp_path / "devices" / "../sounds"
    assert device.source.list == tmp_path / "devices" / "../clips.txt"
    assert device.state_directory == Path("/var/lib/x")
    assert device.fleet.fleet == "home"


def test_an_integer_may_stand_for_a_number_and_an_exponent_needs_no_point(tmp_path: Path) -> None:
    write(tmp_path, "fleet.yaml", FLEET)
    text = "fleet: fleet.yaml\nstate_directory: s\nsw_weight: 3\nlearning_rate: 1e-3\ntemperature: 5E-2\n"
    trainer = load_trainer(write(tmp_path, "trainer.yaml", text))
    assert (trainer.sw_weight, trainer.learning_rate, trainer.temperature) == (3.0, 1e-3, 5e-2)
    assert isinstance(trainer.sw_weight, float)


def test_text_that_looks_like_an_exponent_or_a_date_stays_text_where_text_is_meant(tmp_path: Path) -> None:
    write(tmp_path, "fleet.yaml", FLEET)
    for name in ("1e3", "2024-01-01", "1e-3"):
        assert load_device(write(tmp_path, "device.yaml", DEVICE | {"id": name})).id == name
        text = yaml.safe_dump(DEVICE).replace("pi-1", name)
        assert load_device(write(tmp_path, "device.yaml", text)).id == name


def test_settings_are_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        load(tmp_path).seed = 1


def test_a_byte_order_mark_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_bytes(b"\xef\xbb\xbf" + yaml.safe_dump(FLEET).encode())
    assert load_fleet(tmp_path / "fleet.yaml").fleet == "home"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_safe_dump_writes_is_read_back(tmp_path: Path, data: st.DataObject) -> None:
    number = st.floats(1e-9, 1.0) | st.just(1)
    trainer = {
        "learning_rate": data.draw(number),
        "sw_weight": data.draw(st.floats(0, 1000)),
        "seed": data.draw(st.integers(0, 2**32 - 1)),
        "budget_windows": data.draw(st.none() | st.integers(1, 10**9)),
        "pins": data.draw(
            st.dictionaries(st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True), st.integers(0, 8), max_size=4)
        ),
        "allowed_cuts": data.draw(st.none() | st.lists(st.integers(0, 8), min_size=1, unique=True)),
        "desired": {"paused": data.draw(st.booleans()), "codec": data.draw(st.sampled_from([None, "int4", "fp16"]))},
    }
    read = load(tmp_path, trainer)
    assert {key: getattr(read, key) for key in ("learning_rate", "sw_weight", "seed", "budget_windows", "pins")} == {
        key: trainer[key] for key in ("learning_rate", "sw_weight", "seed", "budget_windows", "pins")
    }
    assert (None if read.allowed_cuts is None else list(read.allowed_cuts)) == trainer["allowed_cuts"]
    assert read.desired.model_dump() == trainer["desired"]
    room = data.draw(st.text(st.characters(codec="utf-8").filter(str.isprintable), max_size=64))
    assert load_device(write(tmp_path, "device.yaml", DEVICE | {"room": room})).room == room


# --- what is wrong is said with file, line and key, all of it at once


def test_every_error_of_a_device_and_of_the_files_it_names_is_reported_at_once(tmp_path: Path) -> None:
    write(tmp_path, "fleet.yaml", "fleet: home\nbroker:\n  url: http://x\nparts_per_step: 65\n")
    write(tmp_path, "board.yaml", "name: board\nmobile_forward_ms: -1\n")
    text = (
        "id: Pi_1\nfleet: fleet.yaml\nprofile: ./board.yaml\nstate_directory: s\nsource:\n  kind: folder\nmin_cut: 9\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_device(write(tmp_path, "device.yaml", text))
    lines = str(caught.value).replace(f"{tmp_path}/", "").splitlines()
    places = [" ".join(line.split(": ")[:2]) for line in lines]
    assert places[:3] == ["device.yaml:1 id", "device.yaml:5 source.path", "device.yaml:7 min_cut"]
    assert places[3:5] == ["fleet.yaml:3 broker.url", "fleet.yaml:4 parts_per_step"]
    assert "board.yaml:2 mobile_forward_ms" in places
    assert {"board.yaml:1 power", "board.yaml:1 sources"} <= set(places)
    assert all("allowed" in line for line in lines)


FLEET_CASES: list[tuple[str, dict[str, Any], str]] = [
    ("text for an integer", {"parts_per_step": "8"}, "text is never taken for a number"),
    ("a float for an integer", {"parts_per_step": 8.0}, "allowed: integer from 1 to 64"),
    ("true for an integer", {"parts_per_step": True}, "allowed: integer from 1 to 64"),
    ("too many parts", {"parts_per_step": 65}, "allowed: integer from 1 to 64"),
    ("no parts", {"parts_per_step": 0}, "allowed: integer from 1 to 64"),
    ("null", {"parts_per_step": None}, "is empty (null); allowed: integer from 1 to 64"),
    ("a list", {"parts_per_step": [8]}, "a list does not fit"),
    ("a misspelt value", {"encoder": "mobil"}, 'did you mean "mobile"?'),
    ("a misspelt key", {"parts_per_stop": 8}, 'parts_per_stop: unknown key (did you mean "parts_per_step"?)'),
    ("a hyphen for an underscore", {"parts-per-step": 8}, 'did you mean "parts_per_step"?'),
    ("a key of a section", {"keepalive_s": 8}, 'did you mean "broker.keepalive_s"?'),
    ("a key deep down", {"broker": {"user": "x"}}, 'broker.user: unknown key (did you mean "username"?)'),
    ("another scheme", {"broker": {"url": "tcp://x"}}, "allowed: mqtt://HOST[:PORT] or mqtts://HOST[:PORT]"),
    ("no host", {"broker": {"url": "mqtt://"}}, "is not understood"),
    ("a password in it", {"broker": {"url": "mqtt://u:p@x"}}, "allowed: broker.username and broker.password_file"),
    ("a port that is none", {"broker": {"url": "mqtt://x:99999"}}, "is not understood"),
    ("a missing file", {"broker": {"url": "mqtts://x", "ca": "no.pem"}}, "no such file"),
    ("a password without a user", {"broker": {"password_file": "fleet.yaml"}}, "only together with username"),
    ("TLS files without TLS", {"broker": {"ca": "fleet.yaml"}}, "only with an mqtts:// url"),
    ("a certificate alone", {"broker": {"url": "mqtts://x", "certificate": "fleet.yaml"}}, "key is missing"),
    ("a key alone", {"broker": {"url": "mqtts://x", "key": "fleet.yaml"}}, "certificate is missing"),
    ("a reserved name", {"fleet": "_trainer"}, "names that start with _ are reserved"),
    ("capitals", {"fleet": "Home"}, "lower-case letters, digits and hyphens"),
    ("a slash", {"fleet": "a/b"}, "cannot stand in a topic"),
    ("a number as a name", {"fleet": 7}, "put it in quotes"),
    ("captions without activations", {"objective": "clap", "mode": "server-only"}, "sound travels without captions"),
    ("false as a name", {"fleet": False}, "YAML reads on, off, yes and no as true and false"),
]


@pytest.mark.parametrize(("change", "said"), [case[1:] for case in FLEET_CASES], ids=[case[0] for case in FLEET_CASES])
def test_a_fleet_file_is_refused_in_one_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    (line,) = fleet_errors(tmp_path, change)
    assert said in line


TRAINER_CASES: list[tuple[str, dict[str, Any], str]] = [
    ("annealing without a budget", {"schedule": "anneal"}, "schedule: anneal needs a budget"),
    ("a pin beyond the depth", {"pins": {"pi-1": 9}}, "pins.pi-1: 9 does not fit; allowed: map of device id to a cut"),
    ("a negative pin", {"pins": {"pi-1": -1}}, "cut from 0 to 8"),
    ("a pin of no device", {"pins": {"Pi": 3}}, "cannot stand in a topic"),
    ("a cut beyond the depth", {"allowed_cuts": [3, 9]}, "allowed_cuts[1]: 9 does not fit"),
    ("no cut at all", {"allowed_cuts": []}, "an empty list does not fit; allowed: list of one or more cuts"),
    ("a cut twice", {"allowed_cuts": [3, 3]}, "names a cut twice"),
    ("no codec", {"gradient_codec": "int5"}, "int4"),
    ("no desired codec", {"desired": {"codec": "int4-fast"}}, "desired.codec: "),
    ("not a number", {"learning_rate": math.nan}, "allowed: number above 0 to 1"),
    ("infinite", {"sw_weight": math.inf}, "allowed: number from 0 to 1000"),
    ("true for a number", {"sw_weight": True}, "true does not fit"),
    ("text for true", {"desired": {"paused": "yes"}}, "text is never taken for true or false"),
    ("more neighbours than windows", {"laplacian_neighbours": 101}, "at most laplacian_window (100)"),
    ("a tilde", {"state_directory": "~/state"}, "~ is not expanded"),
    ("an empty path", {"state_directory": ""}, "is no usable path"),
    ("no fleet file", {"fleet": "none.yaml"}, "fleet: no such file"),
    ("the fleet in place", {"fleet": FLEET}, "expected a path of a fleet file"),
]


@pytest.mark.parametrize(
    ("change", "said"), [case[1:] for case in TRAINER_CASES], ids=[case[0] for case in TRAINER_CASES]
)
def test_a_trainer_file_is_refused_in_one_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    content = TRAINER | change  # replaced, not merged: a mapping where a path is meant
    write(tmp_path, "fleet.yaml", FLEET)
    with pytest.raises(ConfigError) as caught:
        load_trainer(write(tmp_path, "trainer.yaml", content))
    (line,) = str(caught.value).splitlines()
    assert said in line


DEVICE_CASES: list[tuple[str, dict[str, Any], str]] = [
    ("a cut below the floor", {"splitter": {"cut": 2}}, "splitter.cut: cut 2 is below min_cut 3; allowed: from 3 to 8"),
    ("the default cut below the floor", {"min_cut": 6}, "splitter.cut: cut 5 is below min_cut 6"),
    ("a cut beyond the depth", {"splitter": {"cut": 9}}, "allowed: integer from 0 to 8"),
    ("a folder without a path", {"source": {"kind": "folder"}}, "source.path: kind folder needs a path"),
    ("a soundscape with a path", {"source": {"path": "x"}}, "only with kind: folder"),
    ("a soundscape with a card", {"source": {"card": "USB"}}, "only with kind: microphone"),
    ("a microphone with a list", {"source": {"kind": "microphone", "list": "fleet.yaml"}}, "only with kind: folder"),
    ("a soundscape with captions", {"source": {"captions": "fleet.yaml"}}, "only with kind: folder"),
    ("a microphone with classes", {"source": {"kind": "microphone", "classes": ["x"]}}, "only with kind: soundscape"),
    ("a sound nobody knows", {"source": {"classes": ["silence of the moon"]}}, "no such sound"),
    ("a fast microphone", {"source": {"kind": "microphone"}, "speed": "fast"}, "speed: a microphone cannot"),
    ("a timeout before the deadline", {"step_timeout_s": 2}, "step_timeout_s: 2 s are over before deadline_ms"),
    ("no codec", {"codec": "mp3"}, "codec: "),
    ("a misspelt profile", {"profile": "raspbery-pi-4"}, 'did you mean "raspberry-pi-4"?'),
    ("a missing profile file", {"profile": "boards/x.yaml"}, "no such file"),
    ("a room with a tab", {"room": "kit\tchen"}, "room: 'kit\\tchen'; allowed: printable text"),
    ("a long room", {"room": "x" * 65}, "allowed: text of at most 64 characters"),
]


@pytest.mark.parametrize(
    ("change", "said"), [case[1:] for case in DEVICE_CASES], ids=[case[0] for case in DEVICE_CASES]
)
def test_a_device_file_is_refused_in_one_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    (line,) = device_errors(tmp_path, change)
    assert said in line


# --- profiles and shipped files


def test_every_shipped_file_is_valid() -> None:
    shipped = sorted((ROOT / "configs").rglob("*.yaml"))
    assert len(shipped) >= 10
    assert check(shipped) == []


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_profile_is_found_by_its_name_and_says_where_its_numbers_come_from(path: Path) -> None:
    profile = load_profile(path.stem)
    assert profile == load_profile(path)
    assert profile.name == path.stem
    assert profile.power.source
    assert profile.sources.compute


def test_the_profiles_the_demo_offers_are_there_and_ordered_by_speed() -> None:
    names = ["apple-m2", "raspberry-pi-5", "jetson-orin-nano", "raspberry-pi-4", "raspberry-pi-zero-2w"]
    assert sorted(names) == sorted(path.stem for path in PROFILES.glob("*.yaml"))
    times = [load_profile(name).mobile_forward_ms for name in names]
    assert times == sorted(times)


def test_an_unknown_profile_is_refused_with_the_ones_there_are() -> None:
    with pytest.raises(ConfigError, match=r'no profile "pi".*raspberry-pi-zero-2w'):
        load_profile("pi")


def test_a_device_carries_its_profile(tmp_path: Path) -> None:
    write(tmp_path, "fleet.yaml", FLEET)
    device = load_device(write(tmp_path, "device.yaml", DEVICE | {"profile": "raspberry-pi-5"}))
    assert device.profile == load_profile("raspberry-pi-5")


@pytest.mark.parametrize(
    ("url", "profile", "said"),
    [
        ("mqtt://127.0.0.1", None, r"device\.yaml:\d+: emulate: no board to imitate"),
        ("mqtts://127.0.0.1", "raspberry-pi-5", r"device\.yaml:\d+: emulate: a link with TLS cannot be played"),
    ],
)
def test_a_board_that_cannot_be_played_is_refused(tmp_path: Path, url: str, profile: str | None, said: str) -> None:
    write(tmp_path, "fleet.yaml", merged(FLEET, {"broker": {"url": url}}))
    path = write(tmp_path, "device.yaml", DEVICE | {"profile": profile, "emulate": True})
    with pytest.raises(ConfigError, match=said):
        load_device(path)


@pytest.mark.parametrize("key", ["fleet", "profile", "emulate_conditions"])
def test_a_file_that_the_system_will_not_look_at_is_refused_by_its_key(tmp_path: Path, key: str) -> None:
    write(tmp_path, "fleet.yaml", FLEET)
    path = write(tmp_path, "device.yaml", DEVICE | {key: "x" * 300 + ".yaml"})
    with pytest.raises(ConfigError, match=rf"device\.yaml:\d+: {key}"):
        load_device(path)


# --- fingerprint, password, reference, command line


def test_the_fingerprint_depends_on_what_both_ends_share_and_on_nothing_else(tmp_path: Path) -> None:
    def of(change: dict[str, Any]) -> str:
        return fingerprint(load_fleet(write(tmp_path, "fleet.yaml", merged(FLEET, change))))

    same: list[dict[str, Any]] = [
        {},
        {"fleet": "other"},
        {"broker": {"url": "mqtt://elsewhere"}},
        {"max_message_bytes": 100_000},
    ]
    assert len({of(change) for change in same}) == 1
    other: list[dict[str, Any]] = [
        {"encoder": "resnet18"},
        {"parts_per_step": 4},
        {"weights_codec": "fp32"},
        {"optimizer": {"kind": "sgd"}},
        {"optimizer": {"weight_decay": 0.01}},
        {"optimizer": {"warmup_steps": 3}},
        {"client_updates": "averaged"},
        {"values_per_merge": 1000},
        {"objective": "cola"},
        {"mode": "server-only"},
    ]
    assert len({of(change) for change in [{}, *other]}) == 1 + len(other)
    fields = fingerprint_fields(load_fleet(write(tmp_path, "fleet.yaml", FLEET)))
    assert set(fields) == {
        "protocol",
        "encoder",
        "objective",
        "log_mel",
        "mixture",
        "parts_per_step",
        "optimizer",
        "client_updates",
        "values_per_merge",
        "weights_codec",
        "mode",
    }
    assert len(of({})) == 64


def test_every_objective_has_a_head_that_an_encoder_can_have() -> None:
    from common.config_fleet import HEADS as HEAD_OF
    from common.encoder import HEADS

    assert FleetConfig.model_fields["objective"].annotation.__args__ == tuple(HEAD_OF)  # type: ignore[union-attr]
    assert set(HEAD_OF.values()) == set(HEADS)


def test_the_depth_known_to_the_configuration_is_that_of_every_encoder() -> None:
    from common.encoder import ENCODERS, build_encoder

    assert FleetConfig.model_fields["encoder"].annotation.__args__ == ENCODERS  # type: ignore[union-attr]
    assert {build_encoder(name, 0).depth for name in ENCODERS} == {ENCODER_DEPTH}


def test_the_password_is_the_first_line_of_its_file(tmp_path: Path) -> None:
    path = write(tmp_path, "password", "secret word\nignored\n")
    assert read_password(BrokerConfig(url="mqtt://x", username="a", password_file=path)) == "secret word"
    assert read_password(BrokerConfig(url="mqtt://x")) is None
    path.write_text("\n")
    with pytest.raises(ConfigError, match="empty"):
        read_password(BrokerConfig(url="mqtt://x", username="a", password_file=path))


def leaves(model: type[BaseModel]) -> int:
    """An independent count of keys: JSON schema instead of our own walk, other files counted as one key."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})

    def count(properties: dict[str, Any]) -> int:
        total = 0
        for name, entry in properties.items():
            target = entry.get("$ref", "").rpartition("/")[2]
            inside = name not in {"fleet", "profile"} and target in definitions
            total += count(definitions[target]["properties"]) if inside else 1
        return total

    return count(schema["properties"])


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_reference_has_every_key_once_with_a_description(model: type[BaseModel]) -> None:
    rows = reference(model)
    assert len({row.key for row in rows}) == len(rows) == leaves(model)
    for row in rows:
        assert row.description.endswith("."), row.key
        assert row.type
        assert row.default
    units = {
        "_s": "second",
        "_ms": "millisecond",
        "_mbps": "megabit",
        "_bytes": "byte",
        "_mb": "megabyte",
        "_watts": "watt",
    }
    for row in rows:
        for suffix, unit in units.items():
            if row.key.endswith(suffix):
                assert unit in row.description.lower(), row.key


def test_the_reference_shows_defaults_and_what_is_required() -> None:
    rows = {row.key: row for row in reference(DeviceConfig)}
    assert rows["id"].default == REQUIRED
    assert rows["fleet"].type == "path of a fleet file"
    assert rows["splitter.cut"].default == "5"
    assert rows["local_learning"].default == "true"
    assert rows["windows"].type == "integer from 1, or null"


def test_check_says_all_errors_of_all_files_and_exits_78(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = write(tmp_path, "fleet.yaml", FLEET | {"parts_per_step": 0})
    trainer = write(tmp_path, "trainer.yaml", TRAINER | {"threads": 0})
    device = write(tmp_path, "device.yaml", DEVICE | {"min_cut": 9})
    unknown = write(tmp_path, "unknown.yaml", {"colour": "red"})
    assert main(["check", *map(str, (fleet, trainer, device, unknown))]) == EXIT_CONFIG == 78
    lines = capsys.readouterr().err.replace(f"{tmp_path}/", "").splitlines()
    assert [line.split(":")[0] for line in lines] == ["fleet.yaml", "trainer.yaml", "device.yaml", "unknown.yaml"]


def test_check_is_silent_about_good_files_and_reference_prints_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(ROOT / "configs" / "fleet.yaml")]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["reference"]) == 0
    printed = capsys.readouterr().out
    for model in MODELS.values():
        assert all(f"| `{row.key}` |" in printed for row in reference(model))


def test_reading_a_fleet_file_does_not_load_torch() -> None:
    code = "import sys, common.config; common.config.load_fleet('configs/fleet.yaml'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_models_can_be_built_without_a_file() -> None:
    fleet = FleetConfig(fleet="home", broker=BrokerConfig(url="mqtts://x"))
    device = DeviceConfig(id="a", fleet=fleet, source=SourceConfig(kind="soundscape"), state_directory=Path("s"))
    trainer = TrainerConfig(fleet=fleet, state_directory=Path("s"), schedule="anneal", budget_windows=100)
    assert device.fleet is trainer.fleet is fleet
