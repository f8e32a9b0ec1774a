"""The engine for GGUF files: llama.cpp, in a child process for each loaded model."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sizewise.core.errors import EngineFailed, Unsupported, UsageError
from sizewise.core.events import Listener, Progress, silent
from sizewise.core.model import Model
from sizewise.core.requests import (
    Chunk,
    GenerateRequest,
    OnChunk,
    Reply,
    Score,
    ScoreRequest,
    TextScore,
)
from sizewise.load.child import Child
from sizewise.load.facts import ADAPTER_FILE, GGUF_FILE
from sizewise.load.gguf.file import GgufInfo, read_gguf
from sizewise.load.llama.c import WANTED
from sizewise.load.llama.score import TokenScore
from sizewise.load.llama.stream import Connections, complete
from sizewise.load.runner import Ability, Options
from sizewise.load.templates import ChatForm

# Architectures without a next token: what they make of a text is an embedding.
ENCODERS = frozenset(
    ("bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert")
)
_CONTEXT = 4096  # where the file does not say


class LlamaCpp:
    """A GGUF model. Nothing is loaded before it is needed; after a crash the next call starts a new child."""

    raw_input = False
    engine = f"llamacpp {WANTED}"

    def __init__(self, model: Model, options: Options = Options()) -> None:  # noqa: B008 (frozen)
        """Check the file and start the child.

        Raises:
            BadModel: the file is cut short, is no GGUF or has an unknown architecture.
            Unsupported: the model is no GGUF file.
        """
        if model.kind != "gguf":
            raise Unsupported(f"{model.name}: the llamacpp engine runs GGUF files, not a {model.kind}")
        self.model, self.options = model, options
        self.warnings: list[str] = []
        self._path = model.files.get(GGUF_FILE) or next(iter(model.files.values()))
        self._info: GgufInfo = read_gguf(self._path)
        self.context_length = self._info.context_length or _CONTEXT
        if options.context:
            self.context_length = min(options.context, self.context_length)
        self._threads = options.threads or len(os.sched_getaffinity(0))
        self._parallel = max(1, options.parallel)
        self._start = threading.Lock()
        self._closed = False
        self._child, words = self._open()
        named = {key: words[key] for key in ("bos", "eos", "control")}
        self._chat = ChatForm.of(model, self._info.template, architecture=self._info.architecture, **named)
        self.abilities: frozenset[Ability] = frozenset(self._abilities())

    def generate(
        self, requests: Sequence[GenerateRequest], on_chunk: OnChunk | None = None, listen: Listener = silent
    ) -> list[Reply]:
        """Answer each request; see the protocol. Up to `Options.parallel` at once."""
        self._need("generate")
        if not requests:
            return []
        child = self._alive()
        prompts = child.call("tokenize", texts=[self.prompt(request) for request in requests])[0]
        limits = [self._limit(len(one), request) for one, request in zip(prompts, requests, strict=True)]
        room = max(len(one) + limit for one, limit in zip(prompts, limits, strict=True))
        server = child.call("serve", tokens=room)[0]
        connections = Connections(server["address"].partition("://")[2], server["key"])
        one_at_a_time = threading.Lock()

        def tell(index: int) -> Callable[[str], None] | None:
            if on_chunk is None:
                return None

            def hear(text: str) -> None:
                with one_at_a_time:
                    on_chunk(index, Chunk(text))

            return hear

        def answer(i: int) -> Reply:
            try:
                return complete(connections, prompts[i], limits[i], requests[i].sampling, tell(i))
            except EngineFailed as error:
                if connections.closed:
                    raise
                raise self._reason(child, error) from error

        return self._together(len(requests), answer, connections, listen)

    def score(self, requests: Sequence[ScoreRequest], listen: Listener = silent) -> list[list[Score]]:
        """Log-probability of each continuation; see the protocol."""
        self._need("score")
        asked = [(request.prompt, request.continuations) for request in requests]
        rows = self._alive().call("score", self._hear("score", listen), requests=asked)[0]
        return [[Score(*numbers) for numbers in row] for row in rows]

    def score_texts(self, texts: Sequence[str], window: int = 512, listen: Listener = silent) -> list[TextScore]:
        """Log-probability of whole texts in windows; see the protocol."""
        self._need("text_score")
        rows = self._alive().call("score_texts", self._hear("score", listen), texts=list(texts), window=window)[0]
        return [TextScore(*numbers) for numbers in rows]

    def token_scores(self, tokens: Sequence[int], top: int, first: int = 0) -> list[TokenScore]:
        """Log-probability of each of `tokens[first:]` given all before it, and the `top` likeliest at its place."""
        self._need("score")
        rows = self._alive().call("token_scores", tokens=list(tokens), top=top, first=first)[0]
        return [TokenScore(logprob, tuple((token, value) for token, value in best)) for logprob, best in rows]

    def next_token(self, prompt: str) -> NDArray[np.float64]:
        """(vocabulary,) natural-log probabilities of the token that follows a prompt."""
        self._need("score")
        return np.frombuffer(self._alive().call("next_token", prompt=prompt)[1], np.float64).copy()

    def embed(self, texts: Sequence[str], listen: Listener = silent) -> NDArray[np.float32]:
        """(n, width) L2-normalised embeddings."""
        self._need("embed")
        shape, data = self._alive().call("embed", self._hear("embed", listen), texts=list(texts))
        return np.frombuffer(data, np.float32).reshape(shape).copy()

    def rank(self, query: str, documents: Sequence[str]) -> tuple[list[float], list[int]]:
        """A reranker's score of a query with each document, and the tokens of each pair.

        Raises:
            Unsupported: the model is no reranker.
        """
        listen = self._hear("rank", silent)
        rows = self._alive().call("rank", listen, query=query, documents=list(documents))[0]
        return [score for score, _ in rows], [tokens for _, tokens in rows]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text as plain text, without BOS."""
        counts: list[int] = self._alive().call("count", texts=list(texts))[0]
        return counts

    def encode(self, text: str, *, special: bool, bos: bool) -> list[int]:
        """Token ids. `special`: texts of control tokens count as such; `bos`: begin as the model's prompts begin."""
        rows: list[list[int]] = self._alive().call("encode", texts=[text], special=special, bos=bos)[0]
        return rows[0]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids; raises UsageError for ids outside the vocabulary."""
        return self._alive().call("decode", tokens=list(tokens))[1].decode("utf-8", "replace")

    def prompt(self, request: GenerateRequest) -> str:
        """The whole text that the model continues; what control tokens users wrote are marked as plain text."""
        if request.prompt is not None:
            return request.prompt
        if not self._chat.known:
            self._warn(f"{self.model.name} has no chat template: it gets the messages as plain text")
        return self._chat.render(self.model.conversation(request.messages))

    def pids(self) -> list[int]:
        """The child, where one runs."""
        return [self._child.pid] if self._child.alive else []

    def close(self) -> None:
        """End the child. Safe to call twice."""
        self._closed = True
        self._child.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _abilities(self) -> tuple[Ability, ...]:
        if self._info.architecture in ENCODERS:
            return ("embed",)
        able: tuple[Ability, ...] = ("generate", "score", "text_score", "embed")
        return (*able, "chat") if self._chat.known else able

    def _open(self) -> tuple[Child, dict[str, Any]]:
        child = Child("sizewise.load.runners._llamacpp_child", self.model.name)
        try:
            words = child.call(
                "open",
                path=str(self._path),
                threads=self._threads,
                context=self.context_length,
                parallel=self._parallel,
                kv_bytes_per_token=self._info.kv_bytes_per_token or 0,
                adapters=[str(path) for title, path in self.model.files.items() if title == ADAPTER_FILE],
            )[0]
        except BaseException:
            child.close()
            raise
        return child, words

    def _alive(self) -> Child:
        """The child; a new one where the last one died."""
        with self._start:
            if self._closed:
                raise EngineFailed(f"{self.model.name}: the model was closed")
            if not self._child.alive:
                self._child.close()
                self._child, _ = self._open()
            return self._child

    def _limit(self, tokens: int, request: GenerateRequest) -> int:
        """How many tokens may be generated after a prompt of so many."""
        if tokens >= self.context_length:
            raise UsageError(
                f"{self.model.name}: a prompt of {tokens} tokens leaves no room in the context of {self.context_length}"
            )
        if request.sampling.max_tokens < 1:
            raise UsageError(f"max_tokens must be at least 1, not {request.sampling.max_tokens}")
        return min(request.sampling.max_tokens, self.context_length - tokens)

    def _together(
        self, count: int, answer: Callable[[int], Reply], connections: Connections, listen: Listener
    ) -> list[Reply]:
        """Run requests side by side; the first failure ends all."""
        what = f"{self.model.name}: generate"
        replies: dict[int, Reply] = {}
        with ThreadPoolExecutor(min(count, self._parallel)) as pool:
            futures = {pool.submit(answer, i): i for i in range(count)}
            try:
                for future in as_completed(futures):
                    replies[futures[future]] = future.result()
                    listen(Progress(what, len(replies), count))
            except BaseException:  # Ctrl-C too: passed on as soon as the streams have ended
                pool.shutdown(wait=False, cancel_futures=True)
                connections.close()
                raise
        return [replies[i] for i in range(count)]

    def _reason(self, child: Child, error: EngineFailed) -> EngineFailed:
        """Why a stream broke: the child's own end, where it died."""
        try:
            child.call("count", texts=[])
        except EngineFailed as death:
            return death
        return error

    def _need(self, ability: Ability) -> None:
        if ability not in self.abilities:
            raise Unsupported(f"{self.model.name} ({self._info.architecture}) cannot {ability.replace('_', ' ')}")

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def _hear(self, verb: str, listen: Listener) -> Callable[[dict[str, Any]], None]:
        return lambda event: listen(Progress(f"{self.model.name}: {verb}", event["done"], event["total"]))
