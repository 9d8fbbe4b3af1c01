"""Where the encoder is cut: the splitter is asked for every window, the cut moves once the blocks for it are here."""

from __future__ import annotations

import logging
import math
import time

from common.actions import allowed_mask
from common.block_optimizer import BlockOptimizers
from common.split import client_names
from device.contact import Contact
from device.journal import Journal
from device.mailbox import Mailbox
from device.pace import Pace
from device.replica import Replica
from device.senses import Senses
from device.splitter import Splitter
from device.weights_exchange import WeightsExchange
from device.windows import WINDOW_S

LOG = logging.getLogger(__name__)
DWELL_WINDOWS = 16  # a cut is kept at least this long: moving costs a fetch and a fresh optimizer


class Cutting:
    """``cut`` is where windows are cut now, ``target`` where they shall be.

    ``chose_local``: whether a learned policy had the latest window kept.
    """

    def __init__(
        self,
        splitter: Splitter,
        senses: Senses,
        contact: Contact,
        mailbox: Mailbox,
        replica: Replica,
        weights: WeightsExchange,
        optimizers: BlockOptimizers,
        journal: Journal,
        *,
        depth: int,
        pace: Pace,
    ) -> None:
        self._splitter = splitter
        self._senses = senses
        self._contact = contact
        self._mailbox = mailbox
        self._replica = replica
        self._weights = weights
        self._optimizers = optimizers
        self._journal = journal
        self._depth = depth
        self._pace = pace
        self.cut = pace.first_cut
        self.target = pace.first_cut
        self.chose_local = False
        self._deepest = pace.first_cut
        self._reason = ""
        self._alone = not pace.sends_windows
        self._since_change = DWELL_WINDOWS
        self._changed_s = -math.inf

    def sends_next(self) -> bool:
        """Ask the splitter whether the next window is sent; what it says about the cut takes effect between steps."""
        decision = self._splitter.decide(self._senses.observe(self.cut), self._mask())
        self._senses.note(decision)
        self.chose_local = decision.local and decision.policy_version > 0
        if decision.local != self._alone:
            now, before = (None, self.cut) if decision.local else (self.cut, None)
            self._journal.moved(now, before=before, reason=decision.reason)
            self._alone = decision.local
        if not decision.local:
            self.target, self._reason = decision.cut, decision.reason
            self.move()
        self._since_change += 1
        return not decision.local and self._contact.online

    def reconsider(self) -> None:
        """While a step is waited for or learned from: load and link are heard with every window; news is told, and
        moves the cut.

        The step's decision stays what it was, and what comes of it is told under its number.
        """
        decision = self._splitter.reconsider(self._senses.observe(self.cut), self._mask())
        if decision is not None and not decision.local:
            self.target, self._reason = decision.cut, decision.reason
            self.move()
        self._senses.tell_news()

    def step_over(self) -> None:
        """A step ended: a splitter that decides for whole steps decides anew."""
        self._splitter.step_over()

    def _mask(self) -> tuple[bool, ...]:
        return allowed_mask(
            depth=self._depth,
            min_cut=self._pace.min_cut,
            device_cuts=range(self._pace.min_cut, self._depth + 1),
            allowed_by_trainer=self._mailbox.allowed_cuts,
            pinned_cut=self._mailbox.pinned_cut,
            online=self._contact.online and self._pace.sends_windows,
            current_cut=self.cut,
            decisions_since_change=self._kept_for(),
            dwell=DWELL_WINDOWS,
        )

    def _kept_for(self) -> int:
        """For how many windows the cut has been kept; in real time those that had the time to be heard count."""
        if self._pace.lockstep:
            return self._since_change
        return round(min(self._since_change, (time.monotonic() - self._changed_s) / WINDOW_S))

    def move(self) -> None:
        """From the next part on, also within a step: each part carries its own cut, and its graph stays as it is."""
        if self.target == self.cut or not self._replica.current(client_names(self.target)):
            return
        LOG.info("cut %d -> %d: %s", self.cut, self.target, self._reason)
        self._journal.moved(self.target, before=self.cut, reason=self._reason)
        self.cut = self.target
        self._deepest = max(self._deepest, self.cut)
        self._since_change = 0
        self._changed_s = time.monotonic()

    def give_up(self) -> None:
        """Blocks beyond the cut are the trainer's, once no part in flight runs through them any more."""
        if self._deepest > self.cut:
            # It must have what was learned here.
            self._weights.publish_change()
            given_up = set(client_names(self._deepest)) - set(client_names(self.cut))
            self._optimizers.release(sorted(given_up))
            self._deepest = self.cut
