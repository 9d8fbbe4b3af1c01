"""The device's loop: a window in, a decision, activations out, gradients in. Read `DeviceLoop.run` from top to bottom.

Only this thread touches torch; the network's thread and the microphone's fill bounded queues.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from common import messages
from common.actions import allowed_mask
from common.audio_codec import AudioCodec, encode_audio
from common.block_optimizer import BlockOptimizers
from common.codec import Codec, encode
from common.encoder import Encoder
from common.errors import ConfigError
from common.link import Link
from common.split import BEFORE_STEM, client_names, names
from common.topics import Topics
from common.views import Views
from device.ambiguity import Ambiguity
from device.captions import CaptionDraw
from device.client_step import ClientStep
from device.edge_learner import EdgeLearner
from device.emulation import ComputeStretch
from device.exchange import Exchange
from device.journal import Fate, Journal
from device.mailbox import Mailbox
from device.presence import Presence, State
from device.replica import Replica
from device.sending import Sending
from device.senses import Senses
from device.sources import Source
from device.splitter import Splitter
from device.weights_exchange import WeightsExchange
from device.windows import WINDOW_S, Window

LOG = logging.getLogger(__name__)
WINDOW_WAIT_S = 0.2
ANSWER_WAIT_S = 0.5
AHEAD_WAIT_S = 0.05  # how late a window that closes meanwhile is looked at
MOST_AHEAD = 16  # windows looked at before a step is over, 48 KiB each
SAVE_LOCAL_STEPS = 100  # how seldom a device that sends nothing writes its disk: a memory card wears
ROUND_TIMEOUT_S = 900.0  # for the slowest device of a round; one that is gone is not waited for
DWELL_WINDOWS = 16  # a cut is kept at least this long: moving costs a fetch and a fresh optimizer


@dataclass(frozen=True, slots=True)
class Pace:
    """How a device goes about its work. ``lockstep``: wait for every version asked for, so that a run repeats.

    ``local_waiting``: windows for local steps that a step in flight holds up; older ones are given up.
    """

    parts_per_step: int
    windows: int | None
    min_cut: int
    first_cut: int
    deadline_s: float
    step_timeout_s: float
    start_timeout_s: float
    local_learning: bool
    learn_unsent: bool
    local_waiting: int
    lockstep: bool
    sound: AudioCodec | None = None  # server-only: windows leave as sound, nothing is learned here, no weights are held
    sends_windows: bool = True  # else the device learns alone
    own_embedding: bool = False  # every window's embedding is computed here as well, at once
    sync_every_windows: int | None = None  # federated: its change of all blocks goes up after so many local windows


@dataclass(frozen=True, slots=True)
class LocalWindow:
    """A window that was not sent: its views [2, 1, 64, 96] and where it comes from."""

    views: Tensor
    segment: int
    time_s: float


@dataclass(frozen=True, slots=True)
class SeenWindow:
    """A window, its views [2, 1, 64, 96], when it was closed, and after how long its embedding was computed here."""

    window: Window
    views: Tensor
    closed_s: float
    own_s: float | None


class NeverReady(Exception):
    """The fleet could not be reached at start, and there are no weights on the disk to learn with."""


class DeviceLoop:
    """One device. Its parts come ready made: ``__main__`` builds them from the configuration."""

    def __init__(
        self,
        *,
        device: str,
        boot: str,
        room: str,
        pace: Pace,
        codec: Codec,
        link: Link,
        topics: Topics,
        encoder: Encoder,
        client_step: ClientStep,
        optimizers: BlockOptimizers,
        replica: Replica,
        weights: WeightsExchange,
        mailbox: Mailbox,
        presence: Presence,
        source: Source,
        views: Views,
        edge_learner: EdgeLearner,
        splitter: Splitter,
        sending: Sending,
        ambiguity: Ambiguity,
        senses: Senses,
        stretch: ComputeStretch | None,
        journal: Journal,
        stop: threading.Event,
        broker: str,
        captions: CaptionDraw | None = None,
    ) -> None:
        self._broker = broker
        self._captions = captions
        self._device = device
        self._boot = boot
        self._room = room
        self._pace = pace
        self._codec = codec
        self._link = link
        self._topics = topics
        self._encoder = encoder
        self._optimizers = optimizers
        self._replica = replica
        self._weights = weights
        self._mailbox = mailbox
        self._presence = presence
        self._source = source
        self._views = views
        self._edge_learner = edge_learner
        self._splitter = splitter
        self._sending = sending
        self._ambiguity = ambiguity
        self._senses = senses
        self._stretch = stretch
        self._journal = journal
        self._stop = stop
        self._client_step = client_step
        self._exchange = self._exchange_of(0)
        self._local: deque[LocalWindow] = deque(maxlen=pace.local_waiting)
        self._cut = pace.first_cut
        self._target = pace.first_cut
        self._deepest = pace.first_cut
        self._reason = ""
        self._alone = not pace.sends_windows
        self._since_change = DWELL_WINDOWS
        self._changed_s = -math.inf
        self._ahead: deque[SeenWindow] = deque()
        self._looks_ahead = not pace.lockstep and pace.sound is None
        self._since_sync = 0
        self._chose_local = False

    def run(self) -> None:
        """Work until the windows are used up, the source is exhausted, or ``stop`` is set.

        A trainer of another configuration that turns up later is as good as none: the device learns alone.

        Raises:
            ConfigError: at start, a trainer of another configuration.
            NeverReady: no weights on disk and no fleet within the start timeout.
        """
        self._become_ready()
        while not self._stop.is_set() and not self._finished():
            self._mailbox.drain(self._exchange, 0.0)
            if self._exchange.sent and self._step_ends_early():
                self._finish_step()
            if not self._exchange.sent:
                self._show_state()
                self._between_steps()
            if self._mailbox.paused:
                self._mailbox.drain(self._exchange, ANSWER_WAIT_S)
                continue
            if self._ahead:
                self._deal_with(self._ahead.popleft())
            elif (window := self._source.next_window(WINDOW_WAIT_S)) is not None:
                self._take(window)
            if self._exchange.sent and (len(self._exchange.sent) == self._pace.parts_per_step or self._finished()):
                self._finish_step()
        if not self._pace.sends_windows:
            self._learn_all_that_waits()
        self._leave()

    # -- start and end ------------------------------------------------------------------------------------------------

    def _become_ready(self) -> None:
        """Wait for the fleet's weights and trainer; with weights on the disk not longer than the start timeout."""
        for topic in (self._topics.trainer_status(), self._topics.status(self._device)):
            self._link.subscribe(topic, qos=1)
        if self._learns:
            self._link.subscribe(self._topics.manifest(), qos=1)
        self._link.subscribe(self._topics.down(self._device), qos=1)
        until_s = time.monotonic() + self._pace.start_timeout_s
        while not self._stop.is_set():
            if self._learns and not self._has_what_it_needs():
                self._weights.keep_up(cut=self._cut, target=self._target)
            if self._has_what_it_needs():
                return
            if time.monotonic() >= until_s:
                break
            self._mailbox.drain(self._exchange, ANSWER_WAIT_S)
            self._refuse_other_fleet()
        if not self._replica.initialised and self._hermit:
            self._weights.begin_anew()
        elif not self._replica.initialised and not self._stop.is_set():
            reason = self._link.counters().last_error or "the broker answers, but there is no trainer"
            raise NeverReady(f"no fleet at {self._broker}: {reason}")

    def _has_what_it_needs(self) -> bool:
        if self._hermit:
            return self._replica.initialised
        return (self._replica.initialised or not self._learns) and self._online()

    def _refuse_other_fleet(self) -> None:
        other = self._mailbox.other_fingerprint
        if other is not None:
            raise ConfigError(
                f"the trainer is configured otherwise (fingerprint {other[:12]}); encoder, objective, "
                "front end, parts_per_step, optimizer kind, weights_codec and mode must be the same on both ends: "
                "compare the fleet files"
            )

    def _finished(self) -> bool:
        limit = self._pace.windows
        if self._ahead:
            return False
        return (limit is not None and self._journal.totals.windows >= limit) or self._source.state == "exhausted"

    def _leave(self) -> None:
        if not self._hermit:
            self._weights.publish_change()
        if self._replica.initialised:
            self._weights.save()
        self._presence.show("stopped")
        self._senses.publish(force=True)
        self._journal.end(counters=self._link.counters())
        self._source.close()

    # -- between windows ----------------------------------------------------------------------------------------------

    def _online(self) -> bool:
        return self._link.connected and self._mailbox.trainer_ready

    @property
    def _learns(self) -> bool:
        return self._pace.sound is None

    @property
    def _hermit(self) -> bool:
        """Whether it wants nothing of the fleet but the first weights, and gives it nothing (splitter local)."""
        return not self._pace.sends_windows and self._pace.sync_every_windows is None

    def _show_state(self) -> None:
        state: State = "paused" if self._mailbox.paused else "no-audio" if self._source.state == "no-audio" else "ready"
        self._presence.show(state, again=self._mailbox.declared_lost)
        self._mailbox.declared_lost = False

    def _step_ends_early(self) -> bool:
        return self._mailbox.paused or not self._online() or self._exchange.over(time.monotonic())

    def _between_steps(self) -> None:
        """No graph is held: weights may move, the cut may move, local steps may be taken."""
        if not self._learns:
            return
        if self._hermit:
            self._weights.stay()
        else:
            self._weights.keep_up(cut=self._cut, target=self._target)
        self._move_cut()
        self._give_up()
        self._learn_what_waits()

    def _learn_what_waits(self) -> None:
        """In real time one local step at a time, and windows come first: their embeddings are waited for."""
        if self._pace.lockstep:
            self._learn_all_that_waits()
        elif len(self._local) >= self._pace.parts_per_step and not self._ahead and not self._source.waiting:
            self._local_step()

    def _learn_all_that_waits(self) -> None:
        while len(self._local) >= self._pace.parts_per_step:
            self._local_step()

    def _move_cut(self) -> None:
        """From the next part on, also within a step: each part carries its own cut, and its graph stays as it is."""
        if self._target == self._cut or not self._replica.current(client_names(self._target)):
            return
        LOG.info("cut %d -> %d: %s", self._cut, self._target, self._reason)
        self._journal.moved(self._target, before=self._cut, reason=self._reason)
        self._cut = self._target
        self._deepest = max(self._deepest, self._cut)
        self._since_change = 0
        self._changed_s = time.monotonic()

    def _give_up(self) -> None:
        """Blocks beyond the cut are the trainer's, once no part in flight runs through them any more."""
        if self._deepest > self._cut:
            # It must have what was learned here.
            self._weights.publish_change()
            given_up = set(client_names(self._deepest)) - set(client_names(self._cut))
            self._optimizers.release(sorted(given_up))
            self._deepest = self._cut

    def _local_step(self) -> None:
        batch = [self._local.popleft() for _ in range(self._pace.parts_per_step)]
        started_s = time.monotonic()
        with self._computing():
            loss = self._edge_learner.step(
                [one.views for one in batch],
                segments=[one.segment for one in batch],
                times_s=[one.time_s for one in batch],
            )
        self._replica.trained(names(self._encoder), local_windows=len(batch))
        self._journal.local_step(windows=len(batch), loss=loss, counters=self._link.counters())
        if not self._pace.sends_windows or self._chose_local:
            self._senses.local_step_over(loss, window_s=(time.monotonic() - started_s) / len(batch))
        if not self._pace.sends_windows:
            self._alone_after(len(batch))

    def _alone_after(self, windows: int) -> None:
        """A device that sends no windows has no other occasion to keep and to share what it learned."""
        if self._journal.totals.local_steps % SAVE_LOCAL_STEPS == 0:
            self._weights.save()
        self._since_sync += windows
        every = self._pace.sync_every_windows
        if every is not None and self._since_sync >= every and self._online():
            self._since_sync = 0
            self._weights.answer_merge()
            if self._pace.lockstep:
                self._await_version(ROUND_TIMEOUT_S)

    # -- a window -----------------------------------------------------------------------------------------------------

    def _take(self, window: Window) -> None:
        if self._pace.sound is None:
            self._deal_with(self._seen(window))
            return
        self._journal.totals.windows += 1
        sent = self._send_this_one()
        if sent:
            self._send_sound(window, self._pace.sound, self._closed_s(window))
        self._note(window, BEFORE_STEM if sent else "local", None)

    def _closed_s(self, window: Window) -> float:
        return time.monotonic() if self._pace.lockstep else window.closed_s

    def _seen(self, window: Window) -> SeenWindow:
        """What needs no decision and no step to be over."""
        closed_s = self._closed_s(window)
        with self._computing():
            views = self._views(window)
            if self._pace.own_embedding:
                self._ambiguity.embedding(views)
        return SeenWindow(window, views, closed_s, time.monotonic() - closed_s if self._pace.own_embedding else None)

    def _look_ahead(self) -> None:
        """While a step is waited for windows close: their embeddings need not wait, only their sending does."""
        limit, taken = self._pace.windows, self._journal.totals.windows + len(self._ahead)
        if (limit is None or taken < limit) and len(self._ahead) < MOST_AHEAD:
            window = self._source.next_window(0.0)
            if window is not None:
                self._ahead.append(self._seen(window))

    def _deal_with(self, seen: SeenWindow) -> None:
        window, views, closed_s, own_s = seen.window, seen.views, seen.closed_s, seen.own_s
        self._journal.totals.windows += 1
        learn = self._pace.local_learning
        fate: Fate = "local"
        if self._send_this_one():
            if self._worth_sending(views):
                cut = self._cut
                forward_s = self._send(window, views, closed_s)
                if own_s is None and cut == self._encoder.depth:
                    own_s = forward_s
                self._note(window, cut, own_s)
                return
            learn, fate = learn and self._pace.learn_unsent, "kept"
        if learn:
            self._local.append(LocalWindow(views, window.segment, window.index * WINDOW_S))
        self._note(window, fate, own_s)

    def _note(self, window: Window, fate: Fate, own_s: float | None) -> None:
        self._journal.totals.windows_dropped = self._source.dropped
        self._journal.window(window.index, fate, own_s=own_s, waiting=self._source.waiting + len(self._ahead))

    def _worth_sending(self, views: Tensor) -> bool:
        """The last window closes a step that has begun: without it the others would wait for the deadline."""
        with self._computing():
            return self._sending.wants(views, must=bool(self._exchange.sent) and self._finished())

    def _kept_for(self) -> int:
        """For how many windows the cut has been kept; in real time those that had the time to be heard count."""
        if self._pace.lockstep:
            return self._since_change
        return int(min(self._since_change, (time.monotonic() - self._changed_s) / WINDOW_S))

    def _send_this_one(self) -> bool:
        """Ask the splitter; what it says about the cut takes effect between steps."""
        mask = allowed_mask(
            depth=self._encoder.depth,
            min_cut=self._pace.min_cut,
            device_cuts=range(self._pace.min_cut, self._encoder.depth + 1),
            allowed_by_trainer=self._mailbox.allowed_cuts,
            pinned_cut=self._mailbox.pinned_cut,
            online=self._online() and self._pace.sends_windows,
            current_cut=self._cut,
            decisions_since_change=self._kept_for(),
            dwell=DWELL_WINDOWS,
        )
        decision = self._splitter.decide(self._senses.observe(self._cut), mask)
        self._senses.note(decision)
        self._chose_local = decision.local and decision.policy_version > 0
        self._since_change += 1
        if decision.local != self._alone:
            now, before = (None, self._cut) if decision.local else (self._cut, None)
            self._journal.moved(now, before=before, reason=decision.reason)
            self._alone = decision.local
        if not decision.local:
            self._target, self._reason = decision.cut, decision.reason
            self._move_cut()
        return not decision.local and self._online()

    def _send(self, window: Window, views: Tensor, closed_s: float) -> float:
        """Send the window at the cut; seconds from its end until its activations were there."""
        part = len(self._exchange.sent)
        with self._computing():
            activations = self._client_step.forward(views, part=part, cut=self._cut)
        forward_s = time.monotonic() - closed_s
        with self._computing():
            tensor = encode(activations, Codec.parse(self._mailbox.codec) if self._mailbox.codec else self._codec)
        message = messages.Activations(
            boot=self._boot,
            step=self._exchange.step,
            part=part,
            last=part + 1 == self._pace.parts_per_step or self._finished(),
            cut=self._cut,
            weights_version=self._replica.version,
            deadline_ms=round(1e3 * self._pace.deadline_s),
            segment=window.segment,
            window_index=window.index,
            monotonic_ms=round(1e3 * window.closed_s),
            room=self._room,
            tensor=tensor,
            caption=self._captions(window) if self._captions else None,
        )
        self._publish(self._topics.activations(self._device), messages.encode(message), self._cut, window, closed_s)
        return forward_s

    def _send_sound(self, window: Window, codec: AudioCodec, closed_s: float) -> None:
        """Only where the device's own file permits it (`common.config_fleet.permits_its_mode`)."""
        part = len(self._exchange.sent)
        with self._computing():
            data = encode_audio(window.samples, codec)
        message = messages.Audio(
            boot=self._boot,
            step=self._exchange.step,
            part=part,
            last=part + 1 == self._pace.parts_per_step or self._finished(),
            deadline_ms=round(1e3 * self._pace.deadline_s),
            segment=window.segment,
            window_index=window.index,
            monotonic_ms=round(1e3 * window.closed_s),
            room=self._room,
            codec=codec,
            data=data,
        )
        self._publish(self._topics.audio(self._device), messages.encode(message), BEFORE_STEM, window, closed_s)

    def _publish(self, topic: str, payload: bytes, cut: int, window: Window, closed_s: float) -> None:
        exchange = self._exchange
        self._journal.totals.sent += 1
        if not exchange.sent and self._mailbox.trainer is not None:
            exchange.trainer_boot = self._mailbox.trainer.boot
        exchange.offer_sent(
            len(exchange.sent), cut, len(payload), window=window.index, closed_s=closed_s, sent_s=time.monotonic()
        )
        self._link.publish(topic, payload, expiry_s=self._pace.step_timeout_s)

    # -- the end of a step --------------------------------------------------------------------------------------------

    def _finish_step(self) -> None:
        """Wait for the answers, learn from them, give the change if asked for it."""
        exchange = self._exchange
        while not exchange.over(time.monotonic()) and not self._stop.is_set():
            trainer = self._mailbox.trainer
            if not self._online() or trainer is None or trainer.boot != exchange.trainer_boot:
                break  # who was asked is gone, and knows nothing of this step when it comes back
            if self._looks_ahead:
                self._look_ahead()
            self._mailbox.drain(exchange, AHEAD_WAIT_S if self._looks_ahead else ANSWER_WAIT_S)
        with self._computing():
            moved = self._client_step.apply(exchange.gradients, learning_rate=exchange.learning_rate)
        if moved:
            exchange.applied_s = time.monotonic()
            self._replica.trained(moved)
            # What local steps had taken over beyond the cut is the trainer's again.
            self._optimizers.release([name for name in self._optimizers.taken if name not in moved])
        self._senses.step_over(exchange)
        self._exchange = self._exchange_of(exchange.step + 1)
        if exchange.merge:
            self._weights.answer_merge()
            if self._pace.lockstep:
                self._await_version(self._pace.step_timeout_s)

    def _await_version(self, timeout_s: float) -> None:
        """In lockstep nothing is computed on weights that are about to be replaced."""
        before, until_s = self._replica.version, time.monotonic() + timeout_s
        while self._online() and time.monotonic() < until_s and not self._stop.is_set():
            if self._weights.keep_up(cut=self._cut, target=self._target) and self._replica.version > before:
                return
            self._mailbox.drain(self._exchange, ANSWER_WAIT_S)

    def _exchange_of(self, step: int) -> Exchange:
        return Exchange(step, timeout_s=self._pace.step_timeout_s, grace_s=self._pace.deadline_s)

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """Counts the time as compute, and makes it as long as it is on the emulated board."""
        started_s = time.thread_time()
        with self._stretch.block() if self._stretch else contextlib.nullcontext():
            yield
        busy_s = time.thread_time() - started_s
        self._journal.totals.busy_s += busy_s * (self._stretch.slowdown if self._stretch else 1.0)
