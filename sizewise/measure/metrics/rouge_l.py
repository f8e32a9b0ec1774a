"""ROUGE-L: how much of two texts is one common subsequence of words (Lin 2004), as an F-measure.

Computed by the rouge-score package, without stemming. It keeps ASCII letters and digits only: use chrF for a language
that needs more.
"""

from functools import lru_cache
from typing import Any

from sizewise.core.task import Item, Task
from sizewise.measure.metric import Metric, Scored


@lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=False)


def _score(item: Item, output: str, task: Task) -> Scored:
    if not output.strip():
        return Scored(None, None)
    return Scored(output.strip(), float(_scorer().score(item.expected or "", output)["rougeL"].fmeasure))


rouge_l = Metric.of_mean("rouge-l", "F-measure", frozenset({"generate"}), _score)
