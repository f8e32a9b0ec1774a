"""Sentence encoders against pooling by hand, and MiniLM on sentences whose order is known."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_checkpoint import as_model, write_encoder

from sizewise.core.errors import Unsupported
from sizewise.core.requests import GenerateRequest
from sizewise.load.checkpoint.weights import load
from sizewise.load.runner import Options
from sizewise.load.runners.torch import Torch

POOLED = {
    "mean_tokens": lambda hidden: hidden.mean(0),
    "cls_token": lambda hidden: hidden[0],
    "max_tokens": lambda hidden: hidden.amax(0),
    "lasttoken": lambda hidden: hidden[-1],
    "mean_sqrt_len_tokens": lambda hidden: hidden.sum(0) / math.sqrt(len(hidden)),
}


@pytest.mark.parametrize("pooling", sorted(POOLED))
def test_embed_equals_pooling_by_hand(tmp_path: Path, pooling: str) -> None:
    from transformers import BertModel, PreTrainedTokenizerFast

    from sizewise.load.checkpoint.encoder import embed

    folder = write_encoder(tmp_path / "bert", pooling=pooling, longest=16)
    files = {name: str(path) for name, path in as_model(folder).files.items()}
    loaded = load("bert", "encoder", files, dtype="auto", device="cpu", context=None, parameters=None)
    assert (loaded.pooling, loaded.context_length) == (pooling, 16)
    texts = ["the fox", "question: a lazy dog jumps 東京\nanswer: no " * 4, "", "a lazy dog 1 2 3"]
    done: list[int] = []
    found = embed(loaded.model, loaded.tokenizer, texts, max_length=16, pooling=loaded.pooling or "", step=done.append)
    assert done[-1] == 4
    model, tokenizer = BertModel.from_pretrained(folder).eval(), PreTrainedTokenizerFast.from_pretrained(folder)
    for text, vector in zip(texts, found, strict=True):
        ids = tokenizer(text)["input_ids"][:16]
        with torch.inference_mode():
            hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        expected = torch.nn.functional.normalize(POOLED[pooling](hidden), dim=0).numpy()
        assert np.allclose(vector, expected, atol=1e-5)


def test_an_encoder_with_an_unknown_module_is_refused(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "bert")
    listing = folder / "modules.json"
    listing.write_text(listing.read_text().replace("models.Normalize", "models.Dense"))
    with pytest.raises(Unsupported, match="Dense"):
        Torch(as_model(folder), Options(threads=1, device="cpu"))


@pytest.mark.model
def test_minilm_puts_like_beside_like(minilm: Path) -> None:
    with Torch(as_model(minilm), Options(device="cpu")) as runner:
        assert runner.abilities == {"embed"}
        vectors = runner.embed(
            ["A man is eating food.", "Someone has a meal.", "The stock market fell.", "word " * 999]
        )
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        assert np.allclose(vectors[3], runner.embed(["word " * 254])[0], atol=1e-4)  # cut at 256 tokens, [CLS] [SEP]
        like, unlike = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
        assert like > 0.6 > 0.2 > unlike
        with pytest.raises(Unsupported, match="can only embed"):
            runner.generate([GenerateRequest(prompt="a")])
