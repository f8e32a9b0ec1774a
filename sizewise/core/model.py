"""What is known of a model before it runs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sizewise.core.recipe import Lineage

ModelKind = Literal["gguf", "checkpoint", "encoder", "linear", "endpoint"]


@dataclass(frozen=True, slots=True)
class Model:
    """A model: weights, tokenizer and lineage, found under one name.

    `digest` addresses everything that changes an answer (weights, template, parameters). An endpoint has no content to
    hash: its digest is that of its address and model name, and it may drift.
    """

    name: str
    kind: ModelKind
    digest: str
    files: dict[str, Path]  # gguf: {"model.gguf": path}; checkpoint, encoder, linear: file name -> path
    size_bytes: int
    architecture: str = ""  # "llama", "phi3", "tfidf", ...
    parameters: int | None = None  # number of weights
    quantization: str = ""  # "F16", "Q4_1", "mixed", ...
    context_length: int | None = None
    embedding_length: int | None = None
    template: str | None = None  # chat template (Jinja) that overrides the one in the file
    system: str = ""
    license: str = ""
    defaults: dict[str, Any] = field(default_factory=dict)  # sampling parameters stored with the model
    lineage: Lineage = field(default_factory=lambda: Lineage(recipe=None))
    url: str = ""  # endpoint: base URL
    remote: str = ""  # endpoint: the model's name there; prefix says the protocol, "ollama" or "openai"

    @property
    def bits_per_weight(self) -> float | None:
        """Bytes on disk per weight, in bits, everything included."""
        return self.size_bytes * 8 / self.parameters if self.parameters else None
