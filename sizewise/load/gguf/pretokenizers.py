"""How text is cut before byte pairs are merged: llama.cpp's names, and the same as a pre-tokenizer of transformers.

A GGUF names its pre-tokenizer instead of holding it. Names are tried one after the other when a model is exported (see
`export`), the ones first whose rules read like the model's own, and the name that gives the same tokens is kept.
"""

from typing import Any

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+SUFFIX|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*SUFFIX"
_CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS = {
    "llama-bpe": rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}",
    "gpt-4o": _CASED.replace("SUFFIX", _CONTRACTIONS + "?") + r"|\p{N}{1,3}|" + _CASED_REST,
    "tekken": _CASED.replace("SUFFIX", "") + r"|\p{N}|" + _CASED_REST,
}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_DIGIT = {"type": "Digits", "individual_digits": True}
# names with the same rules: the first is what an export writes
_SAME = {
    "smollm": ("smollm", "refact", "starcoder", "command-r", "codeshell", "exaone", "minerva-7b", "granite-docling"),
    "gpt-2": ("gpt-2", "phi-2", "jais", "mpt", "olmo", "trillion", "gpt2"),
    "llama-bpe": ("llama-bpe", "llama3", "llama-v3", "smaug-bpe", "falcon3", "dbrx", "lfm2"),
    "qwen2": ("qwen2", "stablelm2", "hunyuan", "deepseek-r1-qwen"),
    "gpt-4o": ("gpt-4o", "llama4"),
    "tekken": ("tekken",),
    "falcon": ("falcon", "default"),
}
TRIED = ("gpt-2", "smollm", "llama-bpe", "qwen2", "gpt-4o", "tekken", "falcon", "refact", "starcoder", "phi-2", "dbrx",
         "stablelm2", "olmo", "command-r", "deepseek-llm", "deepseek-coder", "default", "superbpe", "chatglm-bpe",
         "poro-chat", "viking", "bailingmoe", "seed-coder", "jais", "mpt")  # fmt: skip
MERGES_IGNORED = frozenset({"llama-bpe", "llama3", "llama-v3", "tekken", "falcon3", "llama4", "gpt-4o"})


def pre_tokenizer(name: str) -> dict[str, Any] | None:
    """The entry `pre_tokenizer` of tokenizer.json for llama.cpp's name; None where the rules are not known here."""
    kind = next((first for first, names in _SAME.items() if name in names), None)
    if kind == "gpt-2":
        return dict(_BYTES)
    if kind == "smollm":
        return _sequence(dict(_DIGIT), dict(_BYTES))
    if kind == "falcon":
        digits = {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated", "invert": False}
        grouped = {"type": "Digits", "individual_digits": False}
        return _sequence({"type": "Punctuation", "behavior": "Contiguous"}, dict(_BYTES), grouped, digits)
    if kind is None:
        return None
    split = {"type": "Split", "pattern": {"Regex": _PATTERNS[kind]}, "behavior": "Isolated", "invert": False}
    return _sequence(split, _BYTES | {"use_regex": False})


def candidates(own: dict[str, Any] | None) -> tuple[str, ...]:
    """All names that are tried for a tokenizer whose pre-tokenizer is `own`, the most likely ones first."""
    rules = _rules(own)
    likely = [name for name in TRIED if (known := pre_tokenizer(name)) and _rules(known) == rules]
    return (*likely, *(name for name in TRIED if name not in likely))


def _sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _rules(entry: dict[str, Any] | None) -> list[str]:
    """What decides how text is cut, without the settings that do not."""
    if not entry:
        return []
    steps = entry.get("pretokenizers", [entry])
    found = []
    for step in steps:
        pattern = step.get("pattern")
        text = str(pattern.get("Regex", pattern.get("String"))) if isinstance(pattern, dict) else ""
        found.append(f"{step['type']} {text} {step.get('use_regex', '')} {step.get('individual_digits', '')}")
    return found
