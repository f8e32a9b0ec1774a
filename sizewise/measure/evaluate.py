"""One model, one task: ask every item once, keep each answer, say how good they are and how sure that is.

Items are asked in chunks of similar length and each chunk is committed to the ledger as it comes. The chunks depend on
the items alone, never on what is known already: a chunk is there or is not, so an evaluation that was killed and goes
on batches exactly as one that was not, and ends with the same numbers.
"""

import random
import time
from collections.abc import Sequence

from sizewise.core.errors import UsageError
from sizewise.core.events import Listener, Progress, silent
from sizewise.core.measurement import Measurement
from sizewise.core.results import Evaluation, Outcome
from sizewise.core.task import Item, Split, Task
from sizewise.load.runner import Runner
from sizewise.measure.ask import Answered, Asker, asker_for
from sizewise.measure.ledger import Entry, Key, Ledger
from sizewise.measure.machine import machine_id
from sizewise.measure.metric import Metric, Scored, metric_for, unanswered
from sizewise.measure.processes import CpuClock
from sizewise.measure.prompts import Rendered, worked_examples
from sizewise.measure.stats import interval

_TURN_TOKENS = 16


def evaluate(
    runner: Runner,
    task: Task,
    *,
    split: Split = "test",
    limit: int | None = None,
    items: Sequence[Item] | None = None,
    ledger: Ledger | None = None,
    shots: int | None = None,
    normalised: bool = False,
    listen: Listener = silent,
) -> Evaluation:
    """Measure a model on a task.

    Args:
        runner: the model, loaded.
        task: what to ask.
        split: which of its items.
        limit: ask only so many of them, drawn with the task's seed (a file may be sorted by label); of two limits the
            smaller draw is part of the larger.
        items: ask exactly these items of the split.
        ledger: where answers are looked up and kept; None: nothing is kept.
        shots: worked examples before each item; None: as many as the task says.
        normalised: kind choose: compare log-probability per character of a choice.
        listen: told of each chunk that is done.

    Returns:
        The evaluation, its outcomes in the order of the items. An unanswered item counts as not right and is counted.

    Raises:
        UsageError: there are no items, or none fits into the model's context.
        Unsupported: this engine cannot do this kind of task.
        EngineFailed: the engine died; what was answered before is in the ledger.
    """
    metric = metric_for(task)
    asker = asker_for(runner, task, worked_examples(task, 0 if runner.raw_input else shots), normalised=normalised)
    chosen = _chosen(task, split, limit, items)
    rendered = asker.render(chosen)
    too_long, warnings = _too_long(asker, rendered)
    key = Key(runner.model.digest, task.digest, asker.parameters(), task.seed, runner.model.name, task.name)
    # What is not asked is not kept: with a larger context it would be.
    known = _known(ledger, key, rendered) | _unasked(task, metric, rendered, too_long)
    total = len(rendered)
    listen(Progress(f"evaluate {task.name}", len(known), total))
    for chunk in _chunks(rendered, asker.chunk):
        missing = [each for each in chunk if each.item.id not in known]
        if missing:
            entries = _ask(asker, task, metric, missing)
            if ledger:
                ledger.put(key, entries)
            known.update((entry.outcome.id, entry) for entry in entries)
            listen(Progress(f"evaluate {task.name}", len(known), total))
    result = _evaluation(runner, task, split, metric, [known[item.id] for item in chosen], tuple(warnings))
    if ledger:
        ledger.finish(key, result)
    return result


def _chosen(task: Task, split: Split, limit: int | None, items: Sequence[Item] | None) -> list[Item]:
    """The items to ask, in the order of the file."""
    if items is None:
        if split not in task.splits:
            raise UsageError(f"{task.source}: no {split} split; it has " + ", ".join(sorted(task.splits)))
        items = task.splits[split]
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1, not {limit}")
    if limit is not None and limit < len(items):
        order = list(range(len(items)))
        random.Random(task.seed).shuffle(order)
        items = [items[index] for index in sorted(order[:limit])]
    if not items:
        raise UsageError(f"{task.source}: the {split} split has no items")
    return list(items)


def _known(ledger: Ledger | None, key: Key, rendered: Sequence[Rendered]) -> dict[str, Entry]:
    """Answers in the ledger to these very prompts."""
    if ledger is None:
        return {}
    kept = ledger.get(key)
    asked = {each.item.id: each for each in rendered}
    return {
        identity: entry
        for identity, entry in kept.items()
        if (each := asked.get(identity))
        and (entry.outcome.prompt, entry.outcome.expected) == (each.text, each.item.expected)
    }


def _chunks(rendered: Sequence[Rendered], size: int) -> list[list[Rendered]]:
    """Chunks of similar length, the longest first: what does not fit in memory fails at once, not after an hour."""
    ordered = sorted(rendered, key=lambda each: (-len(each.text), each.item.id))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _too_long(asker: Asker, rendered: Sequence[Rendered]) -> tuple[dict[str, str], list[str]]:
    """Items whose prompt does not fit into the context, each with the reason, and a warning that counts them.

    Nothing is ever cut to fit: the model would be measured on another question.

    Raises:
        UsageError: not one fits.
    """
    limit = asker.context
    if not limit or asker.runner.raw_input or asker.way == "score texts":
        return {}, []
    counts = {each.item.id: count for each in rendered if (count := _tokens_needed(asker, each, limit)) > limit}
    if not counts:
        return {}, []
    longest = f"the longest needs {max(counts.values())} tokens, the context of {asker.runner.model.name} is {limit}"
    too_long = {identity: f"(not asked: needs {count} tokens of {limit})" for identity, count in counts.items()}
    if len(too_long) == len(rendered):
        raise UsageError(
            f"{asker.task.source}: every row is longer than the context ({longest}); shorten the rows, "
            "lower shots or choose another model"
        )
    return too_long, [f"{len(too_long)} of {len(rendered)} rows were not asked, they do not fit ({longest})"]


def _tokens_needed(asker: Asker, each: Rendered, limit: int) -> int:
    """Tokens of a prompt with its answer; for one that surely fits, an upper bound."""
    # One for the beginning of the text, one for the answer to come; a chat template wraps each turn in a few more.
    extra = 2 + _TURN_TOKENS * len(each.messages)
    texts = asker.longest(each)
    # A token is at least a byte, so most prompts need no tokenizer to be known to fit.
    bound = max(len(text.encode("utf-8", "replace")) for text in texts) + extra
    return bound if bound <= limit else max(asker.runner.count_tokens(texts)) + extra


def _unasked(task: Task, metric: Metric, rendered: Sequence[Rendered], too_long: dict[str, str]) -> dict[str, Entry]:
    """The outcomes of items that do not fit."""
    return {
        each.item.id: Entry(_outcome(task, metric, each, Answered(too_long[each.item.id]), 0.0), None)
        for each in rendered
        if each.item.id in too_long
    }


def _ask(asker: Asker, task: Task, metric: Metric, chunk: Sequence[Rendered]) -> list[Entry]:
    """Ask one chunk. What it took in time is shared out evenly: its items were answered together."""
    clock, began = CpuClock(asker.runner.pids()), time.perf_counter()
    answers = asker.ask(chunk)
    seconds, cpu = time.perf_counter() - began, clock.read()
    share = None if cpu is None else cpu / len(chunk)
    return [
        Entry(_outcome(task, metric, each, answered, seconds / len(chunk)), share)
        for each, answered in zip(chunk, answers, strict=True)
    ]


def _outcome(task: Task, metric: Metric, each: Rendered, answered: Answered, seconds: float) -> Outcome:
    """One answer with what it is worth."""
    scored = _scored(task, metric, each.item, answered)
    return Outcome(
        id=each.item.id,
        expected=each.item.expected,
        answer=scored.answer,
        output=answered.output,
        score=scored.score,
        seconds=seconds,
        tokens=answered.tokens,
        prompt=each.text,
        statistics=scored.statistics,
    )


def _scored(task: Task, metric: Metric, item: Item, answered: Answered) -> Scored:
    if answered.text_score is not None:
        return metric.score_text(answered.text_score)
    if answered.written:
        return metric.score(item, answered.output, task)
    if answered.picked is None:  # not asked, or nothing finite came back: worth what an empty answer is
        return metric.score(item, "", task)
    scored = metric.score(item, answered.picked, task)
    # It was picked, not read: two choices that differ in punctuation alone are still two.
    same = scored.answer == answered.picked
    return scored if same else Scored(answered.picked, float(answered.picked == item.expected))


def _evaluation(
    runner: Runner, task: Task, split: Split, metric: Metric, entries: Sequence[Entry], warnings: tuple[str, ...]
) -> Evaluation:
    outcomes = tuple(entry.outcome for entry in entries)
    quality = interval(metric, outcomes, seed=task.seed)
    if quality.low == quality.high:
        warnings = (*warnings, f"no interval can be given for {task.metric} from {quality.n} item(s); add rows")
    cpu = [entry.cpu_s for entry in entries if entry.cpu_s is not None]
    cpu_s_per_item = sum(cpu) / len(cpu) if cpu else None
    seconds = sum(outcome.seconds for outcome in outcomes)
    return Evaluation(
        model=runner.model.name,
        model_digest=runner.model.digest,
        task=task.name,
        task_digest=task.digest,
        split=split,
        metric=task.metric,
        quality=quality,
        unanswered=unanswered(outcomes),
        seconds=seconds,
        cpu_s_per_item=cpu_s_per_item,
        outcomes=outcomes,
        engine=runner.engine,
        higher_is_better=metric.higher_is_better,
        measurements=_costs(seconds, cpu, len(outcomes)),
        warnings=warnings,
    )


def _costs(seconds: float, cpu: Sequence[float], n: int) -> tuple[Measurement, ...]:
    """Time per item, as clock and as processor time."""
    machine = machine_id()
    wall = Measurement("seconds_per_item", "s", seconds / n, n=n, method="wall clock, items batched", machine=machine)
    if not cpu:
        why = "the model runs where its processor time cannot be seen"
        return wall, Measurement("cpu_s_per_item", "s", None, why=why, machine=machine)
    method = "user and system time of the model's processes and of the thread that asks"
    per_item = sum(cpu) / len(cpu)
    return wall, Measurement("cpu_s_per_item", "s", per_item, n=len(cpu), method=method, machine=machine)
