"""Embeddings from a GGUF model: the states of a text's tokens, pooled by the engine into one vector."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sizewise.core.errors import Unsupported, UsageError
from sizewise.load.llama.model import NativeContext, NativeModel
from sizewise.load.llama.score import Done

_MEAN = 1  # LLAMA_POOLING_TYPE_MEAN
_RANK = "4"  # LLAMA_POOLING_TYPE_RANK, as the file tells it
_SEQUENCES = 32
_PACK_TOKENS = 512


class Embedder:
    """One loaded model that turns texts into vectors. Not for two threads at once."""

    def __init__(self, path: Path, *, threads: int, context: int, adapters: Sequence[str] = ()) -> None:
        """Load a model; `context` is the most tokens that a text may have."""
        self.model = NativeModel(path, adapters=adapters)
        self.limit, self.threads = context, threads
        self.width: int = self.model.lib.llama_model_n_embd_out(self.model.handle)
        self._context: NativeContext | None = None

    def embed(self, texts: Sequence[str], done: Done | None = None) -> NDArray[np.float32]:
        """(n, width) embeddings of length 1.

        Raises:
            UsageError: a text is longer than the context.
        """
        tokens = [self.model.tokenize(text, special=False, wrap=True) for text in texts]
        out = self._pool(tokens, self.width, done)
        lengths: NDArray[np.float32] = np.linalg.norm(out, axis=1, keepdims=True)
        out /= np.maximum(lengths, 1e-12)
        return out

    def rank(self, query: str, documents: Sequence[str], done: Done | None = None) -> tuple[list[float], list[int]]:
        """What a reranker makes of a query with each document, and the tokens of each pair.

        Raises:
            Unsupported: the model is no reranker.
            UsageError: a pair is longer than the context.
        """
        if self.model.meta("{arch}.pooling_type") != _RANK:
            raise Unsupported("only a model whose pooling type is rank orders documents")
        tokens = [self._pair(query, document) for document in documents]
        # A head of several classes has the relevant one first.
        scores = self._pool(tokens, max(1, self.model.lib.llama_model_n_cls_out(self.model.handle)), done)[:, 0]
        return [float(score) for score in scores], [len(one) for one in tokens]

    def _pair(self, query: str, document: str) -> list[int]:
        """Tokens of a query and a document, as the model was trained on them: its own form, or one after the other."""
        form = self.model.meta("tokenizer.chat_template.rerank")
        if form:
            contents = {"{query}": query, "{document}": document}
            found = []
            for piece in re.split(r"(\{query\}|\{document\})", form):
                found += self.model.tokenize(contents.get(piece, piece), special=piece not in contents)
            return found
        lib, vocab = self.model.lib, self.model.vocab
        first, second = (self.model.tokenize(text, special=False, wrap=True) for text in (query, document))
        if self.model.adds_bos and second[:1] == [self.model.bos]:
            second = second[1:]
        double = lib.llama_vocab_get_add_eos(vocab) and lib.llama_vocab_get_add_sep(vocab)
        return [*first, lib.llama_vocab_sep(vocab), *second] if double else [*first, *second]

    def _pool(self, tokens: list[list[int]], width: int, done: Done | None) -> NDArray[np.float32]:
        """(n, width) of what the engine makes of each text's states."""
        for one in tokens:
            if len(one) > self.limit:
                raise UsageError(f"a text of {len(one)} tokens is longer than the context of {self.limit}")
        context = self._make_room(max([_PACK_TOKENS, *map(len, tokens)]))
        out: NDArray[np.float32] = np.zeros((len(tokens), width), np.float32)
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        at = 0
        while at < len(order):
            group: list[int] = []
            size = 0
            while at < len(order) and len(group) < _SEQUENCES and size + len(tokens[order[at]]) <= context.n_batch:
                group.append(order[at])
                size += len(tokens[order[at]])
                at += 1
            _pack(context, group, tokens, out)
            if done:
                done(at, len(order))
        return out

    def _make_room(self, tokens: int) -> NativeContext:
        """A context for packs of at least so many tokens: a text must lie in one, as its tokens may see later ones."""
        if self._context and self._context.n_batch >= tokens:
            return self._context
        if self._context:
            self._context.close()
        tokens = -(-tokens // 256) * 256  # the library pools only where its sequences share a batch evenly
        # An embedding model names its pooling; any other gets the mean over its tokens.
        pooling = {} if self.model.meta("{arch}.pooling_type") else {"pooling_type": _MEAN}
        self._context = NativeContext(
            self.model,
            n_ctx=tokens,
            n_batch=tokens,
            n_ubatch=tokens,
            n_seq_max=_SEQUENCES,
            n_threads=self.threads,
            n_threads_batch=self.threads,
            kv_unified=1,
            embeddings=1,
            **pooling,
        )
        return self._context


def _pack(context: NativeContext, group: list[int], tokens: list[list[int]], out: NDArray[np.float32]) -> None:
    """Embed some texts in one go, each as its own sequence."""
    if context.memory:
        context.clear()
    filled = [i for i in group if tokens[i]]  # a text without tokens stays the zero vector
    if not filled:
        return
    ids = [token for i in filled for token in tokens[i]]
    positions = [at for i in filled for at in range(len(tokens[i]))]
    sequences = [[number] for number, i in enumerate(filled) for _ in tokens[i]]
    context.decode(ids, positions, sequences, [True] * len(ids))
    for number, i in enumerate(filled):
        out[i] = context.sequence_embedding(number, out.shape[1])
