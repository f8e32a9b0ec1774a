"""Long texts: cut up they have the tokens of the whole, in time, and what is too long is known without tokenizing."""

import random
import time
from pathlib import Path

import gguf
import pytest
import tiny_gguf

from sizewise.load.llama.model import NativeModel

RUNS = ["aa", "aaaa", "a" * 16, "▁a", "▁aa", "▁▁", "▁▁▁▁", "ab", "abab", "é", "éa", "日本"]
LETTERS = ["a", "a", "b", " ", "  ", "\n", "\t", "é", "ü", "日", "本", "😀", "</s>", "<s>", "<unk>", "▁", "\ufdd1", "z"]


def model_of(folder: Path, tokens: tuple[list[str], list[float], list[int]], **more: bool | str) -> NativeModel:
    """The vocabulary of a tiny model with these texts, scores and types of tokens."""
    path = folder / "vocabulary.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens[0])
    writer.add_token_scores(tokens[1])
    writer.add_token_types(tokens[2])
    for key, value in more.items():
        name = key.replace("__", ".")
        writer.add_bool(name, value) if isinstance(value, bool) else writer.add_string(name, value)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(64)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return NativeModel(path, vocab_only=True)


def pieces() -> tuple[list[str], list[float], list[int]]:
    texts, scores, types = tiny_gguf.tokens()
    return [*texts, *RUNS], [*scores, *(-0.1 - place for place in range(len(RUNS)))], [*types, *[1] * len(RUNS)]


@pytest.fixture(scope="module", params=[True, False], ids=["space before", "no space"])
def spm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> NativeModel:
    return model_of(tmp_path_factory.mktemp("spm"), pieces(), tokenizer__ggml__add_space_prefix=request.param)


@pytest.mark.parametrize("special", [True, False])
def test_parts_have_the_tokens_of_the_whole(spm: NativeModel, special: bool) -> None:
    draw, cut = random.Random(7), 0
    for _ in range(300):
        text = "".join(draw.choices(LETTERS, k=draw.randint(1, 60)))
        part = draw.randint(1, 12)
        cut += len(list(spm.long_texts._parts(text, part))) > 1
        whole = spm.tokenize_whole(text, special=special)
        assert spm.long_texts.tokenize(text, special=special, part=part) == whole, repr(text)
        assert spm.long_texts.at_least(text) <= len(whole)
    assert cut > 200


def test_tokens_that_swallow_blanks(tmp_path: Path) -> None:
    """Phi-3's: the engine knows them by the model's name."""
    texts, scores, types = pieces()
    tokens = [*texts, "<|endoftext|>"], [*scores, -99.0], [*types, 3]
    model = model_of(tmp_path, tokens, general__name="phi-3-mini")
    assert model.long_texts._strips
    draw = random.Random(8)
    for _ in range(300):
        text = "".join(draw.choices([*LETTERS, "\n\n", "</s>"], k=draw.randint(1, 40)))
        whole = model.tokenize_whole(text, special=True)
        assert model.long_texts.tokenize(text, special=True, part=3) == whole, repr(text)
        assert model.long_texts.at_least(text) <= len(whole)


@pytest.mark.parametrize("letter", ["\n", "ü", "😀", "a", " ", "日"])
def test_a_megabyte_of_one_character(spm: NativeModel, letter: str) -> None:
    """Row 35: refused or read within two seconds. The engine alone takes a minute for some of them."""
    text = letter * (2**20 // len(letter.encode()))
    start = time.process_time()
    tokens = spm.tokenize(text, special=True)
    assert time.process_time() - start < 5  # two seconds on an idle machine
    assert spm.detokenize(tokens).decode().lstrip(" ") == text.lstrip(" ")
    assert len(tokens) / 16 <= spm.long_texts.at_least(text) <= len(tokens)


@pytest.mark.model
def test_the_bound_holds_for_bytes(smollm2: Path) -> None:
    model = NativeModel(smollm2, vocab_only=True)
    for text in ("a" * 5000, "\n" * 5000, "é" * 5000, "🚀" * 5000, "word and word " * 300, Path(__file__).read_text()):
        count = len(model.tokenize(text, special=False))
        assert count / 90 < model.long_texts.at_least(text) <= count
    assert model.long_texts.at_least("ä" * 2**20) > 8192
