"""Merging against the rule written down once more: new = master + sum of share * change, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch

from common.block_optimizer import Kind
from common.change_blob import State
from common.encoder import Encoder, build_encoder
from common.split import block_parameters, block_state, client_names, load_block, names
from trainer.batcher import Part
from trainer.captured import WINDOW_S, Captured
from trainer.clipping import MERGES_REMEMBERED, TIMES_THE_BLOCK, TIMES_THE_OTHERS
from trainer.merge_optimizer import ACCUMULATION_RATE, MergeOptimizer
from trainer.weights import CAPTURED_SLACK, DEVICES_REMEMBERED, LEFT_OUT_AT_MOST, Contribution, WeightsLedger

DISCOUNT = 0.5
LOCAL_CAP = 10
BOOT = "a" * 16
START_VERSION = 7


def part(device: str, cut: int) -> Part:
    return Part(device, BOOT, 0, 0, True, cut, 0, 1.0, 0, 0, 0.0, "", torch.zeros(1))


def changes(encoder: Encoder, blocks: Sequence[str], seed: int, size: float = 1e-3) -> dict[str, State]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: {
            key: size * torch.randn(value.shape, generator=generator)
            for key, value in block_state(encoder, name).items()
        }
        for name in blocks
    }


def contribution(
    device: str,
    blocks: dict[str, State],
    *,
    seq: int = 1,
    base: int = START_VERSION,
    local: int = 0,
    boot: str = BOOT,
) -> Contribution:
    return Contribution(device, boot, seq, base, local, blocks)


class Trainer:
    """A live encoder with its ledger; remembers where it started."""

    def __init__(self, *, trim: float = 0.0, kind: Kind | None = None, warmup: int = 0) -> None:
        """``kind``: of the merge's optimizer, where devices sum gradients up."""
        self.encoder = build_encoder("mobile", seed=0)
        decay = {"weight_decay": 1e-2 if kind == "adamw" else 0.0}
        self.start = {name: block_state(self.encoder, name) for name in names(self.encoder)}
        self.now_s = 0.0
        self.ledger = WeightsLedger(
            self.encoder,
            version=START_VERSION,
            discount=DISCOUNT,
            local_cap=LOCAL_CAP,
            trim=trim,
            optimizer=MergeOptimizer(self.encoder, kind=kind, warmup_steps=warmup, **decay) if kind else None,
            captured=Captured(lambda: self.now_s),
        )
        self.now_s = 1e6  # long enough that every window can have been captured

    def train(self, blocks: Sequence[str], seed: int = 99) -> dict[str, State]:
        """The trainer's own steps: move these blocks of the live encoder; returns by how much."""
        moved = changes(self.encoder, blocks, seed)
        for name in blocks:
            now = block_state(self.encoder, name)
            load_block(self.encoder, name, {key: now[key] + moved[name][key] for key in now})
        return moved

    def merge(self) -> None:
        self.ledger.commit(self.ledger.preview())

    def assert_moved(self, name: str, shares: Sequence[tuple[float, Mapping[str, torch.Tensor]]]) -> None:
        for key, now in block_state(self.encoder, name).items():
            expected = self.start[name][key].double()
            for share, change in shares:
                expected = expected + share * change[key].double()
            torch.testing.assert_close(now.double(), expected, rtol=0.0, atol=3e-7)  # a rounding or two of 1.0


def test_a_block_moves_by_the_changes_weighted_with_the_windows_the_trainer_counted() -> None:
    trainer = Trainer()
    a = changes(trainer.encoder, client_names(3), 1)
    b = changes(trainer.encoder, client_names(5), 2)
    own = trainer.train(["3", "4", "5", "6", "7", "head"])
    trainer.ledger.count([part("a", 3)] * 6 + [part("b", 5)] * 2)
    trainer.ledger.offer(contribution("a", a))
    trainer.ledger.offer(contribution("b", b))
    trainer.merge()
    for name in client_names(3):
        trainer.assert_moved(name, [(6 / 8, a[name]), (2 / 8, b[name])])
    for name in ("3", "4"):  # behind a's cut and before b's: b and the trainer for a's windows
        trainer.assert_moved(name, [(6 / 8, own[name]), (2 / 8, b[name])])
    for name in ("5", "6", "7", "head"):
        trainer.assert_moved(name, [(1.0, own[name])])


def test_only_who_offered_a_change_shares_in_a_block_and_the_others_windows_stay_counted() -> None:
    trainer = Trainer()
    first = changes(trainer.encoder, ["stem"], 1)
    trainer.ledger.count([part("a", 3)] * 4 + [part("late", 3)] * 12)
    trainer.ledger.offer(contribution("a", first))
    trainer.merge()
    trainer.assert_moved("stem", [(1.0, first["stem"])])
    second, late = changes(trainer.encoder, ["stem"], 2), changes(trainer.encoder, ["stem"], 3)
    trainer.ledger.count([part("a", 3)] * 4)
    trainer.ledger.offer(contribution("a", second, seq=2, base=START_VERSION + 1))
    trainer.ledger.offer(contribution("late", late, base=START_VERSION + 1))
    trainer.merge()
    trainer.assert_moved("stem", [(1.0, first["stem"]), (4 / 16, second["stem"]), (12 / 16, late["stem"])])


def test_a_change_counts_half_for_every_version_its_base_is_behind() -> None:
    trainer = Trainer()
    fresh, stale = changes(trainer.encoder, ["stem"], 1), changes(trainer.encoder, ["stem"], 2)
    trainer.ledger.count([part("fresh", 3)] * 4 + [part("stale", 3)] * 4)
    trainer.ledger.offer(contribution("fresh", fresh))
    trainer.ledger.offer(contribution("stale", stale, base=START_VERSION - 2))
    trainer.merge()
    trainer.assert_moved("stem", [(4 / 8, fresh["stem"]), (4 / 8 / 4, stale["stem"])])


def test_a_stale_change_counts_half_also_where_nobody_else_took_part() -> None:
    trainer = Trainer()
    stale = changes(trainer.encoder, ["stem"], 1)
    trainer.ledger.count([part("a", 3)] * 4)
    trainer.ledger.offer(contribution("a", stale, base=START_VERSION - 1))
    trainer.merge()
    trainer.assert_moved("stem", [(1 / 2, stale["stem"])])


def test_local_windows_count_up_to_the_cap() -> None:
    trainer = Trainer()
    local, sent = changes(trainer.encoder, ["stem", "head"], 1), changes(trainer.encoder, ["stem"], 2)
    own = trainer.train(["head"])
    trainer.ledger.count([part("sent", 3)] * 30)
    trainer.ledger.offer(contribution("sent", sent))
    trainer.ledger.offer(contribution("local", local, local=1_000_000))
    trainer.merge()
    trainer.assert_moved("stem", [(30 / 40, sent["stem"]), (10 / 40, local["stem"])])
    trainer.assert_moved("head", [(30 / 40, own["head"]), (10 / 40, local["head"])])


def test_a_change_for_which_no_window_counts_moves_nothing() -> None:
    trainer = Trainer()
    trainer.ledger.offer(contribution("a", changes(trainer.encoder, ["stem"], 1)))
    trainer.merge()
    trainer.assert_moved("stem", [])
    assert (trainer.ledger.merged, trainer.ledger.offered) == ({}, ()), "it stays unsent on the device"


def test_a_change_of_which_one_block_has_no_windows_is_left_out_whole_and_taken_once_it_has() -> None:
    trainer = Trainer()
    a, b = changes(trainer.encoder, ["stem", "6"], 1), changes(trainer.encoder, ["stem"], 2)
    trainer.ledger.count([part("a", 3)] * 4 + [part("b", 3)] * 2)
    trainer.ledger.offer(contribution("a", a))
    trainer.ledger.offer(contribution("b", b))
    trainer.merge()
    trainer.assert_moved("stem", [(1.0, b["stem"])])
    trainer.assert_moved("6", [])
    assert trainer.ledger.merged == {"b": (BOOT, 1)}
    trainer.ledger.offer(contribution("a", a, seq=2, base=START_VERSION + 1, local=2))
    trainer.merge()
    trainer.assert_moved("stem", [(1.0, b["stem"]), (1.0, a["stem"])])
    trainer.assert_moved("6", [(1.0, a["6"])])
    assert trainer.ledger.merged == {"b": (BOOT, 1), "a": (BOOT, 2)}


def test_a_block_that_a_device_gave_up_does_not_keep_the_rest_waiting_for_good() -> None:
    trainer = Trainer()
    blocks = changes(trainer.encoder, ["stem", "6"], 1)
    for late in range(LEFT_OUT_AT_MOST + 1):
        assert trainer.ledger.merged == {}
        trainer.ledger.count([part("a", 3)] * 4)
        trainer.ledger.offer(contribution("a", blocks, seq=late + 1, base=START_VERSION + late))
        own = trainer.train(["6"], seed=99)
        trainer.merge()
        if late < LEFT_OUT_AT_MOST:
            trainer.start["6"] = block_state(trainer.encoder, "6")
    windows = 4
    trainer.assert_moved("stem", [(1.0, blocks["stem"])])
    trainer.assert_moved("6", [(1 / (windows + 1), blocks["6"]), (windows / (windows + 1), own["6"])])
    assert trainer.ledger.merged == {"a": (BOOT, LEFT_OUT_AT_MOST + 1)}
    last = START_VERSION + LEFT_OUT_AT_MOST + 1
    trainer.ledger.count([part("a", 3)] * 4)
    trainer.ledger.offer(contribution("a", blocks, seq=9, base=last))
    trainer.merge()
    assert trainer.ledger.merged == {"a": (BOOT, LEFT_OUT_AT_MOST + 1)}, "left out again at first"


def test_a_device_without_any_windows_is_left_out_for_as_long_as_it_has_none() -> None:
    trainer = Trainer()
    blocks = changes(trainer.encoder, ["stem"], 1)
    for late in range(LEFT_OUT_AT_MOST + 2):
        trainer.ledger.offer(contribution("a", blocks, seq=late + 1, base=START_VERSION + late))
        trainer.merge()
    assert trainer.ledger.merged == {}
    trainer.assert_moved("stem", [])


def test_a_change_so_stale_that_nothing_of_it_would_be_left_is_left_out() -> None:
    encoder = build_encoder("mobile", seed=0)
    ledger = WeightsLedger(encoder, version=5_000, discount=0.5, local_cap=1, trim=0.0, captured=Captured(None))
    ledger.count([part("a", 3)])
    ledger.offer(contribution("a", changes(encoder, ["stem"], 1), base=0))
    ledger.commit(ledger.preview())
    assert ledger.merged == {}


@pytest.mark.parametrize("kind", [None, "adamw"])
@pytest.mark.parametrize("lag", [10, 149, 400])
def test_a_device_that_claims_a_very_old_version_spoils_nobody_s_changes_and_keeps_its_own(
    lag: int, kind: Kind | None
) -> None:
    encoder = build_encoder("mobile", seed=0)
    optimizer = MergeOptimizer(encoder, kind=kind, warmup_steps=0, weight_decay=0.0) if kind else None
    ledger = WeightsLedger(
        encoder, version=500, discount=0.5, local_cap=1, trim=0.15, captured=Captured(None), optimizer=optimizer
    )
    blocks = {device: changes(encoder, ["stem"], seed) for seed, device in enumerate("abc")}
    ledger.count([part(device, 3) for device in blocks] * 4)
    for device, change in blocks.items():
        ledger.offer(contribution(device, change, base=500 - lag if device == "c" else 500))
    assert ledger.offered == ("a", "b", "c"), "it has answered: nobody waits for it"
    merged = ledger.preview(1e-3)
    assert all(bool(value.isfinite().all()) for state in merged.values() for value in state.values())
    ledger.commit(merged)
    assert set(ledger.merged) == {"a", "b"}, "a device drops what is named here: c must keep its change"
    ledger.offer(contribution("c", blocks["c"], seq=2, base=501))
    ledger.commit(ledger.preview(1e-3))
    assert set(ledger.merged) == {"a", "b", "c"}, "on the newest version it counts"


def test_a_change_on_a_version_that_was_never_made_is_of_another_run_and_passed_over() -> None:
    trainer = Trainer()
    blocks = changes(trainer.encoder, ["stem"], 1)
    trainer.ledger.count([part("a", 3)])
    trainer.ledger.offer(contribution("a", blocks, base=START_VERSION + 1))
    assert list(trainer.ledger.offered) == ["a"], "it has answered: nobody waits for it"
    trainer.merge()
    trainer.assert_moved("stem", [])
    assert trainer.ledger.merged == {}
    trainer.ledger.offer(contribution("a", blocks, base=START_VERSION + 1))
    trainer.merge()
    assert trainer.ledger.merged == {"a": (BOOT, 1)}, "made meanwhile"


def test_a_newer_change_of_a_device_replaces_the_one_that_waits() -> None:
    trainer = Trainer()
    old, new = changes(trainer.encoder, ["stem"], 1), changes(trainer.encoder, ["stem"], 2)
    trainer.ledger.count([part("a", 3)])
    trainer.ledger.offer(contribution("a", old, seq=1))
    trainer.ledger.offer(contribution("a", new, seq=2))
    assert list(trainer.ledger.offered) == ["a"]
    trainer.merge()
    trainer.assert_moved("stem", [(1.0, new["stem"])])
    assert trainer.ledger.merged == {"a": (BOOT, 2)}


def test_a_contribution_that_comes_after_the_merge_waits_for_the_next_one() -> None:
    trainer = Trainer()
    late = changes(trainer.encoder, ["stem"], 1)
    trainer.ledger.count([part("a", 3)] * 3)
    trainer.merge()
    assert trainer.ledger.merged == {}
    trainer.ledger.offer(contribution("a", late))
    assert list(trainer.ledger.offered) == ["a"]
    trainer.merge()
    trainer.assert_moved("stem", [(1 / 2, late["stem"])])
    assert list(trainer.ledger.offered) == []
    assert trainer.ledger.version == START_VERSION + 2


@pytest.mark.parametrize("boot", [BOOT, "b" * 16])
def test_a_change_that_still_holds_what_was_merged_already_is_passed_over(boot: str) -> None:
    trainer = Trainer()
    first = changes(trainer.encoder, ["stem"], 1)
    trainer.ledger.count([part("a", 3)])
    trainer.ledger.offer(contribution("a", first, seq=1))
    trainer.merge()
    both = {"stem": {key: value + 1e-3 for key, value in first["stem"].items()}}
    trainer.ledger.count([part("a", 3)])
    trainer.ledger.offer(contribution("a", both, seq=2, boot=boot))  # packed before it saw the new version
    assert list(trainer.ledger.offered) == ["a"], "it has answered: nobody waits for it"
    trainer.merge()
    trainer.assert_moved("stem", [(1.0, first["stem"])])
    rest = {"stem": {key: torch.full_like(value, 1e-3) for key, value in first["stem"].items()}}
    trainer.ledger.count([part("a", 3)])
    trainer.ledger.offer(contribution("a", rest, seq=3, base=START_VERSION + 2, boot=boot))
    trainer.merge()
    trainer.assert_moved("stem", [(1.0, first["stem"]), (1.0, rest["stem"])])


def test_a_version_names_the_latest_merged_change_of_every_device_also_of_those_it_does_not_hold() -> None:
    trainer = Trainer()
    trainer.ledger.count([part("a", 3), part("b", 3)])
    trainer.ledger.offer(contribution("a", changes(trainer.encoder, ["stem"], 1), seq=4))
    trainer.merge()
    trainer.ledger.offer(contribution("b", changes(trainer.encoder, ["stem"], 2), seq=9))
    trainer.merge()
    assert trainer.ledger.merged == {"a": (BOOT, 4), "b": (BOOT, 9)}, "a may have missed the version before"


def test_a_trainer_that_goes_on_remembers_what_was_merged() -> None:
    encoder = build_encoder("mobile", seed=0)
    ledger = WeightsLedger(
        encoder, version=12, discount=0.5, local_cap=1, trim=0.0, captured=Captured(None), merged={"a": (BOOT, 4)}
    )
    assert ledger.merged == {"a": (BOOT, 4)}
    blocks = changes(encoder, ["stem"], 1)
    ledger.count([part("a", 3)])
    ledger.offer(contribution("a", blocks, seq=5, base=11))
    ledger.commit(ledger.preview())
    assert ledger.merged == {"a": (BOOT, 4)}, "it may hold change 4 once more"
    ledger.offer(contribution("a", blocks, seq=6, base=12))
    ledger.commit(ledger.preview())
    assert ledger.merged == {"a": (BOOT, 6)}


def test_it_remembers_as_many_devices_as_a_manifest_can_name() -> None:
    trainer = Trainer()
    still = changes(trainer.encoder, ["stem"], 1, size=0.0)
    for number in range(DEVICES_REMEMBERED + 3):
        trainer.ledger.offer(contribution(f"d{number}", still, local=1))
    trainer.merge()
    assert len(trainer.ledger.merged) == DEVICES_REMEMBERED
    assert "d0" not in trainer.ledger.merged


def test_a_refused_merge_puts_the_last_good_weights_back_and_still_names_the_changes() -> None:
    trainer = Trainer()
    bad = changes(trainer.encoder, ["stem"], 1)
    trainer.train(["7", "head"])
    trainer.ledger.count([part("a", 3)] * 5)
    trainer.ledger.offer(contribution("a", bad, seq=3))
    trainer.ledger.preview()
    trainer.ledger.refuse()
    for name in names(trainer.encoder):
        trainer.assert_moved(name, [])
    assert trainer.ledger.version == START_VERSION + 1
    assert trainer.ledger.merged == {"a": (BOOT, 3)}
    good = changes(trainer.encoder, ["stem"], 2)
    trainer.ledger.count([part("a", 3)] * 1 + [part("b", 3)] * 3)
    trainer.ledger.offer(contribution("a", good, seq=4, base=START_VERSION + 1))
    trainer.ledger.offer(contribution("b", good, base=START_VERSION + 1))
    trainer.merge()
    trainer.assert_moved("stem", [(1.0, good["stem"])])


def test_a_preview_changes_nothing() -> None:
    trainer = Trainer()
    moved = trainer.train(["7"])
    trainer.ledger.count([part("a", 3)])
    trainer.ledger.offer(contribution("a", changes(trainer.encoder, ["stem"], 1)))
    first, again = trainer.ledger.preview(), trainer.ledger.preview()
    assert all(torch.equal(first[name][key], again[name][key]) for name in first for key in first[name])
    trainer.assert_moved("stem", [])
    trainer.assert_moved("7", [(1.0, moved["7"])])
    assert trainer.ledger.version == START_VERSION


def test_later_training_leaves_a_committed_version_alone() -> None:
    trainer = Trainer()
    trainer.train(["7"])
    trainer.ledger.count([part("a", 3)])
    trainer.merge()
    after_first = block_state(trainer.encoder, "7")
    trainer.train(["7"], seed=5)
    trainer.ledger.refuse()
    assert all(torch.equal(value, after_first[key]) for key, value in block_state(trainer.encoder, "7").items())


@pytest.mark.parametrize("size", [1e3, 1e30])
def test_a_change_out_of_all_proportion_is_clipped_to_its_block(size: float) -> None:
    trainer = Trainer()
    mad = changes(trainer.encoder, ["2"], 1, size)
    trainer.ledger.count([part("a", 3)])
    trainer.ledger.offer(contribution("a", mad))
    trainer.merge()
    before = torch.cat([value.flatten() for value in trainer.start["2"].values()])
    after = torch.cat([value.detach().flatten() for value in block_parameters(trainer.encoder, "2")])
    moved = torch.linalg.vector_norm((after - before).double())
    assert float(moved) == pytest.approx(TIMES_THE_BLOCK * float(before.norm()), rel=1e-4)


# -- devices that are not to be trusted -------------------------------------------------------------------------------


def length_of(state: Mapping[str, torch.Tensor]) -> float:
    return float(torch.cat([value.flatten() for value in state.values()]).double().norm())


def offer_all(trainer: Trainer, blocks: Mapping[str, dict[str, State]], windows: int = 4) -> None:
    for device, change in blocks.items():
        trainer.ledger.count([part(device, 3)] * windows)
        trainer.ledger.offer(contribution(device, change))


def of_devices(trainer: Trainer, devices: str, blocks: Sequence[str] = ("stem",)) -> dict[str, dict[str, State]]:
    return {device: changes(trainer.encoder, blocks, seed) for seed, device in enumerate(devices)}


@pytest.mark.parametrize("trim", [0.0, 0.15, 0.4])
def test_equal_changes_merge_into_themselves_however_much_is_trimmed(trim: float) -> None:
    trainer = Trainer(trim=trim)
    equal = changes(trainer.encoder, client_names(3), 1)
    own = trainer.train(["3"])
    for windows, device in enumerate("abcde", start=1):
        offer_all(trainer, {device: equal}, windows)
    trainer.merge()
    for name in client_names(3):
        trainer.assert_moved(name, [(1.0, equal[name])])
    trainer.assert_moved("3", [(1.0, own["3"])])


def test_of_three_devices_the_middle_one_decides_every_value_and_the_trainers_own_share_stays() -> None:
    trainer = Trainer(trim=0.15)
    blocks = of_devices(trainer, "abc", ["stem", "3"])
    own = trainer.train(["3"])
    for device, change in blocks.items():
        trainer.ledger.count([part(device, 4)] * 2)
        trainer.ledger.offer(contribution(device, change))
    trainer.ledger.count([part("shallow", 3)] * 6)
    trainer.merge()
    middle = {
        name: {
            key: torch.stack([blocks[d][name][key] for d in "abc"]).median(dim=0).values for key in blocks["a"][name]
        }
        for name in ("stem", "3")
    }
    trainer.assert_moved("stem", [(1.0, middle["stem"])])
    trainer.assert_moved("3", [(6 / 12, own["3"]), (6 / 12, middle["3"])])


def test_two_devices_cannot_be_told_apart_and_are_not_trimmed() -> None:
    trainer = Trainer(trim=0.15)
    blocks = of_devices(trainer, "ab")
    offer_all(trainer, blocks)
    trainer.merge()
    trainer.assert_moved("stem", [(1 / 2, blocks["a"]["stem"]), (1 / 2, blocks["b"]["stem"])])


def test_one_hostile_device_among_five_moves_the_weights_less_than_an_honest_one_would() -> None:
    honest, attacked = Trainer(trim=0.15), Trainer(trim=0.15)
    blocks = of_devices(honest, "abcd")
    offer_all(honest, blocks)
    offer_all(attacked, {**blocks, "evil": changes(attacked.encoder, ["stem"], 9, size=1e6)})
    honest.merge()
    attacked.merge()
    wanted, got = block_state(honest.encoder, "stem"), block_state(attacked.encoder, "stem")
    assert length_of({key: got[key] - value for key, value in wanted.items()}) < length_of(blocks["a"]["stem"])
    assert attacked.ledger.clipping.share == 1 / 5
    assert honest.ledger.clipping.share == 0.0


def test_a_change_much_longer_than_the_others_is_shortened_to_a_few_times_theirs() -> None:
    trainer = Trainer()
    blocks, mad = of_devices(trainer, "abc"), changes(trainer.encoder, ["stem"], 9, size=1.0)
    offer_all(trainer, {**blocks, "evil": mad})
    usual = sorted(length_of(one["stem"]) for one in [*blocks.values(), mad])[1:3]
    longest = TIMES_THE_OTHERS * sum(usual) / 2
    trainer.merge()
    shortened = {key: value * (longest / length_of(mad["stem"])) for key, value in mad["stem"].items()}
    trainer.assert_moved("stem", [*((1 / 4, one["stem"]) for one in blocks.values()), (1 / 4, shortened)])


def test_a_device_that_learned_from_more_windows_may_have_moved_farther() -> None:
    trainer = Trainer()
    offer_all(trainer, of_devices(trainer, "abc"), windows=2)
    offer_all(trainer, {"busy": changes(trainer.encoder, ["stem"], 9, size=5e-3)}, windows=4)
    trainer.merge()
    assert trainer.ledger.clipping.share == 0.0


def test_a_device_alone_is_judged_by_what_came_before() -> None:
    trainer = Trainer()
    for seq, (size, clipped) in enumerate([(1e-3, 0.0), (9e-3, 0.0), (1.0, 1.0)], start=1):
        trainer.ledger.count([part("a", 3)] * 4)
        blocks = changes(trainer.encoder, ["stem"], seq, size=size)
        trainer.ledger.offer(contribution("a", blocks, seq=seq, base=START_VERSION + seq - 1))
        trainer.merge()
        assert trainer.ledger.clipping.share == clipped


def test_windows_that_cannot_have_been_captured_do_not_count() -> None:
    trainer = Trainer()
    blocks = of_devices(trainer, "ab")
    a, b = blocks["a"], blocks["b"]
    offer_all(trainer, blocks, windows=20)
    trainer.merge()
    trainer.start["stem"] = block_state(trainer.encoder, "stem")
    passed, answered = 12, 20
    trainer.now_s += (passed + 0.5) * WINDOW_S
    trainer.ledger.count([part(device, 3) for device in "ab"] * answered)
    trainer.ledger.offer(contribution("a", a, seq=2, base=START_VERSION + 1))
    trainer.ledger.offer(contribution("b", b, seq=2, base=START_VERSION + 1, local=1_000_000))
    alone = passed + CAPTURED_SLACK - answered
    assert 0 < alone < LOCAL_CAP
    trainer.merge()
    total = 2 * answered + alone
    trainer.assert_moved("stem", [(answered / total, a["stem"]), ((answered + alone) / total, b["stem"])])


def test_an_answer_that_there_is_nothing_to_send_is_not_waited_for_and_its_windows_stay_counted() -> None:
    trainer = Trainer()
    blocks = of_devices(trainer, "ab")
    a, b = blocks["a"], blocks["b"]
    trainer.ledger.count([part("a", 3)] * 4 + [part("b", 3)] * 12)
    trainer.ledger.offer(contribution("a", a))
    trainer.ledger.offer(contribution("b", {}))
    assert trainer.ledger.offered == ("a", "b")
    trainer.merge()
    trainer.assert_moved("stem", [(1.0, a["stem"])])
    assert trainer.ledger.merged == {"a": (BOOT, 1)}
    trainer.ledger.count([part("a", 3)] * 4)
    for device, change in blocks.items():
        trainer.ledger.offer(contribution(device, change, seq=2, base=START_VERSION + 1))
    trainer.merge()
    trainer.assert_moved("stem", [(1.0, a["stem"]), (4 / 16, a["stem"]), (12 / 16, b["stem"])])


# -- devices that sum gradients up ------------------------------------------------------------------------------------


def test_summed_gradients_move_a_block_by_one_step_of_the_merges_own_optimizer() -> None:
    trainer = Trainer(kind="adamw")
    reference = build_encoder("mobile", seed=0)
    optimizer = torch.optim.AdamW(block_parameters(reference, "stem"), lr=1e-3, weight_decay=1e-2)
    for merge in range(3):
        one, two = (changes(trainer.encoder, ["stem"], 10 * merge + seed)["stem"] for seed in (1, 2))
        trainer.ledger.count([part("a", 3)] * 6 + [part("b", 3)] * 2)
        for device, change in (("a", one), ("b", two)):
            trainer.ledger.offer(contribution(device, {"stem": change}, base=START_VERSION + merge, seq=merge))
        trainer.ledger.commit(trainer.ledger.preview(1e-3))
        for key, parameter in zip(one, block_parameters(reference, "stem"), strict=True):
            parameter.grad = (6 / 8 * one[key] + 2 / 8 * two[key]) / -ACCUMULATION_RATE
        optimizer.step()
    for mine, wanted in zip(
        block_parameters(trainer.encoder, "stem"), block_parameters(reference, "stem"), strict=True
    ):
        torch.testing.assert_close(mine, wanted, rtol=0.0, atol=1e-6)


def test_the_merges_rate_rises_with_the_batches_behind_a_block_not_with_its_merges() -> None:
    trainer = Trainer(kind="sgd", warmup=6)
    step = changes(trainer.encoder, ["stem"], 1)
    shares = []
    for merge, batches in enumerate((1, 3, 3, 1)):
        for _ in range(batches):
            trainer.ledger.count([part("a", 3)])
        before = block_state(trainer.encoder, "stem")
        trainer.ledger.offer(contribution("a", step, base=START_VERSION + merge, seq=merge))
        trainer.ledger.commit(trainer.ledger.preview(ACCUMULATION_RATE))
        after = block_state(trainer.encoder, "stem")
        shares.append(
            float(torch.cat([((after[k] - before[k]) / v).flatten() for k, v in step["stem"].items()]).median())
        )
    assert shares == pytest.approx([1 / 6, 4 / 6, 1.0, 1.0], abs=1e-3)


def test_a_refused_merge_leaves_the_optimizer_as_it_was() -> None:
    straight, refused = Trainer(kind="adamw"), Trainer(kind="adamw")
    for trainer in (straight, refused):
        trainer.ledger.count([part("a", 3)] * 8)
        trainer.ledger.offer(contribution("a", changes(trainer.encoder, ["stem"], 3)))
        trainer.ledger.commit(trainer.ledger.preview(1e-3))  # so that there are moments to be spoilt
        trainer.ledger.count([part("a", 3)] * 8)
    change = changes(refused.encoder, ["stem"], 1)
    refused.ledger.offer(contribution("a", changes(refused.encoder, ["stem"], 2), seq=2, base=START_VERSION + 1))
    refused.ledger.preview(1e-3)
    refused.ledger.refuse()
    refused.ledger.count([part("a", 3)] * 8)
    straight.ledger.offer(contribution("a", change, seq=3, base=START_VERSION + 1))
    refused.ledger.offer(contribution("a", change, seq=3, base=START_VERSION + 2))
    for trainer in (straight, refused):
        trainer.ledger.commit(trainer.ledger.preview(1e-3))
    for key, value in block_state(straight.encoder, "stem").items():
        assert torch.equal(value, block_state(refused.encoder, "stem")[key])


def test_where_the_trainer_has_trained_a_block_too_each_moves_it_by_its_share_of_the_windows() -> None:
    trainer = Trainer(kind="sgd")
    own = trainer.train(["4"])
    change = changes(trainer.encoder, ["4"], 1)
    trainer.ledger.count([part("a", 5)] * 6 + [part("b", 3)] * 2)
    trainer.ledger.offer(contribution("a", change))
    trainer.ledger.commit(trainer.ledger.preview(ACCUMULATION_RATE))
    trainer.assert_moved("4", [(2 / 8, own["4"]), (6 / 8, change["4"])])


def test_of_a_block_that_a_device_keeps_back_the_windows_stay_counted_until_it_comes() -> None:
    trainer = Trainer()
    a, b = of_devices(trainer, "ab", ["stem", "2"]).values()
    trainer.ledger.count([part("a", 3)] * 6 + [part("b", 3)] * 2)
    trainer.ledger.offer(contribution("a", {"stem": a["stem"]}))
    trainer.ledger.offer(contribution("b", {"stem": b["stem"]}))
    trainer.merge()
    assert "stem" in trainer.ledger.moved
    assert "2" not in trainer.ledger.moved
    trainer.assert_moved("2", [])
    trainer.ledger.count([part("b", 3)] * 2)
    later = START_VERSION + 1
    trainer.ledger.offer(contribution("a", {"2": a["2"]}, seq=2, base=later))
    trainer.ledger.offer(contribution("b", {"2": b["2"]}, seq=2, base=later))
    trainer.merge()
    trainer.assert_moved("2", [(6 / 10, a["2"]), (4 / 10, b["2"])])
    trainer.assert_moved("stem", [(6 / 8, a["stem"]), (2 / 8, b["stem"])])


def test_what_a_device_learned_while_there_was_no_trainer_can_have_been_captured() -> None:
    encoder, now_s = build_encoder("mobile", seed=0), 50.0
    shares = []
    for away in (0.0, 300.0):
        ledger = WeightsLedger(
            encoder,
            version=4,
            discount=0.5,
            local_cap=1000,
            trim=0.0,
            captured=Captured(lambda: now_s),
            away_windows=away,
        )
        ledger.count([part("a", 3), part("b", 5)])
        ledger.offer(contribution("a", changes(encoder, ["stem"], 1), base=4, local=300))
        ledger.offer(contribution("b", changes(encoder, ["stem"], 2), base=4))
        shares.append(ledger._weights("stem")["a"])
    assert shares[0] < 0.99 < shares[1] == pytest.approx(301 / 302)


def test_a_device_that_sends_nothing_for_a_while_does_not_silence_the_others() -> None:
    trainer = Trainer()
    for version in range(MERGES_REMEMBERED):
        trainer.ledger.count([part("idle", 3)])
        nothing = {"stem": {key: torch.zeros_like(value) for key, value in trainer.start["stem"].items()}}
        trainer.ledger.offer(contribution("idle", nothing, base=START_VERSION + version))
        trainer.merge()
    change = changes(trainer.encoder, ["stem"], 1)
    trainer.ledger.count([part("a", 3)])
    trainer.ledger.offer(contribution("a", change, base=START_VERSION + MERGES_REMEMBERED))
    trainer.merge()
    trainer.assert_moved("stem", [(1.0, change["stem"])])


def test_next_to_nothing_does_not_silence_the_others_for_good() -> None:
    trainer, version = Trainer(), START_VERSION
    change = changes(trainer.encoder, ["stem"], 1)
    tiny = {"stem": {key: 1e-30 * value for key, value in change["stem"].items()}}
    for blocks in [tiny] * MERGES_REMEMBERED + [change] * 30:
        trainer.ledger.count([part("a", 3)])
        trainer.ledger.offer(contribution("a", blocks, base=version))
        trainer.merge()
        version += 1
    assert trainer.ledger.clipping.clipped == 0


def test_what_the_trainer_alone_trained_goes_out_when_it_is_due_and_what_devices_gave_at_once() -> None:
    encoder = build_encoder("mobile", seed=0)
    ledger = WeightsLedger(
        encoder, version=0, discount=0.5, local_cap=1, trim=0.0, captured=Captured(lambda: 1e6),
        periods=dict.fromkeys(names(encoder), 3),
    )  # fmt: skip
    gone_out = []
    for version in range(6):
        if version != 4:
            ledger.count([part("a", 7)])  # the last block and the head are the trainer's
        if version == 3:
            ledger.offer(contribution("a", changes(encoder, ["stem"], 1), base=version))
        ledger.commit(ledger.preview())
        gone_out.append(ledger.moved)
    own = {"7", "head"}
    assert gone_out == [set(), set(), own, {"stem"}, set(), own], "of versions 1 to 6; block 7 moved before version 5"
    ledger.refuse()
    assert ledger.moved == set(names(encoder))
