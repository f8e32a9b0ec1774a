"""One candidate while it is tried: what it is, what it costs, how far it got and why it left."""

import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from sizewise.core.errors import UsageError
from sizewise.core.measurement import Measurement, unmeasured
from sizewise.core.model import Model
from sizewise.core.results import Candidate, Difference, Evaluation, Outcome
from sizewise.core.task import Item, Task
from sizewise.core.units import format_bytes, format_seconds
from sizewise.load.runner import Runner
from sizewise.measure.ask import Asker, asker_for
from sizewise.measure.machine import machine_id
from sizewise.measure.meters.cost import cost
from sizewise.measure.meters.energy import energy
from sizewise.measure.prompts import worked_examples
from sizewise.pick.decide import ALIKE

CandidateKind = Literal["majority", "tfidf", "embedding", "prompted"]
_WARM, _PROBES, _PROBE_S = 2, 20, 5.0
_FEWEST_PROBES = 5
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Probe:
    """What one item at a time takes."""

    p50_s: float
    p95_s: float
    cpu_s: float | None  # None: measured better on many items


@dataclass(slots=True, eq=False)
class Trial:
    """A candidate and what is known of it so far."""

    model: Model
    kind: CandidateKind
    shots: int | None = None  # None: the model takes no prompt
    probe: Probe | None = None
    dev: Evaluation | None = None
    complete: bool = False  # seen on all development rows
    test: Evaluation | None = None
    memory: Measurement | None = None
    left_because: str = ""
    difference: Difference | None = None
    waived_for: "Trial | None" = None  # the rival for whose sake it was not measured to the end
    warnings: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The model's name, with the number of worked examples where there are some."""
        return f"{self.model.name} with {self.shots} examples" if self.shots else self.model.name

    @property
    def bytes(self) -> int | None:
        """Bytes on disk; None for an endpoint."""
        return None if self.model.kind == "endpoint" else self.model.size_bytes

    @property
    def cpu_s(self) -> float | None:
        """Processor seconds for one item."""
        measured = self.dev or self.test
        if self.probe and self.probe.cpu_s is not None:
            return self.probe.cpu_s
        return measured.cpu_s_per_item if measured else None

    def saw_memory(self, peak: Measurement) -> None:
        """Keep the higher of two peaks."""
        if self.memory is None or self.memory.value is None or (peak.value or 0.0) > self.memory.value:
            self.memory = peak

    def dearer_than(self, other: "Trial") -> bool:
        """Whether it is larger, and slower and dearer by more than chance, so that the other is chosen if as good."""
        if self.bytes is None or other.bytes is None or self.bytes < other.bytes or not (self.probe and other.probe):
            return False
        if self.cpu_s is None or other.cpu_s is None:
            return False
        return self.probe.p50_s > ALIKE * other.probe.p50_s and self.cpu_s > ALIKE * other.cpu_s

    def over(self, limits: dict[str, float | None]) -> str:
        """Which limit the candidate breaks, as far as is known; empty: none."""
        known: tuple[tuple[str, str, float | None], ...] = (
            ("bytes", "disk", self.bytes),
            ("latency_s", "latency", self.probe.p50_s if self.probe else None),
            ("memory_bytes", "memory", self.memory.value if self.memory else None),
        )
        for key, word, value in known:
            limit = limits.get(key)
            if limit is not None and value is not None and value > limit:
                say = format_seconds if key == "latency_s" else format_bytes
                return f"{word}: {say(value)} is over the limit of {say(limit)}"
        return ""

    def as_candidate(self, task: Task, shown: Sequence[Item], usd_per_hour: float | None = None) -> Candidate:
        """The candidate as the result holds it. `usd_per_hour`: price of this machine, all its processors together."""
        measured = self.test or self.dev
        outcomes = measured.outcomes if measured else ()
        labelled = task.kind == "classify"
        return Candidate(
            model=self.model.name,
            kind=self.kind,
            dev=self.dev.quality if self.dev else None,
            test=self.test.quality if self.test else None,
            cpu_s_per_item=self.cpu_s,
            latency_p50_s=self.probe.p50_s if self.probe else None,
            bytes=self.bytes,
            left_because=self.left_because,
            difference=self.difference,
            shots=self.shots,
            latency_p95_s=self.probe.p95_s if self.probe else None,
            memory_bytes=int(self.memory.value) if self.memory and self.memory.value is not None else None,
            energy_j_per_item=energy(self.cpu_s) if measured else None,
            usd_per_1000_items=self._money(usd_per_hour) if measured else None,
            per_class=per_class(outcomes) if labelled else {},
            examples=examples(outcomes, shown),
            digest=self.model.digest,
            confusion=confusion(outcomes) if labelled else {},
        )

    def _money(self, usd_per_hour: float | None) -> Measurement:
        """What a thousand items cost: the share of the machine's time that its busy processors are."""
        if self.model.kind == "endpoint":
            why = "the prompt tokens that the endpoint counted are not kept; `compare` tells the price of an answer"
            return unmeasured("usd_per_1000_items", "USD", why)
        cores = os.cpu_count() or 1
        money = cost(None if self.cpu_s is None else 1000 * self.cpu_s / cores, usd_per_hour, machine_id())
        method = f"processor {money.method} / {cores} processors" if money.value is not None else money.method
        return replace(money, name="usd_per_1000_items", method=method)


def probe(runner: Runner, task: Task, items: Sequence[Item], shots: int | None) -> Probe:
    """Ask some items one at a time, warm, and time each.

    Args:
        runner: the model, loaded.
        task: what to ask.
        items: development items in a fixed order; the first ones warm up.
        shots: worked examples before each.

    Raises:
        UsageError: not one of them fits into the context.
    """
    asker = asker_for(runner, task, worked_examples(task, 0 if runner.raw_input else shots))
    rendered = asker.render(items[: _WARM + _PROBES] if len(items) > _WARM else list(items) * 2)
    seconds: list[float] = []
    refused: UsageError | None = None
    for each in rendered:
        began = time.perf_counter()
        try:
            asker.ask([each])
        except UsageError as error:  # longer than the context: such rows are left out when the model is measured, too
            refused = error
            continue
        seconds.append(time.perf_counter() - began)
        if len(seconds) >= _WARM + _FEWEST_PROBES and sum(seconds) > _PROBE_S:
            break
    if not seconds:
        raise refused or UsageError(f"{task.source}: no development rows to time {runner.model.name} on")
    seconds = seconds[min(_WARM, len(seconds) - 1) :]
    p50, p95 = (float(value) for value in np.quantile(seconds, (0.5, 0.95)))
    inside = runner.pids() == [os.getpid()]
    return Probe(p50, p95, _own_cpu(asker, items) if inside else None)


def _own_cpu(asker: Asker, items: Sequence[Item]) -> float:
    """Processor seconds for one item of a model within this process: too few for the kernel's clock of 10 ms."""
    rendered, done = asker.render(items), 0
    began = time.process_time()
    while (spent := time.process_time() - began) < 0.05:
        asker.ask(rendered)
        done += len(rendered)
    return spent / done


def per_class(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and number of items of each label; an item without an answer is a miss of its label."""
    labels = sorted({outcome.expected for outcome in outcomes if outcome.expected is not None})
    result = {}
    for label in labels:
        n = sum(outcome.expected == label for outcome in outcomes)
        said = sum(outcome.answer == label for outcome in outcomes)
        right = sum(outcome.expected == label == outcome.answer for outcome in outcomes)
        result[label] = {
            "precision": right / said if said else 0.0,
            "recall": right / n,
            "f1": 2 * right / (n + said),
            "n": float(n),
        }
    return result


def confusion(outcomes: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    """Expected label -> answered label -> items; "(no answer)" where there was none."""
    pairs = Counter((outcome.expected or "", outcome.answer or "(no answer)") for outcome in outcomes)
    table: dict[str, dict[str, int]] = {}
    for (expected, answer), count in sorted(pairs.items()):
        table.setdefault(expected, {})[answer] = count
    return table


def examples(outcomes: Sequence[Outcome], shown: Sequence[Item]) -> tuple[dict[str, str], ...]:
    """Some items with what was expected and what was answered; the same items for every candidate."""
    by_id: dict[str, Any] = {outcome.id: outcome for outcome in outcomes}
    found = [(item, by_id[item.id]) for item in shown if item.id in by_id][:_SHOWN]
    return tuple(
        {
            "input": item.input,
            "expected": item.expected or "",
            "answer": outcome.answer if outcome.answer is not None else outcome.output,
        }
        for item, outcome in found
    )
