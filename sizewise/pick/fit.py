"""`fit`: the smallest model that does a task, found on development rows and proved on test rows.

    split the rows -> race on the development rows -> at most three nominees -> one look at the test rows -> decision

The nominees are the smallest, the fastest and the cheapest of those that reach the bar on the development rows. Only
they, and the model that they are compared with, ever see the test rows, and only once: that is what makes the last
interval mean what it says.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace

from sizewise.core.errors import UnknownName, UsageError
from sizewise.core.events import Listener, Progress, silent
from sizewise.core.results import Bar, Decision, Difference, FitResult, Interval
from sizewise.core.task import Task
from sizewise.load.models import find_model
from sizewise.load.open import open_runner
from sizewise.load.store.store import Store
from sizewise.measure.evaluate import evaluate
from sizewise.measure.ledger import Ledger
from sizewise.measure.machine import fingerprint
from sizewise.measure.metric import metric_for
from sizewise.measure.stats import rows_to_decide
from sizewise.pick.candidates import Field, field_of, head_name, kind_of
from sizewise.pick.decide import (
    CONFIDENCE,
    Nominee,
    Scale,
    cheapest,
    decide,
    fastest,
    judge,
    shared_confidence,
    smallest,
)
from sizewise.pick.race import Clock, Race
from sizewise.pick.splits import ordered, with_dev
from sizewise.pick.trial import Trial

MARGIN = 0.02
LIMITS = ("latency_s", "memory_bytes", "bytes")
_FEWEST_TEST_ROWS = 50


def fit(
    task: Task,
    *,
    models: Sequence[str] | None = None,
    bar: Bar = Bar(margin=MARGIN),  # noqa: B008 (frozen)
    limits: Mapping[str, float | None] | None = None,
    budget_s: float | None = None,
    usd_per_hour: float | None = None,
    seed: int = 0,
    store: Store | None = None,
    ledger: Ledger | None = None,
    listen: Listener = silent,
) -> FitResult:
    """Find the smallest model that does a task.

    An interrupted search goes on where it was: answers are in the ledger, trained heads in the store.

    Args:
        task: with at least test rows; heads are trained on its train rows.
        models: references to try beside the heads; None: every language model in the store.
        bar: what the model must reach; by default within 2 points of the best candidate found.
        limits: `latency_s` (median, one item at a time), `memory_bytes`, `bytes` on disk; None or absent: no limit.
        budget_s: seconds for the whole search; what it then finds depends on the machine's speed.
        usd_per_hour: price of this machine, for the money that each candidate costs; None: no money is told.
        seed: of the development split, the order of looks and the heads.
        store: None: the user's store.
        ledger: None: the user's ledger.
        listen: hears progress.

    Raises:
        UsageError: an unknown limit, a bar that makes no sense, too few rows, or no candidate that could be measured.
        UnknownName: there is no such model.
        EngineFailed: a model died during the final look.
    """
    _check(bar, limits or {}, budget_s)
    clock = Clock(budget_s)
    store = store or Store()
    own = Ledger() if ledger is None else None
    try:
        race, field, note = _prepare(task, models, bar, limits or {}, clock, seed, store, ledger or own, listen)
        race.run(field.orders, field.ready)
        decision, notes = _final(race)
    finally:
        if own:
            own.close()
    return _result(task, race, decision, [note, *field.notes, *notes], models, usd_per_hour)


def _check(bar: Bar, limits: Mapping[str, float | None], budget_s: float | None) -> None:
    for name in limits:
        if name not in LIMITS:
            raise UnknownName("limit", name, LIMITS)
    if bar.at_least is not None and (bar.margin is not None or bar.reference is not None):
        raise UsageError("a bar is either at_least, or a margin to a reference, not both")
    if bar.at_least is None and (bar.margin is None or not 0 <= bar.margin < 1):
        raise UsageError(f"the margin must be a share of the scale from 0 to below 1, not {bar.margin}")
    if budget_s is not None and budget_s <= 0:
        raise UsageError("the time budget must be more than 0 seconds")


def _prepare(
    task: Task,
    models: Sequence[str] | None,
    bar: Bar,
    limits: Mapping[str, float | None],
    clock: Clock,
    seed: int,
    store: Store,
    ledger: Ledger | None,
    listen: Listener,
) -> tuple[Race, Field, str]:
    """Rows split, candidates listed, nothing measured."""
    metric = metric_for(task)
    split, note = with_dev(task, seed)
    field = field_of(split, models, store, listen)
    known = {name: limits.get(name) for name in LIMITS}
    scale = Scale(metric.name, metric.scale, metric.unit == "share of items", metric.higher_is_better)
    rows = ordered(split.splits["dev"], seed)
    race = Race(split, metric, bar, scale, known, clock, seed, store, ledger or Ledger(), listen, rows)
    return race, _with_reference(race, field), note


def _with_reference(race: Race, field: Field) -> Field:
    """The field with the model that the bar names in it, measured first so that the others can be held against it."""
    name = race.bar.reference
    heads = {head_name(race.task, order.kind) for order in field.orders}
    if name is None or name.removesuffix(":latest") in heads:
        return field
    model = find_model(name, race.store)
    race.bar = replace(race.bar, reference=model.name)
    here = [trial for trial in field.ready if trial.model.name == model.name]
    if not here:
        shots = None if model.kind == "linear" else race.task.shots
        here = [Trial(model, kind_of(model) if model.kind == "linear" else "prompted", shots)]
        race.only_reference = True
    others = [trial for trial in field.ready if trial.model.name != model.name]
    return replace(field, ready=(*here, *others))


def _final(race: Race) -> tuple[Decision, list[str]]:
    """Nominate on the development rows, look once at the test rows, decide."""
    reference = race.best() if race.bar.at_least is None else None
    done = [trial for trial in race.trials if trial.complete and not trial.left_because and trial is not reference]
    if race.bar.reference is not None:
        done = [trial for trial in done if not race.is_reference(trial)]
        if reference is None:
            raise UsageError(f"the reference {race.bar.reference} could not be measured: {_why_not(race)}")
    if not done and reference is None:
        raise UsageError(f"no candidate could be measured: {_why_not(race)}")
    nominated = _nominate(race, done, reference)
    judged = [*nominated, *([reference] if reference else [])]
    notes = _look_at_test(race, judged)
    confidence = shared_confidence(len(nominated))
    if len(nominated) > 1:
        notes.append(f"{len(nominated)} nominees share the 5 % risk: each is judged at {confidence:.1%} confidence")
    nominees = [_nominee(race, trial, reference, confidence) for trial in nominated]
    margin = race.scale.margin(race.bar)
    decision = decide(
        nominees,
        race.bar,
        race.scale,
        _nominee(race, reference, reference, confidence) if reference else None,
        rows={item.name: rows_to_decide(item.difference, margin) for item in nominees},
        eligible=not race.only_reference and bool(reference and not reference.over(race.limits)),
    )
    _explain(race, nominated, nominees)
    return _with_cuts(race, decision), notes


def _why_not(race: Race) -> str:
    reasons = [f"{trial.name}: {trial.left_because}" for trial in race.trials if trial.left_because]
    reasons += [f"{candidate.model}: {candidate.left_because}" for candidate in race.left_out]
    return "; ".join(reasons) or "name a model, or pull one"


def _nominate(race: Race, done: Sequence[Trial], reference: Trial | None) -> list[Trial]:
    """The smallest, fastest and cheapest that reach the bar on the development rows; if none does, the nearest."""
    behind = {id(trial): _dev_difference(race, trial, reference) for trial in done}
    margin = race.scale.margin(race.bar)
    passing = [trial for trial in done if behind[id(trial)].value >= -margin]
    for trial in done:
        if trial not in passing:
            points = race.scale.points(-behind[id(trial)].value)
            whom = reference.name if reference else "the bar"
            trial.left_because = f"{points} {race.scale.unit} behind {whom} on the development rows"
    # The best found passes anyway; what is larger, slower and dearer than it need not be looked at.
    pool = [*passing, *([reference] if reference and not race.only_reference else [])]
    if not pool or (not passing and race.only_reference):
        nearest = max(done, key=lambda trial: behind[id(trial)].value, default=None)
        if nearest is None:
            return []
        nearest.left_because = ""
        return [nearest]
    stand_ins = [(_stand_in(trial), trial) for trial in pool]
    picked = [choose([item for item, _ in stand_ins]) for choose in (smallest, fastest, cheapest)]
    chosen = [trial for item, trial in stand_ins if any(item is one for one in picked)]
    for trial in passing:
        if trial not in chosen:
            trial.left_because = "good enough on the development rows, but neither smallest, fastest nor cheapest"
    return [trial for trial in chosen if trial is not reference]


def _stand_in(trial: Trial) -> Nominee:
    """A candidate as far as size, time and cost go."""
    nothing = Interval(0.0, 0.0, 0.0, 0)
    speed = trial.probe.p50_s if trial.probe else None
    none = Difference(0.0, 0.0, 0.0, 0, 0.95, 0, None, None)
    return Nominee(trial.name, trial.model.name, trial.bytes, nothing, none, speed, trial.cpu_s)


def _dev_difference(race: Race, trial: Trial, reference: Trial | None) -> Difference:
    return race.difference(trial.dev, reference.dev if reference else None, CONFIDENCE)


def _look_at_test(race: Race, judged: Sequence[Trial]) -> list[str]:
    """The one look: every judged candidate answers the same test rows."""
    rows = race.task.splits["test"]
    limit, notes = _test_rows(race, judged, len(rows))
    for place, trial in enumerate(judged):
        race.listen(Progress(f"final look: {trial.name}", place, len(judged), "candidates"))
        with open_runner(trial.model, store=race.store) as runner:
            trial.test = evaluate(
                runner,
                race.task,
                split="test",
                limit=limit,
                ledger=race.ledger,
                shots=trial.shots,
                listen=race.listen,
            )
    race.listen(Progress("final look", len(judged), len(judged), "candidates"))
    return notes


def _test_rows(race: Race, judged: Sequence[Trial], rows: int) -> tuple[int | None, list[str]]:
    """How many test rows the budget allows, the same for all; None: all of them."""
    if race.clock.budget_s is None:
        return None, []
    per_row = sum(trial.dev.seconds / max(1, len(trial.dev.outcomes)) for trial in judged if trial.dev is not None)
    limit = max(_FEWEST_TEST_ROWS, int(max(0.0, race.clock.left()) / per_row)) if per_row > 0 else rows
    if limit >= rows:
        return None, []
    return limit, [f"the budget allowed {limit:,} of the {rows:,} test rows, drawn with the task's seed"]


def _nominee(race: Race, trial: Trial, reference: Trial | None, confidence: float) -> Nominee:
    assert trial.test is not None
    difference = race.difference(trial.test, reference.test if reference else None, confidence)
    if trial is reference:
        difference = replace(difference, value=0.0, low=0.0, high=0.0)
    else:
        trial.difference = difference
    speed = trial.probe.p50_s if trial.probe else None
    return Nominee(trial.name, trial.model.name, trial.bytes, trial.test.quality, difference, speed, trial.cpu_s)


def _with_cuts(race: Race, decision: Decision) -> Decision:
    """The decision, which must not sound as if all had been tried where the budget did not allow it."""
    cut = [trial.name for trial in race.trials if trial.left_because.startswith("budget")]
    cut += [each.model for each in race.left_out if each.left_because.startswith("budget")]
    if not cut:
        return decision
    listed = ", ".join(cut[:3]) + (f" and {len(cut) - 3} more" if len(cut) > 3 else "")
    return replace(decision, sentence=f"{decision.sentence} The budget left no time to try out {listed}.")


def _explain(race: Race, nominated: Sequence[Trial], nominees: Sequence[Nominee]) -> None:
    """Why each nominee that did not pass left."""
    margin, scale = race.scale.margin(race.bar), race.scale
    for trial, item in zip(nominated, nominees, strict=True):
        verdict = judge(item.difference, margin)
        if verdict == "undecided":
            trial.left_because = "the test rows cannot tell whether it passes"
        elif verdict == "fail":
            least, most = scale.points(-item.difference.high), scale.points(-item.difference.low)
            trial.left_because = f"{least} to {most} {scale.unit} too low on the test rows"


def _result(
    task: Task,
    race: Race,
    decision: Decision,
    notes: Sequence[str],
    models: Sequence[str] | None,
    usd_per_hour: float | None,
) -> FitResult:
    shown = ordered(race.task.splits["test"], race.seed) + list(race.rows)
    warnings = {warning: None for trial in race.trials for warning in trial.warnings}
    return FitResult(
        task=task.name,
        task_digest=race.task.digest,
        metric=task.metric,
        decision=decision,
        bar=race.bar,
        candidates=(*(trial.as_candidate(race.task, shown, usd_per_hour) for trial in race.trials), *race.left_out),
        machine=fingerprint(),
        seed=race.seed,
        seconds=race.clock.spent,
        limits=race.limits,
        notes=tuple(note for note in (*notes, *warnings) if note),
        command=_command(task, race, models),
    )


def _command(task: Task, race: Race, models: Sequence[str] | None) -> str:
    """What to type to get the result again."""
    words = ["sizewise", "fit", task.source, *(models or ())]
    bar = race.bar
    if bar.at_least is not None:
        words += ["--at-least", f"{bar.at_least:g}"]
    else:
        words += ["--margin", f"{(bar.margin or 0.0) * 100:g}"]
        words += ["--reference", bar.reference] if bar.reference else []
    flags = {"latency_s": ("--max-latency", "s"), "memory_bytes": ("--max-memory", ""), "bytes": ("--max-disk", "")}
    for name, (flag, unit) in flags.items():
        if race.limits.get(name) is not None:
            words += [flag, f"{race.limits[name]:.10g}{unit}"]
    words += ["--budget", f"{race.clock.budget_s:g}s"] if race.clock.budget_s is not None else []
    return shlex.join([*words, "--seed", str(race.seed)])
