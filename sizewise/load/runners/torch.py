"""The engine for checkpoints: any causal language model or sentence encoder that transformers knows.

Works on safetensors, and on GGUF files whose architecture transformers can read (their weights are dequantized). The
model lives in a child process.
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sizewise.core.errors import MissingExtra, Unsupported
from sizewise.core.events import Listener, Progress, silent
from sizewise.core.model import Model
from sizewise.core.requests import Chunk, GenerateRequest, OnChunk, Reply, Score, ScoreRequest, TextScore
from sizewise.load.child import Child
from sizewise.load.runner import Ability, Options
from sizewise.load.templates import ChatForm, guard

_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "true",
}


class Torch:
    """A checkpoint, loaded by transformers."""

    raw_input = False

    def __init__(self, model: Model, options: Options = Options()) -> None:  # noqa: B008 (frozen)
        """Start the child and load the model.

        Raises:
            BadModel: the files hold no model that transformers can load.
            DoesNotFit: memory is too small.
            MissingExtra: torch is not installed.
            Unsupported: a kind of model that is not run by torch.
        """
        if model.kind not in ("checkpoint", "encoder", "gguf"):
            raise Unsupported(f"{model.name}: the torch engine runs checkpoints and GGUF files, no {model.kind} models")
        if not all(importlib.util.find_spec(library) for library in ("torch", "transformers")):
            raise MissingExtra("the torch engine", "torch")
        self.model, self.options = model, options
        self.warnings: list[str] = []
        self._child = Child("sizewise.load.runners._torch_child", model.name, _QUIET)
        try:
            self._loaded = self._load()
        except BaseException:
            self._child.close()
            raise
        words = {key: self._loaded[key] for key in ("template", "bos", "eos", "control")}
        self._chat = ChatForm.of(model, architecture=model.architecture, **words)
        self.abilities: frozenset[Ability] = frozenset(self._abilities())
        self.engine: str = self._loaded["engine"]
        self.context_length: int = self._loaded["context_length"]

    def generate(
        self, requests: Sequence[GenerateRequest], on_chunk: OnChunk | None = None, listen: Listener = silent
    ) -> list[Reply]:
        """Answer each request; see the protocol."""
        self._need("generate")
        asked = [{"text": self.prompt(request), "sampling": asdict(request.sampling)} for request in requests]

        def hear(event: dict[str, Any]) -> None:
            if "text" in event:
                if on_chunk:
                    on_chunk(event["index"], Chunk(event["text"]))
            else:
                listen(Progress(f"{self.model.name}: answering", event["done"], event["total"]))

        answers, _ = self._child.call("generate", hear, requests=asked, parallel=self.options.parallel)
        return [Reply(**answer) for answer in answers]

    def score(self, requests: Sequence[ScoreRequest], listen: Listener = silent) -> list[list[Score]]:
        """Log-probabilities of continuations; see the protocol."""
        self._need("score")
        asked = [(request.prompt, request.continuations) for request in requests]
        found, _ = self._child.call("score", self._hear("scoring", listen), requests=asked)
        return [[Score(*score) for score in scores] for scores in found]

    def score_texts(self, texts: Sequence[str], window: int = 512, listen: Listener = silent) -> list[TextScore]:
        """Log-probabilities of whole texts; see the protocol."""
        self._need("text_score")
        found, _ = self._child.call("score_texts", self._hear("reading", listen), texts=list(texts), window=window)
        sizes = [len(text.encode()) for text in texts]
        return [TextScore(logprob, tokens, size) for (logprob, tokens), size in zip(found, sizes, strict=True)]

    def embed(self, texts: Sequence[str], listen: Listener = silent) -> NDArray[np.float32]:
        """(n, width) L2-normalised vectors; a text is cut at the most tokens that the encoder was trained on."""
        self._need("embed")
        shape, data = self._child.call("embed", self._hear("embedding", listen), texts=list(texts))
        return np.frombuffer(data, np.float32).reshape(shape).copy()

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, without BOS."""
        counts: list[int] = self._child.call("count_tokens", texts=list(texts))[0]
        return counts

    def encode(self, text: str, *, special: bool, bos: bool) -> list[int]:
        """Token ids. `special`: texts of control tokens count as such; `bos`: begin as the model's prompts begin."""
        marked = text if special else guard(text, self._chat.control)
        ids: list[int] = self._child.call("encode", text=marked, bos=bos)[0]
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids; raises UsageError for ids outside the vocabulary."""
        text: str = self._child.call("decode", tokens=list(tokens))[0]
        return text

    def pids(self) -> list[int]:
        """The child."""
        return [self._child.pid] if self._child.alive else []

    def close(self) -> None:
        """End the child."""
        self._child.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _load(self) -> dict[str, Any]:
        loaded: dict[str, Any] = self._child.call(
            "load",
            what=self.model.name,
            kind=self.model.kind,
            files={name: str(path) for name, path in self.model.files.items()},
            dtype=self.options.dtype,
            device=self.options.device,
            context=self.options.context,
            threads=self.options.threads,
            parameters=self.model.parameters,
        )[0]
        return loaded

    def prompt(self, request: GenerateRequest) -> str:
        """The whole text that the model continues; control tokens that users wrote are marked as plain text."""
        if request.prompt is not None:
            return request.prompt
        if not self._chat.known:
            self._warn(f"{self.model.name} has no chat template: it gets the messages as plain text")
        return self._chat.render(self.model.conversation(request.messages))

    def _abilities(self) -> tuple[Ability, ...]:
        if self.model.kind == "encoder":
            return ("embed",)
        able: tuple[Ability, ...] = ("generate", "score", "text_score")
        return (*able, "chat") if self._chat.known else able

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def _need(self, ability: Ability) -> None:
        if ability not in self.abilities:
            can = "can only embed" if "embed" in self.abilities else "cannot embed: take a sentence encoder"
            raise Unsupported(f"{self.model.name}: this {self.model.kind} {can}")

    def _hear(self, verb: str, listen: Listener) -> Callable[[dict[str, Any]], None]:
        return lambda event: listen(Progress(f"{self.model.name}: {verb}", event["done"], event["total"]))
