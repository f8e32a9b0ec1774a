"""A fit and a comparison made by hand, with figures such as real runs give."""

import pytest

from sizewise.core.measurement import Measurement, unmeasured
from sizewise.core.results import (
    Bar,
    Candidate,
    ComparedAnswer,
    ComparedModel,
    Comparison,
    Decision,
    Difference,
    FitResult,
    Interval,
)

MACHINE = {
    "cpu": "AMD EPYC 7B13",
    "cores": 2,
    "memory_bytes": 25_200_000_000,
    "system": "Linux 6.8",
    "python": "3.11.9",
}
WATTS = "12 W for each busy core times CPU seconds"


def interval(value: float, half: float, n: int) -> Interval:
    return Interval(value, round(value - half, 4), round(value + half, 4), n)


def per_class(*rows: tuple[str, float, float, float, float]) -> dict[str, dict[str, float]]:
    return {label: {"precision": p, "recall": r, "f1": f1, "n": n} for label, p, r, f1, n in rows}


def candidates() -> tuple[Candidate, ...]:
    dearer = "behind the best by 5.9 points, 4.0 to 7.8, more than the 2 allowed"
    return (
        Candidate("majority", "majority", interval(0.552, 0.019, 2755), interval(0.546, 0.02, 2418), 2.1e-7, 4e-7, 0,
                  "below the bar on the development split"),
        Candidate("sentiment-tfidf", "tfidf", interval(0.803, 0.015, 2755), interval(0.8073, 0.0157, 2418), 5.2e-5,
                  1.9e-4, 1_240_000, memory_bytes=118_000_000, digest="sha256:" + "a1" * 32,
                  left_because=dearer),
        Candidate("sentiment-minilm", "embedding", interval(0.858, 0.013, 2755), interval(0.8613, 0.0138, 2418),
                  0.0043, 0.0061, 91_000_000, memory_bytes=262_000_000, latency_p95_s=0.0094,
                  difference=Difference(-0.0078, -0.0191, 0.0028, 2418, 0.95, 312, 0.17, 9400),
                  energy_j_per_item=Measurement("energy_j_per_item", "J", 0.052, provenance="estimated", method=WATTS),
                  usd_per_1000_items=Measurement("usd_per_1000_items", "USD", 0.00006, provenance="stated",
                                                 method="0.05 USD per machine hour"),
                  per_class=per_class(("positive", 0.874, 0.871, 0.872, 1320), ("negative", 0.846, 0.849, 0.848, 1098)),
                  confusion={"positive": {"positive": 1150, "negative": 170},
                             "negative": {"positive": 166, "negative": 932}},
                  examples=({"input": "this is a very nice phone, but there is no warranty on it.",
                             "expected": "positive", "answer": "positive"},
                            {"input": "I had to \"focus\" on the drawbacks, so don't think i hate this camera.",
                             "expected": "positive", "answer": "negative"}),
                  digest="sha256:" + "b2" * 32),
        Candidate("smollm2:135m-q2_k", "prompted", interval(0.531, 0.056, 300), None, 0.138, 0.171, 88_000_000,
                  "below the majority class on the development split", shots=0),
        Candidate("smollm2:135m-q4_1", "prompted", interval(0.553, 0.056, 300), None, 0.149, 0.182, 98_000_000,
                  "below the bar on the development split", shots=0),
        Candidate("smollm2:135m-q4_1", "prompted", interval(0.617, 0.055, 300), None, 0.201, 0.196, 98_000_000,
                  "below the bar on the development split", shots=8),
        Candidate("smollm2:135m-f16", "prompted", interval(0.62, 0.055, 300), None, 0.262, 0.305, 270_900_000,
                  "below the bar on the development split", shots=8),
        Candidate("sentiment-smollm2-head", "embedding", interval(0.872, 0.012, 2755), interval(0.8691, 0.0134, 2418),
                  0.091, 0.118, 270_500_000, memory_bytes=611_000_000,
                  energy_j_per_item=Measurement("energy_j_per_item", "J", 1.1, provenance="estimated", method=WATTS),
                  usd_per_1000_items=Measurement("usd_per_1000_items", "USD", 0.0013, provenance="stated",
                                                 method="0.05 USD per machine hour"),
                  per_class=per_class(("positive", 0.881, 0.879, 0.88, 1320), ("negative", 0.855, 0.857, 0.856, 1098)),
                  digest="sha256:" + "c3" * 32),
        Candidate("gpt-large", "prompted", None, None, None, None, None, "the endpoint does not answer"),
    )  # fmt: skip


@pytest.fixture
def fit_result() -> FitResult:
    return FitResult(
        task="sentiment",
        task_digest="sha256:" + "d4" * 32,
        metric="accuracy",
        decision=Decision(
            "pass",
            "sentiment-minilm",
            "sentiment-minilm, 91 MB, gets 86.1 % right and the best found, sentiment-smollm2-head at 271 MB, 86.9 %; "
            "with 2,418 rows the difference is between \u22121.9 and +0.3 points, inside the 2 you allowed.",
            smallest="sentiment-minilm",
            fastest="sentiment-minilm",
            cheapest="sentiment-minilm",
        ),
        bar=Bar(margin=0.02),
        candidates=candidates(),
        machine=MACHINE,
        seed=0,
        seconds=214.0,
        limits={"latency_s": 0.2, "memory_bytes": None},
        notes=("3 duplicate rows of the development split were left out",),
        command="sizewise fit examples/sentiment.toml --margin 2 --seed 0",
    )


ANSWERS = {
    "q4_1": (
        "Large language models know more and reason better, but they are slow, expensive to run and need special "
        "hardware. Small language models answer quickly on an ordinary computer and keep data at home, but they make "
        "more mistakes on questions far from what they were tuned for.",
        "```python\nclass Transactions:\n    def __init__(self, rows):\n        self.rows = rows\n\n"
        "    def category(self, row):\n        if 'grocery' in row['shop']:\n            return 'food'\n"
        "        return 'other'\n```",
        "The hypotenuse is found with a² + b² = c².\n3² + 4² = 9 + 16 = 25\nc = √25 = 5",
    ),
    "f16": (
        "Large language models know more and reason better, but they are slow, costly to run and need special "
        "hardware. Small language models answer quickly on an ordinary laptop and keep data at home, but they make "
        "more mistakes on questions far from what they were trained for.",
        "```python\nclass Transactions:\n    def __init__(self, transactions):\n        self.rows = transactions\n\n"
        "    def categorise(self, row):\n        if 'grocery' in row['merchant']:\n            return 'food'\n"
        "        return 'other'\n```\n" + "This class holds the rows and tells what each of them was for. " * 18,
        "The hypotenuse is found with a² + b² = c².\n3² + 4² = 9 + 16 = 25\nc = √25 = 5",
    ),
    "q2_k": (
        "There are many models. Models are models of the language. The pros of the language are the pros of the cons.",
        "class class:\n    pass",
        "The hypotenuse is 3 + 4 = 7.",
    ),
}
TITLES = ("Large and small models", "A class for card transactions", "The hypotenuse, step by step")
PROMPTS = (
    "Explain the pros and cons of large and of small language models.",
    "Write a Python class that puts card transactions into categories.",
    "A right triangle has legs of 3 and 4. Work out its hypotenuse step by step.",
)


def compared(name: str, size: int, bits: str, speed: float, memory: int) -> ComparedModel:
    answers = []
    for title, prompt, text in zip(TITLES, PROMPTS, ANSWERS[name], strict=True):
        tokens = max(8, len(text) // 4)
        total = tokens / speed + 0.3
        measurements = (
            Measurement("first_token_s", "s", 8 / speed, method="from the request to the first piece"),
            Measurement("total_s", "s", total, method="from the request to the last piece"),
            Measurement("tokens_per_second", "tokens/s", speed, method="tokens after the first by the time since it"),
            Measurement("tokens", "tokens", float(tokens), method="counted by the engine"),
            Measurement("energy_j", "J", total * 24, provenance="estimated", method=WATTS),
            Measurement("co2_g", "g", total * 24 / 3.6e6 * 400, provenance="estimated", method="400 g for each kWh"),
            unmeasured("cost_usd", "USD", "no price per hour was stated"),
        )
        answers.append(ComparedAnswer(title, prompt, text, "length" if "categorise" in text else "stop", measurements))
    whole = (
        Measurement("parameters", "", 134_515_008.0, method="sum of the tensors' elements"),
        Measurement("load_s", "s", size / 4e8, method="from opening the file to the first answer"),
        Measurement("peak_memory_bytes", "bytes", float(memory), method="resident memory of the model's process"),
        Measurement("tokens_per_second", "tokens/s", speed, method="all tokens by all seconds"),
        Measurement("first_token_s", "s", 8 / speed, method="median over the instructions"),
        Measurement("bits_per_weight", "bits", size * 8 / 134_515_008, method="bytes on disk by weights"),
        Measurement("energy_j", "J", 24 * 30 / speed, provenance="estimated", method=WATTS),
        unmeasured("cost_usd", "USD", "no price per hour was stated"),
    )
    digest = "sha256:" + bits[-1].lower().encode().hex() * 32
    return ComparedModel(f"smollm2:135m-{name}", digest, size, 134_515_008, bits, tuple(answers), whole)


@pytest.fixture
def comparison() -> Comparison:
    return Comparison(
        models=(
            compared("f16", 270_900_000, "F16", 14.2, 402_000_000),
            compared("q4_1", 98_300_000, "Q4_1", 41.7, 228_000_000),
            compared("q2_k", 88_200_000, "Q2_K", 38.9, 214_000_000),
        ),
        machine=MACHINE,
        seconds=41.0,
        max_tokens=160,
        notes=("one model in memory at a time, in the order shown, each after a warm-up",),
        command="sizewise compare smollm2:135m-f16 smollm2:135m-q4_1 smollm2:135m-q2_k",
    )
