"""A device's weights between versions: whole or not at all, and nothing learned is lost or counted twice."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
import torch

from common.change_blob import State, unpack_blocks
from common.encoder import Encoder, build_encoder
from common.errors import MessageError
from common.messages import ManifestEntry, WeightsChunk
from common.packed_change import ChangeCodec
from common.split import block, block_parameters, block_state, client_names, load_block, names
from device.replica import SENT_KEPT, Change, Replica
from tests.published import Published, everywhere, furthest, learn, same

BOOT = "b" * 16
NEEDED = client_names(3)
ULP = 2.4e-7  # two roundings of a normalisation's 1.0


class Device:
    def __init__(self, codec: ChangeCodec = "fp32", *, boot: str = BOOT) -> None:
        self.encoder = build_encoder("mobile", seed=99)
        self.replica = Replica(self.encoder, device="pi", boot=boot, dtype="fp32", change_codec=codec)

    def receive(self, fleet: Published, blocks: Iterable[str] | None = None) -> None:
        for chunk in fleet.chunks(blocks):
            self.replica.offer_chunk(chunk)
        self.replica.offer_manifest(fleet.manifest())

    def start(self, fleet: Published) -> None:
        self.receive(fleet)
        assert self.replica.apply(names(self.encoder))

    def learn(self, value: float, blocks: Iterable[str] = NEEDED, local_windows: int = 8) -> None:
        learn(self.encoder, value, blocks)
        self.replica.trained(blocks, local_windows=local_windows)

    def change(self) -> Change:
        change = self.replica.change()
        assert change is not None
        return change

    def blocks_of(self, change: Change) -> dict[str, State]:
        return unpack_blocks(change.blob, {name: block_state(self.encoder, name) for name in names(self.encoder)})

    def holds(self, name: str) -> State:
        return block_state(self.encoder, name)


def weights(encoder: Encoder) -> dict[str, State]:
    return {name: block_state(encoder, name) for name in names(encoder)}


def unchanged(before: dict[str, State], encoder: Encoder) -> bool:
    return all(same(before[name], block_state(encoder, name)) for name in before)


# -- whole or not at all ----------------------------------------------------------------------------------------------


def test_the_first_version_is_taken_over_bit_for_bit() -> None:
    fleet, device = Published(), Device()
    assert (device.replica.initialised, device.replica.version, device.replica.run) == (False, -1, "")
    device.start(fleet)
    assert device.replica.initialised
    assert (device.replica.version, device.replica.run) == (fleet.version, fleet.run)
    assert unchanged(weights(fleet.encoder), device.encoder)


def test_chunks_and_manifest_may_come_in_any_order() -> None:
    fleet, device = Published(), Device()
    device.replica.offer_manifest(fleet.manifest())
    assert device.replica.missing(names(device.encoder)) == list(names(device.encoder))
    chunks = fleet.chunks()
    random.Random(0).shuffle(chunks)
    for chunk in chunks:
        assert not device.replica.apply(names(device.encoder))
        device.replica.offer_chunk(chunk)
    assert device.replica.apply(names(device.encoder))


@pytest.mark.parametrize("missing", names(build_encoder("mobile", seed=0)))
def test_a_version_without_one_of_the_needed_blocks_is_not_applied_at_all(missing: str) -> None:
    fleet, device = Published(), Device()
    device.start(fleet)
    before = weights(device.encoder)
    fleet.next(everywhere(fleet.encoder, 0.5, names(fleet.encoder)))
    device.receive(fleet, [name for name in names(device.encoder) if name != missing])
    assert device.replica.missing(names(device.encoder)) == [missing]
    assert not device.replica.apply(names(device.encoder))
    assert unchanged(before, device.encoder)
    assert device.replica.version == fleet.version - 1
    assert device.replica.announced_version == fleet.version


def test_blocks_of_two_versions_never_meet() -> None:
    fleet, device = Published(), Device()
    device.start(fleet)
    before = weights(device.encoder)
    fleet.next(everywhere(fleet.encoder, 0.5, NEEDED))
    early = fleet.chunks(NEEDED[:2])
    fleet.next(everywhere(fleet.encoder, 0.5, NEEDED))
    for chunk in [*early, *fleet.chunks(NEEDED[2:])]:
        device.replica.offer_chunk(chunk)
    device.replica.offer_manifest(fleet.manifest())
    assert device.replica.missing(NEEDED) == list(NEEDED[:2])
    assert not device.replica.apply(NEEDED)
    assert unchanged(before, device.encoder)
    device.receive(fleet, NEEDED[:2])
    assert device.replica.apply(NEEDED)
    assert all(same(device.holds(name), fleet.state(name)) for name in NEEDED)


def test_half_a_block_of_one_version_and_half_of_the_next_make_none() -> None:
    fleet, device = Published(), Device()
    device.start(fleet)
    fleet.next(everywhere(fleet.encoder, 0.5, ["7"]))
    old = fleet.chunks(["7"])
    fleet.next(everywhere(fleet.encoder, 0.5, ["7"]))
    new = fleet.chunks(["7"])
    assert len(old) > 2
    device.replica.offer_manifest(fleet.manifest())
    for chunk in [*old[:-1], *new[1:], old[-1]]:
        device.replica.offer_chunk(chunk)
        assert not device.replica.apply(["7"])


def test_bytes_that_are_not_what_the_manifest_names_are_left_alone() -> None:
    fleet, device = Published(), Device()
    device.start(fleet)
    before = weights(device.encoder)
    fleet.next(everywhere(fleet.encoder, 0.5, NEEDED))
    device.replica.offer_manifest(fleet.manifest())
    fleet.next(everywhere(fleet.encoder, 0.5, NEEDED))
    for chunk in fleet.chunks():
        device.replica.offer_chunk(chunk)
    assert not device.replica.apply(NEEDED)
    assert unchanged(before, device.encoder)


def test_a_block_whose_bytes_match_but_do_not_fit_stops_the_whole_version() -> None:
    fleet, device = Published(), Device()
    device.start(fleet)
    before = weights(device.encoder)
    fleet.next(everywhere(fleet.encoder, 0.5, NEEDED))
    manifest, wrong = fleet.manifest(), fleet.chunks(["stem"])[0]
    for chunk in fleet.chunks(NEEDED[:-1]):
        device.replica.offer_chunk(chunk)
    device.replica.offer_chunk(WeightsChunk(fleet.run, fleet.version, NEEDED[-1], 0, 1, wrong.data))
    manifest.entries[NEEDED[-1]] = ManifestEntry(manifest.entries["stem"].digest, 1, len(wrong.data))
    device.replica.offer_manifest(manifest)
    with pytest.raises(MessageError):
        device.replica.apply(NEEDED)
    assert unchanged(before, device.encoder)
    assert device.replica.version == fleet.version - 1


def test_an_unknown_block_is_refused() -> None:
    with pytest.raises(MessageError, match="unknown block 'tail'"):
        Device().replica.offer_chunk(WeightsChunk("run-1", 1, "tail", 0, 1, b""))


def test_applying_a_version_twice_moves_nothing_the_second_time() -> None:
    fleet, device = Published(), Device()
    device.start(fleet)
    assert not device.replica.apply(names(device.encoder))
    device.receive(fleet)
    assert not device.replica.apply(names(device.encoder))


def test_only_blocks_of_the_version_held_allow_a_deeper_cut() -> None:
    fleet, device = Published(), Device()
    device.start(fleet)
    assert device.replica.current(client_names(8))
    fleet.next(everywhere(fleet.encoder, 0.5, names(fleet.encoder)))
    device.receive(fleet, NEEDED)
    assert device.replica.apply(NEEDED)
    assert device.replica.current(NEEDED)
    assert not device.replica.current(client_names(4))
    device.receive(fleet, ["3"])
    assert device.replica.apply(NEEDED)
    assert device.replica.current(client_names(4))


# -- what was learned here --------------------------------------------------------------------------------------------


def test_what_was_learned_and_not_sent_stays_on_top_of_a_new_version() -> None:
    fleet, device = Published(), Device()
    device.start(fleet)
    device.learn(0.25)
    fleet.next(everywhere(fleet.encoder, 0.5, names(fleet.encoder)))
    device.receive(fleet)
    assert device.replica.apply(NEEDED)
    for name in NEEDED:
        learned = {key: value + 0.25 for key, value in fleet.state(name).items()}
        assert furthest(device.holds(name), learned) < ULP
    assert same(device.holds("5"), fleet.state("5"))
    assert device.replica.local_windows == 8


def test_a_merged_change_is_subtracted_once_and_what_came_after_it_stays() -> None:
    fleet, device = Published(), Device()
    device.start(fleet)
    device.learn(0.25, local_windows=8)
    sent = device.change()
    assert (sent.run, sent.base_version, sent.local_windows) == (fleet.run, fleet.version, 8)
    device.learn(0.125, local_windows=4)
    fleet.next(device.blocks_of(sent), {"pi": (BOOT, sent.seq)})
    device.receive(fleet, NEEDED)
    assert device.replica.apply(NEEDED)
    for name in NEEDED:
        rest = {key: value + 0.125 for key, value in fleet.state(name).items()}
        assert furthest(device.holds(name), rest) < ULP
    assert device.replica.local_windows == 4
    fleet.next({}, {})
    device.receive(fleet, NEEDED)
    assert device.replica.apply(NEEDED)
    for name in NEEDED:
        rest = {key: value + 0.125 for key, value in fleet.state(name).items()}
        assert furthest(device.holds(name), rest) < 2 * ULP, (
            "the manifest names it again, and nothing more is subtracted"
        )
    again = device.change()
    assert all(
        furthest(state, everywhere(device.encoder, 0.125, [n])[n]) < 3 * ULP
        for n, state in device.blocks_of(again).items()
    )


def test_the_rounding_of_fp16_stays_in_the_unsent_change_and_travels_with_the_next() -> None:
    fleet, device = Published(), Device("fp16")
    device.start(fleet)
    third = 1 / 3  # no fp16 number
    arrived = 0.0
    for _ in range(4):
        device.learn(third)
        sent = device.change()
        value = device.blocks_of(sent)["stem"]["1.bias"]
        arrived += float(value[0])
        fleet.next(device.blocks_of(sent), {"pi": (BOOT, sent.seq)})
        device.receive(fleet, NEEDED)
        assert device.replica.apply(NEEDED)
    kept = float((device.holds("stem")["1.bias"] - fleet.state("stem")["1.bias"])[0])
    assert kept != 0.0
    assert abs(kept) < 2e-4, "one rounding, not four"
    assert arrived + kept == pytest.approx(4 * third, abs=1e-6)


@pytest.mark.parametrize("codec", ["fp16", "int8", "int4", "ecsq", "ternary"])
def test_whatever_the_codec_rounds_away_arrives_with_a_later_change(codec: ChangeCodec) -> None:
    fleet, device = Published(), Device(codec)
    device.start(fleet)
    start, generator = fleet.state("0"), torch.Generator().manual_seed(0)
    learned = {key: torch.zeros_like(value) for key, value in start.items()}
    for merge in range(6):
        step = {key: 1e-2 * torch.randn(value.shape, generator=generator) for key, value in start.items()}
        learned = {key: learned[key] + step[key] for key in step}
        load_block(device.encoder, "0", {key: value + step[key] for key, value in device.holds("0").items()})
        device.replica.trained(["0"])
        sent = device.change()
        fleet.next(device.blocks_of(sent), {"pi": (BOOT, sent.seq)})
        device.receive(fleet)
        assert device.replica.apply(NEEDED)
        arrived = {key: value - start[key] for key, value in fleet.state("0").items()}
        kept = {key: value - fleet.state("0")[key] for key, value in device.holds("0").items()}
        assert furthest({key: arrived[key] + kept[key] for key in kept}, learned) < 3e-6
        most = 4e-2 if codec == "ternary" else 1e-2  # a few steps of the codec, for changes of 1e-2
        assert max(float(value.abs().max()) for value in kept.values()) < most, f"one rounding, not {merge + 1}"


def test_a_block_that_is_no_longer_trained_travels_no_more_once_it_is_merged() -> None:
    fleet, device = Published(), Device("fp16")
    device.start(fleet)
    device.learn(1 / 3, client_names(8))
    sent = device.change()
    fleet.next(device.blocks_of(sent), {"pi": (BOOT, sent.seq)})
    device.receive(fleet)
    assert device.replica.apply(NEEDED)
    assert device.replica.change() is None, "what fp16 rounded off is no reason to send a block"
    device.learn(1 / 3)
    assert list(device.blocks_of(device.change())) == sorted(NEEDED)


def test_a_change_that_was_not_merged_is_sent_whole_again() -> None:
    fleet, device = Published(), Device()
    device.start(fleet)
    device.learn(0.25, client_names(5))
    first = device.change()
    device.learn(0.25)
    second = device.change()
    assert second.seq == first.seq + 1
    blocks = device.blocks_of(second)
    assert sorted(blocks) == sorted(client_names(5)), "the block given up meanwhile as well"
    assert float(blocks["stem"]["1.bias"][0]) == pytest.approx(0.5, abs=1e-6)
    assert float(blocks["4"]["expand_norm.bias"][0]) == pytest.approx(0.25, abs=1e-6)
    assert (second.local_windows, second.base_version) == (16, fleet.version)


def test_a_manifest_that_names_the_newer_of_two_changes_settles_both() -> None:
    fleet, device = Published(), Device()
    device.start(fleet)
    device.learn(0.25)
    device.change()
    device.learn(0.25)
    second = device.change()
    fleet.next(device.blocks_of(second), {"pi": (BOOT, second.seq)})
    device.receive(fleet, NEEDED)
    assert device.replica.apply(NEEDED)
    assert all(furthest(device.holds(name), fleet.state(name)) < ULP for name in NEEDED)
    assert (device.replica.change(), device.replica.local_windows) == (None, 0)


def test_a_device_that_missed_the_version_with_its_change_learns_of_it_from_a_later_one() -> None:
    fleet, device = Published(), Device()
    device.start(fleet)
    device.learn(0.25)
    sent = device.change()
    fleet.next(device.blocks_of(sent), {"pi": (BOOT, sent.seq)})
    fleet.next(everywhere(fleet.encoder, 0.5, NEEDED), {"other": (BOOT, 3)})
    device.receive(fleet, NEEDED)
    assert device.replica.apply(NEEDED)
    assert all(furthest(device.holds(name), fleet.state(name)) < ULP for name in NEEDED)


def test_a_change_named_of_another_device_boot_or_number_is_not_ours() -> None:
    for merged in ({"other": (BOOT, 1)}, {"pi": ("c" * 16, 1)}, {"pi": (BOOT, 2)}):
        fleet, device = Published(), Device()
        device.start(fleet)
        device.learn(0.25)
        device.change()
        fleet.next({}, merged)
        device.receive(fleet)
        assert device.replica.apply(NEEDED)
        for name in NEEDED:
            learned = {key: value + 0.25 for key, value in fleet.state(name).items()}
            assert furthest(device.holds(name), learned) < ULP


def test_a_refused_change_named_by_an_unchanged_version_is_dropped() -> None:
    fleet, device = Published(), Device()
    device.start(fleet)
    device.learn(0.25)
    sent = device.change()
    fleet.next({}, {"pi": (BOOT, sent.seq)})
    device.replica.offer_manifest(fleet.manifest())
    assert device.replica.apply(NEEDED), "every block is held already"
    assert all(furthest(device.holds(name), fleet.state(name)) < ULP for name in NEEDED)
    assert device.replica.version == fleet.version


def test_without_training_there_is_no_change() -> None:
    fleet, device = Published(), Device()
    device.start(fleet)
    assert device.replica.change() is None


def test_only_a_few_sent_changes_are_remembered() -> None:
    fleet, device = Published(), Device()
    device.start(fleet)
    for _ in range(SENT_KEPT + 3):
        device.learn(0.25)
        newest = device.change()
    assert len(device.replica._sent) == SENT_KEPT
    fleet.next(device.blocks_of(newest), {"pi": (BOOT, newest.seq)})
    device.receive(fleet, NEEDED)
    assert device.replica.apply(NEEDED)
    assert device.replica.change() is None


# -- from the disk ----------------------------------------------------------------------------------------------------


def restarted(device: Device, boot: str = "c" * 16) -> Device:
    again = Device(boot=boot)
    again.replica.restore(device.replica.snapshot())
    return again


def test_a_restart_stands_where_the_snapshot_stood() -> None:
    fleet, device = Published(), Device()
    device.start(fleet)
    device.learn(0.25)
    again = restarted(device)
    assert again.replica.initialised
    assert (again.replica.version, again.replica.run) == (fleet.version, fleet.run)
    assert all(furthest(again.holds(name), device.holds(name)) < ULP for name in names(device.encoder))
    assert not again.replica.current(NEEDED), "whether the fleet still stands there is not known yet"
    change = again.change()
    assert change.base_version == fleet.version
    assert sorted(again.blocks_of(change)) == sorted(NEEDED)


def test_after_a_restart_what_was_learned_stays_on_top_of_the_version_that_came_meanwhile() -> None:
    fleet, device = Published(), Device()
    device.start(fleet)
    device.learn(0.25)
    again = restarted(device)
    fleet.next(everywhere(fleet.encoder, 0.5, names(fleet.encoder)))
    again.receive(fleet)
    assert again.replica.apply(NEEDED)
    for name in NEEDED:
        learned = {key: value + 0.25 for key, value in fleet.state(name).items()}
        assert furthest(again.holds(name), learned) < 2 * ULP


def test_a_change_sent_before_the_restart_and_merged_meanwhile_does_not_count_twice() -> None:
    fleet, device = Published(), Device()
    device.start(fleet)
    device.learn(0.25)
    sent = device.change()
    again = restarted(device)
    fleet.next(device.blocks_of(sent), {"pi": (BOOT, sent.seq)})
    again.receive(fleet, NEEDED)
    assert again.replica.apply(NEEDED)
    assert all(furthest(again.holds(name), fleet.state(name)) < 2 * ULP for name in NEEDED)
    again.learn(0.125)
    for name, state in again.blocks_of(again.change()).items():
        assert furthest(state, everywhere(again.encoder, 0.125, [name])[name]) < 4 * ULP


@pytest.mark.parametrize("merged", [0, 1])
def test_whichever_of_two_changes_was_merged_while_the_device_was_away_counts_once(merged: int) -> None:
    fleet, device = Published(), Device()
    device.start(fleet)
    device.learn(0.25, local_windows=8)
    asked = device.change()
    device.learn(0.125, local_windows=4)
    sent = (asked, device.change())[merged]  # the second one as it leaves
    again = restarted(device)
    assert again.replica.local_windows == 12
    fleet.next(device.blocks_of(sent), {"pi": (BOOT, sent.seq)})
    again.receive(fleet, NEEDED)
    assert again.replica.apply(NEEDED)
    for name in NEEDED:
        rest = {key: value + (0.125, 0.0)[merged] for key, value in fleet.state(name).items()}
        assert furthest(again.holds(name), rest) < 2 * ULP
    assert again.replica.local_windows == (4, 0)[merged]


@pytest.mark.parametrize("others_first", [False, True])
@pytest.mark.parametrize("summed", [False, True])
def test_what_was_published_and_merged_after_the_snapshot_does_not_count_twice(
    summed: bool, others_first: bool
) -> None:
    fleet, device = Published(), Device()
    device.start(fleet)
    learned = learn_summed if summed else Device.learn
    learned(device, 0.25)
    again = Device(boot="c" * 16)
    again.replica.restore(device.replica.snapshot())
    change = device.change()  # the disk knows nothing of it when the power fails
    if others_first:
        fleet.next(everywhere(fleet.encoder, 0.01, NEEDED))
        again.receive(fleet)
        assert again.replica.apply(NEEDED)
    fleet.next(device.blocks_of(change), merged={"pi": (BOOT, change.seq)})
    again.learn(0.5)
    again.receive(fleet)
    assert again.replica.apply(NEEDED)
    for state in again.blocks_of(again.change()).values():
        assert all(torch.allclose(value, torch.full_like(value, 0.5), atol=1e-3) for value in state.values())


def learn_summed(device: Device, by: float) -> None:
    give_gradients(device.encoder, -by, NEEDED)
    device.replica.sum_up(NEEDED, 1.0)
    device.replica.trained(NEEDED)


def test_a_change_published_before_the_snapshot_leaves_what_came_after_it() -> None:
    fleet, device = Published(), Device()
    device.start(fleet)
    device.learn(0.25)
    first = device.change()
    device.learn(0.5)
    again = restarted(device)
    for merged in (first.seq, first.seq):  # the second manifest names it again: nothing more is taken away
        fleet.next(everywhere(fleet.encoder, 0.25, NEEDED), merged={"pi": (BOOT, merged)})
        again.receive(fleet)
        assert again.replica.apply(NEEDED)
        for state in again.blocks_of(again.change()).values():
            assert all(torch.allclose(value, torch.full_like(value, 0.5), atol=1e-3) for value in state.values())


def test_a_restart_still_knows_on_how_many_windows_it_learned_alone() -> None:
    fleet, device = Published(), Device()
    device.start(fleet)
    device.learn(0.25, local_windows=8)
    learn(device.encoder, 0.125, names(device.encoder))
    device.replica.trained(names(device.encoder))
    assert restarted(device).change().local_windows == 8


def test_only_so_many_sent_changes_come_back_from_the_disk() -> None:
    fleet, device = Published(), Device()
    device.start(fleet)
    for _ in range(SENT_KEPT):
        device.learn(0.25)
        device.change()
    again = restarted(device)
    again.learn(0.25)
    again.change()
    kept = again.replica.snapshot().sent
    assert [one.seq for one in kept] == [2, 3, 4, 1]
    assert [one.boot for one in kept] == [BOOT] * 3 + ["c" * 16]


def test_what_was_learned_in_another_run_is_not_carried_onto_its_weights() -> None:
    first, second, device = Published(), Published(run="run-2", encoder=build_encoder("mobile", seed=2)), Device()
    device.start(first)
    device.learn(0.25)
    device.change()
    device.receive(second)
    assert device.replica.apply(NEEDED)
    assert unchanged(weights(second.encoder), device.encoder)
    assert device.replica.change() is None


# -- gradients summed up ----------------------------------------------------------------------------------------------


def give_gradients(encoder: Encoder, value: float, blocks: Iterable[str]) -> None:
    for name in blocks:
        for parameter in block_parameters(encoder, name):
            parameter.grad = torch.full_like(parameter, value)


def test_summed_gradients_are_the_change_and_do_not_move_the_encoder() -> None:
    fleet, device = Published(), Device()
    device.start(fleet)
    before = weights(device.encoder)
    for value in (1.0, 3.0):
        give_gradients(device.encoder, value, NEEDED)
        device.replica.sum_up(NEEDED, 0.25)
        device.replica.trained(NEEDED)
    assert unchanged(before, device.encoder)
    sent = device.blocks_of(device.change())
    assert set(sent) == set(NEEDED)
    assert all(bool((value == -1.0).all()) for state in sent.values() for value in state.values())


def test_of_summed_gradients_what_rounding_left_goes_with_the_next_change() -> None:
    fleet, device = Published(), Device("int4")
    device.start(fleet)
    generator = torch.Generator().manual_seed(0)
    wanted: State = {key: torch.zeros_like(value) for key, value in device.holds("stem").items()}
    arrived = {key: value.clone() for key, value in wanted.items()}
    for _ in range(6):
        for key, parameter in block(device.encoder, "stem").named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            wanted[key] -= 1e-3 * parameter.grad
        device.replica.sum_up(["stem"], 1e-3)
        device.replica.trained(["stem"])
        change = device.change()
        one = device.blocks_of(change)["stem"]
        for key, value in one.items():
            arrived[key] += value
        fleet.next(everywhere(fleet.encoder, 0.5, ["stem"]), merged={"pi": (BOOT, change.seq)})
        device.receive(fleet, ["stem"])
        assert device.replica.apply(["stem"])
        assert same(device.holds("stem"), block_state(fleet.encoder, "stem"))
    for key, value in wanted.items():
        step = float(one[key].abs().max())
        assert float((arrived[key] - value).abs().max()) < step / 5, "the error of the last change alone"


def test_after_its_merge_a_device_that_learned_alone_stands_where_the_fleet_does() -> None:
    fleet, device = Published(), Device()
    device.start(fleet)
    give_gradients(device.encoder, 1.0, ["stem"])
    device.replica.sum_up(["stem"], 0.5)
    device.learn(0.25, ["stem"])
    change = device.change()
    for value in device.blocks_of(change)["stem"].values():
        torch.testing.assert_close(value, torch.full_like(value, -0.25), rtol=0.0, atol=ULP)
    fleet.next(everywhere(fleet.encoder, 2.0, ["stem"]), merged={"pi": (BOOT, change.seq)})
    device.receive(fleet, ["stem"])
    assert device.replica.apply(["stem"])
    assert same(device.holds("stem"), block_state(fleet.encoder, "stem"))


def test_summed_gradients_outlive_a_restart_and_not_another_run() -> None:
    fleet, device = Published(), Device()
    device.start(fleet)
    give_gradients(device.encoder, 1.0, NEEDED)
    device.replica.sum_up(NEEDED, 0.5)
    device.replica.trained(NEEDED)
    again = Device(boot="c" * 16)
    again.replica.restore(device.replica.snapshot())
    assert unchanged(weights(device.encoder), again.encoder)
    assert all(bool((v == -0.5).all()) for state in again.blocks_of(again.change()).values() for v in state.values())
    again.receive(Published(run="another"))
    assert again.replica.apply(names(again.encoder))
    assert again.replica.change() is None


def test_a_block_that_is_not_due_waits_and_then_goes_with_all_that_was_learned() -> None:
    fleet, device = Published(), Device()
    device.start(fleet)
    assert device.replica.version == 3
    blocks = ["stem", "0"]
    for step in range(2):
        give_gradients(device.encoder, 1.0, blocks)
        device.replica.sum_up(blocks, 0.5)
        device.replica.trained(blocks)
        change = device.replica.change(periods={"0": 5})
        assert change is not None
        sent = device.blocks_of(change)
        assert set(sent) == ({"stem"} if step == 0 else {"stem", "0"}), "version 4, then 5"
        fleet.next(everywhere(fleet.encoder, 0.5, ["stem"]), merged={"pi": (BOOT, change.seq)})
        device.receive(fleet, ["stem"])
        assert device.replica.apply(["stem"])
    assert all(bool((value == -0.5).all()) for value in sent["stem"].values())
    assert all(bool((value == -1.0).all()) for value in sent["0"].values())


def test_what_was_given_up_goes_again_with_the_change_that_replaces_it() -> None:
    device, fleet = Device(), Published()
    device.start(fleet)
    device.learn(0.01, client_names(8))
    given_up = device.change()
    device.learn(0.01, NEEDED)
    newer = device.replica.change(periods={"7": 1000})
    assert newer is not None
    assert device.blocks_of(newer).keys() == device.blocks_of(given_up).keys() == set(client_names(8))


def test_what_was_learned_before_there_was_a_fleet_is_not_carried_onto_its_weights() -> None:
    device, fleet = Device(), Published()
    alone = Published(run="")
    device.start(alone)
    device.learn(0.05, names(device.encoder), local_windows=5000)
    device.receive(fleet)
    assert device.replica.apply(names(device.encoder))
    assert all(same(fleet.state(name), device.holds(name)) for name in names(device.encoder))
    assert device.replica.change() is None
    assert device.replica.local_windows == 0
