"""Vocabulary: leave out the tokens of languages that are not spoken here, with their rows of embedding and head.

In a small model a fifth to a third of all weights are rows of the embedding, most of them for tokens that one task
never uses. The calibration text says which ones are: what it uses stays, together with what those tokens are put
together from, all single bytes and all control tokens. The text gets the same tokens as before and each of them the
same logit; any other text can still be written, in more tokens.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from sizewise.core.errors import UsageError
from sizewise.core.params import Range
from sizewise.load.checkpoint.folder import read_json
from sizewise.load.gguf.vocabulary import load_tokenizer
from sizewise.load.layers import Layout
from sizewise.make.fewer_tokens import STALE, Pieces, named_ids, renumbered
from sizewise.make.method import structure_method
from sizewise.make.packed import Reshaped
from sizewise.make.reshape import Tensors

if TYPE_CHECKING:
    from torch import Tensor


@structure_method
def vocab(
    layout: Layout,
    config: dict[str, Any],
    tensors: Tensors,
    texts: Sequence[str],
    folder: Path,
    *,
    minimum: Annotated[int, Range(0)] = 1,
    most: Annotated[int, Range(0)] = 0,
) -> Reshaped:
    """Prune: leave out tokens that the calibration text does not use, with their rows of embedding and head.

    Args:
        layout: the network's parts.
        config: its config.json.
        tensors: its tensors.
        texts: documents in the languages that matter.
        folder: where its tokenizer is.
        minimum: how often a token must occur in the text to stay; 0 returns the network untouched.
        most: keep at most so many tokens, the most frequent; 0 = no limit. Those that spell any text always stay.

    Returns:
        The network with fewer rows, and a tokenizer that belongs to it.

    Raises:
        Unsupported: the tokenizer is of a kind that cannot be trimmed.
        UsageError: the text uses no token.
    """
    if minimum == 0 and most == 0:
        return Reshaped(config, ((name, tensors.get(name)) for name in tensors), {"tokens": layout.vocabulary})
    pieces, settings = Pieces(_specification(folder)), _settings(folder)
    counts = _counts(folder, texts, pieces.count)
    kept = _kept(pieces, counts, named_ids(config, *settings.values()), max(minimum, 1), most)
    new = {old: place for place, old in enumerate(sorted(place for place in kept if place < layout.vocabulary))}
    covered = sum(count for token, count in counts.items() if token in new)
    figures: dict[str, Any] = {
        "tokens_before": layout.vocabulary,
        "tokens": len(new),
        "share_of_text_with_old_tokens": round(covered / counts.total(), 6),
    }
    files: dict[str, bytes | None] = {"tokenizer.json": _json(pieces.trimmed(new))}
    files |= {name: _json(renumbered(body, new)) for name, body in settings.items()}
    files |= dict.fromkeys(STALE)
    changed = renumbered(config, new) | {"vocab_size": len(new)}
    return Reshaped(changed, _fewer_rows(layout, tensors, sorted(new)), figures, files=files)


def _specification(folder: Path) -> dict[str, Any]:
    if (folder / "tokenizer.json").exists():
        return read_json(folder / "tokenizer.json")
    found: dict[str, Any] = json.loads(load_tokenizer(folder).backend_tokenizer.to_str())
    return found


def _settings(folder: Path) -> dict[str, dict[str, Any]]:
    names = ("tokenizer_config.json", "generation_config.json")
    return {name: read_json(folder / name) for name in names if (folder / name).exists()}


def _counts(folder: Path, texts: Sequence[str], known: int) -> Counter[int]:
    """How often each token occurs; tokens that a class of transformers adds have no row and are not counted."""
    tokenizer, counts = load_tokenizer(folder), Counter[int]()
    for start in range(0, len(texts), 256):
        for row in tokenizer(list(texts[start : start + 256]), add_special_tokens=False)["input_ids"]:
            counts.update(token for token in row if token < known)
    if not counts:
        raise UsageError("the calibration text uses no token, so that nothing says which ones to keep")
    return counts


def _kept(pieces: Pieces, counts: Counter[int], named: set[int], minimum: int, most: int) -> set[int]:
    """Ids that stay: what is needed, then the frequent ones with what they are made of, until there are `most`."""
    kept = pieces.needed() | named
    for token, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        if count < minimum:
            break
        more = kept | pieces.parts(token)
        if most and len(more) > most:
            continue
        kept = more
    return kept


def _fewer_rows(layout: Layout, tensors: Tensors, kept: list[int]) -> "Iterator[tuple[str, Tensor]]":
    import torch

    rows = torch.tensor(kept)
    for name in tensors:
        tensor, module = tensors.get(name), name.rpartition(".")[0]
        yield name, tensor[rows] if module in (layout.embedding, layout.head, "lm_head") else tensor


def _json(body: dict[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, indent=1).encode()
