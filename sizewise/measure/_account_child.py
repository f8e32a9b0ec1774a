"""The process that holds one model while its next-token distributions are compared with those of another.

Logits go through files, one for each window of text: (tokens, vocabulary) little-endian float32, as the engine gave
them. Both models' are normalised by the same code in float64, so that a model compared with itself gives exactly zero.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sizewise.core.errors import EngineFailed
from sizewise.load.child import Host
from sizewise.load.facts import ADAPTER_FILE, GGUF_FILE
from sizewise.load.llama.c import log_to
from sizewise.load.store.atomic import publish, require_space, storage_errors, temporary

_ROWS = 64  # distributions in memory at once, as float64
COLUMNS = ("logprob", "kl", "same_top", "right", "parent_logprob", "parent_right")


class Reader(Protocol):
    """What both engines can do."""

    context: int
    vocabulary: int  # number of logits
    lead: list[int]  # what stands before a text

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without the lead."""
        ...

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """(tokens - 1, vocabulary): what predicts each token after the first."""
        ...


class Llama:
    """A GGUF in llama.cpp, computed as it is served."""

    def __init__(self, files: dict[str, str], threads: int) -> None:
        from sizewise.load.gguf.file import read_gguf
        from sizewise.load.llama.score import Scorer

        log_to(lambda _level, _text: None)
        path = Path(files[GGUF_FILE])
        adapters = [file for title, file in files.items() if title == ADAPTER_FILE]
        self.context = read_gguf(path).context_length or 512
        self.scorer = Scorer(path, threads=threads, context=self.context, adapters=adapters)
        model = self.scorer.model
        self.vocabulary, self.lead = model.n_vocab, [model.bos] if model.adds_bos else []

    def encode(self, text: str) -> list[int]:
        """Plain text: no control tokens."""
        return self.scorer.model.tokenize(text, special=False)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """In packs, from an empty memory."""
        return self.scorer.logits(tokens)


class Torch:
    """A checkpoint in transformers, in 32-bit numbers."""

    def __init__(self, what: str, kind: str, files: dict[str, str], threads: int) -> None:
        import torch

        from sizewise.load.checkpoint.causal import Causal
        from sizewise.load.checkpoint.weights import load

        torch.set_num_threads(threads)
        loaded = load(what, kind, files, dtype="float32", device="cpu", context=None, parameters=None)
        self.model, self.tokenizer, self.context = loaded.model, loaded.tokenizer, loaded.context_length
        with torch.no_grad():  # a head in a small form has no weight to look at
            self.vocabulary = int(loaded.model(input_ids=torch.zeros((1, 1), dtype=torch.long)).logits.shape[-1])
        self.lead = Causal(loaded.model, loaded.tokenizer, self.context, lambda *_: None, lambda: None).lead

    def encode(self, text: str) -> list[int]:
        """Plain text, except that a tokenizer of this kind knows its control tokens wherever they stand."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """One pass."""
        import torch

        with torch.inference_mode():
            found = self.model(input_ids=torch.tensor([list(tokens[:-1])]), use_cache=False).logits[0]
        return np.asarray(found.float().numpy())


class Server:
    """The functions that the parent process can call."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.reader: Reader | None = None

    def functions(self) -> dict[str, Callable[..., Any]]:
        """Name -> function."""
        return {"open": self.open, "windows": self.windows, "write": self.write, "read": self.read}

    def open(self, what: str, kind: str, files: dict[str, str], threads: int | None) -> None:
        """Load a model."""
        count = threads or len(os.sched_getaffinity(0))
        self.reader = Llama(files, count) if kind == "gguf" else Torch(what, kind, files, count)

    def windows(self, text: str, window: int) -> list[Any]:
        """A text as token windows, and the size of the vocabulary.

        Each window begins with BOS where the model wants one, else with the token before it.
        """
        reader = self._need()
        ids, lead = reader.encode(text), reader.lead
        size = min(window, reader.context)
        if lead:
            step = size - len(lead)
            cut = [lead + ids[at : at + step] for at in range(0, len(ids), step)]
        else:
            cut = [ids[at : at + size] for at in range(0, len(ids) - 1, size - 1)]
        return [[row for row in cut if len(row) > 1], reader.vocabulary]

    def write(self, rows: list[list[int]], paths: list[str]) -> None:
        """Write each window's logits into a file."""
        for place, (row, path) in enumerate(zip(rows, paths, strict=True)):
            self.host.check()
            _save(Path(path), self._need().logits(row))
            self.host.tell(done=place + 1, total=len(rows))

    def read(self, rows: list[list[int]], paths: list[str]) -> tuple[list[int], bytes]:
        """(tokens, columns): each token of each window against the parent's logits, or alone where there are none."""
        found = []
        for place, row in enumerate(rows):
            self.host.check()
            mine = self._need().logits(row)
            theirs = np.fromfile(paths[place], "<f4").reshape(len(row) - 1, -1) if paths else None
            found.append(compare(mine, theirs, row[1:]))
            self.host.tell(done=place + 1, total=len(rows))
        joined = np.concatenate(found)
        return list(joined.shape), joined.tobytes()

    def _need(self) -> Reader:
        if self.reader is None:
            raise EngineFailed("no model is loaded in this process")
        return self.reader


def compare(
    mine: NDArray[np.float32], theirs: NDArray[np.float32] | None, tokens: Sequence[int]
) -> NDArray[np.float64]:
    """Two models on one text.

    Args:
        mine: (n, vocabulary) logits of the model.
        theirs: those of its parent, or None: what needs them is NaN.
        tokens: (n,) the tokens that are to be predicted.

    Returns:
        (n, 6): the columns of `COLUMNS`. KL is that of the model from its parent, sum p log(p / q), in nats.
    """
    found = np.full((len(tokens), len(COLUMNS)), np.nan)
    for at in range(0, len(tokens), _ROWS):
        part = slice(at, at + _ROWS)
        wanted = np.asarray(tokens[part])
        places = np.arange(len(wanted))
        q = _log_softmax(mine[part])
        top = q.argmax(axis=1)
        found[part, 0], found[part, 3] = q[places, wanted], top == wanted
        if theirs is None:
            continue
        p = _log_softmax(theirs[part])
        parent_top = p.argmax(axis=1)
        found[part, 1] = (np.exp(p) * (p - q)).sum(axis=1)
        found[part, 2] = top == parent_top
        found[part, 4], found[part, 5] = p[places, wanted], parent_top == wanted
    return found


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=1, keepdims=True)))


def _save(path: Path, values: NDArray[np.float32]) -> None:
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        require_space(path.parent, values.nbytes)
        temp = temporary(path.parent)
        try:
            with open(temp, "xb") as file:
                values.astype("<f4").tofile(file)
                os.fsync(file.fileno())
            publish(temp, path)
        finally:
            temp.unlink(missing_ok=True)


def main() -> None:
    """Answer the parent's calls until its end of the pipe closes."""
    host = Host()
    host.serve(Server(host).functions())


if __name__ == "__main__":
    main()
