"""One examination that every method of the registry sits, present and future."""

import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from families import write_family
from tiny_checkpoint import write_encoder
from tiny_gguf import write_tiny_llama

from sizewise.core.errors import UnknownName, UsageError
from sizewise.core.model import Model
from sizewise.core.params import schema_of, validate
from sizewise.core.requests import GenerateRequest, Sampling
from sizewise.core.task import Item, Task
from sizewise.load.models import find_model, list_models
from sizewise.load.open import open_runner
from sizewise.load.runner import Options
from sizewise.load.store.store import Store
from sizewise.make.apply import check_options, make
from sizewise.make.method import WANTED, kind_of, methods, wants

NAMES = methods().names()
# methods for the weights of a network sit an examination of their own, on every family: see test_examination
WHOLE = tuple(name for name in NAMES if kind_of(methods().get(name)) in ("model", "head"))

# What makes a tiny run of a method meaningful where its defaults are made for real models.
TINY_OPTIONS: dict[str, dict[str, Any]] = {
    "quantize-gguf": {"type": "Q8_0"},
    "gguf": {"type": "Q4_K_M", "tokens": 512, "window": 32},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("bases")
    llama = write_tiny_llama(folder / "llama.gguf", width=256, hidden=256, layers=1)
    whole = write_family("llama", folder / "checkpoint")
    return {"model": str(llama), "head": str(write_encoder(folder / "encoder")), "export-gguf": str(whole)}


def moods() -> Task:
    good, bad = ("lovely fox", "quick and good", "jumps well", "yes"), ("lazy dog", "slow and bad", "sleeps", "no")
    rows = [
        (f"{text} {place}", label)
        for place in range(6)
        for texts, label in ((good, "good"), (bad, "bad"))
        for text in texts
    ]
    items = tuple(Item(str(place + 1), text, label) for place, (text, label) in enumerate(rows))
    return Task(
        name="moods",
        kind="classify",
        metric="accuracy",
        prompt="{input}",
        labels=("bad", "good"),
        shots=0,
        format="text",
        max_tokens=8,
        stop=(),
        system="",
        separator="\n\n",
        answer_prefix=" ",
        seed=0,
        splits={"train": items, "dev": items[:8], "test": items[8:16]},
        source="moods.toml",
        digest="sha256:" + "2" * 64,
    )


def order(name: str, bases: dict[str, str]) -> tuple[str | None, Task | None]:
    """The base and the task that a method asks for."""
    function = methods().get(name)
    wanted = wants(function)
    usual = bases[kind_of(function)] if {"base", "embeddings"} & set(wanted) else None
    base = bases.get(name, usual)
    return base, moods() if kind_of(function) == "head" else None


def run(name: str, bases: dict[str, str], store: Store, **options: Any) -> Model:
    base, task = order(name, bases)
    given = TINY_OPTIONS.get(name, {}) | options
    return make(name, base, name=f"made-by-{name}", options=given, task=task, seed=1, store=store)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_documented_and_marked(name: str) -> None:
    function: Callable[..., Any] = methods().get(name)
    assert set(wants(function)) <= WANTED[kind_of(function)]
    assert function.__name__ == name.replace("-", "_")
    doc = inspect.getdoc(function) or ""
    assert len(doc.splitlines()[0]) > 20
    assert (inspect.getdoc(inspect.getmodule(function)) or "").count(".") >= 1
    for parameter in schema_of(function):
        assert len(parameter.help) > 10, f"{parameter.name} is not explained"
        for value in (parameter.default, *parameter.search):
            if not parameter.required:
                parameter.check(value, name)
    for wanted in wants(function):
        assert f"    {wanted}: " in doc, f"{wanted} is not explained"


@pytest.mark.parametrize("name", NAMES)
def test_options_that_are_none(name: str) -> None:
    function = methods().get(name)
    for parameter in schema_of(function):
        with pytest.raises(UnknownName) as caught:
            validate(function, {parameter.name + "x": 1}, name)
        assert caught.value.nearest in {item.name for item in schema_of(function)}
        with pytest.raises(UsageError, match=parameter.name):
            validate(function, {parameter.name: object()}, name)


@pytest.fixture(scope="module")
def made(bases: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Model, Store]]:
    """Each method's model, made once."""

    @cache
    def by(name: str) -> tuple[Model, Store]:
        store = Store(tmp_path_factory.mktemp(name))
        return run(name, bases, store), store

    return by


MadeOnce = Callable[[str], tuple[Model, Store]]


@pytest.mark.parametrize("name", WHOLE)
def test_the_same_order_gives_the_same_bytes(name: str, made: MadeOnce, bases: dict[str, str], tmp_path: Path) -> None:
    first, second = made(name)[0], run(name, bases, Store(tmp_path))
    assert first.digest == second.digest
    assert {key: path.read_bytes() for key, path in first.files.items()} == {
        key: path.read_bytes() for key, path in second.files.items()
    }


@pytest.mark.parametrize("name", WHOLE)
def test_it_is_found_again_and_runs(name: str, made: MadeOnce) -> None:
    model, store = made(name)
    found = find_model(f"made-by-{name}", store)
    assert found == model
    assert all(path.is_relative_to(store.root) for path in found.files.values())
    assert (found.parameters or 0) > 0
    assert found.size_bytes == sum(path.stat().st_size for path in found.files.values())
    assert not store.verify()
    with open_runner(found, options=Options(threads=1), store=store) as runner:
        sampling = Sampling(max_tokens=2)
        (reply,) = runner.generate([GenerateRequest(prompt="lovely fox", sampling=sampling)])
    assert reply.finish in ("stop", "length")
    if kind_of(methods().get(name)) == "head":
        assert reply.text in ("good", "bad")


@pytest.mark.parametrize("name", WHOLE)
def test_its_lineage_can_be_followed(name: str, made: MadeOnce, bases: dict[str, str]) -> None:
    model, store = made(name)
    base, task = order(name, bases)
    assert model.lineage.recipe is not None
    (step,) = model.lineage.recipe.steps
    assert (step.method, model.lineage.recipe.seed) == (name, 1)
    own, shared = check_options(name, methods().get(name), TINY_OPTIONS.get(name, {}))
    assert step.options == own | {key: value for key, value in shared.items() if key != "calibration"}
    if base:
        assert (model.lineage.parent_name, model.lineage.parent_digest) == (base, find_model(base, store).digest)
    if task:
        assert model.lineage.data_name == task.name
        assert (model.lineage.data_digest or "").startswith("sha256:")
    assert model.lineage.figures["bytes_after"] == model.size_bytes


@pytest.mark.parametrize("name", WHOLE)
def test_a_wrong_option_leaves_nothing(name: str, bases: dict[str, str], tmp_path: Path) -> None:
    store = Store(tmp_path)
    base, task = order(name, bases)
    with pytest.raises(UnknownName, match="option"):
        make(name, base, name="x", options={"no-such-thing": 1}, task=task, store=store)
    assert not list_models(store)
