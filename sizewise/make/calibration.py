"""Calibration text: documents become token windows of one length, the same for the same text, tokenizer and seed.

A `.txt` file is cut into documents at blank lines; a `.jsonl` file has one document a line, under "text" or "input".
Documents are shuffled, tokenized and joined; each window begins with the BOS token where the tokenizer sets one.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sizewise.core.digests import digest_of_json
from sizewise.core.errors import BadRow, StorageError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_TOKENS, DEFAULT_WINDOW = 65_536, 512
OWN = Path(__file__).with_name("calibration.jsonl")


@dataclass(frozen=True, slots=True)
class Calibration:
    """Text cut into windows for one tokenizer."""

    name: str
    texts: tuple[str, ...]
    windows: "Tensor"  # (n, window) int32
    digest: str  # of the windows


def load_calibration(
    path: str | Path | None,
    folder: Path,
    *,
    tokens: int = DEFAULT_TOKENS,
    window: int = DEFAULT_WINDOW,
    seed: int = 0,
) -> Calibration:
    """Read and tokenize calibration text.

    Args:
        path: a .txt or .jsonl file; None = the text that comes with sizewise.
        folder: a checkpoint, for its tokenizer.
        tokens: how many to use; rounded down to whole windows.
        window: tokens in a window.
        seed: of the order of documents.

    Raises:
        BadRow: a line is not what it should be.
        StorageError: the file cannot be read.
        UsageError: the text has fewer tokens than asked for.
    """
    source = Path(path) if path is not None else OWN
    texts = read_texts(source)
    count = tokens // window
    if count < 1:
        raise UsageError(f"{tokens} calibration tokens make no window of {window}; use more tokens or a smaller window")
    windows = _cut(_tokenizer(folder), texts, count, window, seed, source)
    digest = digest_of_json([window, windows.flatten().tolist()])
    return Calibration(source.name, tuple(texts), windows, digest)


def read_texts(path: Path) -> list[str]:
    """The documents of a text or JSON-lines file; empty ones are left out.

    Raises:
        BadRow: a line is no JSON object with a text.
        StorageError: the file cannot be read.
        UsageError: it holds no text.
    """
    try:
        raw = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is no UTF-8 text; save the file as UTF-8") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
    if path.suffix == ".jsonl":
        texts = [_text_of(path, number, line) for number, line in enumerate(raw.splitlines(), 1) if line.strip()]
    else:
        texts = raw.split("\n\n")
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise UsageError(f"{path}: holds no text to calibrate on")
    return texts


def _text_of(path: Path, number: int, line: str) -> str:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise BadRow(path, number, f"no JSON: {error}") from error
    text = next((row[key] for key in ("text", "input") if key in row), None) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise BadRow(path, number, 'expected an object with a string "text" or "input"')
    return text


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _cut(tokenizer: Any, texts: list[str], count: int, window: int, seed: int, source: Path) -> "Tensor":
    """(count, window) token ids."""
    import torch

    order = list(texts)
    random.Random(seed).shuffle(order)
    plain, wrapped = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    bos = tokenizer.bos_token_id
    lead = [bos] if bos is not None and wrapped[:1] == [bos] and plain[:1] != [bos] else []
    need, ids = count * (window - len(lead)), []
    for text in order:
        ids += tokenizer(text + "\n\n", add_special_tokens=False)["input_ids"]
        if len(ids) >= need:
            break
    if len(ids) < need:
        raise UsageError(
            f"{source.name}: {len(ids)} tokens of text, {count} windows of {window} need {need}: "
            "give more text, or ask for fewer calibration tokens"
        )
    body = torch.tensor(ids[:need], dtype=torch.int32).reshape(count, -1)
    return torch.cat([body.new_tensor(lead).expand(count, len(lead)), body], 1).contiguous()
