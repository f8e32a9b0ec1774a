"""What is known of a model before it runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sizewise.core.recipe import Lineage
from sizewise.core.requests import Message

ModelKind = Literal["gguf", "checkpoint", "encoder", "linear", "endpoint"]


@dataclass(frozen=True, slots=True)
class Model:
    """A model: weights, tokenizer and lineage, found under one name.

    `digest` addresses everything that changes an answer (weights, template, parameters). An endpoint has no content to
    hash: its digest is that of its address and model name, and it may drift.

    A gguf model has "model.gguf", always the first of its files, and may have "adapter.gguf" (a LoRA on top of it) and
    "projector.gguf" (what makes tokens of pictures).
    """

    name: str
    kind: ModelKind
    digest: str
    files: dict[str, Path]  # gguf: see below; checkpoint, encoder, linear: file name -> path
    size_bytes: int
    architecture: str = ""  # "llama", "phi3", "tfidf", ...
    parameters: int | None = None  # number of weights
    quantization: str = ""  # "F16", "Q4_1", "mixed", ...
    context_length: int | None = None
    embedding_length: int | None = None
    template: str | None = None  # chat template (Jinja) that overrides the one in the file
    system: str = ""
    license: str = ""
    messages: tuple[Message, ...] = ()  # turns that begin every conversation
    defaults: dict[str, Any] = field(default_factory=dict)  # parameters stored with the model, by Ollama's names
    lineage: Lineage = field(default_factory=lambda: Lineage(recipe=None))
    url: str = ""  # endpoint: base URL
    remote: str = ""  # endpoint: the model's name there; prefix says the protocol, "ollama" or "openai"
    warnings: tuple[str, ...] = ()  # what of it could not be understood and what is done instead

    @property
    def bits_per_weight(self) -> float | None:
        """Bytes on disk per weight, in bits, everything included."""
        return self.size_bytes * 8 / self.parameters if self.parameters else None

    def conversation(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """Messages as the model gets them: those stored with it go first, and its system prompt unless one is given."""
        turns = (*self.messages, *messages)
        if self.system and all(turn.role != "system" for turn in turns):
            return (Message("system", self.system), *turns)
        return turns
