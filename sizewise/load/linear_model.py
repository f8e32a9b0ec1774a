"""Linear models: the smallest thing that can do a classification, and often good enough.

Three kinds, one formula. Features x of a text give logits x W + b; with two classes one logit suffices, the log-odds of
the second. Then log-probabilities follow by a softmax (a sigmoid).

    majority     no features: b holds the logarithms of the classes' shares
    tfidf        x counts words and runs of words, rare ones weighted up, scaled to length 1
    embedding    x is what an encoder makes of the text

Stored as safetensors and JSON, never pickled. The words are cut and weighted here as scikit-learn's TfidfVectorizer
does, with which such a model is trained: running one needs numpy alone.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sizewise.core.digests import canonical
from sizewise.core.errors import BadModel
from sizewise.core.model import Model

LinearKind = Literal["majority", "tfidf", "embedding"]
WEIGHTS_FILE, FACTS_FILE, ENCODER_PREFIX = "model.safetensors", "linear.json", "encoder/"
TOKEN_PATTERN = r"(?u)\b\w\w+\b"  # words of two characters and more
_FORMAT = 1

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Analyzer:
    """How a text becomes terms and their weights."""

    ngram_max: int = 2  # runs of up to so many words are terms
    lowercase: bool = True
    sublinear: bool = True  # a term that occurs n times counts 1 + ln n
    token_pattern: str = TOKEN_PATTERN

    def terms(self, text: str) -> list[str]:
        """Words, then pairs of neighbours, and so on: `a b c` gives a, b, c, "a b", "b c"."""
        words = re.findall(self.token_pattern, text.lower() if self.lowercase else text)
        terms = list(words)
        for length in range(2, self.ngram_max + 1):
            terms += [" ".join(words[start : start + length]) for start in range(len(words) - length + 1)]
        return terms


@dataclass(frozen=True)
class LinearModel:
    """A classifier that is one matrix. `outputs` is 1 for two classes, else their number."""

    kind: LinearKind
    classes: tuple[str, ...]
    coefficients: NDArray[np.floating[Any]]  # (features, outputs), fp32 or fp16; majority: (0, classes)
    intercept: NDArray[np.float32]  # (outputs,)
    vocabulary: tuple[str, ...] = ()  # tfidf: the term of each feature
    idf: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))  # tfidf: (features,)
    analyzer: Analyzer = field(default_factory=Analyzer)

    def __post_init__(self) -> None:
        outputs = len(self.intercept)
        if len(self.classes) < 1 or outputs not in (len(self.classes), 1 if len(self.classes) == 2 else -1):
            raise ValueError(f"{len(self.classes)} classes and {outputs} outputs do not go together")
        if self.coefficients.ndim != 2 or self.coefficients.shape[1] != outputs:
            raise ValueError(f"coefficients {self.coefficients.shape} do not fit {outputs} outputs")
        if self.kind == "tfidf" and not len(self.vocabulary) == len(self.idf) == len(self.coefficients):
            raise ValueError("every term needs its idf and its coefficients")
        if not all(np.isfinite(part).all() for part in (self.coefficients, self.intercept, self.idf)):
            raise ValueError("a weight is no finite number")

    @property
    def parameters(self) -> int:
        """Number of weights: coefficients, intercepts and idf."""
        return int(self.coefficients.size + self.intercept.size + self.idf.size)

    def predict_log_proba(self, inputs: Sequence[str] | NDArray[np.float32]) -> Floats:
        """Log-probability of each class.

        Args:
            inputs: n texts; for an embedding model their embeddings (n, width).

        Returns:
            (n, classes), rows in the order of `inputs`, columns in that of `classes`.
        """
        logits = self._logits(inputs)
        if logits.shape[1] < len(self.classes):
            logits = np.hstack([np.zeros_like(logits), logits])
        highest = logits.max(axis=1, keepdims=True, initial=-np.inf)
        shifted = logits - highest
        log_proba: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return log_proba

    def predict(self, inputs: Sequence[str] | NDArray[np.float32]) -> list[str]:
        """The likeliest class of each input; of equals the first."""
        return [self.classes[place] for place in self.predict_log_proba(inputs).argmax(axis=1)]

    def halved(self) -> "LinearModel":
        """The same model with coefficients in fp16, for half the room; itself where one is too large for that."""
        largest = float(np.abs(self.coefficients).max(initial=0.0))
        if largest > float(np.finfo(np.float16).max):
            return self
        return replace(self, coefficients=self.coefficients.astype(np.float16))

    def save(self, folder: Path) -> dict[str, Path]:
        """Write the model. The same model always gives the same bytes.

        Returns:
            File name -> path of the two files.
        """
        from safetensors.numpy import save

        arrays: dict[str, NDArray[Any]] = {"intercept": self.intercept}
        if self.coefficients.size:
            arrays["coefficients"] = np.ascontiguousarray(self.coefficients)
        facts: dict[str, Any] = {"format": _FORMAT, "kind": self.kind, "classes": list(self.classes)}
        if self.kind == "tfidf":
            arrays["idf"] = self.idf
            facts |= {
                "analyzer": {name: getattr(self.analyzer, name) for name in Analyzer.__dataclass_fields__},
                "vocabulary": list(self.vocabulary),
            }
        paths = {name: folder / name for name in (WEIGHTS_FILE, FACTS_FILE)}
        paths[WEIGHTS_FILE].write_bytes(save(arrays))
        paths[FACTS_FILE].write_bytes(canonical(facts))
        return paths

    @staticmethod
    def load(files: Mapping[str, Path] | Path) -> "LinearModel":
        """Read a model back.

        Args:
            files: its folder, or file name -> path.

        Raises:
            BadModel: a file is missing, damaged, or was written by a newer version.
        """
        if isinstance(files, Path):
            files = {name: files / name for name in (WEIGHTS_FILE, FACTS_FILE)}
        for name in (WEIGHTS_FILE, FACTS_FILE):
            if name not in files or not files[name].is_file():
                raise BadModel(f"a linear model needs the file {name}; make or pull the model again")
        facts = _read_facts(files[FACTS_FILE])
        arrays = _read_arrays(files[WEIGHTS_FILE])
        try:
            return _assemble(facts, arrays)
        except (KeyError, TypeError, ValueError, re.error) as error:
            raise BadModel(f"{files[FACTS_FILE]}: no linear model ({error}); make or pull it again") from error

    def _logits(self, inputs: Sequence[str] | NDArray[np.float32]) -> Floats:
        if self.kind == "majority":
            return np.tile(self.intercept.astype(np.float64), (len(inputs), 1))
        if self.kind == "embedding":
            embeddings = np.asarray(inputs, np.float64).reshape(len(inputs), -1)
            logits: Floats = embeddings @ self.coefficients.astype(np.float64) + self.intercept
            return logits
        logits = np.empty((len(inputs), len(self.intercept)))
        for row, text in enumerate(inputs):
            columns, weights = self.features(str(text))
            logits[row] = weights @ self.coefficients[columns].astype(np.float64) + self.intercept
        return logits

    def features(self, text: str) -> tuple[NDArray[np.intp], Floats]:
        """The places of a text's known terms and their weights, whose squares add up to 1 (or which are none)."""
        known = (self._columns.get(term) for term in self.analyzer.terms(text))
        counts = Counter(column for column in known if column is not None)
        columns = np.array(sorted(counts), np.intp)
        frequency = np.array([counts[column] for column in columns], np.float64)
        if self.analyzer.sublinear:
            frequency = 1.0 + np.log(frequency)
        weights: Floats = frequency * self.idf[columns]
        length = math.sqrt(float(weights @ weights))
        return columns, weights / length if length else weights

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {term: column for column, term in enumerate(self.vocabulary)}


def encoder_of(model: Model) -> Model:
    """The encoder that a stored linear model on embeddings carries with it.

    Raises:
        BadModel: the model has none.
    """
    files = {
        name.removeprefix(ENCODER_PREFIX): path for name, path in model.files.items() if name.startswith(ENCODER_PREFIX)
    }
    if not files:
        raise BadModel(f"{model.name}: holds no encoder for its inputs; make the model again")
    return Model(
        name=model.lineage.parent_name or f"{model.name} (encoder)",
        kind="encoder",
        digest=model.lineage.parent_digest or model.digest,
        files=files,
        size_bytes=sum(path.stat().st_size for path in files.values()),
        context_length=model.context_length,
        embedding_length=model.embedding_length,
    )


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_bytes())
    except ValueError as error:
        raise BadModel(f"{path}: not JSON ({error}); make or pull the model again") from error
    if not isinstance(facts, dict) or facts.get("kind") not in get_args(LinearKind):
        raise BadModel(f"{path}: describes no linear model; make or pull it again")
    if facts.get("format") != _FORMAT:
        raise BadModel(f"{path}: format {facts.get('format')!r} is not {_FORMAT}, the one known here; upgrade sizewise")
    return facts


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return dict(load(path.read_bytes()))
    except (SafetensorError, ValueError, KeyError) as error:
        raise BadModel(f"{path}: no safetensors file ({error}); make or pull the model again") from error


def _assemble(facts: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> LinearModel:
    intercept = arrays["intercept"]
    nothing = np.zeros((0, len(intercept)), np.float32)
    tfidf = facts["kind"] == "tfidf"
    analyzer = Analyzer(**facts["analyzer"]) if tfidf else Analyzer()
    re.compile(analyzer.token_pattern)
    return LinearModel(
        kind=facts["kind"],
        classes=tuple(map(str, facts["classes"])),
        coefficients=arrays["coefficients"] if facts["kind"] != "majority" else nothing,
        intercept=intercept,
        vocabulary=tuple(map(str, facts["vocabulary"])) if tfidf else (),
        idf=arrays["idf"] if tfidf else np.zeros(0, np.float32),
        analyzer=analyzer,
    )
