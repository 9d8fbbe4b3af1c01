from __future__ import annotations

from trainer.allowance import STEPS, Allowance


def test_a_flood_is_dropped_and_counted_until_the_next_batch_and_the_others_are_not_touched() -> None:
    allowance = Allowance(parts_per_step=2)
    assert [allowance.takes("a") for _ in range(20)] == [True] * 2 * STEPS + [False] * (20 - 2 * STEPS)
    assert allowance.takes("b")
    assert allowance.dropped == {"a": 20 - 2 * STEPS}
    allowance.renew()
    assert allowance.takes("a")
