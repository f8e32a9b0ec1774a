"""A tokenizer with fewer tokens that still spells any text, and cuts the texts that it was made for as before.

Byte pairs are merged in a fixed order. If every merge that a text needs stays, and only others go, then at each step
the merge that came first still comes first: the text gets the same tokens. So with each token that stays, all tokens
stay that it is put together from. Unigrams need no such care: the best of all ways to cut a text is also the best of
fewer.
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from sizewise.core.errors import Unsupported

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "decoder_start_token_id", "sep_token_id")
STALE = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")


class Pieces:
    """The tokens of a tokenizer.json."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        """Raises Unsupported for anything but byte pairs and unigrams."""
        model = spec["model"]
        self.spec, self.kind = spec, str(model["type"])
        if self.kind not in ("BPE", "Unigram"):
            raise Unsupported(f"a tokenizer of type {self.kind} cannot be trimmed; byte pairs and unigrams can")
        entries = model["vocab"]
        listed = isinstance(entries, list)
        self.ids: dict[str, int] = {token: place for place, (token, _) in enumerate(entries)} if listed else entries
        self.texts = {place: token for token, place in self.ids.items()}
        self.added = {int(entry["id"]): str(entry["content"]) for entry in spec["added_tokens"]}
        self.merges = [_pair(merge) for merge in model.get("merges", [])]
        self._ranks = {pair: rank for rank, pair in reversed(list(enumerate(self.merges)))}

    @property
    def count(self) -> int:
        """One more than the largest id."""
        return max([*self.texts, *self.added, -1]) + 1

    def needed(self) -> set[int]:
        """Tokens without which some text could not be spelled, and those with a job."""
        model = self.spec["model"]
        unknown = model.get("unk_token")
        found = set(self.added) | {place for token, place in self.ids.items() if _spells(token) or token == unknown}
        return found | ({int(model["unk_id"])} if model.get("unk_id") is not None else set())

    def parts(self, token: int) -> set[int]:
        """All tokens that are made on the way to this one, itself included."""
        if token not in self.texts:
            return {token}
        pieces = list(self.texts[token])
        made = {self.ids[piece] for piece in pieces if piece in self.ids} | {token}
        while len(pieces) > 1:
            pairs = pairwise(pieces)
            rank, at = min((self._ranks.get(pair, len(self.merges)), place) for place, pair in enumerate(pairs))
            if rank == len(self.merges):
                break
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
            made.add(self.ids[pieces[at]])
        return made

    def trimmed(self, new: Mapping[int, int]) -> dict[str, Any]:
        """tokenizer.json with the tokens in `new` alone, old id -> new id."""
        spec = dict(self.spec)
        model = dict(spec["model"])
        kept = {self.texts[old]: place for old, place in new.items() if old in self.texts}
        if self.kind == "BPE":
            model["vocab"] = kept
            merges = [pair for pair in self.merges if all(text in kept for text in (*pair, pair[0] + pair[1]))]
            model["merges"] = [list(pair) for pair in merges]
        else:
            model["vocab"] = [entry for place, entry in enumerate(model["vocab"]) if place in new]
            if model.get("unk_id") is not None:
                model["unk_id"] = new[model["unk_id"]]
        spec["model"] = model
        spec["added_tokens"] = [entry | {"id": new[entry["id"]]} for entry in spec["added_tokens"]]
        spec["post_processor"] = _around(spec.get("post_processor"), new)
        return spec


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge if isinstance(merge, list) else merge.split(" ", 1)
    return left, right


def _spells(token: str) -> bool:
    """True for single bytes, however a tokenizer writes them, and for the letters of ASCII."""
    byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
    return byte or (len(token) == 1 and (ord(token) < 0x144 or token == "▁"))


def _around(entry: Any, new: Mapping[int, int]) -> Any:
    """A post-processor with other ids."""
    if not isinstance(entry, dict):
        return entry
    changed = dict(entry)
    if "processors" in changed:
        changed["processors"] = [_around(each, new) for each in changed["processors"]]
    if isinstance(changed.get("special_tokens"), dict):
        changed["special_tokens"] = {
            text: token | {"ids": [new[place] for place in token["ids"]]}
            for text, token in changed["special_tokens"].items()
        }
    for key in ("sep", "cls"):
        if isinstance(changed.get(key), list):
            changed[key] = [changed[key][0], new[changed[key][1]]]
    return changed


def renumbered(settings: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    """Settings that name tokens by id, with the new ids; a token that is gone is left out."""
    changed = dict(settings)
    for key in _IDS:
        value = changed.get(key)
        if isinstance(value, int):
            changed[key] = new.get(value)
        elif isinstance(value, list):
            changed[key] = [new[token] for token in value if token in new]
    if isinstance(changed.get("added_tokens_decoder"), dict):
        entries = changed["added_tokens_decoder"].items()
        changed["added_tokens_decoder"] = {str(new[int(old)]): entry for old, entry in entries if int(old) in new}
    for key in ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "forced_decoder_ids"):
        if changed.get(key):
            del changed[key]  # they speak of tokens that may be gone
    return changed


def named_ids(*settings: Mapping[str, Any]) -> set[int]:
    """Ids that settings name."""
    values: Iterable[Any] = (each.get(key) for each in settings for key in _IDS)
    return {
        token for value in values for token in (value if isinstance(value, list) else [value]) if type(token) is int
    }
