"""Any model as a graph of its operations, by ``torch.fx``: what the profiler measures and the planner cuts."""

from __future__ import annotations

from torch import Tensor, fx, nn
from torch.nn import functional

from common.encoder import Encoder


class WholeEncoder(nn.Module):
    """Stem, blocks, head and normalisation in one forward without the checks of shapes, which cannot be traced.

    Shares its weights with the encoder it is made from.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.stem = encoder.stem
        self.blocks = encoder.blocks
        self.head = encoder.head

    def forward(self, x: Tensor) -> Tensor:
        """Log-mel ``[N, 1, 64, 96]`` to projections of unit length ``[N, projection_dim]``."""
        h = self.stem(x)
        for block in self.blocks:
            h = block(h)
        return functional.normalize(self.head(h), dim=1)


def trace(model: nn.Module) -> fx.GraphModule:
    """The graph of a model with one input and one output; an `Encoder` is traced with its head.

    Raises:
        ValueError: a module with parameters that is called twice: two sides of a cut cannot share weights.
    """
    traced = fx.symbolic_trace(WholeEncoder(model) if isinstance(model, Encoder) else model)
    called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    for target in sorted({str(target) for target in called if called.count(target) > 1}):
        if any(True for _ in traced.get_submodule(target).parameters()):
            raise ValueError(f"{target} is called more than once: weights that are shared cannot be cut apart")
    return traced


def operations(traced: fx.GraphModule) -> list[fx.Node]:
    """The nodes that compute, in the order they run, the input first; constants and the output are none."""
    return [node for node in traced.graph.nodes if node.op not in {"get_attr", "output"}]


def block_of(node: fx.Node) -> str:
    """The block of an encoder that a node belongs to: ``stem``, ``0`` .. ``L-1`` or ``head``; the input: ``stem``."""
    if node.op == "placeholder":
        return "stem"
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    names = [str(entry[0] if isinstance(entry, tuple) else entry) for entry in stack]
    outermost = next((name for name in names if name), "head")
    parts = outermost.split(".")
    return parts[1] if parts[0] == "blocks" else parts[0]
