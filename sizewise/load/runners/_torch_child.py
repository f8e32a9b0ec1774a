"""The process that holds one torch model: loads it, then answers the calls of `torch.py`."""

import os
from collections.abc import Callable
from typing import Any

import torch

from sizewise.core.errors import EngineFailed, UsageError
from sizewise.load.checkpoint import encoder
from sizewise.load.checkpoint.causal import Causal
from sizewise.load.checkpoint.weights import Loaded, load
from sizewise.load.child import Host
from sizewise.load.templates import split_guarded


class Server:
    """The functions that the parent can call."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.loaded: Loaded | None = None
        self.causal: Causal | None = None

    def functions(self) -> dict[str, Callable[..., Any]]:
        """Name -> function."""
        return {
            "load": self.load,
            "embed": self.embed,
            "generate": self.generate,
            "score": self.score,
            "score_texts": self.score_texts,
            "count_tokens": self.count_tokens,
            "encode": self.encode,
            "decode": self.decode,
        }

    def load(self, threads: int | None, **arguments: Any) -> dict[str, Any]:
        """Load the model; see `torch_load.load`. Answers what the parent has to know of it."""
        import transformers

        torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
        self.loaded = loaded = load(**arguments)
        if not loaded.pooling:
            self.causal = Causal(loaded.model, loaded.tokenizer, loaded.context_length, self._step, self.host.check)
        precision = str(loaded.model.dtype).removeprefix("torch.")
        return {
            "engine": f"torch {torch.__version__}, transformers {transformers.__version__}, {precision}",
            "context_length": loaded.context_length,
            "template": getattr(loaded.tokenizer, "chat_template", None),
            "bos": loaded.tokenizer.bos_token or "",
            "eos": loaded.tokenizer.eos_token or "",
            "control": [token.content for token in loaded.tokenizer.added_tokens_decoder.values() if token.special],
        }

    def embed(self, texts: list[str]) -> tuple[list[int], bytes]:
        """Answers the shape, and the float32 vectors."""
        loaded = self._need_loaded()
        vectors = encoder.embed(
            loaded.model,
            loaded.tokenizer,
            texts,
            max_length=loaded.context_length,
            pooling=loaded.pooling or "mean_tokens",
            step=lambda done: self._step(done, len(texts)),
        )
        return list(vectors.shape), vectors.tobytes()

    def generate(self, requests: list[dict[str, Any]], parallel: int) -> list[dict[str, Any]]:
        """Answers replies; the pieces go out as events."""
        return self._need_causal().generate(
            requests, parallel, lambda index, text: self.host.tell(index=index, text=text)
        )

    def score(self, requests: list[tuple[str, list[str]]]) -> list[list[tuple[float, int, bool]]]:
        """Answers (log-probability, tokens, greedy) of each continuation."""
        return self._need_causal().score(requests)

    def score_texts(self, texts: list[str], window: int) -> list[tuple[float, int]]:
        """Answers (log-probability, tokens) of each text."""
        return self._need_causal().score_texts(texts, window)

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Answers the number of tokens of each text."""
        rows = self._need_loaded().tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return [len(row) for row in rows]

    def encode(self, text: str, bos: bool) -> list[int]:
        """Answers token ids; control tokens count as such, except where the text is guarded."""
        if bos and self.causal:
            return self.causal.encode(text)
        tokenizer = self._need_loaded().tokenizer
        rows = [tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in split_guarded(text)]
        return [token for row in rows for token in row]

    def decode(self, tokens: list[int]) -> str:
        """Answers the text of token ids."""
        tokenizer = self._need_loaded().tokenizer
        wrong = next((token for token in tokens if not 0 <= token < len(tokenizer)), None)
        if wrong is not None:
            raise UsageError(f"{wrong} is no token: the vocabulary has {len(tokenizer)}, from 0")
        return str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False))

    def _step(self, done: int, total: int) -> None:
        self.host.check()
        self.host.tell(done=done, total=total)

    def _need_loaded(self) -> Loaded:
        if self.loaded is None:
            raise EngineFailed("no model is loaded in this process")
        return self.loaded

    def _need_causal(self) -> Causal:
        if self.causal is None:
            raise EngineFailed("no causal language model is loaded in this process")
        return self.causal


if __name__ == "__main__":
    host = Host()
    host.serve(Server(host).functions())
