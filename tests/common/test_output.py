"""Output into a pipe whose reader has gone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from common.output import READER_GONE, to_any_reader
from tests.fleet import ROOT


@pytest.mark.parametrize("command", [["-m", "common.config", "reference"], ["streamsplit.py", "plan-cuts"]])
def test_a_reader_that_has_had_enough_ends_a_command_without_a_traceback(command: list[str]) -> None:
    with subprocess.Popen([sys.executable, *command], stdout=-1, stderr=-1, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == READER_GONE


def test_a_broken_pipe_elsewhere_is_an_error_as_ever() -> None:
    def broken() -> int:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        to_any_reader(broken)
