"""The torch runner against brute force: one text at a time, without cache, padding or sharing."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoint import FAMILIES, as_model, write_causal
from tiny_gguf import write_tiny_llama

from sizewise.core.errors import BadModel, DoesNotFit, EngineFailed, Unsafe, Unsupported, UsageError
from sizewise.core.model import Model
from sizewise.core.requests import GenerateRequest, Message, Sampling, ScoreRequest
from sizewise.load.checkpoint import causal
from sizewise.load.checkpoint.causal import Causal
from sizewise.load.checkpoint.weights import load
from sizewise.load.open import open_runner
from sizewise.load.runner import Options
from sizewise.load.runners.torch import Torch

SHOTS = "question: the quick brown fox 1 2 3\nanswer: yes\n\nquestion: a lazy dog jumps 東京\nanswer: no\n\n"
REQUESTS = [
    (SHOTS + "question: over the dog\nanswer:", [" yes", " no", " positive answer"]),
    (SHOTS + "question: " + "brown dog 4 5 6 quick " * 8 + "\nanswer: ", ["yes", "no", "negative over 9"]),
    (SHOTS + "question: fox\nanswer:", [" yes", " yes yes", " no", ""]),
    (SHOTS + "question: " + "lazy é fox 7 8 9 " * 6 + "\nanswer:", [" jumps over the quick dog", " negative fox"]),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("families")
    return {family: write_causal(root / family, family) for family in FAMILIES}


def in_process(folder: Path, **changes: Any) -> Causal:
    """The child's work, in this process, so that all families can be tried without starting one for each."""
    files = {name: str(path) for name, path in as_model(folder).files.items()}
    values: dict[str, Any] = {"dtype": "float32", "device": "cpu", "context": None, "parameters": None}
    loaded = load(folder.name, "checkpoint", files, **{**values, **changes})
    return Causal(loaded.model, loaded.tokenizer, loaded.context_length, lambda done, total: None, lambda: None)


def brute_force(engine: Causal, prompt: str, continuation: str) -> tuple[float, int, bool]:
    """One full forward pass of one text, without cache or padding."""
    start, targets = engine.split(prompt, continuation)
    with torch.inference_mode():
        logits = engine.model(input_ids=torch.tensor([start + targets]), use_cache=False).logits[0].float()
    logprobs = logits.log_softmax(-1)[len(start) - 1 : -1]
    total = sum(float(logprobs[step, token]) for step, token in enumerate(targets))
    greedy = all(int(logprobs[step].argmax()) == token for step, token in enumerate(targets))
    return total, len(targets), greedy


@pytest.mark.parametrize("family", FAMILIES)
def test_score_equals_brute_force(folders: dict[str, Path], family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = in_process(folders[family])
    passes = []
    engine.model.register_forward_hook(
        lambda module, args, kwargs, output: passes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    found = engine.score(REQUESTS)
    spent, passes[:] = sum(passes), []
    expected = [[brute_force(engine, prompt, end) for end in ends] for prompt, ends in REQUESTS]
    for mine, right in zip(found, expected, strict=True):
        for (logprob, tokens, greedy), (wanted, count, best) in zip(mine, right, strict=True):
            assert (tokens, greedy) == (count, best)
            assert logprob == pytest.approx(wanted, abs=2e-4)
    assert len({round(logprob, 3) for scores in found for logprob, _, _ in scores}) > 8  # the model is no constant
    assert spent < 0.5 * sum(passes)  # what prompts share is computed once
    monkeypatch.setattr(causal, "MIN_SHARED", 10**9)
    apart = in_process(folders[family]).score(REQUESTS)
    for mine, right in zip(found, apart, strict=True):
        assert [score[0] for score in mine] == pytest.approx([score[0] for score in right], abs=2e-4)


def test_score_does_not_depend_on_the_size_of_batches(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = in_process(folders["mistral"])
    together = engine.score(REQUESTS)
    monkeypatch.setattr(causal, "BATCH_TOKENS", {"cpu": 1})
    monkeypatch.setattr(causal, "_LOGITS", 1)
    alone = engine.score(REQUESTS)
    for one, other in zip(together, alone, strict=True):
        assert [score[0] for score in one] == pytest.approx([score[0] for score in other], abs=2e-4)


def test_the_shared_cache_is_not_written_to(folders: dict[str, Path]) -> None:
    engine = in_process(folders["mistral"])
    tokens = engine.encode(SHOTS)
    with torch.inference_mode():
        cache = engine._extend(None, tokens)
        before = [(layer.keys.clone(), layer.values.clone(), layer.get_seq_length()) for layer in cache.layers]
        results = [(0.0, 0, True)] * 2
        rows = [causal.Row((*tokens, 5 + at, 6), [causal.Read(len(tokens), [7], at)]) for at in range(2)]
        engine._forward(cache, len(tokens), rows, results)
    assert results[0][1] == results[1][1] == 1
    for layer, (keys, values, length) in zip(cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)
        assert layer.get_seq_length() == length


def test_split_is_the_one_of_lm_evaluation_harness(folders: dict[str, Path]) -> None:
    engine = in_process(folders["llama"])
    ids = engine.tokenizer("the dog yes")["input_ids"]
    assert ids[0] == 1
    prompt, rest = engine.split("the dog ", "yes")  # the space moves to the continuation
    assert prompt + rest == ids
    assert prompt == engine.tokenizer("the dog")["input_ids"]
    assert engine.split("", "yes") == ([1], engine.tokenizer("yes")["input_ids"][1:])
    assert engine.encode("<s>yes").count(1) == 1  # a template that writes BOS itself does not get a second one


def test_score_texts_in_windows(folders: dict[str, Path]) -> None:
    for bos in (True, False):
        engine = in_process(write_causal(folders["llama"].parent / f"bos-{bos}", "llama", bos=bos))
        text = SHOTS * 3
        ids = engine.tokenizer(text, add_special_tokens=False)["input_ids"]
        lead = [1] if bos else []
        total, count = 0.0, 0
        for at in range(0, len(ids), 20 - len(lead)):
            piece = lead + ids[at : at + 20 - len(lead)]
            with torch.inference_mode():
                logprobs = engine.model(input_ids=torch.tensor([piece])).logits[0].log_softmax(-1)
            total += sum(float(logprobs[step, token]) for step, token in enumerate(piece[1:]))
            count += len(piece) - 1
        found = engine.score_texts([text, "", "yes"], 20)
        assert found[0][0] == pytest.approx(total, rel=1e-5)
        assert found[0][1] == count
        assert found[1] == (0.0, 0)
        assert engine.score_texts(["yes"], 20)[0][0] == pytest.approx(found[2][0], rel=1e-4)


def argmax_loop(engine: Causal, prompt: str, limit: int) -> list[int]:
    ids = engine.encode(prompt)
    made: list[int] = []
    with torch.inference_mode():
        while len(made) < limit and (not made or made[-1] != 2):
            made.append(int(engine.model(input_ids=torch.tensor([ids + made]), use_cache=False).logits[0, -1].argmax()))
    return made


def ask(prompt: str, **sampling: Any) -> dict[str, Any]:
    values = {"max_tokens": 12, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}
    return {"text": prompt, "sampling": {**values, "seed": 0, "stop": (), **sampling}}


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_equals_an_argmax_loop(folders: dict[str, Path], family: str) -> None:
    engine = in_process(folders[family])
    prompts = ["the", SHOTS + "question: fox\nanswer:", "a lazy dog. 1 2 3 4 5 6 7 8 9"]
    told: dict[int, str] = {}
    replies = engine.generate(
        [ask(prompt) for prompt in prompts], 3, lambda at, text: told.update({at: told.get(at, "") + text})
    )
    for at, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        tokens = argmax_loop(engine, prompt, 12)
        text = engine.tokenizer.decode(tokens, skip_special_tokens=True).rstrip("\ufffd")
        assert reply["text"] == text == told.get(at, "")
        assert reply["completion_tokens"] == len(tokens)
        assert reply["finish"] == ("stop" if tokens[-1] == 2 else "length")
        assert reply["prompt_tokens"] == len(engine.encode(prompt))


def test_drawn_answers_depend_on_their_seed_alone(folders: dict[str, Path]) -> None:
    engine = in_process(folders["llama"])
    asked = [ask("the fox", temperature=1.0, seed=seed) for seed in (1, 2, 1)]
    one, other, again = (reply["text"] for reply in engine.generate(asked, 4, lambda at, text: None))
    assert one == again != other
    assert engine.generate(asked[1:2], 4, lambda at, text: None)[0]["text"] == other


def test_stop_strings_are_neither_answered_nor_streamed(folders: dict[str, Path]) -> None:
    engine = in_process(folders["llama"])
    whole = engine.generate([ask("the fox", max_tokens=40)], 1, lambda at, text: None)[0]["text"]
    stop = whole[9:13]
    pieces: list[str] = []
    reply = engine.generate(
        [ask("the fox", max_tokens=40, stop=(stop, "\0"))], 1, lambda at, text: pieces.append(text)
    )[0]
    assert reply["text"] == "".join(pieces) == whole[: whole.index(stop)]
    assert reply["finish"] == "stop"


def test_a_model_s_own_sampling_settings_do_not_change_greedy_answers(tmp_path: Path, folders: dict[str, Path]) -> None:
    folder = write_causal(tmp_path / "m", "llama")
    settings = '{"eos_token_id": 2, "do_sample": true, "repetition_penalty": 9.0, "top_k": 1, "max_length": 3}'
    (folder / "generation_config.json").write_text(settings)
    plain, changed = in_process(folders["llama"]), in_process(folder)
    first, second = (one.generate([ask("a fox")], 1, lambda at, text: None)[0] for one in (plain, changed))
    assert first["text"] == second["text"]


def test_too_long_is_said_with_both_numbers(folders: dict[str, Path]) -> None:
    engine = in_process(folders["llama"], context=30)
    with pytest.raises(UsageError, match=r"request 2: \d+ tokens, the model's context holds 30"):
        engine.score([("a", ["b"]), (SHOTS, [" yes"])])
    with pytest.raises(UsageError, match="context holds 30"):
        engine.generate([ask(SHOTS)], 1, lambda at, text: None)
    reply = engine.generate([ask("the fox", max_tokens=1000)], 1, lambda at, text: None)[0]
    assert reply["prompt_tokens"] + reply["completion_tokens"] <= 30


@pytest.fixture(scope="module")
def runner(folders: dict[str, Path]) -> Iterator[Torch]:
    with Torch(as_model(folders["qwen2"]), Options(threads=1, device="cpu")) as started:
        yield started


def test_the_runner_answers_from_a_child(runner: Torch, folders: dict[str, Path]) -> None:
    engine = in_process(folders["qwen2"])
    assert runner.pids() != [os.getpid()]
    assert runner.engine.startswith(f"torch {torch.__version__}, transformers ")
    found = runner.score([ScoreRequest(prompt, tuple(ends)) for prompt, ends in REQUESTS])
    expected = engine.score(REQUESTS)
    for scores, right in zip(found, expected, strict=True):
        assert [score.logprob for score in scores] == pytest.approx([one[0] for one in right], abs=1e-4)
    chunks: list[tuple[int, str]] = []
    seen: list[float] = []
    requests = [GenerateRequest(prompt=text, sampling=Sampling(max_tokens=5)) for text in ("the fox", "a dog 1 2 3")]
    replies = runner.generate(
        requests, lambda at, chunk: chunks.append((at, chunk.text)), lambda p: seen.append(p.done)
    )
    for at, reply in enumerate(replies):
        assert reply.text == "".join(text for owner, text in chunks if owner == at)
        assert reply.first_token_s is not None
        assert 0 < reply.first_token_s <= reply.total_s
    assert seen[-1] == 2
    assert runner.count_tokens(["the fox", ""]) == [len(engine._ids("the fox")), 0]
    assert runner.score_texts([SHOTS])[0].bytes == len(SHOTS.encode())


def test_chat_is_rendered_by_the_template_and_control_tokens_stay_content(runner: Torch) -> None:
    sampling = Sampling(max_tokens=4)
    chat = GenerateRequest(messages=(Message("user", "a fox"),), sampling=sampling)
    plain = GenerateRequest(prompt="<s>user: a fox\nassistant:", sampling=sampling)
    first, second = runner.generate([chat, plain])
    assert (first.text, first.prompt_tokens) == (second.text, second.prompt_tokens)
    attack = GenerateRequest(messages=(Message("user", "</s>"),), sampling=sampling)
    control = GenerateRequest(prompt="<s>user: </s>\nassistant:", sampling=sampling)
    spelled, read = runner.generate([attack, control])
    assert spelled.prompt_tokens is not None
    assert read.prompt_tokens is not None
    assert spelled.prompt_tokens > read.prompt_tokens


def test_a_model_without_a_template_gets_plain_text_and_says_so(tmp_path: Path) -> None:
    folder = write_causal(tmp_path / "m", "llama")
    (folder / "chat_template.jinja").unlink()
    with Torch(as_model(folder, name="nameless", system="be a dog"), Options(threads=1, device="cpu")) as plain:
        assert "chat" not in plain.abilities
        assert plain.prompt(GenerateRequest(messages=(Message("user", "a fox"),))) == "be a dog\n\na fox"
        assert plain.warnings == ["nameless has no chat template: it gets the messages as plain text"]


def test_an_error_of_the_listener_cancels_and_the_runner_goes_on(runner: Torch) -> None:
    def stop(index: int, chunk: Any) -> None:
        raise ValueError("the client went away")

    request = GenerateRequest(prompt="the fox", sampling=Sampling(max_tokens=400))
    with pytest.raises(ValueError, match="went away"):
        runner.generate([request], stop)
    assert runner.score([ScoreRequest("the", (" fox",))])[0][0].tokens > 0


def test_errors_of_the_child_keep_their_class(runner: Torch) -> None:
    with pytest.raises(UsageError, match="context holds 512"):
        runner.generate([GenerateRequest(prompt="fox 1 2 3" * 500)])
    with pytest.raises(Unsupported, match="cannot embed"):
        runner.embed(["a"])


def test_a_dead_child_is_an_error_message(folders: dict[str, Path]) -> None:
    runner = Torch(as_model(folders["gpt2"]), Options(threads=1, device="cpu"))
    os.kill(runner.pids()[0], signal.SIGKILL)
    with pytest.raises(EngineFailed, match="gpt2: the process that runs the model ended with signal SIGKILL"):
        runner.score([ScoreRequest("a", (" b",))])
    assert runner.pids() == []
    runner.close()
    runner.close()
    with pytest.raises(EngineFailed, match="closed"):
        runner.count_tokens(["a"])


def test_what_cannot_be_loaded_is_refused_in_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    options = Options(threads=1, device="cpu")
    good = as_model(folders["llama"])
    with pytest.raises(DoesNotFit, match=r"needs .* free"):
        Torch(replace(good, parameters=10**14), options)
    with pytest.raises(Unsupported, match="no linear models"):
        Torch(replace(good, kind="linear"), options)
    for name in ("../x.json", "modeling.py", "pytorch_model.bin", "adapter_config.json"):
        with pytest.raises(Unsafe, match="is refused"):
            load("m", "checkpoint", {name: "x"}, dtype="auto", device="cpu", context=None, parameters=None)
    with pytest.raises(UsageError, match="dtype 'float8' is unknown"):
        Torch(good, replace(options, dtype="float8"))
    config = tmp_path / "config.json"
    config.write_text((folders["llama"] / "config.json").read_text().replace('"llama"', '"never-heard-of"'))
    with pytest.raises(BadModel, match="llama: transformers cannot load it") as caught:
        Torch(replace(good, files={**good.files, "config.json": config}), options)
    assert "\n" not in str(caught.value)
    config.write_text((folders["llama"] / "config.json").read_text().replace('hidden_layers": 2', 'hidden_layers": 3'))
    with pytest.raises(BadModel, match="weights are missing"):
        Torch(replace(good, files={**good.files, "config.json": config}), options)


def test_shots_are_kept_from_one_call_to_the_next(folders: dict[str, Path]) -> None:
    engine = in_process(folders["mistral"])
    passes: list[int] = []
    engine.model.register_forward_hook(
        lambda module, args, kwargs, output: passes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    first = engine.score(REQUESTS)
    once, passes[:] = sum(passes), []
    again = engine.score(REQUESTS)
    assert sum(passes) <= once - len(engine.encode(SHOTS)) + 1
    alone = engine.score(REQUESTS[:1])
    other = engine.score([("a lazy dog 1 2 3 " * 5, [" fox", " dog"])])[0]
    assert [score[0] for score in again[1]] == pytest.approx([score[0] for score in first[1]], abs=1e-4)
    assert [score[0] for score in alone[0]] == pytest.approx([score[0] for score in first[0]], abs=1e-4)
    assert other[0][0] == pytest.approx(brute_force(engine, "a lazy dog 1 2 3 " * 5, " fox")[0], abs=2e-4)


def test_items_that_share_a_long_text_are_computed_once_each(folders: dict[str, Path]) -> None:
    engine = in_process(folders["llama"])
    ends = [" the fox jumps over", " a lazy dog yes", " no 7 8 9", " positive answer é"]
    requests = [(text * 12, ends) for text in ("one quick fox 1 ", "two brown dogs 2 ")]
    passes: list[int] = []
    engine.model.register_forward_hook(
        lambda module, args, kwargs, output: passes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    found = engine.score(requests)
    apart = sum(len(engine.encode(prompt + end)) for prompt, ends in requests for end in ends)
    assert sum(passes) < 0.5 * apart
    for (prompt, _), scores in zip(requests, found, strict=True):
        for end, score in zip(ends, scores, strict=True):
            assert score[0] == pytest.approx(brute_force(engine, prompt, end)[0], abs=2e-4)


def test_a_gguf_file_is_dequantized(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "model.gguf")
    model = Model("tiny", "gguf", "sha256:" + "0" * 64, {"model.gguf": path}, path.stat().st_size)
    requests = [ScoreRequest("the fox", (" jumps", " over it"))]
    with open_runner(model, engine="torch", options=Options(threads=1, device="cpu")) as dequantized:
        mine = dequantized.score(requests)[0]
    with open_runner(model, engine="llamacpp", options=Options(threads=1)) as native:
        theirs = native.score(requests)[0]
    assert [score.tokens for score in mine] == [score.tokens for score in theirs]
    assert [score.logprob for score in mine] == pytest.approx([score.logprob for score in theirs], abs=0.05)
