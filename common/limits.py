"""What a receiver accepts at most; checked before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """The receiver's own bounds, on top of the narrower ones each message type and field has.

    ``max_message_bytes`` bounds a payload, ``max_tensor_values`` the numbers in one tensor, ``max_items`` all elements
    of lists and maps of one message together.
    """

    max_message_bytes: int = 4 * 1024 * 1024
    max_tensor_values: int = 2**22
    max_items: int = 16_384
