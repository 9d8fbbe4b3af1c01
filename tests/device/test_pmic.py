from __future__ import annotations

import math
import subprocess
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device.pmic import MOST_AGE_S, Pmic, Sample, find_pmic, parse_watts

# Two rails, one that is off, and the two that have no current; in the order and with the indent of a board's answer.
ANSWER = """\
 3V7_WL_SW_A current(0)=0.10000000A
  DDR_VDDQ_A current(4)=0.00000000A
  VDD_CORE_A current(7)=2.00000000A
 3V7_WL_SW_V volt(8)=3.70000000V
  DDR_VDDQ_V volt(12)=0.60476130V
  VDD_CORE_V volt(15)=0.90000000V
     EXT5V_V volt(24)=5.06788000V
      BATT_V volt(25)=3.01110800V
"""
ANSWER_WATTS = 0.1 * 3.7 + 2.0 * 0.9


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def vcgencmd(name: str) -> str:
    return f"/usr/bin/{name}"


def no_program(_name: str) -> None:
    return None


class Board:
    """Answers in turn, the last answer for ever."""

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)
        self.commands: list[Sequence[str]] = []

    def __call__(self, command: Sequence[str]) -> str:
        self.commands.append(command)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def found(board: Board, clock: Clock) -> Pmic:
    pmic = find_pmic(find_program=vcgencmd, run_program=board, clock=clock)
    assert pmic is not None
    return pmic


def core(amperes: float) -> str:
    return f"VDD_CORE_A current(7)={amperes:.8f}A\nVDD_CORE_V volt(15)=1.00000000V\n"


FAILURES = [
    subprocess.CalledProcessError(255, "vcgencmd"),
    subprocess.TimeoutExpired("vcgencmd", 2.0),
    OSError("gone"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    'error=1 error_msg="Command not registered"\n',  # a board before the Pi 5
    "VCHI initialization failed\n",  # a user who is not in the group
    "",
]


def test_power_is_the_sum_over_the_rails_with_current_and_voltage() -> None:
    assert parse_watts(ANSWER) == pytest.approx(ANSWER_WATTS)


def test_a_rail_is_known_by_its_name_and_not_by_its_place() -> None:
    assert parse_watts("\n".join(reversed(ANSWER.splitlines()))) == pytest.approx(ANSWER_WATTS)


@pytest.mark.parametrize(
    "text",
    [
        "EXT5V_V volt(24)=5.06788000V\n",
        "VDD_CORE_A current(7)=2.0A\n",
        "VDD_CORE_A current(7)=2.0V\nVDD_CORE_V volt(15)=0.9A\n",
        "VDD_CORE_A current(7)=nanA\nVDD_CORE_V volt(15)=0.9V\n",
        "VDD_CORE_A current(7)=-2.0A\nVDD_CORE_V volt(15)=0.9V\n",
        f"VDD_CORE_A current(7)={'9' * 400}A\nVDD_CORE_V volt(15)=0.0V\n",
    ],
)
def test_what_is_no_rail_with_both_has_no_power(text: str) -> None:
    assert parse_watts(text) is None


LINES = st.builds(
    "{}_{} {}({})={}{}".format,
    st.sampled_from(["VDD_CORE", "HDMI", "EXT5V"]) | st.text(max_size=4),
    st.sampled_from("AVX"),
    st.sampled_from(["current", "volt"]),
    st.integers(0, 30),
    st.floats(0.0, 20.0).map("{:.8f}".format) | st.integers(0, 10**400) | st.text(max_size=4),
    st.sampled_from("AV"),
)


@given(st.text() | st.lists(LINES, max_size=12).map("\n".join))
def test_whatever_is_printed_power_is_finite_and_not_negative_or_unknown(text: str) -> None:
    watts = parse_watts(text)
    assert watts is None or (math.isfinite(watts) and watts >= 0.0)


def test_the_board_is_asked_once_to_be_found() -> None:
    board = Board(ANSWER)
    assert find_pmic(find_program=vcgencmd, run_program=board) is not None
    assert board.commands == [["/usr/bin/vcgencmd", "pmic_read_adc"]]


def test_without_the_program_there_is_no_pmic_and_nothing_is_run() -> None:
    board = Board(ANSWER)
    assert find_pmic(find_program=no_program, run_program=board) is None
    assert board.commands == []


@pytest.mark.parametrize("failure", [*FAILURES, core(0.0)])
def test_a_board_that_tells_no_power_has_no_pmic(failure: str | Exception, caplog: pytest.LogCaptureFixture) -> None:
    assert find_pmic(find_program=vcgencmd, run_program=Board(failure)) is None
    assert caplog.records == []


def test_a_samples_power_counts_until_the_next() -> None:
    clock = Clock()
    pmic = found(Board(core(2.0), core(4.0)), clock)
    assert pmic.joules() == 0.0
    clock.now_s += 1.0
    assert pmic.joules() == pytest.approx(2.0)
    pmic.sample()
    clock.now_s += 0.5
    assert pmic.joules() == pytest.approx(2.0 + 4.0 * 0.5)


def test_asking_for_the_joules_does_not_run_the_program() -> None:
    board = Board(ANSWER)
    pmic = found(board, Clock())
    for _ in range(5):
        pmic.joules()
    assert len(board.commands) == 1


def test_a_sample_that_comes_late_counts_as_any_other() -> None:
    clock = Clock()
    pmic = found(Board(core(2.0)), clock)
    clock.now_s += 60.0
    pmic.sample()
    assert pmic.joules() == pytest.approx(120.0)


def test_a_program_that_hangs_ends_the_measurement() -> None:
    clock = Clock()
    pmic = found(Board(core(2.0)), clock)
    clock.now_s += MOST_AGE_S
    assert pmic.joules() == pytest.approx(2.0 * MOST_AGE_S)
    clock.now_s += 0.1
    with pytest.raises(OSError, match="last read 5 s ago"):
        pmic.joules()


@pytest.mark.parametrize("failure", FAILURES)
def test_a_program_that_fails_is_asked_again_and_what_it_does_not_say_for_long_ends_the_measurement(
    failure: str | Exception,
) -> None:
    clock = Clock()
    pmic = found(Board(core(2.0), failure, core(4.0), failure), clock)
    clock.now_s += 1.0
    pmic.sample()
    assert pmic.joules() == pytest.approx(2.0)
    pmic.sample()
    clock.now_s += 1.0
    assert pmic.joules() == pytest.approx(6.0)
    pmic.sample()
    clock.now_s += MOST_AGE_S
    with pytest.raises(OSError, match="last read 6 s ago: "):
        pmic.joules()


@given(st.lists(st.tuples(st.floats(0.0, 100.0), st.floats(0.0, 10.0)), max_size=20))
def test_joules_never_shrink(samples: list[tuple[float, float]]) -> None:
    last, seen = Sample(0.0, 1.0, 0.0), 0.0
    for watts, later_s in samples:
        now_s = last.at_s + later_s
        assert last.joules_at(now_s) >= seen
        last = Sample(now_s, watts, last.joules_at(now_s))
        seen = last.joules


def test_a_thread_of_its_own_samples_until_nobody_can_use_it_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("device.pmic.EVERY_S", 0.001)
    enough = threading.Event()
    sampled_in: list[threading.Thread] = []

    def read_watts() -> float:
        sampled_in.append(threading.current_thread())
        if len(sampled_in) > 3:
            enough.set()
            raise OSError("gone")
        return 2.0

    clock = Clock()
    pmic = Pmic(read_watts, clock=clock)
    before = set(threading.enumerate())
    pmic.start()
    (sampler,) = set(threading.enumerate()) - before
    assert enough.wait(10.0)
    clock.now_s += MOST_AGE_S + 0.1
    with pytest.raises(OSError, match="gone"):
        pmic.joules()
    sampler.join(10.0)
    assert not sampler.is_alive()
    assert sampled_in[0] is threading.main_thread()
    assert set(sampled_in[1:]) == {sampler}
