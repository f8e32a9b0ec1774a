"""A checkpoint's tokenizer as the metadata of a GGUF.

Two kinds of tokenizer are known to both worlds: byte-level byte pairs ("gpt2" in a GGUF), which have a list of merges,
and SentencePiece's ("llama" for its byte pairs, "t5" for its unigrams), which have a score for each piece. A
tokenizer.json made from a SentencePiece model has merges instead of scores; the order of merges gives them back.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sizewise.core.errors import BadModel, Unsupported
from sizewise.load.checkpoint.folder import read_json
from sizewise.load.gguf.pretokenizers import candidates

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # token types of a GGUF
_LOWEST = -1e6  # score of a piece that no merge makes


@dataclass(slots=True)
class Vocabulary:
    """What a GGUF says of its tokenizer. `pre` holds names to try, where the kind has any."""

    model: str  # "gpt2", "llama", "t5"
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    pre: tuple[str, ...] = ()
    flags: dict[str, Any] = field(default_factory=dict)  # add_bos_token, bos_token_id, ...
    strips: bool = False  # control tokens swallow the spaces after them

    def metadata(self, pre: str | None = None) -> dict[str, Any]:
        """Keys and values, with `pre` as the name of the pre-tokenizer."""
        values: dict[str, Any] = {"model": self.model, "tokens": self.tokens, "token_type": self.types, **self.flags}
        if self.scores is not None:
            values["scores"] = self.scores
        if self.merges is not None:
            values["merges"] = self.merges
        if pre or self.pre:
            values["pre"] = pre or self.pre[0]
        return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer that transformers makes of a folder.

    Raises:
        BadModel: it cannot be loaded.
        Unsupported: it is of a kind without a tokenizer.json.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError, TypeError, AttributeError, ImportError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadModel(f"{folder.name}: its tokenizer cannot be loaded: {line[:300]}") from error
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise Unsupported(
            f"{folder.name}: its tokenizer has no tokenizer.json; load and save it once with transformers"
        )
    return tokenizer


def vocabulary_of(folder: Path, size: int) -> Vocabulary:
    """The tokenizer of a checkpoint folder.

    Args:
        folder: the checkpoint.
        size: rows of the embedding; tokens that the tokenizer lacks are filled in as unused.

    Raises:
        BadModel: the tokenizer has more tokens than the embedding has rows.
        Unsupported: neither byte pairs nor SentencePiece.
    """
    tokenizer = load_tokenizer(folder)
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    model = spec["model"]
    pieces = _pieces(model)
    added = {int(entry["id"]): entry for entry in spec["added_tokens"]}
    count = max([*pieces.values(), *added, -1]) + 1
    if count > size:
        raise BadModel(f"{folder.name}: the tokenizer has {count} tokens, the embedding {size} rows")
    tokens = [f"[PAD{place}]" for place in range(size)]
    types = [UNUSED] * size
    for piece, place in pieces.items():
        tokens[place], types[place] = piece, NORMAL
    for place, entry in added.items():
        tokens[place], types[place] = entry["content"], CONTROL if entry["special"] else USER
    strips = any(entry["special"] and entry["rstrip"] for entry in spec["added_tokens"])
    found = Vocabulary("", tokens, types, flags=_flags(folder, tokenizer), strips=strips)
    if model["type"] == "BPE" and _uses(spec, "ByteLevel"):
        return _byte_level(found, spec)
    if model["type"] == "BPE" and model.get("byte_fallback"):
        return _sentence_pieces(found, spec, pieces)
    if model["type"] == "Unigram":
        return _unigrams(found, spec)
    kind = model["type"]
    raise Unsupported(f"{folder.name}: llama.cpp reads byte pairs and SentencePiece, not a tokenizer of type {kind}")


def _pieces(model: Mapping[str, Any]) -> dict[str, int]:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        return {piece: place for place, (piece, _) in enumerate(vocabulary)}
    return dict(vocabulary)


def _uses(spec: Mapping[str, Any], step: str) -> bool:
    return any(f'"type": "{step}"' in json.dumps(spec.get(part)) for part in ("pre_tokenizer", "decoder"))


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = []
    for merge in model["merges"]:
        left, right = merge if isinstance(merge, list) else merge.split(" ", 1)
        pairs.append((left, right))
    return pairs


def _byte_level(found: Vocabulary, spec: Mapping[str, Any]) -> Vocabulary:
    found.model = "gpt2"
    found.merges = [f"{left} {right}" for left, right in _merges(spec["model"])]
    found.pre = candidates(spec.get("pre_tokenizer"))
    prefix = '"add_prefix_space": true' in json.dumps(spec.get("pre_tokenizer"))
    found.flags["add_space_prefix"] = prefix
    return found


def _sentence_pieces(found: Vocabulary, spec: Mapping[str, Any], pieces: Mapping[str, int]) -> Vocabulary:
    """Scores from merges: a piece is worth the more, the earlier it is made."""
    found.model = "llama"
    scores = [0.0] * len(found.tokens)
    for piece, place in pieces.items():
        if len(piece) > 1 and found.types[place] == NORMAL:
            scores[place] = _LOWEST
    for rank, (left, right) in reversed(list(enumerate(_merges(spec["model"])))):
        if left + right in pieces:
            scores[pieces[left + right]] = -float(rank)
    _mark_bytes(found, spec["model"].get("unk_token"))
    for place, kind in enumerate(found.types):
        if kind == BYTE:
            scores[place] = 0.0
    found.scores = scores
    found.pre = ("default",)
    found.flags["add_space_prefix"] = _adds_space(spec)
    return found


def _unigrams(found: Vocabulary, spec: Mapping[str, Any]) -> Vocabulary:
    import base64

    found.model = "t5"
    scores = [score for _, score in spec["model"]["vocab"]]
    found.scores = [*scores, *([0.0] * (len(found.tokens) - len(scores)))]
    unknown = spec["model"].get("unk_id")
    _mark_bytes(found, found.tokens[unknown] if unknown is not None else None)
    steps = _steps(spec.get("normalizer"), "normalizers")
    charsmap = next((step["precompiled_charsmap"] for step in steps if step["type"] == "Precompiled"), None)
    if charsmap:
        found.flags["precompiled_charsmap"] = list(base64.b64decode(charsmap))
    found.flags["remove_extra_whitespaces"] = any(step["type"] in ("Strip", "Replace") for step in steps)
    found.flags["add_space_prefix"] = _adds_space(spec)
    found.pre = ("default",)
    return found


def _mark_bytes(found: Vocabulary, unknown: str | None) -> None:
    for place, token in enumerate(found.tokens):
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            found.types[place] = BYTE
        elif token == unknown:
            found.types[place] = UNKNOWN


def _steps(entry: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    if not entry:
        return []
    steps: list[Mapping[str, Any]] = entry.get(key, [entry])
    return steps


def _adds_space(spec: Mapping[str, Any]) -> bool:
    normal = any(step["type"] == "Prepend" for step in _steps(spec.get("normalizer"), "normalizers"))
    cutting = _steps(spec.get("pre_tokenizer"), "pretokenizers")
    return normal or any(step["type"] == "Metaspace" and step.get("prepend_scheme") != "never" for step in cutting)


def _flags(folder: Path, tokenizer: Any) -> dict[str, Any]:
    """Which tokens have a job, and what is put around a text."""
    flags: dict[str, Any] = {}
    for title, name in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        place = getattr(tokenizer, f"{name}_token_id", None)
        if place is not None:
            flags[f"{title}_token_id"] = int(place)
    bare, wrapped = (tokenizer("a", add_special_tokens=wrap)["input_ids"] for wrap in (False, True))
    begins = bool(wrapped) and wrapped[0] == tokenizer.bos_token_id and bare[:1] != wrapped[:1]
    flags["add_bos_token"] = begins
    flags["add_eos_token"] = len(wrapped) > len(bare) + begins and wrapped[-1] == tokenizer.eos_token_id
    more = [token for token in _ends(folder) if token != tokenizer.eos_token_id]
    if more:
        flags["eot_token_id"] = more[-1]
    return flags


def _ends(folder: Path) -> list[int]:
    """Tokens that end an answer, as the model's settings for generation say."""
    path = folder / "generation_config.json"
    found = read_json(path).get("eos_token_id") if path.exists() else None
    return [found] if isinstance(found, int) else [token for token in found or [] if isinstance(token, int)]
