"""A placement carried out: the device's and the server's part of a model as modules of their own, weights shared."""

from __future__ import annotations

from torch import Tensor, fx

from common.encoder_graph import operations
from trainer.partition_graph import Flags


def split_modules(traced: fx.GraphModule, on_device: Flags) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The two parts of a model at a cut.

    The first takes the model's input and gives a tuple of the tensors that cross, in the order they are made; the
    second takes these and gives the model's output. Calling one after the other computes what the model does, and
    ``backward`` through the crossing tensors gives the same gradients.

    Raises:
        ValueError: an operation on the device needs one on the server, nothing is left for one of the sides, or both
            would use one parameter.
    """
    nodes = operations(traced)
    device = {node for node, placed in zip(nodes, on_device, strict=True) if placed}
    for node in device:
        if any(source.op != "get_attr" and source not in device for source in node.all_input_nodes):
            raise ValueError(f"{node.name} is on the device and needs what the server computes")
    crossing = [node for node in nodes if node in device and any(user not in device for user in node.users)]
    if not crossing or len(device) == len(nodes):
        raise ValueError("one of the sides has nothing to compute")
    _check_constants(traced, device)
    return _device_part(traced, device, crossing), _server_part(traced, device, crossing)


def run_split(parts: tuple[fx.GraphModule, fx.GraphModule], x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The output, and the crossing tensors as the server saw them: their ``grad`` is what goes back to the device."""
    crossing = tuple(tensor.detach().requires_grad_() for tensor in parts[0](x))
    out: Tensor = parts[1](*crossing)
    return out, crossing


def _device_part(traced: fx.GraphModule, device: set[fx.Node], crossing: list[fx.Node]) -> fx.GraphModule:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in traced.graph.nodes:
        if node in device or (node.op == "get_attr" and any(user in device for user in node.users)):
            copies[node] = graph.node_copy(node, lambda source: copies[source])
    graph.output(tuple(copies[node] for node in crossing))
    return fx.GraphModule(traced, graph)


def _server_part(traced: fx.GraphModule, device: set[fx.Node], crossing: list[fx.Node]) -> fx.GraphModule:
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in crossing}
    for node in traced.graph.nodes:
        used = node.op != "get_attr" or any(user not in device for user in node.users)
        if node not in device and used:
            copies[node] = graph.node_copy(node, lambda source: copies[source])
    return fx.GraphModule(traced, graph)


def _check_constants(traced: fx.GraphModule, device: set[fx.Node]) -> None:
    parameters = dict(traced.named_parameters())
    for node in traced.graph.nodes:
        if node.op == "get_attr" and str(node.target) in parameters:
            users = {user in device for user in node.users}
            if len(users) > 1:
                raise ValueError(f"both sides would use the parameter {node.target}")
