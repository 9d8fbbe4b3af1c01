from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import msgpack
import numpy as np
import pytest

from common import messages
from common.codec import EncodedTensor
from common.errors import MessageError
from common.message_fields import Most
from common.message_record import KEYS, Record, record
from common.messages import (
    MESSAGE_TYPES,
    Activations,
    DesiredConfig,
    DeviceStatus,
    Embedding,
    Gradient,
    Limits,
    Manifest,
    SplitterUpdate,
    Telemetry,
    TrainerStatus,
    WeightsChunk,
    decode,
    decode_any,
    encode,
)
from tests.common.cases import BOOT, GOLDEN, cases, golden_file, tensor

CASES = cases()
TYPES = pytest.mark.parametrize("made", list(CASES), ids=lambda made: made.__name__)


def raw(message: object) -> dict[str, Any]:
    """The map of a message, to be spoilt."""
    unpacked: dict[str, Any] = msgpack.unpackb(encode(message))
    return unpacked


def refuse(made: type[object], content: object, field: str) -> None:
    payload = content if isinstance(content, bytes) else msgpack.packb(content)
    with pytest.raises(MessageError, match=field):
        decode(made, payload)


def test_every_message_type_of_the_module_has_a_case_and_golden_bytes_and_nothing_else_has() -> None:
    parts_of_messages = {messages.ComputeTimes, messages.ManifestEntry}
    here = [each for each in vars(messages).values() if getattr(each, "__module__", "") == messages.__name__]
    defined = {each for each in here if isinstance(each, type) and dataclasses.is_dataclass(each)}
    assert defined - parts_of_messages == set(MESSAGE_TYPES) == set(CASES)
    assert {path.name for path in GOLDEN.iterdir()} == {golden_file(made).name for made in CASES}


@TYPES
def test_a_message_survives_the_way_to_bytes_and_back(made: type[object]) -> None:
    assert decode(made, encode(CASES[made])) == CASES[made] == decode_any(encode(CASES[made]))


@TYPES
def test_the_golden_bytes_still_mean_the_same_in_both_directions(made: type[object]) -> None:
    golden = golden_file(made).read_bytes()
    assert decode(made, golden) == CASES[made]
    assert encode(CASES[made]) == golden


@TYPES
def test_what_may_be_none_survives_as_none(made: type[object]) -> None:
    optional = [field.name for field in MESSAGE_TYPES[made].record.fields if field.optional]
    message: Any = CASES[made]
    emptied = dataclasses.replace(message, **dict.fromkeys(optional))
    assert decode(made, encode(emptied)) == emptied
    assert len(encode(emptied)) < len(encode(message)) or not optional


@TYPES
def test_a_truncated_message_is_refused_wherever_it_ends(made: type[object]) -> None:
    payload = encode(CASES[made])
    for length in range(len(payload)):
        with pytest.raises(MessageError):
            decode(made, payload[:length])


@TYPES
def test_bytes_after_the_message_are_refused(made: type[object]) -> None:
    refuse(made, encode(CASES[made]) + b"\0", "extra data")


@TYPES
def test_more_bytes_than_the_type_may_have_are_refused_unread(made: type[object]) -> None:
    refuse(made, bytes(MESSAGE_TYPES[made].max_bytes + 1), "allowed are")
    with pytest.raises(MessageError, match=r"allowed are 10$"):
        decode(made, encode(CASES[made]), limits=Limits(max_message_bytes=10))


@TYPES
@pytest.mark.parametrize("version", [0, 2, "1", None, True, 1.0, [1]])
def test_another_protocol_version_is_refused(made: type[object], version: object) -> None:
    refuse(made, {**raw(CASES[made]), "v": version}, "^v: not protocol version 1, but")


@TYPES
@pytest.mark.parametrize("tag", ["sound", None, 1, [], {}, b"act"])
def test_an_unknown_type_is_refused(made: type[object], tag: object) -> None:
    refuse(made, {**raw(CASES[made]), "t": tag}, "^t: not a type of message, but")


@TYPES
def test_another_type_than_the_expected_one_is_refused(made: type[object]) -> None:
    for other in CASES.keys() - {made}:
        refuse(other, encode(CASES[made]), "^t: a '") if MESSAGE_TYPES[other].max_bytes > 600 else None


@TYPES
def test_an_unknown_field_is_refused_by_name(made: type[object]) -> None:
    refuse(made, {**raw(CASES[made]), "zz": 1}, "^'zz': unknown field")


@TYPES
def test_a_missing_field_is_refused_by_name(made: type[object]) -> None:
    for field in MESSAGE_TYPES[made].record.fields:
        content = raw(CASES[made])
        del content[field.key]
        if not field.optional:
            refuse(made, content, rf"^{field.name}: missing$")


def test_a_message_from_before_cuts_were_planned_is_one_without_a_plan() -> None:
    before = (
        "85a17601a174a873706c6974746572a776657273696f6e06aa70696e6e65645f63757405ac616c6c6f7765645f637574739403040508"
    )
    assert decode(SplitterUpdate, bytes.fromhex(before)) == SplitterUpdate(6, 5, (3, 4, 5, 8), None)
    assert encode(SplitterUpdate(6, 5, (3, 4, 5, 8), None)) == bytes.fromhex(before)


@TYPES
def test_a_field_of_another_type_is_refused_by_name(made: type[object]) -> None:
    wrong_for_all = (msgpack.Timestamp(1), msgpack.ExtType(5, b"x"), math.nan, math.inf, -1e300)
    for field in MESSAGE_TYPES[made].record.fields:
        for value in (*wrong_for_all, *_wrong_for(raw(CASES[made])[field.key])):
            refuse(made, {**raw(CASES[made]), field.key: value}, rf"^({field.name}|no MessagePack)")


def _wrong_for(good: object) -> list[object]:
    values: list[object] = [True, 1, 0.5, "text", b"bytes", [1, "a", None], {"a": [1]}]
    same: dict[type, list[object]] = {
        bool: [True],
        int: [1],
        float: [1, 0.5],
        str: ["text"],
        bytes: [b"bytes"],
        list: [],
        dict: [],
    }
    return [value for value in values if not any(value is keep for keep in same[type(good)])]


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\xc0", [], 1, "text", [["v", 1]], {"v": 1}, {"t": "act"}, {}])
def test_what_is_no_map_with_version_and_type_is_refused(content: object) -> None:
    refuse(Activations, content, "^(v|t|no|not) ?")
    with pytest.raises(MessageError):
        decode_any(content if isinstance(content, bytes) else msgpack.packb(content))


def test_a_key_given_twice_is_refused() -> None:
    payload = encode(CASES[TrainerStatus])
    twice = bytes([payload[0] + 1]) + payload[1:] + msgpack.packb("seq") + msgpack.packb(5)
    refuse(TrainerStatus, twice, "a key twice")


RANGES = [
    (Activations, "part", -1),
    (Activations, "cut", 65),
    (Activations, "boot", "0123456789ABCDEF"),
    (Activations, "boot", "0123"),
    (Activations, "room", "a\nb"),
    (Activations, "room", "a" * 65),
    (Activations, "last", 1),
    (Activations, "step", 1.0),
    (Activations, "tensor", None),
    (Activations, "caption", "a" * 201),
    (Activations, "caption", "rain\non a roof"),
    (Telemetry, "observation", (0.5, 1.5)),
    (Telemetry, "observation", (0.5, math.nan)),
    (Telemetry, "mask", (True, 1)),
    (Telemetry, "action", -2),
    (Telemetry, "cpu", 37.0),
    (Telemetry, "cpu", True),
    (Telemetry, "temperature_c", math.inf),
    (Embedding, "uncertainty", math.nan),
    (Gradient, "result", "fine"),
    (Gradient, "loss", math.inf),
    (Gradient, "learning_rate", -1e-3),
    (DeviceStatus, "state", "READY"),
    (DeviceStatus, "cuts", (1,) * 66),
    (SplitterUpdate, "pinned_cut", True),
    (SplitterUpdate, "planned_cut", 65),
    (Telemetry, "client_ms", -1.0),
    (DesiredConfig, "paused", 0),
    (WeightsChunk, "name", "../stem"),
    (WeightsChunk, "index", 1),
    (WeightsChunk, "data", bytes(65_536)),
    (Manifest, "merged", {"Pi": (BOOT, 1)}),
    (Manifest, "merged", {"pi": (BOOT, 1, 1)}),
    (Manifest, "merged", {"pi": (BOOT, -1)}),
    (Manifest, "entries", {"stem": None}),
]


@pytest.mark.parametrize(("made", "field", "value"), RANGES)
def test_a_message_of_ours_that_breaks_a_rule_is_our_own_mistake(made: type[object], field: str, value: object) -> None:
    message: Any = CASES[made]
    with pytest.raises(ValueError, match=rf"^{made.__name__}: {field}"):
        encode(dataclasses.replace(message, **{field: value}))


@pytest.mark.parametrize(
    ("made", "key", "value", "field"),
    [
        (Activations, "p", 1_024, "part"),
        (Activations, "j", "rain\0", "caption"),
        (Activations, "j", "\U0001f327" * 201, "caption"),
        (Activations, "j", ["rain"], "caption"),
        (Activations, "x", {"q": "int4", "h": [2, 3], "a": bytes(16)}, "tensor.data: missing"),
        (Activations, "x", {"q": "int4", "h": [2, 3], "a": bytes(16), "z": bytes(4)}, "tensor.data: 4 bytes"),
        (Activations, "x", {"q": "int4", "h": [2, 2**40], "a": bytes(16), "z": b""}, r"tensor.shape\[1\]"),
        (Activations, "x", {"q": "int4", "h": [2**22, 2], "a": b"", "z": b""}, "tensor.shape"),
        (Activations, "x", {"q": "int9", "h": [2, 3], "a": bytes(16), "z": bytes(3)}, "tensor.codec"),
        (Telemetry, "observation", [0.5, "a"], r"observation\[1\]"),
        (Telemetry, "log_prob", 5, "log_prob"),
        (WeightsChunk, "index", 1, "index: 1 of 1"),
        (Manifest, "entries", {"stem": {"digest": bytes(31), "chunks": 1, "size_bytes": 1}}, "entries.stem.digest"),
        (Manifest, "entries", {"stem": {"digest": bytes(32), "chunks": 1}}, "entries.stem.size_bytes: missing"),
        (Manifest, "entries", {"manifest/0": {}}, "entries, a key"),
        (Manifest, "merged", {"pi-1": [bytes(8), -1]}, r"merged.pi-1\[1\]"),
    ],
)
def test_a_received_field_that_breaks_a_rule_is_refused_by_its_path(
    made: type[object], key: str, value: object, field: str
) -> None:
    refuse(made, {**raw(CASES[made]), key: value}, f"^{field}")


def test_a_share_may_be_off_by_a_rounding_and_numpy_floats_travel() -> None:
    message = Embedding(BOOT, 0, 0, 0, float(np.nextafter(np.float32(1), np.float32(2))), tensor("fp32", 1, 2))
    assert decode(Embedding, encode(message)) == message
    assert decode(Embedding, encode(dataclasses.replace(message, uncertainty=np.float64(0.5)))).uncertainty == 0.5


def test_the_header_of_a_part_stays_below_120_bytes_with_its_scales() -> None:
    encoded = tensor("int4", 2, 96, 4, 6)
    part = Activations(BOOT, 70_000, 7, False, 5, 9_000, 2_000, 9_000, 600_000, 10**9, "kitchen", encoded)
    assert len(encode(part)) - len(encoded.data) < 120


def test_a_part_without_a_caption_is_the_one_that_was_sent_before_there_were_captions() -> None:
    before = {key: value for key, value in raw(CASES[Activations]).items() if key != "j"}
    message: Any = CASES[Activations]
    silent = dataclasses.replace(message, caption=None)
    assert encode(silent) == msgpack.packb(before)
    assert decode(Activations, msgpack.packb(before)) == silent


def test_the_longest_caption_of_four_byte_characters_fits() -> None:
    message: Any = CASES[Activations]
    longest = dataclasses.replace(message, caption="\U0001f327" * 200)
    assert decode(Activations, encode(longest)) == longest


def test_a_manifest_of_a_large_fleet_fits() -> None:
    message: Any = CASES[Manifest]
    merged = {f"device-{number}": (BOOT, number) for number in range(1_000)}
    large = dataclasses.replace(message, merged=merged)
    assert decode(Manifest, encode(large)) == large


def test_keys_are_short_different_and_no_other_fields_name() -> None:
    def keys(rules: Record) -> list[str]:
        return [field.key for field in rules.fields]

    everything = [record(EncodedTensor), *(wire.record for wire in MESSAGE_TYPES.values())]
    assert all(len(set(keys(rules))) == len(keys(rules)) for rules in everything)
    assert len(set(KEYS.values())) == len(KEYS)
    assert all("v" not in keys(wire.record) and "t" not in keys(wire.record) for wire in MESSAGE_TYPES.values())
    assert len({wire.tag for wire in MESSAGE_TYPES.values()}) == len(MESSAGE_TYPES)


@TYPES
def test_the_log_shows_a_message_in_one_line_without_its_bytes(made: type[object]) -> None:
    shown = str(CASES[made])
    assert shown.startswith(f"{made.__name__}(")
    assert shown.isprintable()
    assert "\\x" not in shown
    assert len(shown) < 1_000


def test_the_log_names_a_tensor_by_codec_shape_and_size() -> None:
    assert "tensor=int4[2x3x2x3, 34 B]" in str(CASES[Activations])


def test_a_rule_that_is_forgotten_is_noticed_at_import() -> None:
    for hint in (int, str, float, bytes, tuple[bool, ...], dict[str, int], Annotated[tuple[int, ...], Most(3)]):
        made = dataclasses.make_dataclass("Forgotten", [("field", hint)])
        with pytest.raises(TypeError, match=r"Forgotten\.field: .* has no rule"):
            record(made)


def test_the_command_prints_a_captured_message(tmp_path: Path) -> None:
    captured = tmp_path / "part.bin"
    captured.write_bytes(encode(CASES[Activations]))
    command = [sys.executable, "-m", "common.messages", str(captured)]
    root = Path(messages.__file__).parent.parent
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout
    assert shown == f"{CASES[Activations]}\n{captured.stat().st_size} bytes\n"


@pytest.mark.parametrize(("content", "said"), [(b"\xc1", "no MessagePack"), (None, "No such file")])
def test_the_command_says_in_one_line_what_is_wrong(
    tmp_path: Path, content: bytes | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    captured = tmp_path / "part.bin"
    if content is not None:
        captured.write_bytes(content)
    assert messages._main([str(captured)]) == 1
    assert said in capsys.readouterr().err
    assert messages._main([]) == 2
