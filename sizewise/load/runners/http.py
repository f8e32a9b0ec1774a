"""The engine for models elsewhere: an Ollama server, or anything that speaks OpenAI's interface.

Requests run side by side in threads. What the endpoint can do is found out by asking it once, when it is opened.
Nothing here can hold a model still: the digest is that of the address.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from sizewise.core.errors import EngineFailed, SizewiseError, UnknownName, Unsupported, UsageError
from sizewise.core.events import Listener, Progress, silent
from sizewise.core.model import Model
from sizewise.core.requests import Chunk, Finish, GenerateRequest, OnChunk, Reply, Score, ScoreRequest, TextScore
from sizewise.load.endpoint import PATIENCE_S, Endpoint, NotFound, Refused
from sizewise.load.runner import Ability, Options
from sizewise.load.wire import Dialect, Ollama, OpenAI, Piece, count_echo, read_echo

_EMBED_BATCH = 64
_PROBE = "a b"
T = TypeVar("T")


class Http:
    """A model behind an address."""

    raw_input = False

    def __init__(self, model: Model, options: Options = Options(), patience_s: float = PATIENCE_S) -> None:  # noqa: B008
        """Connect and find out what the endpoint can do.

        Raises:
            UnknownName: an Ollama server does not have the model.
            Unreachable: nobody answers at the address.
            Unsupported: the model is no endpoint.
            UsageError: the key is missing or wrong.
        """
        protocol, _, self._name = model.remote.partition(":")
        if model.kind != "endpoint" or protocol not in ("openai", "ollama"):
            raise Unsupported(f"{model.name}: the http engine asks endpoints, it runs no {model.kind} models")
        self.model, self.options, self.engine = model, options, f"http {protocol}"
        self._openai = OpenAI()
        self._dialect: Dialect = self._openai if protocol == "openai" else Ollama()
        self._endpoint = Endpoint(model.url, self._dialect.key_variable, patience_s)
        self._gone = threading.Event()
        try:
            self.abilities: frozenset[Ability] = self._discover()
        except BaseException:
            self.close()
            raise

    def generate(
        self, requests: Sequence[GenerateRequest], on_chunk: OnChunk | None = None, listen: Listener = silent
    ) -> list[Reply]:
        """Answer each request; see the protocol. Pieces of different answers come in turn, never at once."""
        turn, over = threading.Lock(), threading.Event()

        def tell(index: int, text: str) -> None:
            with turn:
                if over.is_set():
                    raise EngineFailed(f"{self.model.url}: cancelled")
                if on_chunk:
                    on_chunk(index, Chunk(text))

        jobs = [
            lambda at=at, ask=ask: self._answer(ask, lambda text: tell(at, text)) for at, ask in enumerate(requests)
        ]
        return self._together(jobs, "answering", listen)

    def score(self, requests: Sequence[ScoreRequest], listen: Listener = silent) -> list[list[Score]]:
        """Log-probabilities of continuations, from the echo of `/completions`; see the protocol."""
        self._need("score")
        return self._together([partial(self._scores, request) for request in requests], "scoring", listen)

    def score_texts(self, texts: Sequence[str], window: int = 512, listen: Listener = silent) -> list[TextScore]:
        """Not possible: an endpoint shows no token boundaries before it is asked, so that windows cannot be cut."""
        raise Unsupported(f"{self.model.name}: an endpoint cannot score text in windows; run the model on this machine")

    def embed(self, texts: Sequence[str], listen: Listener = silent) -> NDArray[np.float32]:
        """(n, width) L2-normalised vectors."""
        self._need("embed")
        batches = [list(texts[at : at + _EMBED_BATCH]) for at in range(0, len(texts), _EMBED_BATCH)]
        found = self._together([partial(self._embed, batch) for batch in batches], "embedding", listen)
        return np.concatenate(found) if found else np.zeros((0, 0), np.float32)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, where the endpoint echoes them."""
        self._need("score")
        return self._together([partial(self._count, text) for text in texts], "counting", silent)

    def pids(self) -> list[int]:
        """None: the work is done elsewhere."""
        return []

    def close(self) -> None:
        """Drop the connections."""
        self._gone.set()
        self._endpoint.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _discover(self) -> frozenset[Ability]:
        found: set[Ability] = {"generate", "chat"}
        if isinstance(self._dialect, Ollama):
            try:
                shown = self._endpoint.post("/api/show", {"model": self._name})
            except NotFound as error:
                raise self._unknown() from error
            can = shown.get("capabilities")
            if isinstance(can, list):
                found = {"generate", "chat"} if "completion" in can else set()
                return frozenset(found | {"embed"} if "embedding" in can else found)
            return frozenset(found | {"embed"})
        if self._try(lambda: read_echo(self._echo(_PROBE), "a", " b").tokens > 0):
            found.add("score")
        if self._try(lambda: len(self._embed([_PROBE])) == 1):
            found.add("embed")
        return frozenset(found)

    def _try(self, probe: Callable[[], bool]) -> bool:
        """Whether the endpoint can do something: refusals and nonsense are a no, silence and a bad key are errors."""
        try:
            return probe()
        except (NotFound, Refused, EngineFailed):
            return False

    def _answer(self, request: GenerateRequest, tell: Callable[[str], None]) -> Reply:
        path, body = self._dialect.ask(self._name, request, self.options.context)
        try:
            return self._stream(path, body, tell)
        except NotFound as error:
            raise self._unknown() from error
        except Refused as error:
            if "max_completion_tokens" not in error.detail or self._openai.limit_key not in body:
                raise
            self._openai.limit_key = "max_completion_tokens"
            path, body = self._dialect.ask(self._name, request, self.options.context)
            return self._stream(path, body, tell)

    def _stream(self, path: str, body: dict[str, Any], tell: Callable[[str], None]) -> Reply:
        start, first = time.perf_counter(), None
        texts: list[str] = []
        prompt_tokens = completion_tokens = finish = None
        with self._endpoint.stream(path, body) as lines:
            for piece in self._pieces(lines):
                if piece.text:
                    first = first or time.perf_counter() - start
                    texts.append(piece.text)
                    tell(piece.text)
                finish = piece.finish or finish
                prompt_tokens = piece.prompt_tokens if piece.prompt_tokens is not None else prompt_tokens
                completion_tokens = (
                    piece.completion_tokens if piece.completion_tokens is not None else completion_tokens
                )
        if finish is None:
            raise EngineFailed(f"{self.model.url}: the answer broke off after {len(texts)} pieces, without an end")
        total, end = time.perf_counter() - start, _finish(finish)
        return Reply("".join(texts), end, _count(prompt_tokens), _count(completion_tokens), first, total)

    def _pieces(self, lines: Any) -> Any:
        """What the lines say, up to the end or the first error."""
        for line in lines:
            if self._gone.is_set():
                raise EngineFailed(f"{self.model.url}: closed while answering")
            text = self._dialect.payload(line)
            if text is None:
                continue
            if text == "[DONE]":
                return
            piece: Piece = self._dialect.read(self._endpoint.parse(text))
            if piece.error:
                raise self._endpoint.failure(piece.error)
            yield piece
            if piece.end:
                return

    def _echo(self, text: str) -> dict[str, Any]:
        body = self._endpoint.post("/completions", self._openai.echo(self._name, text))
        choices = body.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise EngineFailed(f"{self.model.url}: sent no choices")
        return choices[0]

    def _count(self, text: str) -> int:
        return count_echo(self._echo(text), text) if text else 0

    def _scores(self, request: ScoreRequest) -> list[Score]:
        return [self._score(request.prompt, continuation) for continuation in request.continuations]

    def _score(self, prompt: str, continuation: str) -> Score:
        bare = prompt.rstrip()  # spaces at the prompt's end go to the continuation
        continuation = prompt[len(bare) :] + continuation
        if not continuation:
            return Score(0.0, 0, True)
        return read_echo(self._echo(bare + continuation), bare, continuation)

    def _embed(self, texts: list[str]) -> NDArray[np.float32]:
        body: dict[str, Any] = {"model": self._name, "input": texts}
        if self._dialect is self._openai:
            body["encoding_format"] = "float"
        try:
            vectors = np.asarray(self._dialect.vectors(self._endpoint.post(self._dialect.embed_path, body)), np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise EngineFailed(f"{self.model.url}: sent embeddings that are none: {error}") from error
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise EngineFailed(f"{self.model.url}: sent {vectors.shape} for {len(texts)} texts")
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)

    def _together(self, jobs: Sequence[Callable[[], T]], verb: str, listen: Listener) -> list[T]:
        """Run jobs side by side; the first failure ends all."""
        pool = ThreadPoolExecutor(max(1, self.options.parallel))
        try:
            futures = [pool.submit(job) for job in jobs]
            left = set(futures)
            while left:
                done, left = wait(left, timeout=0.5, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                if done:
                    listen(Progress(f"{self.model.name}: {verb}", len(jobs) - len(left), len(jobs)))
            return [future.result() for future in futures]
        finally:
            # nobody waits for an answer that is not wanted any more
            pool.shutdown(wait=False, cancel_futures=True)

    def _unknown(self) -> UsageError:
        known: list[str] = []
        with suppress(SizewiseError, KeyError, TypeError):  # the list only helps to name the nearest
            known = self._dialect.models(self._endpoint.get(self._dialect.models_path))
        return UnknownName(f"model at {self.model.url}", self._name, known)

    def _need(self, ability: Ability) -> None:
        if ability not in self.abilities:
            missing = {"score": "tells no log-probabilities of given text", "embed": "gives no embeddings"}
            raise Unsupported(f"{self.model.name}: the endpoint {missing.get(ability, 'cannot ' + ability)}")


def _finish(reason: str) -> Finish:
    return "length" if reason == "length" else "stop"


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None
