"""What was gained and lost when a model was made from another: size, cost, speed, and how far its answers have moved.

Sizes are counted, FLOPs follow from the shapes, speed and memory are those of the runner that serves the model, and
quality is taken position by position on two texts, always the same ones. Intervals are bootstrapped over blocks of
`BLOCK` neighbouring tokens, because tokens that share a context are not independent of one another.

    speed_ratio           tokens/s over the parent's, each in the engine that serves it
    perplexity_TEXT       exp of the mean negative log-probability of the text's tokens
    perplexity_ratio_TEXT that over the parent's on the same tokens (paired)
    bits_per_byte_TEXT    the same loss per byte of text: comparable where tokenizers differ
    kl_TEXT               sum p log(p / q), parent p, model q, in nats, mean over positions
    same_top_TEXT         share of positions where both think one token the likeliest
    flips_TEXT            share of positions where one of them has the text's own token in the first place and the other
                          has not (Dutta et al. 2024): the mean can stand still while many answers change

Where nothing could be measured there is no number but the reason.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sizewise.core.errors import SizewiseError
from sizewise.core.events import Listener, silent
from sizewise.core.measurement import Measurement, unmeasured
from sizewise.core.model import Model
from sizewise.load.open import open_runner
from sizewise.load.runner import Options
from sizewise.load.store.store import Store
from sizewise.measure.account_logits import WINDOW, Reading, readings
from sizewise.measure.account_text import Corpus
from sizewise.measure.machine import machine_id
from sizewise.measure.meters.flops import flops
from sizewise.measure.meters.latency import latency
from sizewise.measure.meters.memory import memory
from sizewise.measure.meters.size import size
from sizewise.measure.stats import bootstrap, wilson

Amount = Literal["none", "quick", "full"]
CHARACTERS: dict[Amount, int] = {"quick": 4_000, "full": 40_000}  # of each text
RUNS: dict[Amount, tuple[int, int]] = {"quick": (24, 2), "full": (64, 5)}  # tokens to generate, how often
BLOCK = 32  # neighbouring tokens that are resampled together
_SPEED = ("tokens_per_second", "tokens/s")
_SPREAD = f"95 % bootstrap over blocks of {BLOCK} tokens"
_LOGPROB, _KL, _SAME, _RIGHT, _PARENT_LOGPROB, _PARENT_RIGHT = range(6)

Sums = NDArray[np.float64]


def account(
    model: Model,
    parent: Model | None,
    texts: Sequence[Corpus],
    *,
    amount: Amount = "quick",
    reference: Model | None = None,
    store: Store | None = None,
    threads: int | None = None,
    listen: Listener = silent,
) -> list[Measurement]:
    """Measure a model that was made.

    Args:
        model: what was made.
        parent: what it was made from, for the compression ratio; None where there is none any more.
        texts: what the two read; see `account_text`.
        amount: how often and how long the runner answers; the texts' lengths are the caller's choice.
        reference: what to read the texts with in the parent's place: the same weights for the engine of the model.
        store: for models that open others.
        threads: of each engine; None = all cores.
        listen: hears progress.

    Returns:
        Everything in the order of the table above, with reasons in place of what could not be measured.
    """
    found = [*size(model), _ratio(model, parent), flops(model)]
    speed, held = _speed(model, amount, store, threads, listen)
    found += [speed, _faster(speed, parent, amount, store, threads, listen), held]
    return found + _quality(model, reference or parent, texts, threads, listen)


def _ratio(model: Model, parent: Model | None) -> Measurement:
    if parent is None or not parent.size_bytes:
        return unmeasured("compression_ratio", "", "there is no parent to compare with")
    method = f"bytes on disk over those of {parent.name}"
    return Measurement("compression_ratio", "", model.size_bytes / parent.size_bytes, method=method)


def _speed(
    model: Model, amount: Amount, store: Store | None, threads: int | None, listen: Listener
) -> tuple[Measurement, Measurement]:
    """Tokens per second of answers given alone, and the most memory that they took."""
    tokens, repeats = RUNS[amount]
    try:
        with open_runner(model, options=Options(threads=threads), store=store) as runner, memory(runner.pids()) as peak:
            found = latency(runner, tokens=tokens, repeats=repeats, listen=listen)
            held = peak.measurement()
    except SizewiseError as error:
        return unmeasured(*_SPEED, str(error)), unmeasured("peak_memory_bytes", "bytes", str(error))
    speed = next((one for one in found if one.name == _SPEED[0]), None)
    return speed or unmeasured(*_SPEED, f"{runner.engine} does not write text"), held


def _faster(
    speed: Measurement, parent: Model | None, amount: Amount, store: Store | None, threads: int | None, listen: Listener
) -> Measurement:
    """How many times as fast as its parent a model is, each in the engine that serves it, one run after the other."""
    if parent is None or speed.value is None:
        why = "there is no parent to compare with" if parent is None else speed.why
        return unmeasured("speed_ratio", "", why)
    before, _ = _speed(parent, amount, store, threads, listen)
    if not before.value:
        return unmeasured("speed_ratio", "", before.why)
    low = speed.low / before.high if speed.low and before.high else None
    high = speed.high / before.low if speed.high and before.low else None
    method = f"tokens/s over the {before.value:.3g} of {parent.name}"
    return Measurement(
        "speed_ratio",
        "",
        speed.value / before.value,
        low,
        high,
        speed.n,
        "p5..p95 of both",
        method=method,
        machine=machine_id(),
    )


def _quality(
    model: Model, parent: Model | None, texts: Sequence[Corpus], threads: int | None, listen: Listener
) -> list[Measurement]:
    try:
        found = readings(model, parent, texts, threads=threads, listen=listen)
    except SizewiseError as error:
        return [unmeasured(f"{name}_{text.name}", unit, str(error)) for text in texts for name, unit in _UNITS.items()]
    return [one for reading in found for one in of_reading(reading, parent.name if parent else "")]


_UNITS = {
    "perplexity": "",
    "perplexity_ratio": "",
    "bits_per_byte": "bits",
    "kl": "nats",
    "same_top": "",
    "flips": "",
}


def of_reading(reading: Reading, parent: str = "") -> list[Measurement]:
    """The six figures of one text, each with its interval.

    Args:
        reading: what the model, and perhaps its parent, made of the text.
        parent: the parent's name, to be named in what was compared.
    """
    table, name = reading.table, reading.text.name
    sums = _blocks(table, reading.lengths)
    how = f"{reading.engine}, windows of {WINDOW} tokens, text {reading.text.digest[7:19]}"
    against = f"against {parent}, {how}"
    per_byte = len(table) / len(reading.text.text.encode()) / math.log(2)

    def figure(what: str, value: Callable[[Sums], Sums], method: str) -> Measurement:
        return _figure(f"{what}_{name}", _UNITS[what], value, sums, len(table), method)

    found = [
        figure("perplexity", lambda s: np.exp(-s[:, _LOGPROB] / s[:, -1]), how),
        figure("bits_per_byte", lambda s: -s[:, _LOGPROB] / s[:, -1] * per_byte, how),
    ]
    rest = ("perplexity_ratio", "kl", "same_top", "flips")
    if reading.unlike:
        return found + [unmeasured(f"{what}_{name}", _UNITS[what], reading.unlike) for what in rest]
    flipped = _blocks((table[:, _RIGHT] != table[:, _PARENT_RIGHT]).astype(np.float64)[:, None], reading.lengths)
    found += [
        figure("perplexity_ratio", lambda s: np.exp((s[:, _PARENT_LOGPROB] - s[:, _LOGPROB]) / s[:, -1]), against),
        figure("kl", lambda s: s[:, _KL] / s[:, -1], against),
        figure("same_top", lambda s: s[:, _SAME] / s[:, -1], against),
        _figure(f"flips_{name}", "", lambda s: s[:, 0] / s[:, -1], flipped, len(table), against),
    ]
    return found


def _blocks(table: NDArray[np.float64], lengths: Sequence[int]) -> Sums:
    """(blocks, columns + 1): sums over blocks of neighbours that lie in one window, and their number of tokens."""
    found = []
    start = 0
    for length in lengths:
        for at in range(start, start + length, BLOCK):
            part = table[at : min(at + BLOCK, start + length)]
            found.append(np.append(part.sum(axis=0), len(part)))
        start += length
    return np.array(found)


def _figure(name: str, unit: str, value: Callable[[Sums], Sums], sums: Sums, n: int, method: str) -> Measurement:
    """A ratio of sums with its interval; a share that no resample moves gets Wilson's, of as many items as blocks."""
    point = float(value(sums.sum(axis=0, keepdims=True))[0])
    if not math.isfinite(point):
        return unmeasured(name, unit, "the model's logits are not finite")
    low, high = bootstrap(lambda counts: value(counts @ sums), len(sums), point)
    spread = _SPREAD
    if name.startswith(("same_top", "flips")) and low == high and point in (0.0, 1.0):
        low, high = wilson(point * len(sums), len(sums))
        spread = f"95 % Wilson, {len(sums)} blocks of {BLOCK} tokens"
    low, high = min(low, point), max(high, point)
    return Measurement(name, unit, point, low, high, n, spread, method=method, machine=machine_id())
