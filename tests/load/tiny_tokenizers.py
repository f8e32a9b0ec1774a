"""Real tokenizers of some hundred tokens that can spell any text: byte-level BPE, and SentencePiece's kind of BPE."""

from pathlib import Path
from typing import Any

TEXT = (
    "The quick brown fox jumps over a lazy dog. Yes, no; positive or negative? question: answer! 0 1 2 3 4 5 6 7 8 9\n"
    "def add(first, second):\n    return first + second\n\n"
    "Le petit garçon mange une pomme à l'école. Été, naïve, cœur. Wir lesen schöne Bücher.\n"
    "東京 は 日本 の 首都 です。\n"
    "the cat and the dog and the house are there, where they were 2024 1999 3.14\n"
)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
_SPECIAL = ("<pad>", "<s>", "</s>")


def write_bytes_tokenizer(folder: Path, *, bos: bool = True, size: int = 400, digits: bool = False) -> int:
    """Byte-level BPE as in GPT-2; `digits` splits numbers as SmolLM does. Answers the size of the vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    single = pre_tokenizers.Digits(individual_digits=True)
    raw.pre_tokenizer = pre_tokenizers.Sequence([single, level]) if digits else level
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(_SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    raw.train_from_iterator([TEXT] * 4, trainer)
    return _save(raw, folder, bos)


def write_pieces_tokenizer(folder: Path, *, bos: bool = True, gemma: bool = False) -> int:
    """BPE over pieces with bytes for what is unknown, as made from a SentencePiece model; `gemma` adds no space."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokens = [*_SPECIAL, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *_pieces()]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    # as its converters do: every way to put a piece together, the earliest pieces first
    merges = [
        (token[:at], token[at:])
        for token in tokens[260:]
        for at in range(1, len(token))
        if token[:at] in vocabulary and token[at:] in vocabulary
    ]
    raw = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    space = normalizers.Replace(" ", "▁")
    raw.normalizer = space if gemma else normalizers.Sequence([normalizers.Prepend("▁"), space])
    if gemma:
        raw.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    raw.decoder = decoders.Sequence(steps if gemma else [*steps, decoders.Strip(" ", 1, 0)])
    raw.add_special_tokens([*_SPECIAL, "<unk>"])
    return _save(raw, folder, bos, unk_token="<unk>")


def _pieces() -> list[str]:
    """Letters, then the pieces that a BPE trained on the text merges, in order."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.train_from_iterator([TEXT.replace("\n", " ")] * 4, trainers.BpeTrainer(vocab_size=220))
    found = sorted(raw.get_vocab().items(), key=lambda pair: (len(pair[0]) > 1, pair[1]))
    return [piece for piece, _ in found]


def _save(raw: Any, folder: Path, bos: bool, **more: str) -> int:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    if bos:
        raw.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", **more}
    ready = PreTrainedTokenizerFast(tokenizer_object=raw, **names)
    ready.chat_template = TEMPLATE
    ready.save_pretrained(folder)
    return int(raw.get_vocab_size())
