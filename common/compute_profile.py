"""What an encoder costs on one machine, as measured there: the picture that planner, simulator and emulation share.

All times and values are those of one window, both views in one batch of `VIEWS`, on one thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from common.atomic_file import write_atomically
from common.errors import ConfigError
from common.split import VIEWS

Milliseconds = Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**50)]
Text = Annotated[str, Field(min_length=1, max_length=200)]
BYTES_TRAINED = 16  # of a parameter in fp32: its value, its gradient and two moments of the optimizer


@dataclass(frozen=True, slots=True)
class Cost:
    """What one block, or one node of the graph, costs for one window.

    Attributes:
        name: ``stem``, ``0`` .. ``L-1`` or ``head`` for a block; the node's name in the graph for a node.
        forward_ms: milliseconds forward, both views.
        backward_ms: milliseconds backward, gradients of input and parameters both.
        output_values: values of the output, both views; the gradient there has as many.
        parameters: values that are trained.
        saved_bytes: what stays in memory between forward and backward.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    name: Text
    forward_ms: Milliseconds
    backward_ms: Milliseconds
    output_values: Count
    parameters: Count
    saved_bytes: Count

    @property
    def train_ms(self) -> float:
        """Milliseconds forward and backward."""
        return self.forward_ms + self.backward_ms

    @property
    def memory_bytes(self) -> int:
        """What training it keeps in memory: parameters with gradient and two moments, and what backward needs."""
        return BYTES_TRAINED * self.parameters + self.saved_bytes


@dataclass(frozen=True, slots=True)
class ComputeProfile:
    """An encoder on a machine.

    Attributes:
        encoder: one of `common.encoder.ENCODERS`, or the name of another model.
        hardware: fingerprint of the machine, without its name.
        torch: version of torch it was measured with.
        scale: times of this profile over the measured ones; 1 where nothing was scaled.
        peak_bytes: largest resident memory of the process that measured.
        blocks: ``stem``, ``0`` .. ``L-1``, ``head``, in order; empty for a model without blocks.
        nodes: every node of the graph, in order.
        mobile_forward_ms: one view through `mobile` on this machine, which is how fast boards are said to be; None for
            `mobile` itself, and where it was not measured.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    encoder: Text
    hardware: Text
    torch: Text
    scale: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
    peak_bytes: Count
    blocks: Annotated[tuple[Cost, ...], Field(max_length=66)]
    nodes: Annotated[tuple[Cost, ...], Field(max_length=100_000)]
    mobile_forward_ms: Annotated[float, Field(gt=0, le=1e7, allow_inf_nan=False)] | None = None

    @property
    def depth(self) -> int:
        """``L``: how many blocks there are beside stem and head."""
        return max(0, len(self.blocks) - 2)

    def client_ms(self, cut: int) -> float:
        """Milliseconds of one window's forward and backward on the device at this cut.

        Raises:
            ValueError: a cut outside 0..L.
        """
        return sum(cost.train_ms for cost in self.blocks[: self._after(cut)])

    def client_forward_ms(self, cut: int) -> float:
        """Milliseconds until the activations of a window are there; ValueError as `client_ms`."""
        return sum(cost.forward_ms for cost in self.blocks[: self._after(cut)])

    def server_ms(self, cut: int) -> float:
        """Milliseconds of what is left for the trainer, the head included; ValueError as `client_ms`."""
        return sum(cost.train_ms for cost in self.blocks[self._after(cut) :])

    def values_at(self, cut: int) -> int:
        """Values of both views' activations at this cut; ValueError as `client_ms`."""
        return self.blocks[self._after(cut) - 1].output_values

    def client_memory_bytes(self, cut: int) -> int:
        """What training the client segment keeps in memory; ValueError as `client_ms`."""
        return sum(cost.memory_bytes for cost in self.blocks[: self._after(cut)])

    def slower(self, factor: float) -> ComputeProfile:
        """The same encoder on a machine ``factor`` times as slow: every time is scaled, nothing else.

        Raises:
            ValueError: a factor that is not above 0.
        """
        if not factor > 0:
            raise ValueError(f"factor is {factor}, allowed is above 0")
        blocks, nodes = _slower(self.blocks, factor), _slower(self.nodes, factor)
        mobile_ms = None if self.mobile_forward_ms is None else factor * self.mobile_forward_ms
        return replace(self, scale=self.scale * factor, blocks=blocks, nodes=nodes, mobile_forward_ms=mobile_ms)

    def as_board(self, mobile_forward_ms: float) -> ComputeProfile:
        """The same encoder on a board that takes so long for a view through `mobile`: all times scaled alike.

        Raises:
            ValueError: what this machine takes for it is not known.
        """
        here_ms = window_forward_ms(self) if self.encoder == "mobile" else self.mobile_forward_ms
        if here_ms is None:
            raise ValueError(f"the profile of {self.encoder} does not say what mobile takes on its machine")
        return self.slower(mobile_forward_ms / here_ms)

    def _after(self, cut: int) -> int:
        if not 0 <= cut <= self.depth or not self.blocks:
            raise ValueError(f"cut {cut} does not exist: {self.encoder} has the cuts 0..{self.depth}")
        return cut + 1


def window_forward_ms(profile: ComputeProfile) -> float:
    """Milliseconds of one view through the whole encoder without head: what a board's profile file states."""
    return sum(cost.forward_ms for cost in profile.blocks[:-1]) / VIEWS


def save(profile: ComputeProfile, path: Path) -> None:
    """Write a profile as JSON, replacing the file at once; OSError where that cannot be."""
    write_atomically(path, f"{as_json(profile)}\n".encode())


def as_json(profile: ComputeProfile) -> str:
    """A profile as the text of its file."""
    return json.dumps(_ADAPTER.dump_python(profile, mode="json"))


def load(path: Path) -> ComputeProfile:
    """Read what `save` wrote.

    Raises:
        ConfigError: no such file, not JSON, or a key that is missing, unknown or out of its range; names it.
    """
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(f"{path}: {key}: {first['msg']} (streamsplit profile writes such a file)") from error


def _slower(costs: Iterable[Cost], factor: float) -> tuple[Cost, ...]:
    return tuple(
        replace(cost, forward_ms=factor * cost.forward_ms, backward_ms=factor * cost.backward_ms) for cost in costs
    )


_ADAPTER = TypeAdapter(ComputeProfile)
