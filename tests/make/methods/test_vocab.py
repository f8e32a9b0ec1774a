"""Vocabulary: the corpus keeps its tokens and logits, any text can still be written, and the files agree."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from networks import config_of, load, logits, write
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from sizewise.core.errors import Unsupported, UsageError
from sizewise.load.checkpoint.tensors import TensorSource
from sizewise.load.gguf.vocabulary import load_tokenizer
from sizewise.load.layers import layout_of
from sizewise.make.fewer_tokens import Pieces
from sizewise.make.methods.vocab import vocab
from sizewise.make.packed import Reshaped

CORPUS = ("the quick brown fox jumps over the dog", "where are the dog and the house? 2024", "def add(first)")
OTHER = ("東京 garçon 🙂 naïve", "Wir lesen schöne Bücher.\n\ttab", "<s>the</s>")


def _made(folder: Path, texts: tuple[str, ...] = CORPUS, **options: Any) -> Reshaped:
    return vocab(layout_of(folder), config_of(folder), TensorSource(folder), texts, folder, **options)


def _written(made: Reshaped, base: Path, target: Path) -> Path:
    write(made, base, target)
    for name, body in made.files.items():
        if body is None:
            (target / name).unlink(missing_ok=True)
        else:
            (target / name).write_bytes(body)
    return target


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "qwen2"])
def test_the_corpus_keeps_its_tokens_and_logits(name: str, family: Callable[[str], Path], tmp_path: Path) -> None:
    folder = family(name)
    made = _made(folder)
    small = _written(made, folder, tmp_path / "small")
    old, new = load_tokenizer(folder), load_tokenizer(small)
    assert len(new) < len(old)
    assert layout_of(small).vocabulary == made.figures["tokens"] == len(new)
    before, after = load(folder), load(small)
    texts = {old.convert_ids_to_tokens(place): place for place in range(len(old))}
    kept = [texts[new.convert_ids_to_tokens(place)] for place in range(len(new))]
    for text in CORPUS:
        left, right = old(text)["input_ids"], new(text)["input_ids"]
        assert [kept[token] for token in right] == left
        one, other = logits(before, torch.tensor([left])), logits(after, torch.tensor([right]))
        assert torch.allclose(one[..., kept], other, atol=1e-5)
    assert made.figures["share_of_text_with_old_tokens"] == 1


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_any_other_text_can_still_be_written(name: str, family: Callable[[str], Path], tmp_path: Path) -> None:
    folder = family(name)
    old, new = load_tokenizer(folder), load_tokenizer(_written(_made(folder), folder, tmp_path / "small"))
    for text in (*CORPUS, *OTHER):
        wrapped = new(text)["input_ids"]
        assert new.decode(wrapped) == old.decode(old(text)["input_ids"])
        assert wrapped[0] == new.bos_token_id
        assert max(wrapped) < len(new)
        assert new.unk_token_id is None or new.unk_token_id not in wrapped


def test_ids_in_all_files_agree(family: Callable[[str], Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(family("llama"), base)
    (base / "merges.txt").write_text("stale")
    small = _written(_made(base), base, tmp_path / "small")
    tokenizer, config = load_tokenizer(small), config_of(small)
    assert (config["bos_token_id"], config["eos_token_id"]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    generation = json.loads((small / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.eos_token_id
    assert config["vocab_size"] == len(tokenizer)
    assert not (small / "merges.txt").exists()
    assert tokenizer.chat_template == load_tokenizer(base).chat_template


def test_a_token_stays_with_what_it_is_made_of(family: Callable[[str], Path]) -> None:
    pieces = Pieces(json.loads((family("gpt2") / "tokenizer.json").read_text()))
    longest = max(pieces.ids, key=lambda token: (len(token), token))
    made = {pieces.texts[place] for place in pieces.parts(pieces.ids[longest])}
    assert longest in made
    assert set(longest) <= made
    assert len(made - set(longest)) == len(longest) - 1  # one new piece for each merge


def test_fewer_tokens_on_demand(family: Callable[[str], Path], tmp_path: Path) -> None:
    folder = family("gpt2")
    needed = len(Pieces(json.loads((folder / "tokenizer.json").read_text())).needed())
    made = _made(folder, most=needed + 10)
    assert needed < made.figures["tokens"] <= needed + 10
    assert 0 < made.figures["share_of_text_with_old_tokens"] < 1
    new = load_tokenizer(_written(made, folder, tmp_path / "small"))
    assert new.decode(new(CORPUS[0], add_special_tokens=False)["input_ids"]) == CORPUS[0]


@pytest.mark.parametrize("name", ["llama", "phi"])
def test_off_is_the_same_network(name: str, family: Callable[[str], Path]) -> None:
    folder = family(name)
    made, source = _made(folder, minimum=0), TensorSource(folder)
    after = dict(made.tensors)
    assert made.config == config_of(folder)
    assert not made.files
    assert all(torch.equal(after[each], source.get(each)) for each in source)


def test_rare_tokens_go_where_asked(family: Callable[[str], Path]) -> None:
    folder = family("gpt2")
    counts = [_made(folder, minimum=minimum).figures["tokens"] for minimum in (1, 2, 100)]
    assert counts[0] > counts[1] > counts[2]
    assert counts[2] == len(Pieces(json.loads((folder / "tokenizer.json").read_text())).needed())


def test_unigrams(family: Callable[[str], Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(family("gpt2"), base)
    words = ["<pad>", "<s>", "</s>", "<unk>", "▁", "▁the", "▁dog", "▁fox", "▁maison", *"abcdefghijklmnopqrstuvwxyz"]
    raw = Tokenizer(models.Unigram([(word, -float(place)) for place, word in enumerate(words)], 3, False))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    raw.add_special_tokens(words[:4])
    raw.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    raw.save(str(base / "tokenizer.json"))
    small = _written(_made(base, ("the dog",)), base, tmp_path / "small")
    new = Tokenizer.from_file(str(small / "tokenizer.json"))
    assert new.encode("the dog").tokens == ["<s>", "▁the", "▁dog"]
    assert "▁maison" not in new.get_vocab()
    assert new.encode("maison").tokens == ["<s>", "▁", *"maison"]


def test_bad_input(family: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="uses no token"):
        _made(family("gpt2"), ("",))
    with pytest.raises(Unsupported, match="WordLevel"):
        Pieces({"model": {"type": "WordLevel", "vocab": {}}, "added_tokens": []})
