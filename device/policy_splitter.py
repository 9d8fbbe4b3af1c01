"""The splitter that goes by a learned policy, and by another while there is none.

It decides once for a step of windows and keeps to it, as it was learned: anew when the step is over, when the link
comes or goes, when what it chose is no longer allowed, or when load or link are no longer what it decided on.
Mostly it takes the likeliest action; in a bounded share of its decisions it draws one, with its probability noted, and
only from these can the fleet's policy go on learning. Where the policy did not come from the fleet nobody learns from
them, and none is drawn: a draw may cost a step (measured: two thirds more bytes in three minutes of a sparse fleet).
The fleet's is retained: after its process has ended for good, ``exploration: 0`` ends the drawing.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np

from common.actions import LOCAL
from common.errors import ConfigError, MessageError
from common.messages import PolicyUpdate, decode
from common.policy import OBSERVATION_NAMES, Observation, scale_uplink
from common.policy_network import PolicyNetwork, unpack_network
from common.state_blob import digest
from device.splitter import Decision, Splitter

LOG = logging.getLogger(__name__)
NEWS_CPU = 0.25  # of all cores
NEWS_UPLINK = scale_uplink(20.0) - scale_uplink(10.0)  # twice or half the rate
POLICIES = Path(__file__).resolve().parent.parent / "configs" / "policies"


def shipped_policy(encoder: str) -> Path | None:
    """The file of the policy that comes with the project for this encoder; None where there is none."""
    path = POLICIES / f"{encoder}.bin"
    return path if path.is_file() else None


class PolicySplitter:
    """Decides by the latest good policy; before the first one by `fallback`.

    Args:
        fallback: what decides without a policy.
        encoder: the name of the encoder; a policy for another one is refused.
        depth: its number of blocks.
        windows: for which a decision holds at most, where no step ends before: those of a step.
        exploration: share of the decisions that are drawn, 0 to 1, while the policy is the fleet's.
        seed: of the draws.
    """

    def __init__(
        self, fallback: Splitter, *, encoder: str, depth: int, windows: int, exploration: float, seed: int
    ) -> None:
        self._fallback = fallback
        self._encoder = encoder
        self._depth = depth
        self._windows = windows
        self._exploration = exploration
        self._is_the_fleets = False
        self._rng = np.random.default_rng([seed, 0x9011])
        self._network: PolicyNetwork | None = None
        self._held: Decision | None = None
        self._decided_on: Observation | None = None
        self._left = 0
        self.version = 0
        self.refused = 0

    def offer(self, update: PolicyUpdate) -> None:
        """Take a policy of the fleet's over; the last good one stays where this one cannot be used.

        Raises:
            MessageError: its bytes are not those of its digest, it is for another encoder, or it is no such network.
        """
        try:
            if digest(update.data) != update.digest:
                raise MessageError(f"policy {update.version}: the digest does not match")
            if update.encoder != self._encoder:
                raise MessageError(f"policy {update.version}: for {update.encoder}, this is {self._encoder}")
            network = unpack_network(update.data, inputs=len(OBSERVATION_NAMES), actions=self._depth + 2)
        except MessageError:
            self.refused += 1
            raise
        LOG.info("decisions are by policy %d for %s from now on", update.version, update.encoder)
        self._network, self.version, self._is_the_fleets = network, update.version, True

    def offer_file(self, path: Path) -> None:
        """Begin with the policy of a file, from whose decisions nobody learns.

        Raises:
            ConfigError: it cannot be used; an operator named it.
        """
        try:
            self.offer(decode(PolicyUpdate, path.read_bytes()))
        except MessageError as error:
            raise ConfigError(f"{path}: {error}") from error
        self._is_the_fleets = False

    def decide(self, observation: Observation, mask: tuple[bool, ...]) -> Decision:
        """See `Splitter`."""
        held = self._held
        if held is not None and self._left > 0 and self._holds(held, observation, mask):
            self._left -= 1
            return held
        self._held, self._left = self._choose(observation, mask), self._windows - 1
        self._decided_on = observation
        return self._held

    def reconsider(self, observation: Observation, mask: tuple[bool, ...]) -> Decision | None:
        """See `Splitter`: the likeliest action, never one that is drawn."""
        held = self._held
        if held is None or self._network is None or sum(mask) == 1 or self._holds(held, observation, mask):
            return None
        return self._decision(int(self._network.probabilities(observation.values(), mask).argmax()), mask)

    def step_over(self) -> None:
        """See `Splitter`: also where news had it decide within the step, decisions and steps begin together again."""
        self._left = 0
        self._fallback.step_over()

    def _holds(self, held: Decision, observation: Observation, mask: tuple[bool, ...]) -> bool:
        same_link = any(mask[:-1]) == any(held.mask[:-1])
        return mask[held.action] and same_link and not self._is_news(observation)

    def _is_news(self, observation: Observation) -> bool:
        before = self._decided_on
        return before is not None and (
            abs(observation.cpu - before.cpu) >= NEWS_CPU or abs(observation.uplink - before.uplink) >= NEWS_UPLINK
        )

    def _choose(self, observation: Observation, mask: tuple[bool, ...]) -> Decision:
        # A pin, or no link: there is nothing to choose, and nothing to learn from it.
        if self._network is None or sum(mask) == 1:
            return self._fallback.decide(observation, mask)
        chances = self._network.probabilities(observation.values(), mask)
        drawn = self._is_the_fleets and bool(self._rng.random() < self._exploration)
        place = int(self._rng.choice(len(chances), p=chances)) if drawn else int(chances.argmax())
        return self._decision(place, mask, log_prob=math.log(chances[place]) if drawn else 0.0, drawn=drawn)

    def _decision(self, place: int, mask: tuple[bool, ...], *, log_prob: float = 0.0, drawn: bool = False) -> Decision:
        local = place == len(mask) - 1
        return Decision(
            cut=self._depth if local else place,
            local=local,
            mask=mask,
            action=LOCAL if local else place,
            log_prob=log_prob,
            reason=f"policy {self.version}" + (", drawn" if drawn else ""),
            policy_version=self.version,
        )
