"""The race on the development rows: every candidate is measured until it is done, or is clearly out.

A linear model sees all rows at once. Language models, a thousand times dearer, see 50 rows, those that are left 100,
then 200, always the same rows in the same order, so that little time goes to the worst. One leaves when even the upper
end of its interval is below what is needed. One that is larger, slower and dearer than the best so far leaves as soon
as it cannot be better than that by more than the margin: nobody would choose it. The 5 % risk of sending a good one
home is shared out over its looks. Nothing depends on the clock unless there is a time budget, except where two costs
are nearly the same.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from sizewise.core.errors import EngineFailed, Locked, SizewiseError, StorageError
from sizewise.core.events import Listener, Progress
from sizewise.core.results import Bar, Candidate, Difference, Evaluation
from sizewise.core.task import Item, Task
from sizewise.core.units import format_seconds
from sizewise.load.open import open_runner
from sizewise.load.runner import Runner
from sizewise.load.store.store import Store
from sizewise.measure.evaluate import evaluate
from sizewise.measure.ledger import Ledger
from sizewise.measure.meters.memory import memory
from sizewise.measure.metric import Metric
from sizewise.measure.stats import interval, paired_difference
from sizewise.pick.candidates import Order, head_name, made
from sizewise.pick.decide import CONFIDENCE, Scale, judge, shared_confidence, to_bar
from sizewise.pick.footprint import footprint
from sizewise.pick.trial import Trial, probe

FIRST_LOOK = 50
DEV_SHARE = 0.6  # of a time budget; the rest is for the final look
_ALWAYS = ("majority", "tfidf")  # seconds at most, and without them there would be nothing to compare with
_CHEAPER = "which is smaller, faster and cheaper"
_ASKED = 20  # texts whose classification shows how much memory a linear model takes
_TRIED_ON = 32  # texts whose embedding tells how long all will take


@dataclass(slots=True)
class Clock:
    """What is left of a time budget."""

    budget_s: float | None
    started: float = field(default_factory=time.monotonic)

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def left(self, share: float = 1.0) -> float:
        """Seconds left of a share of the budget; infinite without one."""
        return float("inf") if self.budget_s is None else self.budget_s * share - self.spent


@dataclass(slots=True)
class Race:
    """One search: what is asked, what it must reach, and every candidate so far."""

    task: Task
    metric: Metric
    bar: Bar
    scale: Scale
    limits: dict[str, float | None]
    clock: Clock
    seed: int
    store: Store
    ledger: Ledger
    listen: Listener
    rows: Sequence[Item]  # development rows in their fixed order
    trials: list[Trial] = field(default_factory=list)
    left_out: list[Candidate] = field(default_factory=list)  # heads that could not be made
    only_reference: bool = False  # the reference is no candidate, it only stands for the quality that is wanted

    def run(self, orders: Sequence[Order], ready: Sequence[Trial]) -> None:
        """Measure every candidate on the development rows: heads in the order given, then the others in rounds."""
        total = len(orders) + len(ready)
        for order in orders:
            self._say(head_name(self.task, order.kind), total)
            self._run_order(order)
        self.trials += ready
        whole = [trial for trial in ready if trial.kind != "prompted" or self.is_reference(trial)]
        for group in _by_model(whole):
            self._say(group[0].model.name, total)
            self._run_group(group, len(self.rows))
        looks = looks_at(len(self.rows))
        for size in looks:
            self._round([trial for trial in ready if not trial.complete], size, shared_confidence(len(looks)))
        self._call_back()

    def _round(self, trials: Sequence[Trial], size: int, confidence: float) -> None:
        """Show `size` rows to all that are still in, then send home those that are out."""
        active = [trial for trial in trials if not trial.left_because]
        for place, group in enumerate(_by_model(active)):
            self.listen(Progress(f"try {group[0].model.name} on {size} rows", place, len(active), "candidates"))
            self._run_group(group, size)
        reasons = [
            ""
            if trial.left_because or trial.complete
            else self._hopeless(trial, confidence) or self._needless(trial, confidence)
            for trial in active
        ]
        for trial, reason in zip(active, reasons, strict=True):
            trial.left_because = trial.left_because or reason

    def is_reference(self, trial: Trial) -> bool:
        """Whether the bar names this candidate's model as the one to compare with."""
        return self.bar.reference is not None and self.bar.reference.removesuffix(":latest") == trial.model.name

    def best(self, rows: int | None = None) -> Trial | None:
        """The best candidate; where the bar names a reference, the best way to ask that one.

        Args:
            rows: of those that have seen at least so many; None: of those that have seen all.
        """
        least = len(self.rows) if rows is None else rows
        pool = [trial for trial in self.trials if trial.dev is not None and len(trial.dev.outcomes) >= least]
        if self.bar.reference is not None:
            pool = [trial for trial in pool if self.is_reference(trial)]
        else:
            pool = [trial for trial in pool if not trial.left_because]
        return max(pool, key=self._rank, default=None)

    def _rank(self, trial: Trial) -> tuple[float, float]:
        value = trial.dev.quality.value if trial.dev else 0.0
        return (value if self.metric.higher_is_better else -value), -float(trial.bytes or 0)

    def _say(self, what: str, total: int) -> None:
        self.listen(Progress(f"try {what}", len(self.trials), total, "candidates"))

    def _run_order(self, order: Order) -> None:
        """Make a head and measure it. What cannot be made is left out with the reason, the rest goes on."""
        name = head_name(self.task, order.kind)
        try:
            reason = self._too_long_to_make(order)
            if not reason:
                trial = Trial(made(order, self.task, self.seed, self.store, self.listen), order.kind)
                self.trials.append(trial)
                self._run_group([trial], len(self.rows))
                return
        except (StorageError, Locked):
            raise
        except SizewiseError as error:
            reason = str(error)
        self.left_out.append(Candidate(name, order.kind, None, None, None, None, None, left_because=reason))

    def _run_group(self, group: Sequence[Trial], size: int) -> None:
        """Measure the candidates of one model on the first `size` rows."""
        disk = "" if self.is_reference(group[0]) else group[0].over(self.limits)
        late = ""
        if group[0].kind not in _ALWAYS and self.clock.left(DEV_SHARE) <= 0:
            late = "budget: no time was left for " + ("more rows" if group[0].dev else "it")
        if disk or late:
            for trial in group:
                trial.left_because = disk or late
            return
        try:
            with open_runner(group[0].model, store=self.store) as runner:
                for trial in group:
                    self._run_one(runner, trial, size)
        except (StorageError, Locked):
            raise
        except SizewiseError as error:
            for trial in group:
                if not trial.complete and not trial.left_because:
                    trial.left_because = str(error)

    def _run_one(self, runner: Runner, trial: Trial, size: int) -> None:
        """Measure one candidate; what this one way of asking cannot do does not stop the next."""
        exempt = self.is_reference(trial)
        try:
            with memory(runner.pids()) as watch:
                if trial.probe is None:
                    trial.probe = probe(runner, self.task, self.rows, trial.shots)
                    trial.left_because = "" if exempt else trial.over(self.limits)
                if not trial.left_because:
                    self._show(runner, trial, size, exempt)
            inside = os.getpid() in runner.pids()  # beside all that the search itself holds
            texts = [item.input for item in self.rows[:_ASKED]]
            trial.saw_memory(footprint(trial.model, self.store, texts) if inside else watch.measurement())
        except (StorageError, Locked, EngineFailed):
            raise
        except SizewiseError as error:
            trial.left_because = str(error)
        if not trial.left_because and not exempt:
            trial.left_because = trial.over(self.limits)

    def _show(self, runner: Runner, trial: Trial, size: int, exempt: bool) -> None:
        """Ask for the first `size` rows, if the budget allows it."""
        trial.left_because = "" if exempt or trial.kind in _ALWAYS else self._too_slow(trial, size)
        if trial.left_because:
            return
        trial.dev = evaluate(
            runner,
            self.task,
            split="dev",
            items=self.rows[:size],
            ledger=self.ledger,
            shots=trial.shots,
            listen=self.listen,
        )
        trial.complete = len(trial.dev.outcomes) == len(self.rows)
        trial.warnings = list(trial.dev.warnings)

    def _hopeless(self, trial: Trial, confidence: float) -> str:
        """Why a candidate that has seen some rows need not see more; empty: it may still reach the bar."""
        if trial.dev is None:
            return ""
        best = self.best(len(trial.dev.outcomes)) if self.bar.at_least is None else None
        if best is trial or (self.bar.at_least is None and best is None):
            return ""
        behind = self.difference(trial.dev, best.dev if best else None, confidence)
        if judge(behind, self.scale.margin(self.bar)) != "fail":
            return ""
        least, most = self.scale.points(-behind.high), self.scale.points(-behind.low)
        whom = best.name if best else "the bar"
        return f"{least} to {most} {self.scale.unit} behind {whom} after {behind.n} development rows"

    def _needless(self, trial: Trial, confidence: float) -> str:
        """Why nobody would choose a candidate, however it goes on: a rival costs less in every way and is as good."""
        if trial.dev is None:
            return ""
        margin = self.scale.margin(self.bar)
        if self.bar.at_least is None and self.bar.reference is None:
            best = self.best(len(trial.dev.outcomes))
            if best is None or best is trial or not trial.dearer_than(best):
                return ""
            ahead = self.difference(trial.dev, best.dev, confidence)
            if ahead.high > margin:
                return ""
            trial.waived_for = best
            most = self.scale.points(ahead.high, signed=True)
            return f"at most {most} {self.scale.unit} to {best.name}, {_CHEAPER}, after {ahead.n} development rows"
        for rival in self.trials:
            able = rival.complete and not rival.left_because and not self.is_reference(rival)
            if able and trial.dearer_than(rival):
                gap = self.difference(rival.dev, self._yardstick(), confidence)
                if judge(gap, margin) == "pass":
                    return f"needless beside {rival.name}, {_CHEAPER} and reaches the bar on the development rows"
        return ""

    def _yardstick(self) -> Evaluation | None:
        """What qualities are compared with: the reference's evaluation, or nothing where the bar is fixed."""
        best = self.best() if self.bar.at_least is None else None
        return best.dev if best else None

    def difference(self, ours: Evaluation | None, theirs: Evaluation | None, confidence: float) -> Difference:
        """Of a candidate's quality to the reference's, or to the fixed bar."""
        if ours is None:
            raise ValueError("the candidate has not been measured")
        if self.bar.at_least is None and theirs is not None:
            return paired_difference(ours, theirs, confidence=confidence, seed=self.task.seed, metric=self.metric)
        quality = interval(self.metric, ours.outcomes, confidence=confidence, seed=self.task.seed)
        upward = self.metric.higher_is_better
        return to_bar(quality, self.bar.at_least or 0.0, confidence=confidence, higher_is_better=upward)

    def _call_back(self) -> None:
        """Candidates that were sent home for the sake of a rival that a later one has put out of the race."""
        best = self.best()
        for trial in self.trials:
            rival = trial.waived_for
            if rival is None or best is None or rival is best or rival.dev is None or best.dev is None:
                continue
            lost = self.difference(rival.dev, best.dev, CONFIDENCE).value < -self.scale.margin(self.bar)
            if lost or rival.left_because:
                trial.left_because, trial.waived_for = "", None
                self._run_group([trial], len(self.rows))

    def _too_slow(self, trial: Trial, size: int) -> str:
        """Why the budget does not allow the next look; empty: it does."""
        left = self.clock.left(DEV_SHARE)
        seen = trial.dev.outcomes if trial.dev else ()
        alone = trial.probe.p50_s if trial.probe else 0.0
        rate = sum(outcome.seconds for outcome in seen) / len(seen) if seen else alone
        needed = rate * (size - len(seen))
        if needed <= left:
            return ""
        return (
            f"budget: {size - len(seen)} more rows would take {format_seconds(needed)}, "
            f"{format_seconds(max(0.0, left))} was left"
        )

    def _too_long_to_make(self, order: Order) -> str:
        """Why the budget does not allow a head on embeddings; empty: it does."""
        if self.clock.budget_s is None or order.base is None:
            return ""
        texts = [item.input for item in self.task.splits["train"]]
        with open_runner(order.base, store=self.store) as runner:
            runner.embed(texts[:_TRIED_ON])
            began = time.perf_counter()
            runner.embed(texts[_TRIED_ON : 2 * _TRIED_ON] or texts[:_TRIED_ON])
            needed = (time.perf_counter() - began) / _TRIED_ON * len(texts)
        left = self.clock.left(DEV_SHARE)
        if needed <= left:
            return ""
        return f"budget: embedding the train rows would take {format_seconds(needed)}, {format_seconds(left)} was left"


def looks_at(rows: int) -> list[int]:
    """How many rows each look has: 50, 100, 200, ... and all."""
    looks = []
    size = FIRST_LOOK
    while size < rows:
        looks.append(size)
        size *= 2
    return [*looks, rows]


def _by_model(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Neighbours that are one model."""
    groups: list[list[Trial]] = []
    for trial in trials:
        if groups and groups[-1][0].model is trial.model:
            groups[-1].append(trial)
        else:
            groups.append([trial])
    return groups
