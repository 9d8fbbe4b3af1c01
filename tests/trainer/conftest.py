from __future__ import annotations

from tests.brokers import broker, links

__all__ = ["broker", "links"]
