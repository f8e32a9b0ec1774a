"""The tokenizer inside a GGUF as the files of a checkpoint: the inverse of `vocabulary`.

Byte pairs come with their merges. SentencePiece's pieces come with scores; merges are made of them: every way to put a
piece together from two others, the best pieces first, which is the order in which SentencePiece itself merges.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from struct import Struct
from typing import Any

from sizewise.core.errors import BadModel, Unsupported
from sizewise.load.gguf import types as gt
from sizewise.load.gguf.file import ArrayRef, GgufInfo
from sizewise.load.gguf.pretokenizers import MERGES_IGNORED, pre_tokenizer
from sizewise.load.gguf.raw import Cursor, mapped
from sizewise.load.gguf.vocabulary import BYTE, CONTROL, UNKNOWN, UNUSED, USER


def whole_array(info: GgufInfo, key: str) -> list[Any] | None:
    """A metadata array, read from the file where it is long; None where there is none."""
    value = info.metadata.get(key)
    if not isinstance(value, ArrayRef):
        return value if isinstance(value, list) else None
    with mapped(info.path) as data:
        if value.type == gt.STRING:
            cursor = Cursor(data, info.path.name, value.start)
            return [cursor.string("replace") for _ in range(value.count)]
        layout: Struct = gt.SCALARS[value.type]
        return [number for (number,) in layout.iter_unpack(data[value.start : value.end])]


def write_tokenizer(info: GgufInfo, folder: Path) -> dict[str, Path]:
    """Write tokenizer.json, tokenizer_config.json and, where the file has one, the chat template.

    Returns:
        File name -> path.

    Raises:
        BadModel: tokens are missing, or lists of them have different lengths.
        Unsupported: a kind of tokenizer that is not known here.
    """
    reader = _Reader(info)
    files = {"tokenizer.json": reader.specification(), "tokenizer_config.json": reader.config()}
    written = {}
    for name, body in files.items():
        written[name] = folder / name
        written[name].write_text(json.dumps(body, ensure_ascii=False, indent=1), encoding="utf-8")
    if info.template:
        written["chat_template.jinja"] = folder / "chat_template.jinja"
        written["chat_template.jinja"].write_text(info.template, encoding="utf-8")
    return written


class _Reader:
    """The tokenizer's keys of one file."""

    def __init__(self, info: GgufInfo) -> None:
        self.info = info
        tokens = whole_array(info, "tokenizer.ggml.tokens")
        if not tokens:
            raise BadModel(f"{info.path.name}: has no tokens, so that no text can be read or written with it")
        self.tokens: list[str] = tokens
        self.types: list[int] = whole_array(info, "tokenizer.ggml.token_type") or [1] * len(tokens)
        self.kind = str(info.metadata.get("tokenizer.ggml.model", ""))
        if len(self.types) != len(tokens):
            raise BadModel(f"{info.path.name}: {len(tokens)} tokens, but {len(self.types)} types of them")

    def flag(self, key: str) -> Any:
        """`tokenizer.ggml.key`."""
        return self.info.metadata.get(f"tokenizer.ggml.{key}")

    def text(self, title: str) -> str | None:
        """The text of a token with a job, such as "bos"."""
        place = self.flag(f"{title}_token_id")
        return self.tokens[place] if isinstance(place, int) and 0 <= place < len(self.tokens) else None

    @property
    def adds_bos(self) -> bool:
        """Whether a text begins with BOS: as the file says, else as llama.cpp takes it to be."""
        stated = self.flag("add_bos_token")
        if stated is None:
            return self.kind == "llama" or self.flag("pre") in ("llama-bpe", "tekken")
        return bool(stated)

    def specification(self) -> dict[str, Any]:
        """tokenizer.json."""
        if self.kind == "gpt2":
            parts = self._byte_pairs()
        elif self.kind == "llama":
            parts = self._pieces()
        else:
            raise Unsupported(f"{self.info.path.name}: a tokenizer of kind {self.kind!r} cannot be imported")
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [self._added(place) for place, kind in enumerate(self.types) if kind in _ADDED],
            "post_processor": self._around(),
            **parts,
        }

    def config(self) -> dict[str, Any]:
        """tokenizer_config.json."""
        titles = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
        named = {f"{name}_token": text for title, name in titles.items() if (text := self.text(title)) is not None}
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": self.adds_bos,
            "add_eos_token": bool(self.flag("add_eos_token")),
            "clean_up_tokenization_spaces": False,
            "model_max_length": self.info.context_length or 1 << 20,
            **named,
        }

    def _added(self, place: int) -> dict[str, Any]:
        swallows = "phi-3" in str(self.info.metadata.get("general.name", "")).lower()
        return {
            "id": place,
            "content": self.tokens[place],
            "single_word": False,
            "lstrip": False,
            "rstrip": swallows and self.types[place] == CONTROL and self.tokens[place] not in ("<unk>", "<s>"),
            "normalized": False,
            "special": self.types[place] != USER,
        }

    def _around(self) -> dict[str, Any] | None:
        bos, eos = self.flag("bos_token_id"), self.flag("eos_token_id")
        begin = [(self.tokens[bos], bos)] if self.adds_bos and isinstance(bos, int) else []
        end = [(self.tokens[eos], eos)] if self.flag("add_eos_token") and isinstance(eos, int) else []
        if not begin and not end:
            return None

        def named(pairs: Iterable[tuple[str, int]], kind: int) -> list[dict[str, Any]]:
            return [{"SpecialToken": {"id": text, "type_id": kind}} for text, _ in pairs]

        def around(*letters: str) -> list[dict[str, Any]]:
            return [
                step
                for kind, letter in enumerate(letters)
                for step in (
                    *named(begin, kind),
                    {"Sequence": {"id": letter, "type_id": kind}},
                    *named(end, kind),
                )
            ]

        tokens = {text: {"id": text, "ids": [place], "tokens": [text]} for text, place in [*begin, *end]}
        return {
            "type": "TemplateProcessing",
            "single": around("A"),
            "pair": around("A", "B"),
            "special_tokens": tokens,
        }

    def _vocabulary(self) -> dict[str, int]:
        return {token: place for place, token in enumerate(self.tokens) if self.types[place] != UNUSED}

    def _byte_pairs(self) -> dict[str, Any]:
        pre = str(self.flag("pre") or "default")
        cutting = pre_tokenizer(pre)
        if cutting is None:
            raise Unsupported(f"{self.info.path.name}: the rules of the pre-tokenizer {pre!r} are not known here")
        merges = [merge.split(" ", 1) for merge in whole_array(self.info, "tokenizer.ggml.merges") or []]
        if self.flag("add_space_prefix"):
            cutting = json.loads(
                json.dumps(cutting).replace('"add_prefix_space": false', '"add_prefix_space": true', 1)
            )
        model = {
            "type": "BPE",
            "vocab": self._vocabulary(),
            "merges": merges,
            "ignore_merges": pre in MERGES_IGNORED,
            "byte_fallback": False,
            "fuse_unk": False,
        }
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        return {"normalizer": None, "pre_tokenizer": cutting, "decoder": level, "model": model}

    def _pieces(self) -> dict[str, Any]:
        scores = whole_array(self.info, "tokenizer.ggml.scores")
        if not scores or len(scores) != len(self.tokens):
            raise BadModel(f"{self.info.path.name}: its SentencePiece tokens have no scores")
        spaced = self.flag("add_space_prefix")
        space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        prefix = [{"type": "Prepend", "prepend": "▁"}] if spaced is None or spaced else []
        back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
        strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
        unknown = next((token for token, kind in zip(self.tokens, self.types, strict=True) if kind == UNKNOWN), None)
        model = {
            "type": "BPE",
            "vocab": self._vocabulary(),
            "merges": self._merges(scores),
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": BYTE in self.types,
        }
        return {
            "normalizer": {"type": "Sequence", "normalizers": [*prefix, space]},
            "pre_tokenizer": None,
            "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
            "model": model,
        }

    def _merges(self, scores: list[float]) -> list[list[str]]:
        plain = {token: place for token, place in self._vocabulary().items() if self.types[place] in (1, USER)}
        found = []
        for token, place in plain.items():
            for at in range(1, len(token)):
                left, right = plain.get(token[:at]), plain.get(token[at:])
                if left is not None and right is not None:
                    found.append((-scores[place], left, right, token[:at], token[at:]))
        found.sort(key=lambda merge: merge[:3])
        return [[left, right] for *_, left, right in found]


_ADDED = frozenset({UNKNOWN, CONTROL, USER})
