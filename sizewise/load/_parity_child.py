"""The process that holds one model while it is compared with its export: token ids, log-probabilities, greedy answers.

Both engines compute as exactly as they can here: 32-bit numbers, keys and values too. What is compared is the model;
how fast it is served is decided elsewhere.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sizewise.core.errors import EngineFailed
from sizewise.load.child import Host
from sizewise.load.llama.c import log_to
from sizewise.load.llama.model import NativeContext, NativeModel
from sizewise.load.llama.score import encode


class Engine(Protocol):
    """What both engines can do."""

    def describe(self) -> dict[str, Any]:
        """Template and the texts of the tokens that begin and end a text."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, control tokens read as such."""
        ...

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """(tokens, vocabulary)."""
        ...


class Llama:
    """A GGUF in llama.cpp."""

    def __init__(self, path: str, threads: int, vocab_only: bool) -> None:
        log_to(lambda _level, _text: None)
        self.model = NativeModel(Path(path), vocab_only=vocab_only)
        self.threads = threads

    def describe(self) -> dict[str, Any]:
        """Texts of BOS and EOS; the template is in the file's header, which the parent reads."""
        return {"bos": self.model.token_text(self.model.bos), "eos": self.model.token_text(self.model.eos)}

    def encode(self, text: str) -> list[int]:
        """As the runner does it."""
        return encode(self.model, text)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """One pass, all positions."""
        count = len(tokens)
        context = NativeContext(
            self.model,
            n_ctx=max(64, count),
            n_batch=max(64, count),
            n_ubatch=max(64, count),
            n_threads=self.threads,
            n_threads_batch=self.threads,
            flash_attn_type=0,
            type_k=0,
            type_v=0,
        )
        try:
            context.decode(tokens, range(count), [[0]] * count, [True] * count)
            return context.logits(count)
        finally:
            context.close()


class Torch:
    """A checkpoint in transformers."""

    def __init__(self, what: str, kind: str, files: dict[str, str], threads: int) -> None:
        import torch

        from sizewise.load.checkpoint.causal import Causal
        from sizewise.load.checkpoint.weights import load

        torch.set_num_threads(threads)
        loaded = load(what, kind, files, dtype="float32", device="cpu", context=None, parameters=None)
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.causal = Causal(loaded.model, loaded.tokenizer, loaded.context_length, lambda *_: None, lambda: None)

    def describe(self) -> dict[str, Any]:
        """Template, and texts of BOS and EOS."""
        tokenizer = self.tokenizer
        return {
            "bos": tokenizer.bos_token or "",
            "eos": tokenizer.eos_token or "",
            "template": getattr(tokenizer, "chat_template", None),
        }

    def encode(self, text: str) -> list[int]:
        """As the runner does it."""
        return self.causal.encode(text)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """One pass, all positions."""
        import torch

        with torch.inference_mode():
            found = self.model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0]
        return np.asarray(found.float().numpy())


class Server:
    """The functions that the parent can call."""

    def __init__(self) -> None:
        self.engine: Engine | None = None

    def functions(self) -> dict[str, Callable[..., Any]]:
        """Name -> function."""
        return {"open": self.open, "encode": self.encode, "top": self.top, "at": self.at, "greedy": self.greedy}

    def open(
        self, what: str, kind: str, files: dict[str, str], threads: int | None, vocab_only: bool = False
    ) -> dict[str, Any]:
        """Load a model in the engine that its kind is made for."""
        count = threads or len(os.sched_getaffinity(0))
        if kind == "gguf":
            self.engine = Llama(next(iter(files.values())), count, vocab_only)
        else:
            self.engine = Torch(what, kind, files, count)
        return self.engine.describe()

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text."""
        return [self._need().encode(text) for text in texts]

    def top(self, rows: list[list[int]], count: int) -> tuple[list[int], bytes]:
        """The `count` likeliest next tokens at each position of each row: (positions, count, 2), id and logprob."""
        found = []
        for row in rows:
            logprobs = _log_softmax(self._need().logits(row))
            best = np.argsort(-logprobs, axis=1, kind="stable")[:, :count]
            found.append(np.stack([best.astype(np.float64), np.take_along_axis(logprobs, best, 1)], axis=2))
        joined = np.concatenate(found)
        return list(joined.shape), joined.tobytes()

    def at(self, rows: list[list[int]], wanted: list[list[list[int]]]) -> tuple[list[int], bytes]:
        """Log-probabilities of named tokens: (positions, count)."""
        found = []
        for row, ids in zip(rows, wanted, strict=True):
            logprobs = _log_softmax(self._need().logits(row))
            found.append(np.take_along_axis(logprobs, np.array(ids, np.int64), 1))
        joined = np.concatenate(found)
        return list(joined.shape), joined.tobytes()

    def greedy(self, rows: list[list[int]], count: int) -> list[list[tuple[int, float]]]:
        """`count` greedy tokens after each row, each with its lead over the second (in log-probability)."""
        answers = []
        for row in rows:
            tokens, steps = list(row), []
            for _ in range(count):
                last = _log_softmax(self._need().logits(tokens)[-1:])[0]
                best, second = np.argsort(-last, kind="stable")[:2]
                steps.append((int(best), float(last[best] - last[second])))
                tokens.append(int(best))
            answers.append(steps)
        return answers

    def _need(self) -> Engine:
        if self.engine is None:
            raise EngineFailed("no model is loaded in this process")
        return self.engine


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=1, keepdims=True)))


if __name__ == "__main__":
    Host().serve(Server().functions())
