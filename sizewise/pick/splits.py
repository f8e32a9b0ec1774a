"""Which rows choose and which rows judge. Choosing on the rows that judge would praise the luckiest candidate.

The test rows are looked at once, at the end. Candidates are chosen on development rows: the task's own, else a part of
its train rows (which nothing is then trained on), else, where there are no train rows, a part of its test rows.
"""

import random
from collections.abc import Sequence

from sizewise.core.errors import UsageError
from sizewise.core.task import Item, Task, changed

SHARE, MOST = 0.2, 1000  # of the train rows; more than a thousand tell little more and cost a large model much


def with_dev(task: Task, seed: int) -> tuple[Task, str]:
    """The task with a development split.

    Args:
        task: with at least a test split.
        seed: of the draw.

    Returns:
        The task, and a note on where its development rows come from (empty: they are its own).

    Raises:
        UsageError: there are too few rows to set some aside.
    """
    if task.splits.get("dev"):
        return task, ""
    source = "train" if task.splits.get("train") else "test"
    rows = task.splits.get("train") or task.splits.get("test", ())
    chosen = _stratified(rows, min(MOST, round(len(rows) * SHARE)), seed)
    if not chosen:
        raise UsageError(
            f"{task.source}: {len(rows)} {source} rows are too few to choose a model on some of them; add rows, or dev"
        )
    kept = tuple(item for item in rows if item.id not in chosen)
    taken = tuple(item for item in rows if item.id in chosen)
    note = f"chosen on {len(taken):,} of the {len(rows):,} {source} rows, drawn with seed {seed}"
    if source == "train":
        return changed(task, splits={**task.splits, "train": kept, "dev": taken}), note
    return changed(task, splits={**task.splits, "test": kept, "dev": taken}), note + "; the rest judges"


def ordered(items: Sequence[Item], seed: int) -> list[Item]:
    """The items in a fixed random order: its first k are the look at k items."""
    shuffled = list(items)
    random.Random(seed).shuffle(shuffled)
    return shuffled


def _stratified(rows: Sequence[Item], count: int, seed: int) -> frozenset[str]:
    """The ids of `count` rows, each label in its share; a label that has one row only stays where it is."""
    groups: dict[str, list[Item]] = {}
    single = len({item.expected for item in rows}) > len(rows) / 2  # texts or numbers, not labels
    for item in rows:
        groups.setdefault("" if single else item.expected or "", []).append(item)
    generator = random.Random(seed)
    chosen: list[str] = []
    for _, group in sorted(groups.items()):
        generator.shuffle(group)
        exact = count * len(group) / len(rows)
        # A fraction is rounded up with its own probability, so that many rare labels are not all left out.
        take = int(exact) + (generator.random() < exact - int(exact))
        chosen += [item.id for item in group[: min(take, len(group) - 1)]]
    return frozenset(chosen)
