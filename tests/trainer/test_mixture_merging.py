from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from common.errors import MessageError
from common.limits import Limits
from common.messages import MixtureStatistics
from common.mixture_memory import MixtureMemory
from common.mixture_statistics import Tally, to_message
from trainer.mixture_merging import MOST_PROJECTIONS, MixtureMerging

DIM = 128
BOOT = "b" * 16


def centres(count: int, seed: int) -> Tensor:
    return normalize(torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


def around(points: Tensor, each: int, seed: int) -> Tensor:
    spread = points.repeat_interleave(each, dim=0)
    return normalize(spread + 0.05 * torch.randn(spread.shape, generator=torch.Generator().manual_seed(seed)), dim=1)


def fleet() -> MixtureMemory:
    memory = MixtureMemory(seed=0)
    for seed in range(20):
        memory.update(around(centres(10, 1), 10, seed))
    return memory


def report(replica: MixtureMemory, z: Tensor, *, seq: int = 1) -> MixtureStatistics:
    tally = Tally(*replica.means.shape)
    tally.add(z, replica.nearest(z))
    heard = tally.take()
    assert heard is not None
    return to_message(heard, boot=BOOT, seq=seq)


def closest(memory: MixtureMemory, points: Tensor) -> float:
    return float((points @ normalize(memory.means, dim=1).T).amax(dim=1).min())


def test_a_device_that_hears_more_of_something_shifts_the_mass_there() -> None:
    memory = fleet()
    merging = MixtureMerging(memory, limits=Limits())
    spot = centres(10, 1)[:1]
    before = memory.mass[memory.nearest(spot)].item() / memory.mass.sum().item()
    merging.offer("pi", report(fleet(), around(spot, 100, 50)))
    merging.merge()
    owners = (normalize(memory.means, dim=1) @ spot[0]) > 0.8
    assert float(memory.mass[owners].sum() / memory.mass.sum()) > before
    assert closest(memory, centres(10, 1)) > 0.97, "nothing that the others said is lost"


def test_components_need_not_be_numbered_alike_at_both_ends() -> None:
    replica, memory = fleet(), fleet()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    for name in ("means", "variances", "mass"):
        getattr(replica, name).copy_(getattr(replica, name)[order])
    one, other = MixtureMerging(memory, limits=Limits()), fleet()
    z = around(centres(10, 1), 10, 60)
    one.offer("pi", report(replica, z))
    one.merge()
    straight = MixtureMerging(other, limits=Limits())
    straight.offer("pi", report(fleet(), z))
    straight.merge()
    assert torch.allclose(memory.means, other.means, atol=1e-3)


def test_one_device_counts_for_a_bounded_share_however_much_it_claims() -> None:
    memory = fleet()
    merging = MixtureMerging(memory, limits=Limits())
    total = float(memory.mass.sum())
    lie = centres(1, 77)
    tally = Tally(64, DIM)
    for _ in range(200):
        tally.add(lie.repeat(100, 1), torch.zeros(100, dtype=torch.long))
    heard = tally.take()
    assert heard is not None
    for seq in range(5):  # all together
        merging.offer("pi", to_message(heard, boot=BOOT, seq=seq))
    merging.merge()
    share = float(memory.mass.sum()) - total
    assert share <= MOST_PROJECTIONS
    assert closest(memory, centres(10, 1)) > 0.97
    merging.merge()
    assert float(memory.mass.sum()) - total == share, "once"


def test_two_reports_before_one_version_are_both_merged_and_neither_twice() -> None:
    z = [around(centres(3, seed), 4, seed) for seed in (1, 2)]
    reports = [report(fleet(), heard, seq=seq) for seq, heard in enumerate(z, start=1)]
    memories = [fleet(), fleet()]
    apart, together = (MixtureMerging(memory, limits=Limits()) for memory in memories)
    for one in reports:
        apart.offer("pi", one)
        apart.merge()
    for one in (reports[0], reports[0], reports[1], reports[0]):
        together.offer("pi", one)
    together.merge()
    together.offer("pi", reports[1])  # delivered once more, late
    together.merge()
    assert torch.equal(memories[0].mass, memories[1].mass)
    assert torch.equal(memories[0].means, memories[1].means)


def test_the_order_of_arrival_makes_no_difference() -> None:
    results = []
    for order in (("a", "b", "c"), ("c", "a", "b")):
        memory = fleet()
        merging = MixtureMerging(memory, limits=Limits())
        for device in order:
            merging.offer(device, report(fleet(), around(centres(3, ord(device)), 20, 5)))
        merging.merge()
        results.append(memory.means.clone())
    assert torch.equal(results[0], results[1])


def test_a_report_that_cannot_be_is_refused_and_the_others_stay() -> None:
    memory = fleet()
    merging = MixtureMerging(memory, limits=Limits())
    merging.offer("good", report(fleet(), around(centres(10, 1), 5, 5)))
    wrong = MixtureMemory(components=8, dim=16)
    wrong.update(normalize(torch.randn(200, 16), dim=1))
    with pytest.raises(MessageError):
        merging.offer("bad", report(wrong, normalize(torch.randn(20, 16), dim=1)))
    before = float(memory.mass.sum())
    merging.merge()
    assert float(memory.mass.sum()) != before


def test_before_the_fleets_mixture_has_started_there_is_nothing_to_merge_into() -> None:
    memory = MixtureMemory()
    merging = MixtureMerging(memory, limits=Limits())
    merging.offer("pi", report(fleet(), around(centres(10, 1), 5, 5)))
    merging.merge()
    assert not memory.started
    assert float(memory.mass.sum()) == 0.0
