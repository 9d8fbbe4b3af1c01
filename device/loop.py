"""The device's loop: a window in, a decision, activations out, gradients in. Read `DeviceLoop.run` from top to bottom.

Only this thread touches torch; the network's thread and the microphone's fill bounded queues.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from common.block_optimizer import BlockOptimizers
from common.link import Link
from common.split import BEFORE_STEM
from device.client_step import ClientStep, in_order
from device.compute_time import ComputeTime
from device.contact import ANSWER_WAIT_S, Contact
from device.cutting import Cutting
from device.exchange import Exchange
from device.intake import Intake, SeenWindow
from device.journal import Fate, Journal
from device.local_steps import LocalSteps
from device.mailbox import Mailbox
from device.outbox import Outbox
from device.pace import Pace
from device.presence import Presence, State
from device.replica import Replica
from device.sending import Sending
from device.senses import Senses
from device.sources import Source
from device.weights_exchange import WeightsExchange
from device.windows import Window

WINDOW_WAIT_S = 0.2
AHEAD_WAIT_S = 0.05  # how late a window that closes meanwhile is looked at
SAVE_LOCAL_STEPS = 100  # how seldom a device that no version reaches writes its disk: a memory card wears
ROUND_TIMEOUT_S = 900.0  # for the slowest device of a round; one that is gone is not waited for


class DeviceLoop:
    """One device. Its parts come ready made: `device.assembly` builds them from the settings."""

    def __init__(
        self,
        *,
        pace: Pace,
        link: Link,
        mailbox: Mailbox,
        contact: Contact,
        presence: Presence,
        source: Source,
        intake: Intake,
        cutting: Cutting,
        sending: Sending,
        outbox: Outbox,
        local_steps: LocalSteps,
        client_step: ClientStep,
        optimizers: BlockOptimizers,
        replica: Replica,
        weights: WeightsExchange,
        senses: Senses,
        compute: ComputeTime,
        journal: Journal,
        stop: threading.Event,
    ) -> None:
        self._pace = pace
        self._link = link
        self._mailbox = mailbox
        self._contact = contact
        self._presence = presence
        self._source = source
        self._intake = intake
        self._cutting = cutting
        self._sending = sending
        self._outbox = outbox
        self._local_steps = local_steps
        self._client_step = client_step
        self._optimizers = optimizers
        self._replica = replica
        self._weights = weights
        self._senses = senses
        self._compute = compute
        self._journal = journal
        self._stop = stop
        self._exchange = self._exchange_of(0)
        self._since_sync = 0

    def run(self) -> None:
        """Work until the windows are used up, the source is exhausted, or ``stop`` is set.

        A trainer of another configuration that turns up later is as good as none: the device learns alone.

        Raises:
            ConfigError: at start, a trainer of another configuration.
            NeverReady: no weights on disk and no fleet within the start timeout.
        """
        self._contact.join(self._exchange, cut=self._cutting.cut)
        self._intake.pass_over()  # what was heard meanwhile is old
        while not self._stop.is_set() and not self._intake.finished():
            self._journal.tell(self._link.counters)
            self._mailbox.drain(self._exchange, 0.0)
            if self._exchange.sent and self._step_ends_early():
                self._finish_step()
            if not self._exchange.sent:
                self._show_state()
                self._between_steps()
            if self._mailbox.paused:
                self._mailbox.drain(self._exchange, ANSWER_WAIT_S)
                self._intake.pass_over()
                continue
            if (seen := self._intake.next_ahead()) is not None:
                self._deal_with(seen)
            elif (window := self._source.next_window(WINDOW_WAIT_S)) is not None:
                self._take(window)
            if self._exchange.sent and self._step_is_full():
                self._finish_step()
        if not self._pace.sends_windows:
            self._learn_all_that_waits()
        self._leave()

    def withdraw(self) -> None:
        """After an error of `run`: nobody shall wait for this device."""
        self._presence.withdraw()

    def _leave(self) -> None:
        if not self._pace.hermit:
            self._weights.publish_change()
        if self._replica.initialised:
            self._weights.save()
        self._presence.show("stopped")
        self._senses.publish(force=True)
        self._journal.end(counters=self._link.counters())
        self._source.close()

    # -- between steps ------------------------------------------------------------------------------------------------

    def _show_state(self) -> None:
        state: State = "paused" if self._mailbox.paused else "no-audio" if self._source.state == "no-audio" else "ready"
        self._presence.show(state, again=self._mailbox.declared_lost)
        self._mailbox.declared_lost = False

    def _between_steps(self) -> None:
        """No graph is held: weights may move, the cut may move, local steps may be taken."""
        if not self._pace.learns:
            return
        if self._pace.hermit:
            self._weights.stay()
        else:
            self._weights.keep_up(cut=self._cutting.cut, target=self._cutting.target)
        self._cutting.move()
        self._cutting.give_up()
        if not self._mailbox.paused:
            self._learn_what_waits()

    def _learn_what_waits(self) -> None:
        """In real time one local step at a time, and windows come first: their embeddings are waited for."""
        if self._pace.lockstep:
            self._learn_all_that_waits()
        elif self._local_steps.due and not self._intake.waiting:
            self._local_step()

    def _learn_all_that_waits(self) -> None:
        while self._local_steps.due:
            self._local_step()

    def _local_step(self) -> None:
        alone = not self._pace.sends_windows
        decided = alone or self._cutting.chose_local
        windows = self._local_steps.take(decided=decided)
        if decided:
            self._cutting.step_over()
        if (alone or not self._contact.online) and self._journal.totals.local_steps % SAVE_LOCAL_STEPS == 0:
            self._weights.save()
        if alone:
            self._share(windows)

    def _share(self, windows: int) -> None:
        """A device that sends no windows has no other occasion to share what it learned."""
        self._since_sync += windows
        every = self._pace.sync_every_windows
        if every is not None and self._since_sync >= every and self._contact.online:
            self._since_sync = 0
            self._answer_merge(ROUND_TIMEOUT_S)

    def _answer_merge(self, timeout_s: float) -> None:
        # A change on a version older than its predecessor's merge is passed over: nothing of it would be merged.
        self._weights.keep_up(cut=self._cutting.cut, target=self._cutting.target)
        self._weights.answer_merge()
        if self._pace.lockstep:
            self._contact.await_version(
                self._exchange, cut=self._cutting.cut, target=self._cutting.target, timeout_s=timeout_s
            )

    # -- a window -----------------------------------------------------------------------------------------------------

    def _take(self, window: Window) -> None:
        if self._pace.sound is None:
            self._deal_with(self._intake.see(window))
            return
        self._journal.totals.windows += 1
        sent = self._cutting.sends_next()
        if sent:
            closed_s = self._intake.closed_s(window)
            self._outbox.send_sound(self._exchange, window, self._pace.sound, closed_s=closed_s)
        self._note(window, BEFORE_STEM if sent else "local", None)

    def _deal_with(self, seen: SeenWindow) -> None:
        window, own_s = seen.window, seen.own_s
        self._journal.totals.windows += 1
        learn = self._pace.local_learning
        fate: Fate = "local"
        if self._cutting.sends_next():
            if self._worth_sending(seen):
                cut = self._cutting.cut
                embedded_s = self._outbox.send(self._exchange, seen, cut=cut)
                self._note(window, cut, embedded_s if own_s is None else own_s)
                return
            learn, fate = learn and self._pace.learn_unsent, "kept"
        if learn:
            self._local_steps.offer(seen)
        self._note(window, fate, own_s)

    def _worth_sending(self, seen: SeenWindow) -> bool:
        """The last window closes a step that has begun: without it the others would wait for the deadline."""
        with self._compute.block():
            return self._sending.wants(seen, must=bool(self._exchange.sent) and self._intake.finished())

    def _note(self, window: Window, fate: Fate, own_s: float | None) -> None:
        self._journal.totals.windows_dropped = self._source.dropped
        self._journal.window(window.index, fate, own_s=own_s, waiting=self._intake.waiting)
        if self._journal.full:
            self._journal.windows(counters=self._link.counters())

    # -- the end of a step --------------------------------------------------------------------------------------------

    def _step_ends_early(self) -> bool:
        return self._mailbox.paused or not self._contact.online or self._exchange.over(time.monotonic())

    def _step_is_full(self) -> bool:
        return len(self._exchange.sent) == self._pace.parts_per_step or self._intake.finished()

    def _finish_step(self) -> None:
        """Wait for the answers, learn from them, give the change if asked for it."""
        exchange = self._exchange
        self._await_answers(exchange)
        self._contact.step_over(exchange)
        self._learn_from(exchange)
        self._senses.step_over(exchange)
        self._cutting.step_over()
        self._exchange = self._exchange_of(exchange.step + 1)
        if exchange.merge:
            self._answer_merge(self._pace.step_timeout_s)

    def _await_answers(self, exchange: Exchange) -> None:
        ahead = self._intake.looks_ahead
        while not exchange.over(time.monotonic()) and not self._stop.is_set():
            trainer = self._mailbox.trainer
            if not self._contact.online or trainer is None or trainer.boot != exchange.trainer_boot:
                break  # who was asked is gone, and knows nothing of this step when it comes back
            if self._look_ahead():
                self._cutting.reconsider()
            self._mailbox.drain(exchange, AHEAD_WAIT_S if ahead else ANSWER_WAIT_S)

    def _look_ahead(self) -> bool:
        """Whether a window had closed. During a pause it is passed over, and after a stop nobody takes it."""
        looks = self._intake.looks_ahead and not self._mailbox.paused and not self._stop.is_set()
        return looks and self._intake.look_ahead()

    def _learn_from(self, exchange: Exchange) -> None:
        """Part by part: a slow board takes seconds, and windows that close meanwhile wait for their embeddings."""
        for part in in_order(exchange.gradients):
            with self._learning(exchange):
                self._client_step.backward(part, exchange.gradients[part])
            if self._look_ahead():
                self._cutting.reconsider()
        with self._learning(exchange):
            moved = self._client_step.learn(learning_rate=exchange.learning_rate)
        if moved:
            exchange.applied_s = time.monotonic()
            self._replica.trained(moved)
            # What local steps had taken over beyond the cut is the trainer's again.
            self._optimizers.release([name for name in self._optimizers.taken if name not in moved])

    @contextmanager
    def _learning(self, exchange: Exchange) -> Iterator[None]:
        """Compute of a step's windows, which is not counted as load."""
        begun_s, busy_s = time.monotonic(), self._journal.totals.busy_s
        with self._compute.block():
            yield
        exchange.computed_s += time.monotonic() - begun_s
        self._journal.totals.learned_s += self._journal.totals.busy_s - busy_s

    def _exchange_of(self, step: int) -> Exchange:
        return Exchange(step, timeout_s=self._pace.step_timeout_s, grace_s=self._pace.deadline_s)
