"""A device's loop as a whole, where there is no fleet."""

from __future__ import annotations

import inspect
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from common import config, weights_file
from common.config_device import DeviceConfig
from device import assembly, loop
from device.__main__ import listen
from device.compute_time import ComputeTime
from device.exchange import Exchange
from device.journal import Totals

NOBODY = "fleet: home\nbroker: {url: 'mqtt://127.0.0.1:1'}\n"


def settings(folder: Path, *lines: str) -> DeviceConfig:
    (folder / "fleet.yaml").write_text(NOBODY)
    text = ("id: porch", "fleet: fleet.yaml", "source: {kind: soundscape}", "speed: fast", "measure_compute: false",
            f"state_directory: {folder / 'state'}", "connect_timeout_s: 0.2", *lines)  # fmt: skip
    (folder / "device.yaml").write_text("\n".join(text))
    return config.load_device(folder / "device.yaml")


def test_what_a_device_learns_during_an_outage_is_on_its_disk_before_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listen(settings(tmp_path, "splitter: {kind: local}", "windows: 8"), threading.Event())
    saved: list[Path] = []
    write = weights_file.write

    def noted(path: Path, *stored: object, **others: object) -> None:
        saved.append(path)
        write(path, *stored, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(weights_file, "write", noted)
    monkeypatch.setattr(loop, "SAVE_LOCAL_STEPS", 2)
    monkeypatch.setattr(loop.DeviceLoop, "_leave", lambda self: None)  # the power is cut
    listen(settings(tmp_path, "windows: 40"), threading.Event())
    assert len(saved) >= 2


def test_a_step_is_given_up_no_sooner_than_another_one_takes(tmp_path: Path) -> None:
    """As long as that the trainer lets those that are complete wait for the others."""

    def timeout_s(parts: int, speed: str) -> float:
        made = settings(tmp_path)
        fleet = made.fleet.model_copy(update={"parts_per_step": parts})
        return assembly._pace(made.model_copy(update={"fleet": fleet, "speed": speed})).step_timeout_s

    assert [timeout_s(parts, "realtime") for parts in (8, 64)] == [30.0, pytest.approx(2 * 64 * 0.96)]
    assert timeout_s(64, "fast") == 30.0, "its windows last no time"


class Step:
    """Backpropagates nothing, and says what was done when."""

    def __init__(self, done: list[str]) -> None:
        self._done = done

    def backward(self, part: int, gradient: object) -> None:
        self._done.append(f"part {part}")

    def learn(self, *, learning_rate: float) -> list[str]:
        self._done.append(f"learn {learning_rate}")
        return []


@pytest.mark.parametrize(("paused", "stopped"), [(False, False), (True, False), (False, True)])
def test_windows_that_close_between_the_parts_of_a_step_may_move_the_cut_but_in_a_pause_and_after_a_stop(
    paused: bool, stopped: bool
) -> None:
    done: list[str] = []
    stop = threading.Event()
    if stopped:
        stop.set()
    parts: dict[str, Any] = {name: MagicMock() for name in inspect.signature(loop.DeviceLoop).parameters}
    parts |= {"client_step": Step(done), "stop": stop, "mailbox": SimpleNamespace(paused=paused)}

    def looked() -> bool:
        done.append("look")
        return True

    parts["intake"] = SimpleNamespace(looks_ahead=True, look_ahead=looked)
    parts["cutting"] = SimpleNamespace(reconsider=lambda: done.append("reconsider"))
    parts["journal"] = SimpleNamespace(totals=Totals())
    device = loop.DeviceLoop(**parts)
    exchange = Exchange(0, timeout_s=1.0, grace_s=1.0)
    exchange.gradients = {0: torch.zeros(1), 2: torch.zeros(1), 1: torch.zeros(1)}
    exchange.learning_rate = 0.5
    device._learn_from(exchange)
    looks = [] if paused or stopped else ["look", "reconsider"]
    assert done == ["part 2", *looks, "part 1", *looks, "part 0", *looks, "learn 0.5"]


def test_learning_from_a_step_is_a_part_of_what_is_computed_that_is_told_apart() -> None:
    totals = Totals()

    class Busy:
        def backward(self, part: int, gradient: object) -> None:
            totals.busy_s += 2.0

        def learn(self, *, learning_rate: float) -> list[str]:
            totals.busy_s += 1.0
            return []

    def looked() -> bool:
        totals.busy_s += 0.25
        return False

    parts: dict[str, Any] = {name: MagicMock() for name in inspect.signature(loop.DeviceLoop).parameters}
    parts |= {"client_step": Busy(), "stop": threading.Event(), "mailbox": SimpleNamespace(paused=False)}
    parts |= {"journal": SimpleNamespace(totals=totals), "compute": ComputeTime(Totals(), None)}
    parts["intake"] = SimpleNamespace(looks_ahead=True, look_ahead=looked)
    exchange = Exchange(0, timeout_s=1.0, grace_s=1.0)
    exchange.gradients = {0: torch.zeros(1), 1: torch.zeros(1)}
    loop.DeviceLoop(**parts)._learn_from(exchange)
    assert (totals.learned_s, totals.busy_s) == (5.0, 5.5)


def test_while_answers_are_waited_for_every_window_that_closes_may_move_the_cut() -> None:
    stop, windows, done = threading.Event(), iter([True, False, True]), list[str]()

    def closed() -> bool:
        if (found := next(windows, None)) is None:
            stop.set()
        return bool(found)

    parts: dict[str, Any] = {name: MagicMock() for name in inspect.signature(loop.DeviceLoop).parameters}
    mailbox = {"paused": False, "trainer": SimpleNamespace(boot="b"), "drain": lambda *_: done.append("drain")}
    parts |= {"stop": stop, "mailbox": SimpleNamespace(**mailbox)}
    parts["intake"] = SimpleNamespace(looks_ahead=True, look_ahead=closed)
    parts["cutting"] = SimpleNamespace(reconsider=lambda: done.append("reconsider"))
    exchange: Any = SimpleNamespace(trainer_boot="b", over=lambda _: False)
    loop.DeviceLoop(**parts)._await_answers(exchange)
    assert done == ["reconsider", "drain", "drain", "reconsider", "drain", "drain"]
