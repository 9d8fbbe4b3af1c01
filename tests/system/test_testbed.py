"""A short run of the testbed: two boards, two rows, an outage of a few seconds; real broker, real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.bench.testbed import main
from tests.bench.testbed_journal import read_journal
from tests.bench.testbed_plan import FILE
from tests.bench.testbed_report import RESULT


def short_plan(folder: Path) -> Path:
    """The committed plan, cut down: as many windows as show that everything is measured, not how good it is."""
    plan = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    plan["devices"] = [board | {"profile": "raspberry-pi-5"} for board in plan["devices"][4:6]]
    plan |= {"windows": 36, "warm_up_windows": 8, "opus": plan["baseline"]}
    plan["rows"] = [row for row in plan["rows"] if row["name"] in {plan["baseline"], "heuristic"}]
    plan["subject"] = "heuristic"
    # Once something is there to come back to: 28 s are a start and some steps, also on a busy machine.
    outage = {"name": "outage", "title": "6 s without", "changes": [{"at_s": 28, "up": False}, {"at_s": 34}]}
    trace = {"name": "lte", "title": "LTE", "trace": {"kind": "lte", "seed": 1001}}
    plan["events"] |= {"windows": 64, "warm_up_windows": 0, "devices": [trace, outage]}
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_short_run_measures_both_rows_and_a_device_learns_alone_while_its_link_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    committed = RESULT.read_bytes() if RESULT.exists() else None
    arguments = ["--plan", str(short_plan(tmp_path)), "--out", str(tmp_path / "out"), "--json"]
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["latency_ratio_p50"] > 0
    # 4 bits of both views at cut 5 and the gradients, against 30,720 bytes a window.
    assert 0.01 < result["bytes_fraction"] < 0.6
    for row in result["rows"].values():
        assert row["windows"] > 8
        assert row["embedding_ms"]["p50"] > 50, "no answer can be faster than its link's round trip"
        assert row["memory_mb"] > 50
    assert result["rows"]["heuristic"]["joules"]["compute"] > result["rows"]["server-only-pcm16"]["joules"]["compute"]
    along = result["traces"]["lte"]
    assert (along["windows"], sum(along["fates"].values())) == (64, 64)
    assert along["answered"] + along["local_steps"] > 0
    outage = result["events"]["outage"]
    assert outage["due"]
    assert outage["since_change_s"] is not None
    assert outage["lost_later"] == 0
    journal = read_journal(tmp_path / "out" / "events" / "device-2" / "steps.jsonl")
    (_, _), (gone_s, gone), (back_s, _) = journal.conditions
    assert not gone["up"]
    alone = [move for move in journal.moves if move.cut is None and gone_s <= move.monotonic_s < back_s]
    assert alone, "it knew that it was alone"
    assert [result for at_s, result in journal.steps if at_s > back_s], "and steps were answered again"
    for name in ("report.md", "latency.png", "energy.png", "timeline.png", "events.png"):
        assert (tmp_path / "out" / name).stat().st_size > 500
    assert (RESULT.read_bytes() if RESULT.exists() else None) == committed, "another plan's figures are no result"
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result, "what was run is not run again"
