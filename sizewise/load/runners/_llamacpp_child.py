"""The process that holds one GGUF model: a native server that generates, and a scorer for log-probabilities.

Neither is loaded before it is needed. A server has an address on the loopback and a random key; the parent streams from
it directly, so that no Python stands between the engine and the tokens. Texts are tokenized here for both, so that what
is scored and what is served are the same tokens.
"""

import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sizewise.core.errors import DoesNotFit, EngineFailed
from sizewise.core.units import format_bytes
from sizewise.load.child import Host
from sizewise.load.llama.c import log_to
from sizewise.load.llama.embed import Embedder
from sizewise.load.llama.model import NativeModel
from sizewise.load.llama.score import PACK_TOKENS, Scorer, encode
from sizewise.load.templates import split_guarded, unguarded

# Tokens of prompts that are computed in one go while others may come and go. Nobody is heard in between: a client that
# leaves is noticed after one such step, and an answer under way waits for one. 512 save no processor time (see LOG.md).
STEP_TOKENS = 64
_SPARE_BYTES = 96 << 20  # graphs, logits and scratch of a small model; the weights and the cache are counted apart


class Engine:
    """What the parent can call. One model; each part of it loaded when first used."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.vocabulary: NativeModel | None = None
        self.scorer: Scorer | None = None
        self.embedder: Embedder | None = None
        self.server: Any = None
        self.server_context = 0  # tokens that each slot of the server holds

    def open(
        self,
        path: str,
        threads: int,
        context: int,
        parallel: int,
        kv_bytes_per_token: int,
        adapters: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Load the vocabulary and say what it holds.

        `context`: the most tokens of one text; `adapters`: LoRA files that are added to the weights.
        """
        self.adapters = adapters
        log_to(_log)
        self.path, self.threads, self.context, self.parallel = Path(path), threads, context, parallel
        self.kv_bytes_per_token = kv_bytes_per_token
        self.vocabulary = NativeModel(self.path, vocab_only=True)
        model = self.vocabulary
        return {
            "bos": model.token_text(model.bos),
            "eos": model.token_text(model.eos),
            "adds_bos": model.adds_bos,
            "control": model.control_texts(),
            "vocabulary": model.n_vocab,
            "start": model.start,
            "gap": model.gap_tokens(),
        }

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Token ids of prompts, BOS included; an empty prompt is what a model expects before a text."""
        model = self._vocabulary()
        return [encode(model, text) or [model.start] for text in texts]

    def count(self, texts: list[str]) -> list[int]:
        """Number of tokens of each text as plain text, without BOS."""
        return [len(self._vocabulary().tokenize(unguarded(text), special=False)) for text in texts]

    def encode(self, texts: list[str], special: bool, bos: bool) -> list[list[int]]:
        """Token ids. `special`: control tokens are read as such, but not where a text is guarded as somebody's content.

        `bos`: begin as a prompt begins, with the beginning token where the model wants one.
        """
        model = self._vocabulary()
        rows = [[t for piece in split_guarded(text) for t in model.tokenize(piece, special=special)] for text in texts]
        start = [model.bos] if bos and model.adds_bos else []
        return [row if row[:1] == start else start + row for row in rows]

    def at_least(self, texts: list[str]) -> list[int]:
        """Numbers of tokens that the texts cannot be below, at once; see `LongTexts.at_least`."""
        return [self._vocabulary().long_texts.at_least(text) for text in texts]

    def decode(self, tokens: list[int]) -> tuple[int, bytes]:
        """The text of token ids, as bytes: an end may be half a character."""
        data = self._vocabulary().detokenize(tokens)
        return len(data), data

    def pieces(self, tokens: list[int]) -> tuple[list[int], bytes]:
        """The bytes of each token: their lengths, and all of them in a row."""
        rows = [self._vocabulary().detokenize([token]) for token in tokens]
        return [len(row) for row in rows], b"".join(rows)

    def serve(self, tokens: int) -> dict[str, Any]:
        """Start the native server, or start it anew with more room: every slot is to hold `tokens`."""
        if self.server is None or self.server_context < tokens:
            size = min(self.context, max(2048, 1 << (tokens - 1).bit_length()))
            self.server = None  # ends the old one and frees its memory first
            self._check_memory(size * self.parallel)
            self.key = secrets.token_urlsafe(24)
            self.server = start_server(
                server_params(self.path, self.threads, size, self.parallel, self.key, self.adapters)
            )
            self.server_context = size
        return {"address": self.server.listening_address, "key": self.key}

    def serve_fixed(
        self,
        context: int,
        parallel: int,
        template: str,
        projector: str | None,
        cache_mib: int,
    ) -> dict[str, Any]:
        """Start the native server for good: `parallel` requests at once, each with up to `context` tokens.

        The slots share one memory, so that what one does not use is another's. `template` is the engine's own chat
        template; `cache_mib` the memory for prompts that no slot holds any more.
        """
        self._check_memory(context * parallel)
        self.key = secrets.token_urlsafe(24)
        params = server_params(self.path, self.threads, context, parallel, self.key, self.adapters)
        params.kv_unified = True
        params.sse_ping_interval = 1  # seconds: a write that fails tells that the client has gone
        params.cache_ram_mib, params.cache_idle_slots = cache_mib, cache_mib > 0
        params.use_jinja, params.chat_template = True, template
        if projector:
            params.mmproj.path = projector  # a picture is computed whole, which takes the large steps
        else:
            params.n_batch = params.n_ubatch = max(STEP_TOKENS, parallel)
        self.server = start_server(params)
        return {"address": self.server.listening_address, "key": self.key}

    def score(self, requests: list[tuple[str, list[str]]]) -> list[list[tuple[float, int, bool]]]:
        """Log-probability, number of tokens and greediness of each continuation."""
        scores = self._scorer().score(requests, self._done)
        return [[(one.logprob, one.tokens, one.greedy) for one in row] for row in scores]

    def score_texts(self, texts: list[str], window: int) -> list[tuple[float, int, int]]:
        """Log-probability, number of scored tokens and of bytes of each text."""
        return [(one.logprob, one.tokens, one.bytes) for one in self._scorer().score_texts(texts, window, self._done)]

    def token_scores(
        self, tokens: list[int], top: int, first: int
    ) -> list[tuple[float | None, list[tuple[int, float]]]]:
        """Log-probability of each token from `first` on, and of the likeliest at its place."""
        return [(one.logprob, list(one.top)) for one in self._scorer().token_scores(tokens, top, first)]

    def next_token(self, prompt: str) -> tuple[int, bytes]:
        """Log-probabilities of all tokens after a prompt, as float64."""
        row = self._scorer().next_token(prompt)
        return len(row), row.tobytes()

    def embed(self, texts: list[str]) -> tuple[list[int], bytes]:
        """(n, width) normalised embeddings, as float32."""
        rows = self._embedder().embed(texts, self._done)
        return list(rows.shape), np.ascontiguousarray(rows, np.float32).tobytes()

    def rank(self, query: str, documents: list[str]) -> list[tuple[float, int]]:
        """A reranker's score of a query with each document, and the tokens of each pair."""
        return list(zip(*self._embedder().rank(query, documents, self._done), strict=True))

    def _vocabulary(self) -> NativeModel:
        if self.vocabulary is None:
            raise EngineFailed("no model is open")
        return self.vocabulary

    def _embedder(self) -> Embedder:
        if self.embedder is None:
            self._check_memory(PACK_TOKENS)
            self.embedder = Embedder(self.path, threads=self.threads, context=self.context, adapters=self.adapters)
        return self.embedder

    def _scorer(self) -> Scorer:
        if self.scorer is None:
            self._check_memory(4 * PACK_TOKENS)
            self.scorer = Scorer(self.path, threads=self.threads, context=self.context, adapters=self.adapters)
        return self.scorer

    def _check_memory(self, tokens: int) -> None:
        """Refuse what would not fit before it is loaded: the system would end some process, perhaps not this one."""
        import psutil

        need = self.path.stat().st_size + tokens * self.kv_bytes_per_token + _SPARE_BYTES
        have = psutil.virtual_memory().available
        if need > have:
            raise DoesNotFit(
                f"{self.path.name} with {tokens} tokens of context needs about {format_bytes(need)} of memory, "
                f"{format_bytes(have)} are free: use a smaller quantization or a shorter context"
            )

    def _done(self, done: int, total: int) -> None:
        self.host.check()
        self.host.tell(done=done, total=total)


def server_params(
    path: Path, threads: int, context: int, parallel: int, key: str, adapters: Sequence[str | Path] = ()
) -> Any:
    """Settings of the engine's own server, on a free port of the loopback: `context` tokens in each slot."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = context * parallel
    params.n_parallel = parallel
    params.n_batch = params.n_ubatch = 512
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = threads
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [key]
    params.n_threads_http = parallel + 4  # a stream holds one; the others answer short questions
    params.fit_params = False
    params.warmup = False  # the first request does the same work
    params.cache_ram_mib = 0  # else it may keep 8 GiB of old prompts
    params.cache_idle_slots = False
    params.ui = params.endpoint_props = params.endpoint_metrics = False
    params.ctx_shift = False
    params.verbosity = 1
    params.lora_adapters = [_adapter(path) for path in adapters]
    return params


def _adapter(path: str | Path) -> Any:
    import xllamacpp

    adapter = xllamacpp.CommonAdapterLoraInfo()
    adapter.path, adapter.scale = str(path), 1.0
    return adapter


def start_server(params: Any) -> Any:
    """The server, with its model loaded; it ends when the object does."""
    import xllamacpp

    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        raise EngineFailed(f"{Path(params.model.path).name}: the engine cannot serve it: {error}") from error


def _log(level: int, text: str) -> None:
    if level >= 4 and text.strip():  # errors; warnings about experimental features would only hide them
        sys.stderr.write(text if text.endswith("\n") else text + "\n")


def main() -> None:
    """Answer the parent's calls until its end of the pipe closes."""
    host = Host()
    engine = Engine(host)
    names: Sequence[str] = (
        *("open", "tokenize", "count", "encode", "at_least", "decode", "serve", "serve_fixed"),
        *("score", "score_texts", "token_scores", "next_token", "embed", "rank", "pieces"),
    )
    host.serve({name: getattr(engine, name) for name in names})


if __name__ == "__main__":
    main()
