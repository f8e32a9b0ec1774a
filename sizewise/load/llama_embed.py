"""Embeddings from a GGUF model: the states of a text's tokens, pooled by the engine into one vector."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sizewise.core.errors import UsageError
from sizewise.load.llama_model import NativeContext, NativeModel
from sizewise.load.llama_score import Done

_MEAN = 1  # LLAMA_POOLING_TYPE_MEAN
_SEQUENCES = 32


class Embedder:
    """One loaded model that turns texts into vectors. Not for two threads at once."""

    def __init__(self, path: Path, *, threads: int, context: int) -> None:
        """Load a model; `context` is the most tokens that a text may have."""
        self.model = NativeModel(path)
        self.limit = context
        # An embedding model names its pooling; any other gets the mean over its tokens.
        pooling = {} if self.model.meta("{arch}.pooling_type") else {"pooling_type": _MEAN}
        # A text must lie in one physical batch, because its tokens may attend to later ones.
        self.context = NativeContext(
            self.model,
            n_ctx=context,
            n_batch=context,
            n_ubatch=context,
            n_seq_max=_SEQUENCES,
            n_threads=threads,
            n_threads_batch=threads,
            kv_unified=1,
            embeddings=1,
            **pooling,
        )
        self.width: int = self.model.lib.llama_model_n_embd_out(self.model.handle)

    def embed(self, texts: Sequence[str], done: Done | None = None) -> NDArray[np.float32]:
        """(n, width) embeddings of length 1.

        Raises:
            UsageError: a text is longer than the context.
        """
        tokens = [self.model.tokenize(text, special=False, wrap=True) for text in texts]
        for one in tokens:
            if len(one) > self.limit:
                raise UsageError(f"a text of {len(one)} tokens is longer than the context of {self.limit}")
        out = np.zeros((len(texts), self.width), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(tokens[i]))
        at = 0
        while at < len(order):
            group: list[int] = []
            size = 0
            while at < len(order) and len(group) < _SEQUENCES and size + len(tokens[order[at]]) <= self.limit:
                group.append(order[at])
                size += len(tokens[order[at]])
                at += 1
            self._pack(group, tokens, out)
            if done:
                done(at, len(order))
        return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)

    def _pack(self, group: list[int], tokens: list[list[int]], out: NDArray[np.float32]) -> None:
        if self.context.memory:
            self.context.clear()
        filled = [i for i in group if tokens[i]]  # a text without tokens stays the zero vector
        if not filled:
            return
        ids = [token for i in filled for token in tokens[i]]
        positions = [at for i in filled for at in range(len(tokens[i]))]
        sequences = [[number] for number, i in enumerate(filled) for _ in tokens[i]]
        self.context.decode(ids, positions, sequences, [True] * len(ids))
        for number, i in enumerate(filled):
            out[i] = self.context.sequence_embedding(number, self.width)
