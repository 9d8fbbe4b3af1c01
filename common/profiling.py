"""Measures what an encoder costs on this machine, block by block and node by node, and keeps the answer.

Everything runs as it does in training: both views in one batch, fp32, one thread, gradients of inputs and parameters.
Time is that thread's processor time: what others do on the machine meanwhile is its load, which telemetry tells.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_map

from common.compute_profile import ComputeProfile, Cost, load, save, window_forward_ms
from common.encoder import INPUT_SHAPE, Encoder, build_encoder
from common.encoder_graph import block_of, operations, trace
from common.errors import ConfigError
from common.split import VIEWS, block_parameters, names

LOG = logging.getLogger(__name__)

WARM_UP = 2
REPEATS = 7
CPU_NAMES = ("Model", "model name", "Hardware")  # /proc/cpuinfo: a Raspberry Pi names the whole board


def hardware_fingerprint() -> str:
    """Processor, cores and memory of this machine in words; its name is no part of it."""
    memory_gib = psutil.virtual_memory().total / 2**30
    return f"{platform.machine()}, {_processor()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB"


def cache_folder() -> Path:
    """Where a person's profiles are kept: ``$XDG_CACHE_HOME/streamsplit``, else ``~/.cache/streamsplit``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streamsplit"


def cached_profile(encoder: Encoder, folder: Path, *, nodes: bool, fresh: bool = False) -> ComputeProfile:
    """The profile of an encoder from ``folder``, else measured now and kept there.

    Another machine, another torch or ``fresh`` measure anew; so does a file that cannot be read. Beside another encoder
    `mobile` is measured as well, by which boards are compared. Where the folder cannot be written nothing is kept.
    """
    key = hashlib.sha256(f"{hardware_fingerprint()}\n{torch.__version__}".encode()).hexdigest()[:16]
    path = folder / f"profile-{encoder.name}-{key}.json"
    known = None if fresh else _kept(path)
    if known is not None and (known.nodes or not nodes):
        return known
    measured = measure(encoder, name=encoder.name, nodes=nodes)
    if encoder.name != "mobile":
        mobile = cached_profile(build_encoder("mobile", seed=0), folder, nodes=nodes, fresh=fresh)
        measured = replace(measured, mobile_forward_ms=window_forward_ms(mobile))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save(measured, path)
    except OSError as error:
        LOG.warning("%s: cannot be written (%s): it is measured anew the next time", path, error.strerror)
    return measured


def _kept(path: Path) -> ComputeProfile | None:
    """What an earlier call kept; None where there is nothing, or not all of it."""
    if not path.is_file():
        return None
    try:
        known = load(path)
    except ConfigError:  # of an older release, or cut off
        return None
    return known if known.encoder == "mobile" or known.mobile_forward_ms is not None else None


def measure(model: nn.Module, *, name: str, nodes: bool = True, repeats: int = REPEATS) -> ComputeProfile:
    """Measure a model here and now: blocks of an `Encoder`, and with ``nodes`` every node; medians of ``repeats``.

    Takes a second or so for `mobile`. Changes no random state and no gradient of the model.
    """
    traced = trace(model)
    window = torch.zeros(VIEWS, *INPUT_SHAPE)
    with _one_thread():
        static = _static_costs(traced, window)
        by_node = _node_costs(traced, window, static, repeats) if nodes else ()
        blocks = _block_costs(model, traced, window, static, repeats) if isinstance(model, Encoder) else ()
    return ComputeProfile(name, hardware_fingerprint(), torch.__version__, 1.0, _peak_bytes(), blocks, by_node)


def _static_costs(traced: fx.GraphModule, window: Tensor) -> dict[str, Cost]:
    """What needs no clock, by node: values, parameters, and memory attributed to the node that keeps it first."""
    weights = {parameter.data_ptr() for parameter in traced.parameters()}
    kept: set[int] = set()
    costs: dict[str, Cost] = {}

    class Counting(fx.Interpreter):
        saved_bytes = 0

        def run_node(self, n: fx.Node) -> Any:
            self.saved_bytes = 0
            result = super().run_node(n)
            values = sum(tensor.numel() for tensor in tree_flatten(result)[0] if isinstance(tensor, Tensor))
            costs[n.name] = Cost(n.name, 0.0, 0.0, values, _parameters_of(traced, n), self.saved_bytes)
            return result

    counting = Counting(traced, garbage_collect_values=False)

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in kept and tensor.data_ptr() not in weights:
            kept.add(tensor.data_ptr())
            counting.saved_bytes += tensor.numel() * tensor.element_size()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        counting.run(window)
    return costs


def _node_costs(traced: fx.GraphModule, window: Tensor, static: dict[str, Cost], repeats: int) -> tuple[Cost, ...]:
    """Every node by itself, on inputs that need a gradient where they do in training."""
    measured: list[Cost] = []
    interpreter = fx.Interpreter(traced)

    class Timing(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            if n.op in {"placeholder", "get_attr", "output"}:
                result = super().run_node(n)
            else:
                args, kwargs = self.fetch_args_kwargs_from_env(n)
                run = getattr(interpreter, n.op)
                heard = [source.op == "placeholder" for source in n.all_input_nodes]
                forward_ms, backward_ms = _times_ms(
                    partial(run, n.target), (args, kwargs), repeats, learns=not all(heard)
                )
                measured.append(replace(static[n.name], forward_ms=forward_ms, backward_ms=backward_ms))
                result = run(n.target, args, kwargs)
            if n.op == "placeholder":
                measured.append(static[n.name])
            return tree_map(_detached, result)

    with torch.enable_grad():
        Timing(traced).run(window)
    return tuple(measured)


def _block_costs(
    encoder: Encoder, traced: fx.GraphModule, window: Tensor, static: dict[str, Cost], repeats: int
) -> tuple[Cost, ...]:
    blocks = []
    h = window
    for name in names(encoder):
        run: Callable[[Tensor], Tensor] = _block(encoder, name)
        forward_ms, backward_ms = _times_ms(run, (h,), repeats, learns=name != "stem")
        with torch.no_grad():
            h = run(h)
        saved = sum(static[node.name].saved_bytes for node in operations(traced) if block_of(node) == name)
        parameters = sum(parameter.numel() for parameter in block_parameters(encoder, name))
        blocks.append(Cost(name, forward_ms, backward_ms, h.numel(), parameters, saved))
    return tuple(blocks)


def _block(encoder: Encoder, name: str) -> Callable[[Tensor], Tensor]:
    if name in {"stem", "head"}:
        return encoder.stem if name == "stem" else encoder.project
    return encoder.blocks[int(name)]


def _times_ms(run: Callable[..., Any], inputs: tuple[Any, ...], repeats: int, *, learns: bool) -> tuple[float, float]:
    """Medians of forward and backward, in milliseconds; ``learns``: the inputs need a gradient too."""
    forward_s, backward_s = [], []
    for _ in range(WARM_UP + repeats):
        fresh = tree_map(lambda value: _like(value, learns=learns), inputs)
        start_s = time.thread_time()
        result = run(*fresh)
        forward_s.append(time.thread_time() - start_s)
        ends = [value for value in tree_flatten(result)[0] if isinstance(value, Tensor) and value.requires_grad]
        sources = _differentiable(ends)
        gradients = [torch.ones_like(end) for end in ends]
        start_s = time.thread_time()
        if ends:
            torch.autograd.grad(ends, sources, gradients, allow_unused=True)
        backward_s.append(time.thread_time() - start_s)
    return 1e3 * statistics.median(forward_s[WARM_UP:]), 1e3 * statistics.median(backward_s[WARM_UP:])


def _differentiable(ends: Sequence[Tensor]) -> list[Tensor]:
    """The leaves that the ends were made of: inputs and parameters, found by walking the graph."""
    leaves: dict[int, Tensor] = {}
    waiting = [end.grad_fn for end in ends if end.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        function = waiting.pop()
        leaf = getattr(function, "variable", None)
        if leaf is not None:
            leaves[id(leaf)] = leaf
        for following, _ in function.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return list(leaves.values())


def _like(value: Any, *, learns: bool) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    leaf = value.detach().clone()
    # Not a leaf itself: an operation in place, such as many a ReLU, may not write into one.
    return leaf.requires_grad_().view_as(leaf) if learns else leaf


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _parameters_of(traced: fx.GraphModule, node: fx.Node) -> int:
    """Parameters of a node: of the module it calls, or that the function it calls is given."""
    if node.op == "call_module":
        return sum(parameter.numel() for parameter in traced.get_submodule(str(node.target)).parameters())
    given = [source for source in node.all_input_nodes if source.op == "get_attr"]
    own = dict(traced.named_parameters())
    return sum(own[str(source.target)].numel() for source in given if str(source.target) in own)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _peak_bytes() -> int:
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    told = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    return next((told[name] for name in CPU_NAMES if told.get(name)), "unknown processor")
