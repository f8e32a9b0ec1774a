"""compare: with an engine whose answers and times are known, and once with a real model."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest
from numpy.typing import NDArray

from sizewise.core.errors import UnknownName, Unsupported, UsageError
from sizewise.core.events import Listener, Progress, silent
from sizewise.core.model import Model
from sizewise.core.requests import Chunk, GenerateRequest, OnChunk, Reply, Score, ScoreRequest, TextScore
from sizewise.core.results import ComparedModel
from sizewise.load.runner import Ability
from sizewise.pick.compare import Instruction, Prices, compare, read_instructions


class Clockwork:
    """An engine that says a prompt backwards, one word a token, four tokens a second after half a second."""

    engine = "clockwork 1"
    raw_input = False
    log: list[tuple[str, str]]

    def __init__(self, model: Model, log: list[tuple[str, str]], abilities: frozenset[Ability]) -> None:
        self.model, self.log, self.abilities = model, log, abilities
        log.append((model.name, "load"))

    def generate(
        self, requests: Sequence[GenerateRequest], on_chunk: OnChunk | None = None, listen: Listener = silent
    ) -> list[Reply]:
        replies = []
        for index, request in enumerate(requests):
            prompt = request.prompt if request.prompt is not None else request.messages[0].content
            self.log.append((self.model.name, prompt))
            words = prompt.split()[::-1]
            kept = words[: request.sampling.max_tokens]
            for word in kept:
                if on_chunk:
                    on_chunk(index, Chunk(word))
            cut = len(kept) < len(words)
            total = 0.5 + (len(kept) - 1) / 4
            replies.append(Reply(" ".join(kept), "length" if cut else "stop", len(words), len(kept), 0.5, total))
        return replies

    def score(self, requests: Sequence[ScoreRequest], listen: Listener = silent) -> list[list[Score]]:
        return [[Score(-float(len(text)), 1, False) for text in request.continuations] for request in requests]

    def score_texts(self, texts: Sequence[str], window: int = 512, listen: Listener = silent) -> list[TextScore]:
        return [TextScore(-float(len(text)), len(text.split()), len(text)) for text in texts]

    def embed(self, texts: Sequence[str], listen: Listener = silent) -> NDArray[np.float32]:
        return np.ones((len(texts), 1), np.float32)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def pids(self) -> list[int]:
        return [os.getpid()]

    def close(self) -> None:
        self.log.append((self.model.name, "close"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What the engine was told, in order; models `small`, `large` (chat), `bare` (no chat) and `encoder` exist."""
    told: list[tuple[str, str]] = []

    def find(name: str, store: object = None) -> Model:
        if name not in ("small", "large", "bare", "encoder"):
            raise UnknownName("model", name, ["small", "large"])
        kind: Any = "encoder" if name == "encoder" else "gguf"
        template = None if name == "bare" else "{{ messages }}"
        return Model(name, kind, f"sha256:{name}", {}, 1000, parameters=500, template=template)

    def open_it(model: Model, **_: object) -> Clockwork:
        abilities: frozenset[Ability] = frozenset(("generate", "chat"))
        return Clockwork(model, told, frozenset(("generate",)) if model.name == "bare" else abilities)

    monkeypatch.setattr("sizewise.load.models.find_model", find)
    monkeypatch.setattr("sizewise.load.open.open_runner", open_it)
    monkeypatch.setattr("sizewise.pick.compare._has_template", lambda model: model.template is not None)
    return told


ASKED = (Instruction("One", "one two three four five"), Instruction("Two", "six seven"))


def values(model: ComparedModel) -> dict[str, float | None]:
    return {each.name: each.value for each in model.measurements}


def test_every_model_gets_the_same_words_alone_and_warm(log: list[tuple[str, str]]) -> None:
    result = compare(["small", "large"], instructions=ASKED)
    for name in ("small", "large"):
        told = [what for who, what in log if who == name]
        assert (told[0], told[-1]) == ("load", "close")
        assert told[2:-1] == [each.prompt for each in ASKED]  # told[1] is the warm-up
        assert told[1] not in [each.prompt for each in ASKED]
    assert log.index(("small", "close")) < log.index(("large", "load"))
    assert [model.model for model in result.models] == ["small", "large"]
    assert [answer.answer for answer in result.models[1].answers] == ["five four three two one", "seven six"]
    assert any("order shown" in note for note in result.notes)


def test_times_are_those_of_the_engine_and_sums_are_sums(log: list[tuple[str, str]]) -> None:
    (model,) = compare(["small"], instructions=ASKED, prices=Prices(usd_per_hour=3600.0)).models
    first = {each.name: each for each in model.answers[0].measurements}
    assert first["first_token_s"].value == 0.5
    assert first["total_s"].value == 1.5
    assert first["tokens_per_second"].value == 4.0
    assert first["tokens"].value == 5
    assert first["cost_usd"].value == 1.5
    whole = values(model)
    assert whole["tokens_per_second"] == 4.0
    assert (whole["tokens"], whole["total_s"], whole["cost_usd"]) == (7, 2.25, 2.25)
    assert whole["bits_per_weight"] == 16.0
    assert (whole["peak_memory_bytes"] or 0) > 1e6
    energies = [each.value for answer in model.answers for each in answer.measurements if each.name == "energy_j"]
    assert whole["energy_j"] == pytest.approx(sum(energy or 0 for energy in energies))


def test_what_is_not_known_has_its_reason(log: list[tuple[str, str]]) -> None:
    (model,) = compare(["small"], instructions=ASKED).models
    unknown = [each for each in (*model.measurements, *model.answers[0].measurements) if each.value is None]
    assert {each.name for each in unknown} >= {"cost_usd"}
    assert all(each.why for each in unknown)


def test_long_answers_are_cut_and_say_so(log: list[tuple[str, str]]) -> None:
    (model,) = compare(["small"], instructions=ASKED, max_tokens=3).models
    assert [answer.finish for answer in model.answers] == ["length", "stop"]
    assert model.answers[0].answer == "five four three"


def test_an_engine_without_chat_gets_text_and_a_note(log: list[tuple[str, str]]) -> None:
    result = compare(["bare"], instructions=ASKED[:1])
    assert result.models[0].answers[0].answer == "five four three two one"
    assert any("plain text: bare" in note for note in result.notes)


def test_a_wrong_name_or_kind_is_said_before_anything_runs(log: list[tuple[str, str]]) -> None:
    with pytest.raises(UnknownName, match="smal"):
        compare(["small", "smal"], instructions=ASKED)
    with pytest.raises(Unsupported, match="encoder"):
        compare(["small", "encoder"], instructions=ASKED)
    with pytest.raises(UsageError, match="at least one"):
        compare([], instructions=ASKED)
    assert log == []


def test_progress_ends_at_the_total(log: list[tuple[str, str]]) -> None:
    heard: list[Progress] = []
    compare(["small", "large"], instructions=ASKED, listen=heard.append)
    assert [each.done for each in heard] == [0, 1, 2, 2, 3, 4]
    assert {each.total for each in heard} == {4}


def test_the_five_instructions_cover_the_five_jobs() -> None:
    own = read_instructions()
    assert len(own) == 5
    for word, instruction in zip(("large", "Yoda", "bus stop", "Python class", "hypotenuse"), own, strict=True):
        assert word in instruction.prompt


def test_own_instructions_from_file_and_prompt(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('[[instruction]]\ntitle = "T"\nprompt = "P"\n', encoding="utf-8")
    assert read_instructions(path) == (Instruction("T", "P"),)
    assert read_instructions(None, ["Say hi."]) == (Instruction("Say hi.", "Say hi."),)
    (long,) = read_instructions(None, ["word " * 40])
    assert len(long.title) <= 61
    assert long.title.endswith("…")


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("", UsageError, r"no \[\[instruction\]\]"),
        ("x =", UsageError, "no TOML"),
        ("[[instructions]]\ntitle='a'", UnknownName, "did you mean 'instruction'"),
        ("[[instruction]]\ntitle='a'\nprompt='b'\npromt='c'", UnknownName, "did you mean 'prompt'"),
        ("[[instruction]]\ntitle='a'", UsageError, "instruction 1: prompt"),
        ("[[instruction]]\ntitle='a'\nprompt=' '", UsageError, "not empty"),
        ("instruction = 'a'", UsageError, r"no \[\[instruction\]\]"),
        ("instruction = ['a']", UsageError, "must be a table"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str, error: type[UsageError], says: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(error, match=says) as caught:
        read_instructions(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.toml: no such file"):
        read_instructions(tmp_path / "gone.toml")


@pytest.mark.model
def test_a_real_model(smollm2: Path) -> None:
    asked = (Instruction("Colours", "Name two colours."),)
    result = compare([str(smollm2)], instructions=asked, max_tokens=12)
    (model,) = result.models
    whole = values(model)
    assert model.answers[0].answer
    assert model.bytes == smollm2.stat().st_size
    assert (whole["tokens_per_second"] or 0) > 0
    assert (whole["peak_memory_bytes"] or 0) > 50e6
    assert (whole["flops_per_token"] or 0) == pytest.approx(2 * 134.5e6, rel=0.25)
    assert json.dumps(result.as_json())
