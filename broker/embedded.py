"""The embedded broker: amqtt in a process of its own, MQTT 3.1.1, loopback only, dying with its parent.

``running`` starts it as a child; ``python -m broker.embedded`` is that child. What amqtt 0.12 would do otherwise, and
why we change it, stands in ``broker/amqtt_broker.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING

from broker.child import START_TIMEOUT_S, check_free, ended_at_exit
from common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

PARENT_CHECK_S = 0.25


@contextlib.contextmanager
def running(*, directory: Path, host: str, port: int | None) -> Iterator[tuple[int, int]]:
    """An embedded broker that accepts connections; yields (process id, port). Raises ConfigError where it cannot be."""
    if port is not None:
        check_free(host, port)
    log_path = directory / "embedded.log"
    command = [sys.executable, "-m", "broker.embedded", "--host", host, "--port", str(port or 0)]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [*command, "--parent", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)},
        )
    assert process.stdout is not None
    with process.stdout as said, ended_at_exit(process):  # the pipe closes last: nobody reads it any more by then
        port_used = _ready_port(said)
        if port_used is None:
            log_text = log_path.read_text(encoding="utf-8", errors="replace").strip()
            msg = f"the embedded broker does not start on {host}: {log_text or 'it says nothing'}"
            raise ConfigError(msg)
        yield process.pid, port_used


def _ready_port(said: IO[bytes]) -> int | None:
    """The port from the child's ``ready PORT`` line, or None when it ended or took too long."""
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=lambda: lines.put(said.readline()), daemon=True).start()
    try:
        words = lines.get(timeout=START_TIMEOUT_S).split()
    except queue.Empty:
        return None
    return int(words[1]) if len(words) == 2 and words[0] == b"ready" else None


async def serve(*, host: str, port: int, parent: int | None) -> None:
    """Run the broker, print ``ready PORT``, return when the parent is gone or a signal asks for the end."""
    from broker.amqtt_broker import LoopbackBroker

    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    broker = LoopbackBroker(host=host, port=port)
    await broker.start()
    print(f"ready {broker.port}", flush=True)
    while not ended.is_set() and (parent is None or os.getppid() == parent):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), PARENT_CHECK_S)


def main() -> None:
    """The child process."""
    parser = argparse.ArgumentParser(prog="python -m broker.embedded", description=__doc__)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--parent", type=int, default=None)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    asyncio.run(serve(host=arguments.host, port=arguments.port, parent=arguments.parent))
    # Clients and retained messages die with the process; waiting for amqtt to say goodbye to each only costs time.
    os._exit(0)


if __name__ == "__main__":
    main()
