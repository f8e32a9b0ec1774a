"""Accuracy: the share of items with the right label or choice."""

import string

from sizewise.core.task import Item, Task
from sizewise.measure.extract import find_choice, find_label
from sizewise.measure.metric import Metric, Scored


def _score(item: Item, output: str, task: Task) -> Scored:
    """1 for the right label, 0 for another, no score where the output names none or more than one."""
    if task.kind == "choose":
        answer = find_choice(output, item.choices)
        names = {answer, string.ascii_uppercase[item.choices.index(answer)]} if answer is not None else set()
        # where choices were listed by letter, the letter is what is expected
        return Scored(answer, None if answer is None else float(item.expected in names))
    answer = find_label(output, task.labels)
    return Scored(answer, None if answer is None else float(answer == item.expected))


accuracy = Metric.of_mean("accuracy", "share of items", frozenset({"classify", "choose"}), _score)
