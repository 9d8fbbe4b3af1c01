"""What the device measures of itself and its link: the splitter's observation, the journal's lines, the telemetry."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

from common import messages
from common.link import Link
from common.policy import LINK_SMOOTHING, Observation, observe
from common.split import client_names
from common.topics import Topics
from device.ambiguity import Ambiguity
from device.energy import Energy, EnergyMeter
from device.exchange import Exchange
from device.journal import Journal
from device.mailbox import Mailbox
from device.replica import Replica
from device.sources import Source
from device.splitter import Decision
from device.telemetry import JUMP, LinkEstimate, Resources, Sampler
from device.version_age import VersionAge

TOLD_WINDOWS = 8  # in real time a device is heard of at least this often
NEWS_CPU = 0.25  # a change of load, as a share of all cores, that the fleet is told at once
# Of the windows that close while a step is waited for many are decided on at once: load over milliseconds is noise.
SAMPLED_S = 0.5
QUEUE_CAPACITY = 16  # windows waiting at which the queue counts as full


class Senses:
    """Samples resources, the link's rate and its round trip once a step, in real time with every window.

    A sample costs a millisecond: nothing in the second that a window lasts, much where windows are computed at once.
    In real time none is taken sooner than `SAMPLED_S` after another.
    """

    def __init__(
        self,
        *,
        device: str,
        boot: str,
        depth: int,
        link: Link,
        topics: Topics,
        source: Source,
        waiting: Callable[[], int],
        mailbox: Mailbox,
        ambiguity: Ambiguity,
        replica: Replica,
        journal: Journal,
        energy: EnergyMeter,
        sampler: Sampler,
        every_steps: int,
        every_window: bool,
        uplink_mbps: Callable[[], float | None],
        round_trip_ms: Callable[[], float | None],
        forward_ms: float | None,
        follows_all: bool,
        steady_link: tuple[float | None, float | None] | None = None,
    ) -> None:
        """``steady_link``: (uplink_mbps, round_trip_ms); with it decisions rest on them and on nothing measured.

        ``waiting``: how many windows have closed and were not dealt with, those looked at ahead among them. Decisions
        go by the source alone: what a step that is waited for holds up is no sign that the device labours.
        ``forward_ms``: the device's `mobile_forward_ms` when idle; None: not known.
        ``follows_all``: blocks beyond the cut follow every version as well.
        """
        self._forward_ms = forward_ms
        self._follows_all = follows_all
        self._steady_link = steady_link
        self._uplink_mbps = uplink_mbps
        self._round_trip_ms = round_trip_ms
        self._topic = topics.telemetry(device)
        self._boot = boot
        self._depth = depth
        self._link = link
        self._source = source
        self._waiting = waiting
        self._mailbox = mailbox
        self._ambiguity = ambiguity
        self._replica = replica
        self._journal = journal
        self._energy = energy
        self._sampler = sampler
        self._every_steps = every_steps
        self._every_window = every_window
        self._estimate = LinkEstimate(alpha=LINK_SMOOTHING)
        self._versions = VersionAge()
        self._resources = sampler.sample()
        self._sampled_s = -math.inf
        self._learned_s = 0.0
        self._decision: Decision | None = None
        self._observation: Observation | None = None
        self._decided_on: Observation | None = None
        self._decisions = 0
        self._untold = 0
        self._told: tuple[float, float | None] = (self._resources.cpu, None)
        self._loss: float | None = None
        self._embedding_ms: float | None = None
        self._gradient_ms: float | None = None
        self._client_ms: tuple[int, float] | None = None

    def observe(self, cut: int) -> Observation:
        """The splitter's input for the next window."""
        if self._steady_link is not None:
            self._observation = self._steady(*self._steady_link, cut)
            return self._observation
        now_s = time.monotonic()
        if self._every_window and now_s - self._sampled_s >= SAMPLED_S:
            self._sampled_s = now_s
            self._resources = self._sample()
            self._hear_of_the_link()
            self._untold += 1
        windows = self._journal.totals.windows
        self._versions.heard(self._replica.announced_version, windows)
        uncertainty, at_s = self._newest_uncertainty()
        self._observation = observe(
            uncertainty=uncertainty,
            uncertainty_age_s=None if at_s is None else time.monotonic() - at_s,
            cpu=self._resources.cpu,
            memory=self._resources.memory,
            temperature_c=self._resources.temperature_c,
            throttled=self._resources.throttled,
            uplink_mbps=self._estimate.uplink_mbps,
            round_trip_ms=self._estimate.round_trip_ms,
            battery=self._resources.battery,
            queue_depth=self._source.waiting,
            queue_capacity=QUEUE_CAPACITY,
            cut=cut,
            depth=self._depth,
            forward_ms=self._forward_ms,
            held=self._deepest_held(),
            version_age=self._versions.age(windows),
            follows=self._follows_all,
        )
        return self._observation

    def _newest_uncertainty(self) -> tuple[float | None, float | None]:
        """The trainer's or the device's own, and when it was known; None where there is none."""
        told_s, own_s = self._mailbox.uncertainty_at_s, self._ambiguity.latest_at_s
        if own_s is None or (told_s is not None and told_s > own_s):
            return self._mailbox.uncertainty, told_s
        return self._ambiguity.latest, own_s

    def _deepest_held(self) -> int:
        """The deepest cut to which the device could move without fetching anything; 0 where there is none."""
        return next((cut for cut in range(self._depth, 0, -1) if self._replica.current(client_names(cut))), 0)

    def _steady(self, uplink_mbps: float | None, round_trip_ms: float | None, cut: int) -> Observation:
        return observe(
            uncertainty=None,
            uncertainty_age_s=None,
            cpu=0.0,
            memory=0.0,
            temperature_c=None,
            throttled=None,
            uplink_mbps=uplink_mbps,
            round_trip_ms=round_trip_ms,
            battery=None,
            queue_depth=0,
            queue_capacity=QUEUE_CAPACITY,
            cut=cut,
            depth=self._depth,
            forward_ms=None,
            held=cut,
            version_age=None,
            follows=self._follows_all,
        )

    def note(self, decision: Decision) -> None:
        """Remember what was decided on the last observation; in real time, tell the fleet of what is news."""
        moved = self._decision is not None and self._decision.action != decision.action
        if decision is not self._decision:  # else it still holds: what it rested on is what telemetry tells
            self._decision, self._decided_on = decision, self._observation
            self._decisions += 1
        if moved and self._every_window and self._link.connected:
            self._publish_telemetry(outcome=False)
        else:
            self.tell_news()

    def tell_news(self) -> None:
        """In real time: tell the fleet where load or rate are no longer what it was told."""
        if self._every_window and self._link.connected and self._is_news():
            self._publish_telemetry(outcome=False)

    def _is_news(self) -> bool:
        """Whether load or rate are others than were told, or nothing was told for a while."""
        if self._untold > TOLD_WINDOWS:  # a step of as many tells it itself
            return True
        cpu, mbps = self._told
        now = self._estimate.uplink_mbps
        faster = mbps is not None and now is not None and not mbps / JUMP <= now <= mbps * JUMP
        return faster or abs(self._resources.cpu - cpu) >= NEWS_CPU

    def _hear_of_the_link(self) -> None:
        if not self._link.connected:
            return
        rate_mbps, round_trip_ms = self._uplink_mbps(), self._round_trip_ms()
        if rate_mbps is not None:
            self._estimate.uplink(rate_mbps)
        if round_trip_ms is not None:
            self._estimate.round_trip(round_trip_ms)

    def step_over(self, exchange: Exchange) -> None:
        """A step ended: learn about the link from it, write it down, tell the fleet now and then."""
        if not self._every_window:
            self._hear_of_the_link()
        self._embedding_ms = _median_ms(
            exchange.embedding_s.values() if exchange.embedding_s else self._embedded_here(exchange)
        )
        self._gradient_ms = _median_ms(exchange.gradient_s.values())
        self._client_ms = exchange.client_ms() if self._every_window else None
        if exchange.losses:
            self._loss = sum(exchange.losses) / len(exchange.losses)
        self._journal.step(exchange, counters=self._link.counters(), weights_version=self._replica.version)
        self.publish()

    def _sample(self) -> Resources:
        """Learning from an answered step is over before the next one's windows: no decision rests on its load."""
        before_s, self._learned_s = self._learned_s, self._journal.totals.learned_s
        return self._sampler.sample(but_for_s=self._learned_s - before_s)

    def local_step_over(self, loss: float, *, window_s: float) -> None:
        """A local step ended that was decided, not just filled in: tell the fleet now and then, if it can be told.

        ``window_s``: what the step took a window, in which it was embedded and learned from.
        """
        self._loss = loss
        self._embedding_ms = 1e3 * window_s
        if self._link.connected and self._journal.totals.local_steps % self._every_steps == 0:
            self.publish(force=True)

    def _embedded_here(self, exchange: Exchange) -> list[float]:
        """Window closed to embedding of those whose last block ran here: nobody has to answer them with one."""
        return [sent.sent_s - sent.closed_s for sent in exchange.sent.values() if sent.cut == self._depth]

    def publish(self, *, force: bool = False) -> None:
        """Publish telemetry every few steps; it costs about 290 bytes, a hundredth of a window of PCM16."""
        if force or self._journal.totals.steps_sent % self._every_steps == 0:
            self._publish_telemetry(outcome=True)

    def _publish_telemetry(self, *, outcome: bool) -> None:
        """Without ``outcome`` it does not say how long answers took: what was measured is an earlier decision's."""
        if self._decided_on is None or self._decision is None:
            return
        if not self._every_window:
            self._resources = self._sample()
        self._told, self._untold = (self._resources.cpu, self._estimate.uplink_mbps), 0
        energy = self._spent()
        message = self._telemetry(self._decided_on, self._decision, energy.joules, outcome=outcome)
        self._link.publish(self._topic, messages.encode(message))
        self._journal.telemetry(message, energy_source=energy.source, counters=self._link.counters())

    def _spent(self) -> Energy:
        busy_s, counters = self._journal.totals.busy_s, self._link.counters()
        return self._energy.read(busy_s=busy_s, bytes_up=counters.bytes_up, bytes_down=counters.bytes_down)

    def _telemetry(
        self, observation: Observation, decision: Decision, energy_joules: float, *, outcome: bool
    ) -> messages.Telemetry:
        totals, counters = self._journal.totals, self._link.counters()
        return messages.Telemetry(
            boot=self._boot,
            decision_seq=self._decisions,
            policy_version=decision.policy_version,
            observation=observation.values(),
            mask=decision.mask,
            action=decision.action,
            log_prob=decision.log_prob,
            cpu=self._resources.cpu,
            memory=self._resources.memory,
            temperature_c=self._resources.temperature_c,
            throttled=self._resources.throttled,
            uplink_mbps=self._estimate.uplink_mbps,
            round_trip_ms=self._estimate.round_trip_ms,
            battery=self._resources.battery,
            queue_depth=self._waiting(),
            windows_dropped=self._source.dropped,
            messages_dropped=counters.dropped_in + counters.dropped_out,
            energy_joules=energy_joules,
            uncertainty=self._newest_uncertainty()[0],
            cut=decision.cut,
            windows=totals.windows,
            steps_sent=totals.steps_sent,
            steps_answered=totals.steps["answered"],
            steps_late=totals.steps["late"],
            steps_stale=totals.steps["stale"],
            steps_lost=totals.steps["lost"] + totals.steps["rejected"],
            local_steps=totals.local_steps,
            loss=self._loss,
            bytes_up=counters.bytes_up,
            bytes_down=counters.bytes_down,
            embedding_ms=self._embedding_ms if outcome else None,
            gradient_ms=self._gradient_ms if outcome else None,
            weights_version=max(0, self._replica.version),
            client_ms=self._client_at(decision.action) if outcome else None,
        )

    def _client_at(self, action: int) -> float | None:
        """What a window of the latest step took here, if it was cut there."""
        cut, ms = self._client_ms or (None, None)
        return ms if cut == action else None


def _median_ms(seconds: Iterable[float]) -> float | None:
    ordered = sorted(seconds)
    return 1e3 * ordered[len(ordered) // 2] if ordered else None
