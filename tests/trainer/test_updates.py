from __future__ import annotations

import random

import pytest
import torch

from common.change_blob import State, pack_blocks
from common.chunks import split
from common.codec import digest
from common.encoder import build_encoder
from common.errors import MessageError
from common.messages import UpdateChunk
from common.split import block_state, names
from trainer.updates import Updates

BOOT = "a" * 16
RUN = "run-1"


def shapes() -> dict[str, State]:
    encoder = build_encoder("mobile", seed=0)
    return {name: block_state(encoder, name) for name in names(encoder)}


def updates() -> Updates:
    return Updates(shapes(), run=RUN, compute=torch.device("cpu"))


def chunks(
    blocks: dict[str, State],
    *,
    seq: int = 1,
    boot: str = BOOT,
    run: str = RUN,
    said: str | None = None,
    blob: bytes | None = None,
) -> list[UpdateChunk]:
    whole = pack_blocks(blocks, "fp32") if blob is None else blob
    pieces = split(whole)
    return [
        UpdateChunk(run, boot, seq, 3, 2, said or digest(whole), index, len(pieces), data)
        for index, data in enumerate(pieces)
    ]


def test_a_change_is_whole_when_its_last_chunk_is_in_whatever_their_order() -> None:
    change = {name: state for name, state in shapes().items() if name in ("stem", "6", "7")}
    sent = chunks(change)
    assert len(sent) > 3
    random.Random(0).shuffle(sent)
    taking = updates()
    assert all(taking.offer("pi", chunk) is None for chunk in sent[:-1])
    whole = taking.offer("pi", sent[-1])
    assert whole is not None
    assert (whole.device, whole.boot, whole.seq, whole.base_version, whole.local_windows) == ("pi", BOOT, 1, 3, 2)
    assert list(whole.blocks) == ["stem", "6", "7"]
    assert all(torch.equal(whole.blocks[n][key], value) for n, state in change.items() for key, value in state.items())


def test_the_changes_of_two_devices_do_not_mix() -> None:
    change = {"7": shapes()["7"]}
    taking = updates()
    first, second = chunks(change), chunks(change, seq=5)
    for one, other in zip(first[:-1], second[:-1], strict=True):
        assert taking.offer("a", one) is None
        assert taking.offer("b", other) is None
    last = taking.offer("b", second[-1])
    assert last is not None
    assert last.seq == 5


def test_a_newer_change_drops_what_was_collected_of_the_older() -> None:
    change = {"7": shapes()["7"]}
    taking = updates()
    old, new = chunks(change, seq=1), chunks(change, seq=2)
    taking.offer("a", old[0])
    results = [taking.offer("a", chunk) for chunk in new]
    assert results[-1] is not None
    assert results[-1].seq == 2


def test_bytes_that_do_not_match_their_digest_are_refused_and_the_next_change_is_taken() -> None:
    change = {"stem": shapes()["stem"]}
    taking = updates()
    with pytest.raises(MessageError, match="update 1 of pi: the bytes do not match their digest"):
        taking.offer("pi", chunks(change, said="0" * 64)[0])
    assert taking.offer("pi", chunks(change, seq=2)[0]) is not None


def test_a_change_of_another_run_is_refused_before_it_is_put_together() -> None:
    change = {"stem": shapes()["stem"]}
    with pytest.raises(MessageError, match="a change of run 'run-0', this is 'run-1'"):
        updates().offer("pi", chunks(change, run="run-0")[0])


def test_blocks_of_another_encoder_are_refused_by_name() -> None:
    with pytest.raises(MessageError, match="unknown block 'tail'"):
        updates().offer("pi", chunks({"tail": shapes()["stem"]})[0])
    with pytest.raises(MessageError, match="missing or unknown"):
        updates().offer("pi", chunks({"head": shapes()["stem"]})[0])


def test_shapes_of_another_encoder_and_values_that_are_no_numbers_are_refused() -> None:
    stem = shapes()["stem"]
    first = next(iter(stem))
    with pytest.raises(MessageError, match=first):
        updates().offer("pi", chunks({"stem": stem | {first: stem[first][:1]}})[0])
    packed = pack_blocks({"stem": stem}, "fp32")
    value = stem[first].numpy().tobytes()[:4]
    poisoned = packed.replace(value, torch.tensor(torch.nan).numpy().tobytes(), 1)
    with pytest.raises(MessageError, match="NaN or infinite"):
        updates().offer("pi", chunks({}, blob=poisoned)[0])


def test_what_is_no_change_at_all_is_refused() -> None:
    for blob in (b"", b"\xc1", b"\x90", bytes(300)):
        with pytest.raises(MessageError):
            updates().offer("pi", chunks({}, blob=blob)[0])
