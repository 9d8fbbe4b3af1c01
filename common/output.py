"""What is printed may be read by a program that has had enough of it, as ``head`` has."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable

READER_GONE = 141  # 128 + SIGPIPE, as a shell says it


def to_any_reader(run: Callable[[], int]) -> int:
    """Run a command; where the reader of its output is gone that is the end of it, and no error of ours."""
    try:
        status = run()
        sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return READER_GONE
    return status


def _reader_gone() -> bool:
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
