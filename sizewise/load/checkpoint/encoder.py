"""Sentence encoders with torch: texts become L2-normalised vectors. Runs in the child process of the torch runner.

The token vectors of a text are pooled as the checkpoint says (`modules.json`, `1_Pooling/config.json`); without that,
by their mean. Padding never counts.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sizewise.core.errors import Unsupported

BATCH_TOKENS = {"cpu": 512, "cuda": 32_768}  # padding included; on a CPU a small batch stays in its caches
_POOLINGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")
_HANDLED = ("Transformer", "Pooling", "Normalize")


def pooling_of(folder: Path) -> str:
    """How token vectors become one, in the words of sentence-transformers.

    Raises:
        Unsupported: a way, or a further module, that is not built in.
    """
    listing = folder / "modules.json"
    if not listing.exists():
        return "mean_tokens"
    modules = json.loads(listing.read_bytes())
    strange = [module["type"] for module in modules if module["type"].rpartition(".")[2] not in _HANDLED]
    if strange:
        raise Unsupported(f"this encoder has a module {strange[0]}, which is not built in; take one that only pools")
    place = next((module["path"] for module in modules if module["type"].endswith("Pooling")), None)
    if place is None:
        return "mean_tokens"
    config = json.loads((folder / place / "config.json").read_bytes())
    chosen = [name.removeprefix("pooling_mode_") for name, on in config.items() if on is True and "mode_" in name]
    if len(chosen) != 1 or chosen[0] not in _POOLINGS:
        raise Unsupported(f"this encoder pools by {', '.join(chosen) or 'nothing'}; built in: {', '.join(_POOLINGS)}")
    return str(chosen[0])


def embed(
    model: Any, tokenizer: Any, texts: Sequence[str], *, max_length: int, pooling: str, step: Callable[[int], None]
) -> NDArray[np.float32]:
    """Vectors of `texts`, (n, width), in their order.

    Args:
        model: a transformers encoder.
        tokenizer: its tokenizer.
        texts: what to embed; each is cut at `max_length` tokens, as in training.
        max_length: tokens, special ones included.
        pooling: from `pooling_of`.
        step: told after each batch how many texts are done.
    """
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"] if texts else []
    order = sorted(range(len(texts)), key=lambda index: len(encoded[index]), reverse=True)
    vectors = np.zeros((len(texts), model.config.hidden_size), np.float32)
    done = 0
    while done < len(order):
        # longest first: the first batch shows whether memory is enough
        rows = max(1, BATCH_TOKENS[model.device.type] // max(1, len(encoded[order[done]])))
        batch = order[done : done + rows]
        vectors[batch] = _batch(model, [encoded[index] for index in batch], tokenizer.pad_token_id or 0, pooling)
        done += len(batch)
        step(done)
    return vectors


def _batch(model: Any, rows: list[list[int]], pad: int, pooling: str) -> NDArray[np.float32]:
    width = max(1, max(len(row) for row in rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=model.device)
    lengths = torch.tensor([[len(row)] for row in rows], device=model.device)
    mask = (torch.arange(width, device=model.device) < lengths).long()
    with torch.inference_mode():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
    pooled = pool(hidden, mask, pooling)
    vectors: NDArray[np.float32] = torch.nn.functional.normalize(pooled, dim=1).cpu().numpy()
    return vectors


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """One vector for each row.

    Args:
        hidden: (rows, tokens, width).
        mask: (rows, tokens), 1 where there is a token; padding is on the right.
        pooling: one of the words above.
    """
    if pooling == "cls_token":
        return hidden[:, 0]
    if pooling == "lasttoken":
        return hidden[torch.arange(len(hidden)), mask.sum(1) - 1]
    if pooling == "max_tokens":
        return hidden.masked_fill(mask[..., None] == 0, -torch.inf).amax(1)
    total = (hidden * mask[..., None]).sum(1)
    count = mask.sum(1, keepdim=True).clamp(min=1)
    return total / (count.sqrt() if pooling == "mean_sqrt_len_tokens" else count)
