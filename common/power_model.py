"""What a board spends, by the coefficients of its profile: what devices report and what the simulator charges."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PowerModel:
    """A board's coefficients, as its profile states them with their source.

    `capture_watts` and `compute_watts` come on top of `idle_watts`: while the microphone is read, which is always, and
    while one thread computes. The radio costs joules per megabyte (10^6 bytes), up and down.
    """

    idle_watts: float
    capture_watts: float
    compute_watts: float
    radio_joules_per_megabyte_up: float
    radio_joules_per_megabyte_down: float

    def board_joules(self, *, elapsed_s: float, busy_s: float) -> float:
        """What the board spends in `elapsed_s` seconds of which it computes `busy_s`, without the radio."""
        return (self.idle_watts + self.capture_watts) * elapsed_s + self.compute_watts * busy_s

    def radio_joules(self, *, bytes_up: int, bytes_down: int) -> float:
        """What the radio spends on these bytes."""
        up = self.radio_joules_per_megabyte_up * bytes_up
        return (up + self.radio_joules_per_megabyte_down * bytes_down) * 1e-6
