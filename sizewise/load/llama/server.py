"""A GGUF model that is served: one child process with the engine's native server, with a fixed context per request.

The server batches the requests under way and keeps prompts that it has seen. It listens on the loopback and answers
only who knows its key. Blocking; the HTTP side (`serve/native.py`) calls this from threads and streams by itself.
"""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from sizewise.core.errors import EngineFailed, UsageError
from sizewise.core.model import Model
from sizewise.load.child import Child
from sizewise.load.facts import GGUF_FILE
from sizewise.load.gguf.file import GgufInfo, read_gguf

ADAPTER_FILE, PROJECTOR_FILE = "adapter.gguf", "projector.gguf"
PLAIN = "{% for message in messages %}{{ message['content'] }}{% endfor %}"  # where the engine renders nothing
MOST_CACHED = 512 << 20  # bytes of prompts that no slot holds any more: one read back costs a copy, no computation
_CONTEXT = 4096  # where the file does not say


class LlamaServer:
    """The process and its address: made, then loaded. Once the process has died, every call raises EngineFailed."""

    def __init__(
        self,
        model: Model,
        *,
        context: int,
        parallel: int,
        threads: int | None = None,
        template: str = PLAIN,
        cache_bytes: int = MOST_CACHED,
    ) -> None:
        """Check the file and start the process.

        Args:
            model: a model of kind gguf.
            context: tokens that one request may use, prompt and answer together.
            parallel: requests that are answered at the same time.
            threads: of the engine; None = one for each core.
            cache_bytes: memory for earlier prompts, at most; 0: none are kept.
            template: the engine's own chat template. It runs outside our sandbox: only one that was tried there.

        Raises:
            BadModel: the file is cut short, is no GGUF or has an unknown architecture.
        """
        self.model = model
        self.path = model.files.get(GGUF_FILE) or next(iter(model.files.values()))
        self.info: GgufInfo = read_gguf(self.path)
        self.trained_context = self.info.context_length or _CONTEXT
        self.context, self.parallel = context, parallel
        self.threads = threads or len(os.sched_getaffinity(0))
        self._template, self._cache_bytes = template, cache_bytes
        self._child = Child("sizewise.load.runners._llamacpp_child", model.name)

    def load(self) -> None:
        """Load the model and start to listen; the process ends where that fails.

        Raises:
            BadModel: the engine cannot read the file.
            DoesNotFit: the memory that is free does not hold it.
            EngineFailed: the engine cannot serve it, or died.
        """
        try:
            self._load()
        except BaseException:
            self._child.close()
            raise

    def encode(self, texts: Sequence[str], *, special: bool, bos: bool) -> list[list[int]]:
        """Token ids of texts; what is guarded in them (see `templates.guard`) is read as plain text."""
        rows: list[list[int]] = self._child.call("encode", texts=list(texts), special=special, bos=bos)[0]
        return rows

    def at_least(self, text: str) -> int:
        """A number of tokens that the text cannot be below, found without tokenizing it."""
        found: list[int] = self._child.call("at_least", texts=[text])[0]
        return found[0]

    def decode(self, tokens: Sequence[int]) -> bytes:
        """The bytes of token ids; an end may be half a character.

        Raises:
            UsageError: an id is outside the vocabulary.
        """
        if not all(-(2**31) <= token < 2**31 for token in tokens):
            raise UsageError("a token id has at most 31 bits")
        return self._child.call("decode", tokens=list(tokens))[1]

    def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of each token."""
        lengths, data = self._child.call("pieces", tokens=list(tokens))
        ends = list(itertools.accumulate(lengths, initial=0))
        return [data[start:end] for start, end in itertools.pairwise(ends)]

    def death(self) -> EngineFailed:
        """Why the process gives no answers any more."""
        try:
            self._child.call("count", texts=[])
        except EngineFailed as error:
            return error
        return EngineFailed(f"{self.model.name}: the engine broke off")

    @property
    def pid(self) -> int:
        """The process."""
        return self._child.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._child.alive

    def kill(self) -> None:
        """End the process at once; a call under way raises EngineFailed."""
        self._child.kill()

    def close(self) -> None:
        """End the process. Safe to call twice."""
        self._child.close()

    def _load(self) -> None:
        words = self._child.call(
            "open",
            path=str(self.path),
            threads=self.threads,
            context=self.context,
            parallel=self.parallel,
            kv_bytes_per_token=self.info.kv_bytes_per_token or 0,
            adapters=[str(path) for path in self._files(ADAPTER_FILE)],
        )[0]
        self.bos: str = words["bos"]
        self.eos: str = words["eos"]
        self.control: tuple[str, ...] = tuple(words["control"])
        self.start: int = words["start"]  # stands before a text without a prompt
        self.vocabulary: int = words["vocabulary"]
        self.gap: tuple[int, ...] = tuple(words["gap"])
        server = self._child.call(
            "serve_fixed",
            context=self.context,
            parallel=self.parallel,
            template=self._template,
            projector=next((str(path) for path in self._files(PROJECTOR_FILE)), None),
            cache_mib=self._cache_bytes >> 20,
        )[0]
        host, _, port = server["address"].partition("://")[2].rpartition(":")
        self.host, self.port, self.key = str(host), int(port), str(server["key"])

    def _files(self, name: str) -> list[Path]:
        return [path for title, path in sorted(self.model.files.items()) if title == name]
