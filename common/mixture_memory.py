"""A streaming mixture of diagonal Gaussians over projections: what the fleet has heard, in 35 KB.

It remembers without storing a window: virtual negatives are drawn from it, and how seldom it has heard anything like a
projection is that projection's uncertainty. A plain moving average of means and variances collapses (every mean drifts
to the same place); here each component keeps decayed, responsibility-weighted sufficient statistics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

MIXTURE = "mixture"  # its name among the fleet's weights
FORMAT = 2  # of its state: two ends with another one could not read each other's
NEUTRAL_UNCERTAINTY = 0.5  # of anything, before the mixture has started
START_PROJECTIONS = 128
KMEANS_ROUNDS = 5
VARIANCE_FLOOR = 1e-4  # a unit vector of 128 values has at most 1/128 = 8e-3 a value
PRIOR_MASS = 8.0  # windows' worth of belief that a component is round; few windows cannot tell 128 variances
DEAD_SHARE = 0.05  # of an even share of the mass
KERNEL = 2.0  # of the wide surprisal
RECENT = 512  # of the stream's surprisals, against which others are ranked
RECENT_STRIDE = 4  # every so many-th is kept: they reach as far back as the mixture's memory
STEPS = 512  # a unit; exact in half precision up to 4: what repeats is then no matter of rounding
NONE_YET = -1.0  # in place of a surprisal: none is below 0
TAU_RATIO = 0.5


class MixtureMemory(nn.Module):
    """``components`` diagonal Gaussians over projections of ``dim`` values; all state is in float32 buffers.

    Before it has seen `START_PROJECTIONS` it has not started: `uncertainty` is 0.5 for everything and there are no
    virtual negatives. Those first projections do not travel with the state.

    Args:
        components: number of Gaussians.
        dim: values of a projection.
        memory: projections after which an observation has faded to 1/e.
        seed: of the k-means++ start; nothing else here draws without a generator.
    """

    means: Tensor
    variances: Tensor
    mass: Tensor
    recent: Tensor
    passed: Tensor
    started_flag: Tensor

    def __init__(self, *, components: int = 64, dim: int = 128, memory: int = 2048, seed: int = 0) -> None:
        super().__init__()
        self._decay = math.exp(-1.0 / memory)
        self._seed = seed
        self._waiting: list[Tensor] = []
        self.register_buffer("means", torch.zeros(components, dim))
        self.register_buffer("variances", torch.full((components, dim), VARIANCE_FLOOR))
        self.register_buffer("mass", torch.zeros(components))
        self.register_buffer("recent", torch.full((2, RECENT), NONE_YET))
        self.register_buffer("passed", torch.zeros(1))
        self.register_buffer("started_flag", torch.zeros(1))

    @property
    def started(self) -> bool:
        """Whether there is a mixture yet."""
        return bool(self.started_flag.item())

    def take_over(self, state: Mapping[str, Tensor]) -> None:
        """Stand where another mixture stood; what half precision rounded below a bound is brought back to it.

        Raises:
            ValueError: names or shapes of another mixture; nothing is changed.
        """
        own = {key: value.shape for key, value in self.state_dict().items()}
        if own != {key: value.shape for key, value in state.items()}:
            raise ValueError("a state of other names or shapes than this mixture's")
        self.load_state_dict(dict(state))
        self.variances.clamp_(min=VARIANCE_FLOOR)
        self.mass.clamp_(min=0.0)
        self._waiting = []

    @torch.no_grad()
    def update(self, z: Tensor) -> None:
        """Learn from projections ``[N, d]`` in the order they came, as one batch.

        Raises:
            ValueError: another shape, or NaN or infinity.
        """
        self._check(z)
        if not bool(torch.isfinite(z).all()):
            raise ValueError("projections for the mixture must be finite")
        if len(z) == 0:
            return
        if not self.started:
            self._wait(z)
            return
        log_joint = self._log_joint(z)
        self._remember(self._surprisals(z))
        self._absorb(z, log_joint.softmax(dim=1), windows=len(z))
        self._respawn(z, log_joint.logsumexp(dim=1))

    @torch.no_grad()
    def merge(self, mass: Tensor, means: Tensor, variances: Tensor) -> None:
        """Take over what another mixture heard: ``mass`` [K] projections around ``means`` [K, d], as one batch.

        ``variances`` [K]: mean over the values, around those means. Each is shared among the components here that
        explain its mean, whatever component it was there. Nothing happens before the start.

        Raises:
            ValueError: another shape.
        """
        self._check(means)
        if not self.started or len(means) == 0:
            return
        r = self._log_joint(means).softmax(dim=1) * mass[:, None]
        self._absorb(means, r, windows=float(mass.sum()), within=variances[:, None])

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """The component that explains each of the projections ``[N, d]`` best: ``[N]``."""
        self._check(z)
        return self._log_joint(z).argmax(dim=1)

    @torch.no_grad()
    def uncertainty(self, z: Tensor) -> Tensor:
        """How surprising the projections ``[N, d]`` are among those of the stream: ``[N]`` in 0..1, its median at 0.5.

        The mean of two ranks, so that it means the same for every encoder: that of ``1 - max_c cos(z, mu_c)``, high
        where nothing quite like it was heard, and that of ``-ln sum_c pi_c exp(k (cos(z, mu_c) - 1))`` with a wide
        kernel, high where its kind is seldom. Either alone predicts errors less well, and so does the paper's own, the
        entropy of the responsibilities over ``ln C`` (eq. 11) (measured: tests/bench/LOG.md, 2026-11-28). The stream is
        what `update` was given: where few windows are sent, those.
        """
        self._check(z)
        if not self.started:
            return torch.full((len(z),), NEUTRAL_UNCERTAINTY, device=z.device)
        none_yet = int((self.recent[0] < 0.0).sum())
        if none_yet == RECENT:
            return torch.full((len(z),), NEUTRAL_UNCERTAINTY, device=z.device)
        lower = torch.searchsorted(self.recent.sort(dim=1).values, self._surprisals(z)) - none_yet
        return lower.float().mean(dim=0) / (RECENT - none_yet)

    @torch.no_grad()
    def entropy(self, z: Tensor) -> Tensor:
        """Of the responsibilities over ``ln C``: ``[N]`` in 0..1; 1 everywhere when all components have become one."""
        self._check(z)
        log_r = self._log_joint(z).log_softmax(dim=1)
        return (-(log_r.exp() * log_r).sum(dim=1) / math.log(log_r.shape[1])).clamp(0.0, 1.0)

    @torch.no_grad()
    def virtual_negatives(
        self, z: Tensor, count: int, generator: torch.Generator, *, tau_ratio: float = TAU_RATIO
    ) -> Tensor:
        """Draw ``count`` negatives for each projection ``[N, d]``, more from components near its own (paper eq. 9).

        ``tau`` is ``tau_ratio`` times the median distance between the means: an absolute one picks a single component.
        Returns ``[N, count, d]`` of unit length, ``[N, 0, d]`` before the start. ``generator`` is a CPU generator.
        """
        self._check(z)
        if not self.started or count == 0 or len(z) == 0:
            return z.new_zeros(len(z), 0, z.shape[1])
        own = self.nearest(z)
        weights = self._neighbour_weights(tau_ratio)[own].cpu()
        chosen = torch.multinomial(weights, count, replacement=True, generator=generator).to(z.device)
        noise = torch.randn(*chosen.shape, z.shape[1], generator=generator).to(z.device)
        return functional.normalize(self.means[chosen] + self._spread().sqrt()[chosen] * noise, dim=2)

    # -- the mixture --------------------------------------------------------------------------------------------------

    def _log_joint(self, z: Tensor) -> Tensor:
        """``ln pi_c + ln N(z; mu_c, s_c)`` without its constant: ``[N, C]``."""
        variance = self._spread()
        precision = 1.0 / variance
        distance = z.square() @ precision.T - 2.0 * z @ (self.means * precision).T
        distance = distance + (self.means.square() * precision).sum(dim=1)
        share = self.mass.clamp_min(1e-6) / self.mass.sum().clamp_min(1e-6)
        return share.log() - 0.5 * (distance + variance.log().sum(dim=1))

    def _spread(self) -> Tensor:
        """Variances drawn towards round by `PRIOR_MASS` windows, never below the floor: ``[C, d]``."""
        round_ = self.variances.mean(dim=1, keepdim=True)
        mass = self.mass[:, None]
        return ((mass * self.variances + PRIOR_MASS * round_) / (mass + PRIOR_MASS)).clamp_min(VARIANCE_FLOOR)

    def _absorb(self, z: Tensor, r: Tensor, *, windows: float, within: Tensor | None = None) -> None:
        """Points ``[N, d]`` that stand for ``windows`` projections, shared out by ``r``, each with its variance."""
        old = self.mass * self._decay**windows
        added = r.sum(dim=0)
        mass = (old + added).clamp_min(1e-6)
        means = self.means + (r.T @ z - added[:, None] * self.means) / mass[:, None]
        kept = old[:, None] * (self.variances + (self.means - means).square())
        squares = z.square() if within is None else z.square() + within
        fresh = r.T @ squares - 2.0 * means * (r.T @ z) + added[:, None] * means.square()
        self.variances.copy_(((kept + fresh) / mass[:, None]).clamp_min(VARIANCE_FLOOR))
        self.means.copy_(means)
        self.mass.copy_(old + added)

    def _respawn(self, z: Tensor, log_likelihood: Tensor) -> None:
        """Move components that explain next to nothing to the projections that are explained worst."""
        even = self.mass.mean()
        dead = (self.mass < DEAD_SHARE * even).nonzero().flatten()[: len(z)]
        if len(dead) == 0:
            return
        worst = log_likelihood.argsort()[: len(dead)]
        self.means[dead] = z[worst]
        self.variances[dead] = (self.mass @ self.variances / self.mass.sum()).clamp_min(VARIANCE_FLOOR)
        self.mass[dead] = 0.5 * even

    def _neighbour_weights(self, tau_ratio: float) -> Tensor:
        tau = tau_ratio * torch.pdist(self.means).median().clamp_min(1e-6)
        distance = torch.cdist(self.means, self.means).square()
        log_weight = self.mass.clamp_min(1e-6).log() - distance / (2.0 * tau.square())
        return log_weight.fill_diagonal_(-torch.inf).softmax(dim=1)

    # -- uncertainty --------------------------------------------------------------------------------------------------

    def _surprisals(self, z: Tensor) -> Tensor:
        """How far the nearest mean is, and the surprisal under wide kernels: ``[2, N]``."""
        cosine = z @ functional.normalize(self.means, dim=1).T
        log_share = (self.mass.clamp_min(1e-6) / self.mass.sum().clamp_min(1e-6)).log()
        wide = (log_share + KERNEL * (cosine - 1.0)).logsumexp(dim=1)
        both = torch.stack([1.0 - cosine.amax(dim=1), -wide]).clamp_min(0.0)
        return (both * STEPS).round() / STEPS

    def _remember(self, surprisals: Tensor) -> None:
        """Keep some of a batch's surprisals, as they were before it was learned from."""
        kept = surprisals[:, int(-self.passed) % RECENT_STRIDE :: RECENT_STRIDE]
        self.recent.copy_(torch.cat([self.recent, kept], dim=1)[:, -RECENT:])
        self.passed.add_(surprisals.shape[1]).remainder_(RECENT_STRIDE)

    # -- the start ----------------------------------------------------------------------------------------------------

    def _wait(self, z: Tensor) -> None:
        self._waiting.append(z.detach().clone())
        if sum(map(len, self._waiting)) >= START_PROJECTIONS:
            self._start(torch.cat(self._waiting))
            self._waiting = []

    def _start(self, z: Tensor) -> None:
        means = _kmeans(z, len(self.means), torch.Generator().manual_seed(self._seed))
        nearest = torch.cdist(z, means).argmin(dim=1)
        within = (z - means[nearest]).square().sum(dim=0) / max(1, len(z) - len(means))
        self.means.copy_(means)
        self.variances.copy_(within.clamp_min(VARIANCE_FLOOR).expand_as(means))
        self.mass.copy_(torch.bincount(nearest, minlength=len(means)).to(self.mass))
        self.started_flag.fill_(1.0)

    def _check(self, z: Tensor) -> None:
        if z.dim() != 2 or z.shape[1] != self.means.shape[1]:
            raise ValueError(f"projections must be [N, {self.means.shape[1]}], not {list(z.shape)}")


def _kmeans(z: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """k-means++ seeds (Arthur & Vassilvitskii 2007) and a few rounds of Lloyd: ``[count, d]``."""
    chosen = [int(torch.randint(len(z), (1,), generator=generator))]
    nearest = (z - z[chosen[0]]).square().sum(dim=1)
    while len(chosen) < count:
        weights = nearest.cpu() + 1e-12  # identical projections still give a choice
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
        nearest = torch.minimum(nearest, (z - z[chosen[-1]]).square().sum(dim=1))
    means = z[chosen].clone()
    for _ in range(KMEANS_ROUNDS):
        member = functional.one_hot(torch.cdist(z, means).argmin(dim=1), count).to(z)
        size = member.sum(dim=0)[:, None]
        means = torch.where(size > 0, member.T @ z / size.clamp_min(1.0), means)
    return means
