"""Number match: the share of items whose final number is the expected one.

1,000 and 1000.0 are the same number; 0.33 and 0.333 are not. `find_number` says which number of an answer is its final.
"""

from sizewise.core.task import Item, Task, parse_number
from sizewise.measure.extract import find_number
from sizewise.measure.metric import Metric, Scored


def _score(item: Item, output: str, task: Task) -> Scored:
    answer = find_number(output)
    if answer is None:
        return Scored(None, None)
    return Scored(format(answer, "f"), float(answer == parse_number(item.expected or "")))


number_match = Metric.of_mean("number-match", "share of items", frozenset({"number"}), _score)
