"""A small language model in memory: byte n-grams with back-off, counted from a text. Deterministic; runs everywhere."""

import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sizewise.core.digests import digest_of_bytes
from sizewise.core.events import Listener, Progress, silent
from sizewise.core.model import Model
from sizewise.core.requests import Chunk, GenerateRequest, OnChunk, Reply, Score, ScoreRequest, TextScore
from sizewise.core.task import Item, Kind, Task, changed
from sizewise.load.runner import Ability

_ALL: frozenset[Ability] = frozenset({"generate", "chat", "score", "text_score"})


class NgramRunner:
    """One token is one byte. `pause_s` is slept per request, so that a test has time to interrupt."""

    engine = "ngram 1"
    raw_input = False

    def __init__(
        self,
        text: str,
        *,
        order: int = 4,
        context: int | None = 4096,
        abilities: frozenset[Ability] = _ALL,
        pause_s: float = 0.0,
        name: str = "ngram",
    ) -> None:
        self.order, self.abilities, self.pause_s = order, abilities, pause_s
        self.requests: list[Any] = []  # everything that was asked, in order
        self.batches: list[int] = []
        self.closed = False
        data = text.encode()
        digest = digest_of_bytes(data + bytes([order]))
        self.model = Model(name, "gguf", digest, {}, len(data), "ngram", parameters=1000, context_length=context)
        self.counts: list[dict[bytes, Counter[int]]] = [defaultdict(Counter) for _ in range(order + 1)]
        for at, byte in enumerate(data):
            for size in range(min(order, at) + 1):
                self.counts[size][data[at - size : at]][byte] += 1

    def _probability(self, before: bytes, byte: int) -> float:
        value = 1 / 256
        for size in range(min(self.order, len(before)) + 1):
            seen = self.counts[size].get(before[len(before) - size :])
            if seen:
                value = (seen[byte] + value) / (seen.total() + 1)
        return value

    def _logprob(self, before: bytes, text: bytes) -> float:
        return sum(math.log(self._probability(before + text[:at], byte)) for at, byte in enumerate(text))

    def generate(
        self, requests: Sequence[GenerateRequest], on_chunk: OnChunk | None = None, listen: Listener = silent
    ) -> list[Reply]:
        self.requests += requests
        self.batches.append(len(requests))
        return [self._reply(index, request, on_chunk) for index, request in enumerate(requests)]

    def _reply(self, index: int, request: GenerateRequest, on_chunk: OnChunk | None) -> Reply:
        time.sleep(self.pause_s)
        began = time.perf_counter()
        prompt = request.prompt
        if prompt is None:
            prompt = "".join(f"{message.role}: {message.content}\n" for message in request.messages) + "assistant:"
        text, first = b"", None
        while len(text) < request.sampling.max_tokens:
            before = prompt.encode() + text
            byte = max(range(32, 127), key=lambda b: self._probability(before, b))
            newline = self._probability(before, 10)
            text += bytes([10 if newline > self._probability(before, byte) else byte])
            first = first or time.perf_counter() - began
            if on_chunk:
                on_chunk(index, Chunk(text[-1:].decode()))
            for stop in request.sampling.stop:
                if stop.encode() in text:
                    short = text[: text.index(stop.encode())].decode()
                    return Reply(short, "stop", len(prompt), len(text), first, time.perf_counter() - began)
        return Reply(text.decode(), "length", len(prompt), len(text), first, time.perf_counter() - began)

    def score(self, requests: Sequence[ScoreRequest], listen: Listener = silent) -> list[list[Score]]:
        self.requests += requests
        self.batches.append(len(requests))
        answers = []
        for done, request in enumerate(requests, start=1):
            time.sleep(self.pause_s)
            before = request.prompt.encode()
            texts = [continuation.encode() for continuation in request.continuations]
            answers.append([Score(self._logprob(before, text), len(text), False) for text in texts])
            listen(Progress("score", done, len(requests)))
        return answers

    def score_texts(self, texts: Sequence[str], window: int = 512, listen: Listener = silent) -> list[TextScore]:
        self.requests += texts
        found = []
        for text in texts:
            data = text.encode()
            pieces = [data[at : at + window] for at in range(0, len(data), window)]
            total = sum(self._logprob(piece[:1], piece[1:]) for piece in pieces)
            found.append(TextScore(total, len(data) - len(pieces), len(data)))
        return found

    def embed(self, texts: Sequence[str], listen: Listener = silent) -> NDArray[np.float32]:
        rows = np.array([np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=256) for text in texts])
        vectors: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.encode()) for text in texts]

    def pids(self) -> list[int]:
        return [os.getpid()]

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def make_task(kind: Kind, test: Sequence[Item], train: Sequence[Item] = (), **changes: Any) -> Task:
    """A task of these items."""
    labels = sorted({item.expected for item in (*test, *train) if item.expected}) if kind == "classify" else ()
    draft = Task(
        name="words",
        kind=kind,
        metric=changes.pop("metric", "accuracy"),
        prompt="{input}\nAnswer:",
        labels=tuple(labels),
        shots=0,
        format="text",
        max_tokens=12,
        stop=("\n",),
        system="",
        separator="\n\n",
        answer_prefix=" ",
        seed=0,
        splits={"test": tuple(test), "train": tuple(train)} if train else {"test": tuple(test)},
        source="words.toml",
        digest="",
    )
    return changed(draft, **changes)


COLOURS = "The sky: blue\nAnswer: blue\n\nGrass: green\nAnswer: green\n\n" * 20


def colour_items(count: int, split: str = "test") -> list[Item]:
    """Questions whose answer the n-grams of COLOURS know now and then."""
    things = ("The sky", "Grass", "A leaf", "The sea")
    return [
        Item(f"{split}:{i}", f"{things[i % 4]} {'and so on ' * (i % 5)}{i}", ("blue", "green", "green", "blue")[i % 4])
        for i in range(count)
    ]
