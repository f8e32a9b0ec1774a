"""Log-probabilities from a GGUF model: what many texts have in common is computed once.

The texts to score are paths from the root of a tree of tokens. What all of them share is decoded first and kept from
one call to the next (the examples of a few-shot prompt). The rest goes through the engine in packs: sorted, so that
texts with a common beginning stand together, each shared token once, marked as part of every sequence that holds it.
The engine's unified memory lets a token attend to exactly the tokens of its own sequence, so a pack gives the same
numbers as one text at a time, up to rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sizewise.core.errors import Unsupported, UsageError
from sizewise.core.requests import Score, TextScore
from sizewise.load.llama.model import NativeContext, NativeModel
from sizewise.load.templates import split_guarded

PACK_TOKENS = 512  # new tokens in one pack: enough for full speed, few enough that attention does not look at others
SEQUENCES = 128
LOGIT_BYTES = 64 << 20  # at most so many bytes of logits are kept of one decode

Done = Callable[[int, int], None]  # (texts scored, texts)


@dataclass(frozen=True, slots=True)
class Span:
    """Score `tokens[first:]`, each given all tokens before it. `first` is at least 1."""

    tokens: tuple[int, ...]
    first: int


@dataclass(frozen=True, slots=True)
class TokenScore:
    """One token given those before it, and the likeliest (token, log-probability) at its place."""

    logprob: float | None  # None: nothing stands before it
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class _Pack:
    """Tokens for the engine, a tree in depth-first order, and who reads which logits."""

    tokens: list[int]
    positions: list[int]
    sequences: list[list[int]]
    readers: list[list[int]]  # the spans that need the logits after this token
    leaves: int = 0


class Scorer:
    """One loaded model that gives log-probabilities. Not for two threads at once."""

    def __init__(self, path: Path, *, threads: int, context: int, adapters: Sequence[str] = ()) -> None:
        """Load a model; `context` is the most tokens that a text may have.

        Raises:
            BadModel: the engine cannot load the file.
            Unsupported: the model does not predict next tokens.
        """
        self.model = NativeModel(path, adapters=adapters)
        lib, handle = self.model.lib, self.model.handle
        if not lib.llama_model_has_decoder(handle) or lib.llama_model_has_encoder(handle):
            self.model.close()
            raise Unsupported(f"{path}: only a causal language model gives log-probabilities")
        self.threads, self.limit = threads, context
        # States of recurrent layers cannot be shared between sequences or cut back: such texts run one by one.
        self.shares = not (lib.llama_model_is_recurrent(handle) or lib.llama_model_is_hybrid(handle))
        self._context: NativeContext | None = None
        self._kept: tuple[int, ...] = ()  # tokens whose keys and values are in sequence 0

    def close(self) -> None:
        """Free everything."""
        if self._context:
            self._context.close()
            self._context = None
        self.model.close()

    def score(self, requests: Sequence[tuple[str, Sequence[str]]], done: Done | None = None) -> list[list[Score]]:
        """Log-probability of each continuation of each prompt.

        Raises:
            UsageError: a prompt with its continuation is longer than the context.
        """
        pairs = [split_pair(self.model, prompt, text) for prompt, texts in requests for text in texts]
        spans = [Span((*start, *rest), len(start)) for start, rest in pairs]
        scores = iter(self.score_spans(spans, done))
        return [[next(scores) for _ in texts] for _, texts in requests]

    def score_texts(self, texts: Sequence[str], window: int = 512, done: Done | None = None) -> list[TextScore]:
        """Log-probability of whole texts in windows of `window` tokens, a BOS included where the model adds one."""
        if not 2 <= window <= self.limit:
            raise UsageError(f"a window has 2 to {self.limit} tokens (the model's context), not {window}")
        start = (self.model.bos,) if self.model.adds_bos else ()
        owners, spans = [], []
        for owner, text in enumerate(texts):
            tokens = encode(self.model, text)[len(start) :]
            step = window - len(start)
            for at in range(0, len(tokens), step):
                piece = (*start, *tokens[at : at + step])
                if len(piece) > 1:
                    owners.append(owner)
                    spans.append(Span(piece, 1))
        sums, counts = [0.0] * len(texts), [0] * len(texts)
        for owner, score in zip(owners, self.score_spans(spans, done), strict=True):
            sums[owner] += score.logprob
            counts[owner] += score.tokens
        sizes = [len(text.encode("utf-8", "surrogatepass")) for text in texts]
        return [TextScore(*numbers) for numbers in zip(sums, counts, sizes, strict=True)]

    def next_token(self, prompt: str) -> NDArray[np.float64]:
        """(vocabulary,) natural-log probabilities of the token after a prompt."""
        tokens = tuple(encode(self.model, prompt)) or (self.model.start,)
        rows: list[NDArray[np.float64]] = []

        def read(_: list[int], __: int, row: NDArray[np.float32]) -> None:
            rows.append(row.astype(np.float64) - _log_sum_exp(row))

        self._run([Span((*tokens, 0), len(tokens))], read, None)
        return rows[0]

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """(tokens - 1, vocabulary): the logits that predict each token after the first."""
        rows = np.empty((len(tokens) - 1, self.model.n_vocab), np.float32)

        def read(_: list[int], position: int, row: NDArray[np.float32]) -> None:
            rows[position] = row

        self._kept = ()  # what is left in the memory was computed in packs of another size: last digits differ
        self._run([Span(tuple(tokens), 1)], read, None)
        return rows

    def token_scores(self, tokens: Sequence[int], top: int, first: int = 0) -> list[TokenScore]:
        """Each of `tokens[first:]` given all before it, and the `top` likeliest at its place.

        Raises:
            UsageError: there are more tokens than the context holds, or one is outside the vocabulary.
        """
        if wrong := [token for token in tokens if not 0 <= token < self.model.n_vocab]:
            raise UsageError(f"{wrong[0]} is no token: the vocabulary has {self.model.n_vocab}, from 0")
        found = [TokenScore(None)] * len(tokens)

        def read(_: list[int], position: int, row: NDArray[np.float32]) -> None:
            total = _log_sum_exp(row)
            best = np.argpartition(row, -top)[-top:] if top else np.zeros(0, np.int64)
            likeliest = sorted(((int(token), float(row[token]) - total) for token in best), key=lambda pair: -pair[1])
            found[position + 1] = TokenScore(float(row[tokens[position + 1]]) - total, tuple(likeliest))

        self._run([Span(tuple(tokens), max(1, first))], read, None)
        return found[first:]

    def score_spans(self, spans: Sequence[Span], done: Done | None = None) -> list[Score]:
        """Sum of log-probabilities of each span, in the order given."""
        sums, greedy = np.zeros(len(spans)), [True] * len(spans)

        def read(readers: list[int], position: int, row: NDArray[np.float32]) -> None:
            total, best = _log_sum_exp(row), int(row.argmax())
            for reader in readers:
                token = spans[reader].tokens[position + 1]
                sums[reader] += float(row[token]) - total
                greedy[reader] = greedy[reader] and token == best

        self._run(spans, read, done)
        counts = (len(span.tokens) - span.first for span in spans)
        return [Score(float(total), count, best) for total, count, best in zip(sums, counts, greedy, strict=True)]

    def _run(
        self, spans: Sequence[Span], read: Callable[[list[int], int, NDArray[np.float32]], None], done: Done | None
    ) -> None:
        for span in spans:
            if len(span.tokens) - 1 > self.limit:
                raise UsageError(f"a text of {len(span.tokens) - 1} tokens is longer than the context of {self.limit}")
        # A span without tokens to score (an empty continuation) has log-probability 0 and needs no engine.
        order = sorted(
            (i for i, span in enumerate(spans) if span.first < len(span.tokens)), key=lambda i: spans[i].tokens[:-1]
        )
        if not order:
            return
        shared = self._shared([spans[i] for i in order])
        longest = max(len(spans[i].tokens) for i in order)
        context = self._make_room(len(shared) + max(longest - len(shared), PACK_TOKENS))
        self._keep(context, shared)
        finished = 0
        for group in self._groups(spans, order, len(shared), context.n_ctx - len(shared)):
            pack = _pack(spans, group, len(shared))
            self._decode(context, pack, len(shared), read)
            finished += len(group)
            if done:
                done(finished, len(order))

    def _shared(self, spans: Sequence[Span]) -> tuple[int, ...]:
        """The tokens with which all spans begin, as far as none of their logits is needed. `spans` are sorted."""
        if not self.shares or len(spans) < 2:
            # one text: what is still there from the last call is as good as shared
            length = _common(self._kept, spans[0].tokens) if self.shares else 0
        else:
            length = _common(spans[0].tokens, spans[-1].tokens)
        return spans[0].tokens[: min(length, min(span.first for span in spans) - 1)]

    def _make_room(self, tokens: int) -> NativeContext:
        """A context for at least so many tokens, all sequences together."""
        if self._context and self._context.n_ctx >= tokens:
            return self._context
        if self._context:
            self._context.close()
        self._kept = ()
        sequences = SEQUENCES if self.shares else 1
        size = -(-max(tokens, 2 * PACK_TOKENS) // 256) * 256
        self._context = NativeContext(
            self.model,
            n_ctx=size,
            n_batch=PACK_TOKENS,
            n_ubatch=PACK_TOKENS,
            n_seq_max=sequences,
            n_threads=self.threads,
            n_threads_batch=self.threads,
            kv_unified=1,
        )
        return self._context

    def _keep(self, context: NativeContext, shared: tuple[int, ...]) -> None:
        """Bring sequence 0 to hold exactly `shared`."""
        if not self.shares:
            return
        same = _common(self._kept, shared)
        context.forget(0, same)
        self._kept = shared[:same]
        for at in range(same, len(shared), context.n_batch):
            piece = shared[at : at + context.n_batch]
            flags = [False] * len(piece)
            context.decode(piece, range(at, at + len(piece)), [[0]] * len(piece), flags)
            self._kept = shared[: at + len(piece)]

    def _groups(self, spans: Sequence[Span], order: list[int], shared: int, room: int) -> Iterator[list[int]]:
        """Cut the sorted spans into packs that fit the memory. One span alone may be longer than a pack."""
        limit = min(room, PACK_TOKENS)
        group: list[int] = []
        size = 0
        for i in order:
            path = len(spans[i].tokens) - 1
            fresh = path - (_common(spans[group[-1]].tokens[:-1], spans[i].tokens[:-1]) if group else shared)
            if group and (size + fresh > limit or len(group) >= SEQUENCES - 1 or not self.shares):
                yield group
                group, size, fresh = [], 0, path - shared
            group.append(i)
            size += fresh
        yield group

    def _decode(
        self,
        context: NativeContext,
        pack: _Pack,
        shared: int,
        read: Callable[[list[int], int, NDArray[np.float32]], None],
    ) -> None:
        if self.shares:
            for sequence in range(1, pack.leaves + 1):
                context.copy(0, sequence)
        else:
            context.clear()
        most = max(1, LOGIT_BYTES // (4 * self.model.n_vocab))
        at = 0
        while at < len(pack.tokens):
            end = at
            rows: list[int] = []
            while end < len(pack.tokens) and end - at < context.n_batch and len(rows) < most:
                if pack.readers[end]:
                    rows.append(end)
                end += 1
            piece = slice(at, end)
            flags = [bool(readers) for readers in pack.readers[piece]]
            context.decode(pack.tokens[piece], pack.positions[piece], pack.sequences[piece], flags)
            if rows:
                for row, values in zip(rows, context.logits(len(rows)), strict=True):
                    read(pack.readers[row], pack.positions[row], values)
            at = end
        for sequence in range(1, pack.leaves + 1 if self.shares else 1):
            context.forget(sequence)


def _pack(spans: Sequence[Span], group: Sequence[int], shared: int) -> _Pack:
    """Lay sorted spans out as a tree: each token once, in the sequences of all spans that run through it."""
    pack = _Pack([], [], [], [])
    branch: list[int] = []  # where the tokens of the current path stand in the pack
    previous: tuple[int, ...] = ()
    for number, i in enumerate(group):
        path = spans[i].tokens[shared:-1]
        common = _common(previous, path) if number else 0
        if common < len(previous) or not number:
            pack.leaves += 1  # a path that only runs on from the last one stays in its sequence
        del branch[common:]
        for at in branch:
            if pack.sequences[at][-1] != pack.leaves:
                pack.sequences[at].append(pack.leaves)
        for depth in range(common, len(path)):
            branch.append(len(pack.tokens))
            pack.tokens.append(path[depth])
            pack.positions.append(shared + depth)
            pack.sequences.append([pack.leaves])
            pack.readers.append([])
        for depth in range(spans[i].first - 1 - shared, len(path)):
            pack.readers[branch[depth]].append(i)
        previous = path
    return pack


def encode(model: NativeModel, text: str) -> list[int]:
    """Token ids with exactly one BOS in front where the model wants one.

    Control tokens are read as such, except where `templates.guard` marked the text as someone's content.
    """
    tokens = [token for piece in split_guarded(text) for token in model.tokenize(piece, special=True)]
    if model.adds_bos and tokens[:1] != [model.bos]:
        tokens.insert(0, model.bos)
    return tokens


def split_pair(model: NativeModel, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokens of a prompt and of what follows, split as lm-evaluation-harness does.

    Spaces at the end of the prompt move to the continuation; both are tokenized as one text and cut at the number of
    tokens that the prompt has alone. An empty prompt becomes BOS (or EOS, where there is no BOS).
    """
    bare = prompt.rstrip()
    continuation = prompt[len(bare) :] + continuation
    if not bare:
        start = [model.start]
        tokens = encode(model, continuation)
        return start, tokens[1:] if tokens[:1] == start else tokens
    start, whole = encode(model, bare), encode(model, bare + continuation)
    if continuation and len(whole) <= len(start):
        return whole[:-1], whole[-1:]  # the tokenizer merged the continuation into the prompt's last token
    return start, whole[len(start) :]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    length = min(len(one), len(other))
    for at in range(length):
        if one[at] != other[at]:
            return at
    return length


def _log_sum_exp(row: NDArray[np.float32]) -> float:
    # exp in float32 and the sum in float64: an error of about 1e-7, three times as fast as all in float64
    top = float(row.max())
    return top + float(np.log(np.exp(row - np.float32(top)).sum(dtype=np.float64)))
