"""`make` keeps what a method made, with its lineage, and leaves no trace of one that failed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import TEMPLATE, write_tiny_llama

from sizewise.core.errors import BadRow, DiskFull, UnknownName, UsageError
from sizewise.core.events import Progress
from sizewise.core.recipe import Recipe, RecipeStep
from sizewise.core.registry import Registry
from sizewise.core.task import Item, Task
from sizewise.load.models import find_model, list_models
from sizewise.load.store import atomic
from sizewise.load.store.store import Store
from sizewise.make import apply
from sizewise.make.apply import make
from sizewise.make.method import head_method, kind_of, methods, model_method, wants

METHODS = {
    "half_then_fail": '''
        from sizewise.core.events import Progress
        from sizewise.make.method import Made, model_method

        @model_method
        def half_then_fail(base, out, listen, *, how: str = "error"):
            """Write half a model, then stop."""
            (out / "model.gguf").write_bytes(b"GGUF")
            if how == "interrupt":
                raise KeyboardInterrupt
            listen(Progress("half", 1, 2))
            if how == "garbage":
                return Made("gguf", {"model.gguf": out / "model.gguf"})
            raise RuntimeError("half way")
        ''',
    "head_lengths": '''
        from sizewise.make.method import head_method

        class Head:
            kind = "lengths"

            def __init__(self, weights, seed):
                self.weights, self.seed = weights, seed

            @property
            def parameters(self):
                return len(self.weights)

            def save(self, folder):
                (folder / "linear.json").write_text(repr((sorted(self.weights.items()), self.seed)))
                return {"linear.json": folder / "linear.json"}

        @head_method
        def head_lengths(texts, labels, seed, *, scale: float = 1.0):
            """The mean length of the texts of each label."""
            weights = {}
            for label in set(labels):
                own = [len(text) * scale for text, one in zip(texts, labels) if one == label]
                weights[label] = sum(own) / len(own)
            return Head(weights, seed)
        ''',
}


@pytest.fixture
def own_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two methods of the test's own beside nothing else."""
    folder = tmp_path / "own_methods"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    for name, code in METHODS.items():
        lines = code.strip("\n").splitlines()
        (folder / f"{name}.py").write_text("\n".join(line.removeprefix("        ") for line in lines))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(apply, "methods", lambda: Registry("method", "own_methods", folder))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "own_methods"]:
        del sys.modules[name]


@pytest.fixture
def base(tmp_path: Path) -> str:
    return str(write_tiny_llama(tmp_path / "tiny.gguf", width=256, hidden=256))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def a_task(*rows: tuple[str, str | None], name: str = "moods") -> Task:
    items = tuple(Item(str(place + 1), text, label) for place, (text, label) in enumerate(rows))
    return Task(
        name, "classify", "accuracy", "{input}", ("bad", "good"), 0, "text", 8, (), "", "\n\n", " ", 0,
        {"train": items, "test": items}, f"{name}.toml", "sha256:" + "1" * 64,
    )  # fmt: skip


ROWS = (("fine", "good"), ("lovely", "good"), ("awful", "bad"), ("no", "bad"))


def traces(store: Store) -> list[Path]:
    return list(store.layout.incoming.iterdir()) if store.layout.incoming.is_dir() else []


def test_the_result_is_a_model_with_its_story(base: str, store: Store) -> None:
    heard: list[Progress] = []
    made = make("quantize-gguf", base, name="tiny:q8", options={"type": "Q8_0"}, store=store, listen=heard.append)
    found = find_model("tiny:q8", store)
    assert found == made
    parent = find_model(base, store)
    assert (found.kind, found.architecture, found.quantization) == ("gguf", "llama", "Q8_0")
    assert (found.parameters, found.context_length, found.embedding_length) == (parent.parameters, 256, 256)
    assert found.files["model.gguf"].is_relative_to(store.layout.blobs)
    lineage = found.lineage
    assert lineage.recipe == Recipe((RecipeStep("quantize-gguf", {"type": "Q8_0", "requantize": False}),), 0)
    assert (lineage.parent_name, lineage.parent_digest) == (base, parent.digest)
    assert lineage.made_by.startswith("sizewise ")
    figures = lineage.figures
    size = found.files["model.gguf"].stat().st_size
    assert (figures["bytes_before"], figures["bytes_after"]) == (parent.size_bytes, size)
    assert figures["compression_ratio"] == pytest.approx(size / parent.size_bytes, abs=1e-4)
    assert figures["bits_per_weight"] == pytest.approx(size * 8 / (found.parameters or 1), abs=1e-3)
    assert figures["seconds"] > 0
    written = [progress for progress in heard if progress.what == "write"]
    assert written[-1].done == written[-1].total == size
    assert not traces(store)
    assert not store.verify()


def test_the_same_order_gives_the_same_bytes(base: str, tmp_path: Path) -> None:
    blobs = []
    for place in ("one", "two"):
        store = Store(tmp_path / place)
        made = make("quantize-gguf", base, name=place, options={"type": "Q4_K_M"}, store=store)
        blobs.append(made.files["model.gguf"].read_bytes())
    other = make("quantize-gguf", base, name="other", options={"type": "Q4_K_S"}, store=store)
    assert blobs[0] == blobs[1]
    assert other.digest != made.digest


def test_rounding_errors_are_inherited_in_words(base: str, store: Store) -> None:
    make("quantize-gguf", base, name="four", options={"type": "Q4_1"}, store=store)
    half = make("quantize-gguf", "four", name="half", options={"type": "F16"}, store=store)
    two = make("quantize-gguf", "half", name="two", options={"type": "Q2_K"}, store=store)
    assert half.lineage.note.startswith("dequantized from Q4_1")
    assert two.lineage.note == half.lineage.note
    assert (two.lineage.parent_name, two.lineage.parent_digest) == ("half", half.digest)


def test_settings_of_the_base_are_kept(base: str, store: Store) -> None:
    from sizewise.core.recipe import Lineage
    from sizewise.load.models import save_model

    kept: dict[str, Any] = {"template": "{{ messages }}{% if x %}{% endif %}", "system": "Be brief.", "license": "mit"}
    save_model("told", "gguf", {"a.gguf": Path(base)}, lineage=Lineage(recipe=None), store=store, **kept)
    made = make("quantize-gguf", "told", name="small", options={"type": "Q8_0"}, store=store)
    assert {key: getattr(made, key) for key in kept} == kept
    assert TEMPLATE.encode() in made.files["model.gguf"].read_bytes()[:50_000]  # the file's own is still in the file


@pytest.mark.parametrize(
    ("order", "error", "says"),
    [
        ({"method": "quantise-gguf"}, UnknownName, "did you mean 'quantize-gguf'"),
        ({"options": {"typ": "Q2_K"}}, UnknownName, "did you mean 'type'"),
        ({"options": {"type": "Q4_K"}}, UnknownName, "did you mean 'Q4_K_"),
        ({"options": {"requantize": "yes"}}, UsageError, "must be bool"),
        ({"base": None}, UsageError, "needs a model to start from"),
        ({"base": "nothing-here"}, UnknownName, "nothing-here"),
        ({"name": "a b"}, UsageError, "is no model name"),
        ({"task": a_task(*ROWS)}, UsageError, "uses no data"),
    ],
)
def test_wrong_orders(order: dict[str, Any], error: type[Exception], says: str, base: str, store: Store) -> None:
    order = {"method": "quantize-gguf", "base": base, "name": "x", "options": {"type": "Q8_0"}} | order
    with pytest.raises(error, match=says):
        make(order.pop("method"), order.pop("base"), store=store, **order)
    assert not list_models(store)
    assert not traces(store)


def test_a_model_is_not_made_onto_its_own_base(base: str, store: Store) -> None:
    make("quantize-gguf", base, name="tiny", options={"type": "F16"}, store=store)
    with pytest.raises(UsageError, match="would replace the model that it is made from"):
        make("quantize-gguf", "tiny", name="Tiny:latest", options={"type": "Q8_0"}, store=store)
    assert find_model("tiny", store).quantization == "F16"


@pytest.mark.usefixtures("own_methods")
@pytest.mark.parametrize(
    ("how", "error"), [("error", RuntimeError), ("interrupt", KeyboardInterrupt), ("garbage", UsageError)]
)
def test_failure_leaves_the_old_model_and_no_trace(
    how: str, error: type[BaseException], base: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(apply, "methods", methods)
        before = make("quantize-gguf", base, name="kept", options={"type": "Q8_0"}, store=store)
    with pytest.raises(error):
        make("half-then-fail", base, name="kept", options={"how": how}, store=store)
    assert find_model("kept", store) == before
    assert not traces(store)
    assert not store.verify()


@pytest.mark.usefixtures("own_methods")
def test_a_head_learns_from_the_train_split(store: Store) -> None:
    made = make("head-lengths", None, name="moods", task=a_task(*ROWS), options={"scale": 2.0}, seed=3, store=store)
    assert (made.kind, made.architecture, made.parameters) == ("linear", "lengths", 2)
    assert made.files["linear.json"].read_text() == "([('bad', 7.0), ('good', 10.0)], 3)"
    assert made.lineage.figures["train_rows"] == 4
    assert (made.lineage.data_name, made.lineage.parent_name) == ("moods", None)
    other = make("head-lengths", None, name="moods2", task=a_task(*ROWS[1:]), seed=3, store=store)
    assert other.lineage.data_digest != made.lineage.data_digest


@pytest.mark.usefixtures("own_methods")
@pytest.mark.parametrize(
    ("base_name", "task", "error", "says"),
    [
        (None, None, UsageError, "learns from examples"),
        ("smollm2", a_task(*ROWS), UsageError, "starts from data alone"),
        (None, a_task(), UsageError, "learns from the train split"),
        (None, a_task(("fine", "good"), ("what", None)), BadRow, "train row 2 has no label"),
        (None, a_task(("fine", "good"), ("nice", "good")), UsageError, "nothing to learn"),
    ],
)
def test_heads_need_examples(
    base_name: str | None, task: Task | None, error: type[Exception], says: str, store: Store
) -> None:
    with pytest.raises(error, match=says):
        make("head-lengths", base_name, name="moods", task=task, store=store)
    assert not traces(store)


def test_a_full_disk_leaves_no_trace(base: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "_passages", {})
    monkeypatch.setenv("SIZEWISE_FAULT", "write:3:enospc")
    with pytest.raises(DiskFull):
        make("quantize-gguf", base, name="x", options={"type": "Q8_0"}, store=store)
    monkeypatch.delenv("SIZEWISE_FAULT")
    assert not traces(store)
    assert make("quantize-gguf", base, name="x", options={"type": "Q8_0"}, store=store).quantization == "Q8_0"


@pytest.mark.parametrize("fault", ["open:1", "write:1", "write:9", "fsync:1", "rename:1", "done:1", "write:30"])
def test_killed_anywhere_the_same_command_works_afterwards(fault: str, base: str, store: Store) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from sizewise.load.store.store import Store; from sizewise.make.apply import make\n"
        "make('quantize-gguf', sys.argv[1], name='x', options={'type': 'Q8_0'}, store=Store(Path(sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, base, str(store.root)]
    killed = subprocess.run(command, env=os.environ | {"SIZEWISE_FAULT": f"{fault}:kill"}, check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert all(model.quantization == "Q8_0" for model in list_models(store))
    made = make("quantize-gguf", base, name="x", options={"type": "Q8_0"}, store=store)
    store.collect_garbage(grace_s=0)
    assert not traces(store)
    assert not store.verify()
    assert find_model("x", store) == made


def test_decorators_mark_and_check() -> None:
    def one(base: Any, out: Any, *, strength: float = 1.0) -> None:
        """Nothing."""

    def two(texts: Any, embeddings: Any) -> None:
        """Nothing."""

    assert (kind_of(model_method(one)), kind_of(head_method(two))) == ("model", "head")
    assert (wants(one), wants(two)) == (("base", "out"), ("texts", "embeddings"))
    assert model_method(one) is one
    with pytest.raises(TypeError, match="cannot be given"):
        model_method(two)
    with pytest.raises(TypeError, match="is no method"):
        kind_of(json.dumps)
