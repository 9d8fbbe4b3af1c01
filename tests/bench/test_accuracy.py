from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from rich.console import Console

from common.errors import ConfigError
from tests.bench import accuracy, accuracy_pictures, accuracy_rows, accuracy_runs, accuracy_settings
from tests.bench.accuracy_report import markdown, tables
from tests.bench.accuracy_results import Evaluated, Finished, Result, Store
from tests.bench.accuracy_rows import HEADLINE, ROWS, Case, Row
from tests.bench.accuracy_runs import CaseFailed, CaseProcesses, run_cases
from tests.bench.accuracy_settings import digest, same_settings, settings
from tests.bench.accuracy_summary import auroc, compare, summary
from tests.bench.testbed_plan import read_plan

CLIPS = 20
UNTRAINED, SHUFFLED = (next(row for row in ROWS if row.name == name) for name in ("untrained", "shuffled"))
PLAIN = settings(HEADLINE)


def evaluated(right: int, *, wrong_are_uncertain: bool = True) -> Evaluated:
    hits = "1" * right + "0" * (CLIPS - right)
    sure, unsure = (100, 900) if wrong_are_uncertain else (900, 100)
    uncertainty = tuple(sure if hit == "1" else unsure for hit in hits)
    return Evaluated(hits, hits, 0.5, 0.1, 20.0, uncertainty)


def result(fold: int, seed: int, *right: int, clips: str = "c") -> Result:
    return Result(
        fold=fold,
        seed=seed,
        encoders=tuple(evaluated(one) for one in right),
        clips=f"{clips}{fold}",
        windows=16_000,
        windows_sent=8_000,
        bytes_up=48_000_000,
        bytes_down=16_000_000,
        steps_sent=2_000,
        steps_answered=1_990,
        local_steps=0,
        wall_s=100.0,
        cpu_s=90.0,
        torch="2.13.0",
    )


def fake(case: Case, right: int = 15) -> Finished:
    return Finished(settings(case.row), result(case.fold, case.seed, right))


def run(cases: list[Case], execute: Callable[[Case], Finished], store: Store) -> accuracy_runs.Outcome:
    return run_cases(cases, execute, store, jobs=2, console=Console(quiet=True))


def missing(store: Store, *rows: Row, folds: tuple[int, ...] = (), quick: bool = False) -> list[tuple[str, int, int]]:
    cases = accuracy.missing_cases(rows, store, settings(HEADLINE), folds=folds, seeds=(), quick=quick)
    return [(case.row.name, case.fold, case.seed) for case in cases]


# -- what is run ------------------------------------------------------------------------------------------------------


def test_every_row_names_settings_that_exist() -> None:
    assert len({digest(settings(row)) for row in ROWS}) == len(ROWS)
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_the_testbeds_row_learns_with_the_testbeds_settings() -> None:
    plan = read_plan()
    assert dict(accuracy_rows.TESTBED) == plan.row(plan.subject).device


def test_a_finished_case_is_not_run_again_and_the_others_are(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run([Case(HEADLINE, 2, 0)], fake, store)
    left = missing(Store(tmp_path), HEADLINE, folds=(1, 2))
    assert left == [("streamsplit", 1, 0), *(("streamsplit", fold, seed) for seed in (1, 2) for fold in (1, 2))]


def test_a_case_under_other_settings_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run([Case(SHUFFLED, 1, 0)], fake, Store(tmp_path))
    assert missing(Store(tmp_path), SHUFFLED, folds=(1,)) == []
    changed = replace(SHUFFLED, options=replace(SHUFFLED.options, trainer_settings=(("sw_weight", 7.0),)))
    assert missing(Store(tmp_path), changed, folds=(1,)) == [("shuffled", 1, 0)]
    monkeypatch.setattr(accuracy_settings, "REVISION", accuracy_settings.REVISION + 1)
    assert missing(Store(tmp_path), SHUFFLED, folds=(1,)) == [("shuffled", 1, 0)]


def test_of_results_of_an_older_default_all_count_that_were_made_alike(tmp_path: Path) -> None:
    old = settings(HEADLINE) | {"trainer.sw_weight": 7.0}
    keyless = {key: value for key, value in old.items() if key != "trainer.merge_each_until"}  # of before the key came
    other = old | {"trainer.sw_weight": 8.0}
    store = Store(tmp_path)
    for fold, made in enumerate((other, keyless, old), start=1):
        store.add(HEADLINE, Finished(made, result(fold, 0, 12)))
    found = store.latest(HEADLINE, PLAIN)
    assert (list(found.cases), found.current) == ([(2, 0), (3, 0)], False)


def test_a_quick_run_has_one_fold_and_one_seed(tmp_path: Path) -> None:
    assert missing(Store(tmp_path), HEADLINE, UNTRAINED, quick=True) == [("streamsplit", 1, 0), ("untrained", 1, 0)]


def test_quick_results_never_stand_for_full_ones(tmp_path: Path) -> None:
    quick = replace(HEADLINE, options=replace(HEADLINE.options, windows=2_000))
    run([Case(quick, 1, 0)], fake, Store(tmp_path))
    assert Store(tmp_path).latest(HEADLINE, PLAIN).cases == {}
    assert list(Store(tmp_path).latest(quick, settings(quick)).cases) == [(1, 0)]


def test_a_failing_case_is_reported_and_the_others_are_kept(tmp_path: Path) -> None:
    def execute(case: Case) -> Finished:
        if case.fold == 2:
            raise CaseFailed("out of memory")
        return fake(case)

    store = Store(tmp_path)
    outcome = run([Case(HEADLINE, fold, 0) for fold in (1, 2, 3)], execute, store)
    assert outcome.failed == {"streamsplit, fold 2, seed 0": "out of memory"}
    assert outcome.finished == 2
    assert sorted(store.current(HEADLINE, PLAIN)) == [(1, 0), (3, 0)]


def test_what_was_finished_before_ctrl_c_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = wait
    calls = []

    def interrupted(futures: Any, **options: Any) -> object:
        calls.append(futures)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return waiting(futures, **options)

    monkeypatch.setattr("tests.bench.accuracy_runs.wait", interrupted)
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_cases([Case(HEADLINE, fold, 0) for fold in (1, 2, 3)], fake, store, jobs=1, console=Console(quiet=True))
    assert (1, 0) in store.current(HEADLINE, PLAIN)


def test_a_case_that_dies_tells_the_end_of_what_it_said(tmp_path: Path) -> None:
    cases = CaseProcesses(tmp_path, arguments=(), keep=None, pictures={})
    with cases as processes, pytest.raises(CaseFailed, match="no audio in it"):
        processes(Case(UNTRAINED, 1, 0))


def test_a_case_process_is_told_its_row_fold_seed_and_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    finished = json.dumps({"settings": {"a": 1}, "result": asdict(result(3, 1, 12))})
    script.write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/given\necho '{finished}'\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    case = Case(HEADLINE, 3, 1)
    pictures = {str(case): tmp_path / "e.png"}
    with CaseProcesses(tmp_path, arguments=["--windows", "9"], keep=tmp_path / "k", pictures=pictures) as processes:
        assert processes(case) == Finished({"a": 1}, result(3, 1, 12))
    given = (tmp_path / "given").read_text()
    assert f"--row streamsplit --data {tmp_path} --fold 3 --seed 1 --windows 9" in given
    assert f"--keep {tmp_path}/k/streamsplit-3-1 --picture {tmp_path}/e.png" in given


# -- settings and files -----------------------------------------------------------------------------------------------


def test_a_key_that_did_not_exist_then_counts_as_what_the_plain_row_has_today() -> None:
    plain = {"a": 1, "new": 0}
    assert same_settings({"a": 1}, {"a": 1, "new": 0}, plain)
    assert same_settings({"a": 1, "gone": 3}, {"a": 1}, plain)
    assert not same_settings({"a": 1}, {"a": 1, "new": 2}, plain)
    assert not same_settings({"a": 2}, {"a": 1}, plain)


def test_settings_hold_defaults_but_no_place_seed_or_fold(tmp_path: Path) -> None:
    elsewhere = replace(HEADLINE, options=replace(HEADLINE.options, seed=7, fold=4, out=tmp_path))
    assert settings(elsewhere) == PLAIN
    assert PLAIN["trainer.sw_weight"] is not None
    assert not [value for value in PLAIN.values() if isinstance(value, str) and "/" in value]


def test_a_setting_that_does_not_exist_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--report-only", "--results", str(tmp_path), "--rows", "streamsplit", "--set", "sw_weihgt=3"]
    assert accuracy.main(arguments) == 78
    assert "sw_weihgt" in capsys.readouterr().err


def test_a_line_torn_by_a_kill_costs_that_case_only(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run([Case(HEADLINE, 1, 0), Case(HEADLINE, 2, 0)], fake, store)
    path = tmp_path / "streamsplit.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    run([Case(HEADLINE, 3, 0)], fake, store)
    assert {(3, 0)} < set(Store(tmp_path).current(HEADLINE, PLAIN)) < {(1, 0), (2, 0), (3, 0)}


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    run([Case(SHUFFLED, 1, 0)], lambda case: Finished(settings(SHUFFLED), result(1, 0, 3, 4)), Store(tmp_path))
    assert Store(tmp_path).current(SHUFFLED, PLAIN) == {(1, 0): result(1, 0, 3, 4)}


# -- what it comes to -------------------------------------------------------------------------------------------------


def filled(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    for row, right in ((UNTRAINED, 10), (SHUFFLED, 16)):
        run([Case(row, fold, 0) for fold in row.folds], partial(fake, right=right), store)
    cases = [Case(HEADLINE, fold, seed) for fold in HEADLINE.folds for seed in (0, 1)]
    run(cases, lambda case: fake(case, 14 + 2 * case.seed), store)
    return store


def test_the_json_has_every_row_with_its_figures_and_the_differences(tmp_path: Path) -> None:
    store = filled(tmp_path)
    found = summary([store.latest(row, PLAIN) for row in ROWS])
    ours = found["rows"]["streamsplit"]
    assert (ours["linear"], ours["knn"], ours["precision_at_10"]) == (75.0, 75.0, 50.0)
    assert (ours["folds"], ours["seeds"], ours["cases"]) == (5, 2, 10)
    assert ours["linear_sd_seeds"] == pytest.approx(7.07, abs=0.01)
    assert ours["bytes_per_hour"] == round(64_000_000 / 16_000 * 3600 / 0.96)
    assert ours["of_pcm16"] == pytest.approx(100 * 4_000 / 30_720, abs=0.01)
    assert (ours["answered"], ours["sent"]) == (99.5, 50.0)
    assert found["rows"]["untrained"]["bytes_per_hour"] is not None
    assert found["stream_minus_shuffled"]["mean"] == -10.0
    assert found["stream_minus_shuffled"]["seeds"] == 1, "the shuffled row has one seed"
    assert found["gain"]["mean"] == 25.0
    assert found["gain"]["seeds"] == 2, "untrained encoders stand against every seed"
    assert found["auroc"]["mean"] == 1.0
    assert "difference" not in found
    assert found["bytes_alone"] == {}
    assert json.loads(json.dumps(found)) == found


def test_only_folds_and_seeds_that_both_rows_have_are_compared(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run([Case(HEADLINE, fold, seed) for fold, seed in ((1, 0), (1, 1), (2, 0))], fake, store)
    run([Case(SHUFFLED, fold, 0) for fold in (1, 2, 3)], lambda case: fake(case, 10), store)
    comparison = next(one for one in accuracy_rows.COMPARISONS if one.name == "stream_minus_shuffled")
    a, b = store.latest(HEADLINE, PLAIN), store.latest(SHUFFLED, PLAIN)
    compared = compare(a, b, comparison)
    assert compared is not None
    assert (compared["folds"], compared["seeds"], compared["mean"]) == ([1, 2], 1, 25.0)
    assert compare(a, b, replace(comparison, folds=(4, 5))) is None


def test_results_on_other_clips_are_not_paired(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run([Case(HEADLINE, 1, 0)], fake, store)
    run([Case(SHUFFLED, 1, 0)], lambda case: Finished(settings(case.row), result(1, 0, 19, clips="other")), store)
    found = summary([store.latest(row, PLAIN) for row in ROWS])
    assert list(found) == ["rows", "bytes_alone", "auroc", "above"]
    assert found["above"] == [], "shuffled order is better, on other clips"


def test_without_uncertainties_there_is_no_auroc() -> None:
    bare = replace(result(1, 0), encoders=(replace(evaluated(3), uncertainty=()),))
    assert auroc({(1, 0): bare}) is None


def test_several_encoders_of_a_case_count_by_their_mean(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run([Case(UNTRAINED, 1, 0)], lambda case: Finished(settings(UNTRAINED), result(1, 0, 10, 14)), store)
    assert summary([store.latest(UNTRAINED, PLAIN)])["rows"]["untrained"]["linear"] == 60.0


def test_accuracy_by_prompts_is_told_apart_from_the_probes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    clap = next(row for row in ROWS if row.name == "clap")
    prompts = (replace(evaluated(18), zero_shot="1" * 12 + "0" * 8),)
    cases = {fold: replace(result(fold, 0), encoders=prompts) for fold in (1, 2)}
    run([Case(clap, fold, 0) for fold in (1, 2)], lambda case: Finished(settings(clap), cases[case.fold]), store)
    found = summary([store.latest(clap, PLAIN)])
    assert found["zero_shot"] == {"mean": 60.0, "sd": 0.0, "by_fold": {"1": 60.0, "2": 60.0}, "cases": 2}
    assert found["rows"]["clap"]["linear"] == 90.0
    assert "| CLAP by prompts, accuracy | 60.0 % ± 0.0 | - | 2 | mean from 50 %: met |" in markdown(tmp_path)


def test_of_a_row_for_its_bytes_nothing_else_is_told(tmp_path: Path) -> None:
    store = Store(tmp_path)
    flac = next(row for row in ROWS if row.name == "server-only-flac")
    run([Case(row, 1, 0) for row in (HEADLINE, flac)], fake, store)
    found = summary([store.latest(row, PLAIN) for row in ROWS])
    assert list(found["rows"]) == ["streamsplit"]
    assert found["bytes_alone"]["server-only-flac"]["bytes_per_hour"] == 15_000_000
    assert "linear" not in found["bytes_alone"]["server-only-flac"]
    assert "| server-only, FLAC | - | - | - | 15.0 | 13.0 % | bytes |" in markdown(tmp_path)


def test_the_tables_say_what_was_asked_for_and_whether_it_was_met(tmp_path: Path) -> None:
    store = filled(tmp_path)
    console = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    for table in tables(summary([store.latest(row, PLAIN) for row in ROWS]), title="QUICK"):
        console.print(table)
    said = console.export_text()
    assert "QUICK" in said
    assert "mean from -2: missed" in said
    assert "mean from 0.65, lower end from 0.55: met" in said


# -- README -----------------------------------------------------------------------------------------------------------


def test_without_results_the_page_says_so(tmp_path: Path) -> None:
    assert markdown(tmp_path) == "The table of methods: not run yet."


def test_the_page_has_the_table_what_is_missing_and_who_is_better(tmp_path: Path) -> None:
    filled(tmp_path)
    page = markdown(tmp_path)
    assert "| StreamSplit | 75.0 ± 5.3 | 75.0 | 50.0 | 15.0 | 13.0 % | 5 x 2 |" in page
    missing = next(line for line in page.splitlines() if line.startswith("Not run yet: "))
    assert "StreamSplit, shards by class" in missing
    assert "shuffled" not in missing
    assert "Above StreamSplit in the mean of the runs that both have: StreamSplit, shuffled order." in page
    assert "†" not in page


def test_who_is_better_is_told_from_the_runs_that_both_have_and_every_difference_says_how_many(tmp_path: Path) -> None:
    run([Case(HEADLINE, fold, 0) for fold in (1, 2)], lambda case: fake(case, 8 * case.fold), Store(tmp_path))
    run(
        [Case(SHUFFLED, 2, 0)], lambda case: fake(case, 15), Store(tmp_path)
    )  # above the mean of 8 and 16, not above 16
    page = markdown(tmp_path)
    assert "Above StreamSplit in the mean of the runs that both have: none." in page
    assert "| 1 x 1 | mean from -2: met |" in page


def test_the_page_marks_what_was_run_before_a_default_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)
    monkeypatch.setattr(accuracy_settings, "REVISION", accuracy_settings.REVISION + 1)
    page = markdown(tmp_path)
    assert "| StreamSplit† | 75.0" in page
    assert "† run before a default, or the row itself, changed." in page


# -- the command line and the pictures --------------------------------------------------------------------------------


def test_a_report_ends_with_one_json_object_and_leaves_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(tmp_path)
    assert accuracy.main(["--report-only", "--results", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["rows"]) == {"untrained", "streamsplit", "shuffled"}
    for name in ("accuracy.png", "bytes.png"):
        assert matplotlib.image.imread(tmp_path / name).std() > 0.0


def test_changed_settings_want_a_folder_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert accuracy.main(["--report-only", "--set", "sw_weight=3"]) == 78
    assert "--results" in capsys.readouterr().err


def test_a_folder_without_recordings_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert accuracy.main(["--data", str(tmp_path), "--results", str(tmp_path)]) == 78
    assert "no audio" in capsys.readouterr().err


def test_an_unknown_row_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert accuracy.main(["--report-only", "--results", str(tmp_path), "--rows", "nonsense"]) == 78
    assert "there are untrained, streamsplit" in capsys.readouterr().err


def test_changes_reach_the_row() -> None:
    given = accuracy._parser().parse_args(["--windows", "99", "--set", "sw_weight=3", "--set-device", "min_cut=4"])
    row = accuracy_settings.changed_row("shuffled", given)
    found = settings(row)
    assert (found["demo.windows"], found["demo.order"]) == (99, "shuffled")
    assert (found["trainer.sw_weight"], found["device.min_cut"]) == (3.0, 4)
    assert accuracy_settings.changes(given) == ["--windows", "99", "--set", "sw_weight=3", "--set-device", "min_cut=4"]


def test_a_setting_without_a_value_is_refused() -> None:
    given = accuracy._parser().parse_args(["--set", "sw_weight"])
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        accuracy_settings.changed_row("shuffled", given)


def test_pictures_of_rows_without_traffic_leave_them_out_of_the_bytes(tmp_path: Path) -> None:
    silent = replace(result(1, 0, 9), windows=0, bytes_up=0, bytes_down=0)
    store = Store(tmp_path)
    run([Case(UNTRAINED, 1, 0)], lambda case: Finished(settings(case.row), silent), store)
    accuracy_pictures.draw_bytes([store.latest(UNTRAINED, PLAIN)], tmp_path / "bytes.png")
    assert (tmp_path / "bytes.png").stat().st_size > 0
