"""Record the golden bytes: ``python -m tests.common.record_golden``, only when the protocol is meant to change."""

from __future__ import annotations

import sys

from common.messages import encode
from tests.common.cases import GOLDEN, cases, golden_file


def main() -> int:
    """Write one file per message type and remove those without a type."""
    GOLDEN.mkdir(exist_ok=True)
    wanted = {golden_file(made): encode(message) for made, message in cases().items()}
    for stale in set(GOLDEN.glob("*.bin")) - wanted.keys():
        stale.unlink()
    for path, payload in wanted.items():
        path.write_bytes(payload)
        sys.stdout.write(f"{path.name} {len(payload)} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
