"""The C layer: its numbers against transformers, against numpy, and against itself in other company."""

import ctypes
import importlib.metadata
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tiny_gguf import write_tiny_llama

from sizewise.core.errors import BadModel, EngineFailed, StateError, UsageError
from sizewise.load.llama import c as llama_c
from sizewise.load.llama import score as llama_score
from sizewise.load.llama.c import ModelParams, check_defaults, library, quantize_rows
from sizewise.load.llama.model import NativeContext, NativeModel
from sizewise.load.llama.score import Scorer, Span, encode, split_pair
from sizewise.load.templates import GUARD

Transformer = Any
NEAR = 3e-3  # for each token: the engine keeps keys and values, and sums them, in 16 bits
SHOTS = "a good film is good\nthe worst hour of all is bad\n"
REQUESTS = [
    (SHOTS + "what a joy is", [" good", " bad", " good and bad", ""]),
    (SHOTS + "what a bore is ", ["bad", "good"]),
    (SHOTS + "what a bore is ", ["bad"]),
    (SHOTS + "no", [" bad" * 12]),
    ("", ["hello there"]),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    llama_c.log_to(lambda level, text: None)
    return write_tiny_llama(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tied=False)


@pytest.fixture
def scorer(tiny: Path) -> Iterator[Scorer]:
    made = Scorer(tiny, threads=2, context=256)
    yield made
    made.close()


def as_transformer(path: Path) -> Transformer:
    """The same weights in the Llama of transformers, read with the gguf library."""
    from transformers import LlamaConfig, LlamaForCausalLM

    heads, kv_heads, names = 4, 2, {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj"}
    names |= {"attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_norm": "input_layernorm"}
    names |= {"ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj"}
    names |= {"ffn_down": "mlp.down_proj"}
    outer = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    state: dict[str, torch.Tensor] = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values, parts = np.array(tensor.data), tensor.name.split(".")
        if parts[0] != "blk":
            state[f"{outer[parts[0]]}.weight"] = torch.tensor(values)
            continue
        if parts[2] in ("attn_q", "attn_k"):
            # GGUF keeps the two halves of each rotated pair side by side, transformers half a head apart
            count = heads if parts[2] == "attn_q" else kv_heads
            pairs = values.reshape(count, -1, 2, values.shape[1])
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        state[f"model.layers.{parts[1]}.{names[parts[2]]}.weight"] = torch.tensor(values)
    config = LlamaConfig(
        vocab_size=state["model.embed_tokens.weight"].shape[0],
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(state)
    return model.eval()


def logprobs(model: Transformer, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        rows: torch.Tensor = model(torch.tensor([tokens])).logits[0].double().log_softmax(-1)
    return rows


def test_scores_equal_those_of_transformers(tiny: Path, scorer: Scorer) -> None:
    oracle = as_transformer(tiny)
    scores = scorer.score(REQUESTS)
    for (prompt, texts), row in zip(REQUESTS, scores, strict=True):
        for text, score in zip(texts, row, strict=True):
            start, rest = split_pair(scorer.model, prompt, text)
            expected = logprobs(oracle, start + rest)[len(start) - 1 : -1]
            picked = [float(expected[i, token]) for i, token in enumerate(rest)]
            assert score.logprob == pytest.approx(sum(picked), abs=NEAR * max(1, len(rest)))
            assert score.tokens == len(rest)
            if rest:
                assert score.greedy == all(int(expected[i].argmax()) == token for i, token in enumerate(rest))


def test_next_token_is_a_distribution_and_that_of_transformers(tiny: Path, scorer: Scorer) -> None:
    row = scorer.next_token("the film")
    expected = logprobs(as_transformer(tiny), encode(scorer.model, "the film"))[-1].numpy()
    assert np.exp(row).sum() == pytest.approx(1, abs=1e-5)
    assert np.abs(row - expected).max() < NEAR


def test_texts_are_scored_in_windows_of_their_own(tiny: Path, scorer: Scorer) -> None:
    oracle, text = as_transformer(tiny), "some words in a row. " * 6
    tokens = encode(scorer.model, text)
    assert tokens[0] == scorer.model.bos
    windows = [tokens[:1] + tokens[at : at + 19] for at in range(1, len(tokens), 19)]
    expected = 0.0
    for window in windows:
        rows = logprobs(oracle, window)
        expected += sum(float(rows[i, token]) for i, token in enumerate(window[1:]))
    score, empty = scorer.score_texts([text, ""], window=20)
    assert score.logprob == pytest.approx(expected, abs=NEAR * score.tokens)
    assert (score.tokens, score.bytes) == (len(tokens) - 1, len(text))
    assert (empty.logprob, empty.tokens, empty.bytes) == (0.0, 0, 0)


def test_packing_changes_no_score(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    together = scorer.score(REQUESTS)
    alone = [[scorer.score([(prompt, [text])])[0][0] for text in texts] for prompt, texts in REQUESTS]
    monkeypatch.setattr(llama_score, "SEQUENCES", 3)  # several packs
    monkeypatch.setattr(llama_score, "LOGIT_BYTES", 4 * scorer.model.n_vocab * 2)  # and several decodes for each
    cut = scorer.score(REQUESTS)
    scorer.shares = False
    unshared = scorer.score(REQUESTS)
    for other in (alone, cut, unshared):
        for one, two in zip(itertools.chain(*together), itertools.chain(*other), strict=True):
            assert one.logprob == pytest.approx(two.logprob, abs=NEAR * max(1, two.tokens))
            assert (one.tokens, one.greedy) == (two.tokens, two.greedy)


def test_a_text_longer_than_a_pack_is_decoded_in_pieces(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [("ab " * 30, [" c", " c d", " e"]), ("ab " * 30 + "x y", [" z"]), ("q", [" r"])]
    whole = Scorer(tiny, threads=1, context=256)
    expected = whole.score(requests)
    whole.close()
    monkeypatch.setattr(llama_score, "SEQUENCES", 8)  # the engine wants room for a token of each
    monkeypatch.setattr(llama_score, "PACK_TOKENS", 32)
    small = Scorer(tiny, threads=1, context=256)
    found = small.score(requests)
    small.close()
    for one, two in zip(itertools.chain(*expected), itertools.chain(*found), strict=True):
        assert one.logprob == pytest.approx(two.logprob, abs=NEAR * max(1, two.tokens))


def test_a_shared_beginning_is_decoded_once(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    original = NativeContext.decode

    def count(self: NativeContext, tokens: Any, positions: Any, sequences: Any, wanted: Any) -> None:
        decoded.append(len(tokens))
        original(self, tokens, positions, sequences, wanted)

    monkeypatch.setattr(NativeContext, "decode", count)
    prompts = [SHOTS + word for word in ("one is", "two is", "ten is")]
    scorer.score([(prompt, [" good", " bad"]) for prompt in prompts])
    lengths = [len(encode(scorer.model, prompt)) for prompt in prompts]
    assert max(lengths) < sum(decoded) < sum(lengths)
    first = sum(decoded)
    scorer.score([(prompt, [" good", " bad"]) for prompt in prompts])
    assert sum(decoded) - first < first  # the beginning was still there


def test_a_text_longer_than_the_context_says_both_numbers(scorer: Scorer) -> None:
    with pytest.raises(UsageError, match=r"a text of \d+ tokens is longer than the context of 256"):
        scorer.score([("word " * 200, [" end"])])
    with pytest.raises(UsageError, match="2 to 256 tokens"):
        scorer.score_texts(["x"], window=1000)


def test_a_bad_token_is_refused_and_the_model_goes_on(scorer: Scorer) -> None:
    with pytest.raises(EngineFailed, match="could not decode"):
        scorer.score_spans([Span((1, 10**6, 5), 2)])
    assert scorer.score([("the film", [" is"])])[0][0].tokens > 0


def test_guarded_text_holds_no_control_token(scorer: Scorer) -> None:
    eos = scorer.model.eos
    assert eos in encode(scorer.model, "a</s>b")
    assert eos not in encode(scorer.model, f"a<{GUARD}/s>b")
    assert encode(scorer.model, "<s>a")[:2] != [scorer.model.bos, scorer.model.bos]


@pytest.mark.parametrize("kind", ["F16", "Q4_0", "Q4_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"])
def test_quantized_rows_come_back_near(kind: str) -> None:
    data = np.random.default_rng(0).standard_normal((24, 512)).astype(np.float32)
    number = gguf.GGMLQuantizationType[kind]
    packed = quantize_rows(data, int(number))
    raw = np.frombuffer(packed, np.float16 if kind == "F16" else np.uint8).reshape(24, -1)
    error = float(np.sqrt(((gguf.dequantize(raw, number).reshape(data.shape) - data) ** 2).mean()))
    bits = 8 * len(packed) / data.size
    assert error < 4 * 2.0**-bits + 1e-3  # a bit more halves the error
    assert packed == quantize_rows(data, int(number), threads=1)
    assert packed[: len(packed) // 24] == quantize_rows(data[:1], int(number))


def test_q8_0_equals_the_gguf_library() -> None:
    data = np.random.default_rng(1).standard_normal((5, 256)).astype(np.float32)
    expected = gguf.quantize(data, gguf.GGMLQuantizationType.Q8_0)
    assert quantize_rows(data, int(gguf.GGMLQuantizationType.Q8_0)) == expected.tobytes()


def test_importance_moves_the_error_to_other_columns() -> None:
    data = np.random.default_rng(2).standard_normal((64, 256)).astype(np.float32)
    weights = np.where(np.arange(256) % 2 == 0, 100.0, 0.01).astype(np.float32)
    number = gguf.GGMLQuantizationType.Q2_K
    packed = quantize_rows(data, int(number), weights)
    error = (gguf.dequantize(np.frombuffer(packed, np.uint8).reshape(64, -1), number) - data) ** 2
    assert error[:, ::2].mean() < 0.8 * error[:, 1::2].mean()


def test_quantizing_what_does_not_fit_is_refused() -> None:
    data = np.zeros((2, 48), np.float32)
    with pytest.raises(UsageError, match="blocks of 32"):
        quantize_rows(data, int(gguf.GGMLQuantizationType.Q4_0))
    with pytest.raises(UsageError, match="needs the importance"):
        quantize_rows(np.zeros((2, 256), np.float32), int(gguf.GGMLQuantizationType.IQ2_XS))
    with pytest.raises(UsageError, match="256 columns"):
        quantize_rows(np.zeros((2, 256), np.float32), int(gguf.GGMLQuantizationType.Q2_K), np.ones(3, np.float32))


def test_what_cannot_be_loaded_is_a_bad_model(tiny: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes(tiny.read_bytes()[:5000])
    for path in (short, tmp_path / "none.gguf"):
        with pytest.raises(BadModel, match="cannot load"):
            NativeModel(path)


def test_another_version_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    library.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", lambda name: "2027.1.1")
        with pytest.raises(StateError, match=rf"must be xllamacpp {llama_c.WANTED}, but version 2027.1.1 is installed"):
            library()
    assert library().llama_n_ctx is not None


def test_a_library_that_cannot_be_opened_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "xllamacpp.so"
    broken.write_bytes(b"not a library")
    library.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(llama_c, "_shared_object", lambda: broken)
        with pytest.raises(StateError, match="cannot be loaded"):
            library()


def test_defaults_in_other_places_are_refused() -> None:
    params = library().llama_model_default_params()
    check_defaults(params, {"n_gpu_layers": -1})
    shifted = ModelParams.from_buffer_copy(bytes(4) + bytes(params)[:-4])
    with pytest.raises(StateError, match="default n_gpu_layers is"):
        check_defaults(shifted, {"n_gpu_layers": -1})
    assert ctypes.sizeof(ModelParams) == 80
    assert ctypes.sizeof(llama_c.ContextParams) == 168
