"""Models made from models, GGUF files and checkpoints, with all that goes around them; and what is refused."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from bad_files import bad_ggufs, mutations
from safetensors.numpy import save_file
from tiny_gguf import TEMPLATE, write_tiny_llama, write_tiny_lora
from tiny_models import write_checkpoint

from sizewise.core.errors import (
    BadModel,
    Locked,
    SizewiseError,
    StorageError,
    UnknownName,
    Unsafe,
    Unsupported,
    UsageError,
)
from sizewise.core.events import Progress
from sizewise.core.recipe import Lineage
from sizewise.core.references import parse_name
from sizewise.core.requests import GenerateRequest, Message, Sampling
from sizewise.load.create import Parts, create, parts_of
from sizewise.load.modelfile import parse, write
from sizewise.load.models import find_model, save_model
from sizewise.load.open import open_runner
from sizewise.load.runner import Options
from sizewise.load.store.store import Store

NONE = Lineage(recipe=None)
GO = "{{ if .System }}<s>{{ .System }}</s>{{ end }}{{ .Prompt }} {{ .Response }}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def base(store: Store, tmp_path: Path) -> Path:
    """`base` in the store, and its file."""
    path = write_tiny_llama(tmp_path / "base.gguf")
    save_model("base", "gguf", {"m": path}, lineage=NONE, store=store, license="MIT", defaults={"top_k": 5})
    return path


def made(text: str, store: Store, folder: Path, name: str = "new") -> object:
    return create(name, parts_of(parse(text), folder, store), store)


@pytest.mark.usefixtures("base")
def test_a_modelfile_dresses_a_model(store: Store, tmp_path: Path) -> None:
    text = (
        'FROM base\nPARAMETER stop "<end>"\nPARAMETER stop User:\nPARAMETER temperature 0.5\nSYSTEM Be brief.\n'
        "MESSAGE user Hi\nMESSAGE assistant Ho\nLICENSE Mine\nLICENSE Yours\nTEMPLATE " + '"""' + TEMPLATE + '"""'
    )
    heard: list[str] = []
    parts = parts_of(parse(text), tmp_path, store)
    model = create("new", parts, store, listen=lambda event: heard.append(event.what))
    assert model == find_model("new", store)
    assert model.defaults == {"top_k": 5, "stop": ["<end>", "User:"], "temperature": 0.5}
    assert (model.system, model.template, model.license) == ("Be brief.", TEMPLATE, "Mine\n\nYours")
    assert model.messages == (Message("user", "Hi"), Message("assistant", "Ho"))
    assert model.files["model.gguf"] == find_model("base", store).files["model.gguf"]
    assert model.lineage.parent_name == "base"
    assert model.digest != find_model("base", store).digest
    assert heard[0].startswith("using existing layer sha256:")
    assert heard[-1] == "writing manifest"
    again = create("again", parts_of(parse(write(model)), tmp_path, store), store)
    assert again.digest == model.digest
    assert store.verify() == []


@pytest.mark.usefixtures("base")
def test_ollama_finds_its_own_layers(store: Store, tmp_path: Path) -> None:
    made(f'FROM base\nSYSTEM S\nPARAMETER stop a\nMESSAGE user Hi\nTEMPLATE """{GO}"""', store, tmp_path)
    manifest = store.get(parse_name("new"))
    texts = {layer.media_type.rpartition(".")[2]: store.blob(layer.digest) for layer in manifest.layers}
    assert {layer.media_type.rpartition(".")[0] for layer in manifest.layers} == {
        "application/vnd.ollama.image",
        "application/vnd.sizewise",
    }
    assert texts["template"].read_text() == GO
    assert texts["system"].read_text() == "S"
    assert json.loads(texts["params"].read_text()) == {"stop": ["a"], "top_k": 5}
    assert json.loads(texts["messages"].read_text()) == [{"role": "user", "content": "Hi"}]
    assert texts["model"].read_bytes()[:4] == b"GGUF"
    assert manifest.config["model_format"] == "gguf"


def test_stored_turns_and_templates_reach_the_model(store: Store, base: Path, tmp_path: Path) -> None:
    made(f'FROM {base}\nSYSTEM Be.\nMESSAGE user Hi\nMESSAGE assistant Ho\nTEMPLATE """{GO}"""', store, tmp_path)
    with open_runner("new", options=Options(threads=2, context=128), store=store) as runner:
        asked = GenerateRequest(messages=(Message("user", "Well?"),), sampling=Sampling(max_tokens=1))
        assert runner.prompt(asked) == "<s>Be.</s>Hi HoWell? "  # type: ignore[attr-defined]


def test_a_template_beyond_us_is_kept_and_told(store: Store, base: Path, tmp_path: Path) -> None:
    text = '{{ define "x" }}{{ end }}{{ .Prompt }}'
    model = create("new", Parts(base="base", template=text), store)
    assert model.template is None
    (warning,) = model.warnings
    assert "'define'" in warning
    assert "the model's own file is used instead" in warning


@pytest.mark.parametrize(
    ("template", "part"),
    [("{{ if .System }}", "not closed"), ("{% if x %}", "template"), ("{{ .System", "not closed by }}")],
)
@pytest.mark.usefixtures("base")
def test_a_broken_template_is_refused_when_the_model_is_made(store: Store, template: str, part: str) -> None:
    with pytest.raises(UsageError, match=part):
        create("new", Parts(base="base", template=template), store)
    with pytest.raises(UnknownName):
        find_model("new", store)


def test_an_adapter_changes_what_the_model_scores(store: Store, base: Path, tmp_path: Path) -> None:
    write_tiny_lora(tmp_path / "lora.gguf")
    made(f"FROM {base}\nADAPTER lora.gguf", store, tmp_path)
    model = find_model("new", store)
    assert list(model.files) == ["model.gguf", "adapter.gguf"]
    assert model.digest != find_model("base", store).digest
    other = create("other", Parts(base="new", system="S"), store)
    assert other.files == model.files
    save_model("plain", "gguf", {"m": base}, lineage=NONE, store=store)
    scores = []
    for name in ("plain", "new"):
        with open_runner(name, options=Options(threads=2), store=store) as runner:
            scores.append(runner.score_texts(["hello there"], window=64)[0].logprob)
    assert scores[0] != pytest.approx(scores[1], abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ({"width": 32}, "is corrected by"),
        ({"layers": 3}, "corrects nothing in the base"),
        ({"architecture": "qwen2"}, "is an adapter for qwen2 models, and the base is llama"),
    ],
)
def test_an_adapter_of_another_model_is_refused(
    store: Store, base: Path, tmp_path: Path, kind: dict[str, int], part: str
) -> None:
    write_tiny_lora(tmp_path / "lora.gguf", **kind)  # type: ignore[arg-type]
    with pytest.raises(BadModel, match=part):
        made(f"FROM {base}\nADAPTER ./lora.gguf", store, tmp_path)
    with pytest.raises(BadModel, match="no LoRA"):
        made(f"FROM {base}\nADAPTER {base}", store, tmp_path)
    with pytest.raises(BadModel, match="is an adapter, no model"):
        made("FROM ./lora.gguf", store, tmp_path)


def test_a_checkpoint_is_kept_as_it_is(store: Store, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny")
    (folder / "notes.md").write_text("left out")
    heard: list[str] = []
    parts = parts_of(parse("FROM ./tiny\nSYSTEM S"), tmp_path, store)
    model = create("new", parts, store, listen=lambda event: heard.append(event.what))
    assert (model.kind, model.system) == ("checkpoint", "S")
    assert {name: path.read_bytes() for name, path in model.files.items()} == {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name != "notes.md"
    }
    assert any("served by torch" in line for line in heard)
    with pytest.raises(Unsupported, match="adapters go with GGUF models"):
        create("x", Parts(base="new", adapters={"a": folder}), store)


@pytest.mark.usefixtures("base")
def test_what_does_not_go_together(store: Store, tmp_path: Path) -> None:
    with pytest.raises(Locked, match="not made from itself"):
        create("BASE:latest", Parts(base="base"), store)
    with pytest.raises(UnknownName):
        made("FROM nothing-like-it", store, tmp_path)
    with pytest.raises(UsageError, match="a model is made from one other"):
        made("FROM base\nFROM base", store, tmp_path)
    with pytest.raises(UsageError, match="either a model or files"):
        create("x", Parts(), store)
    with pytest.raises(UsageError, match="no model name"):
        create("../x", Parts(base="base"), store)
    with pytest.raises(BadModel, match="there is no such file"):
        made("FROM ./nowhere.gguf", store, tmp_path)


def test_row_67_and_68_pickles_and_code_are_refused(store: Store, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mine", "auto_map": {"AutoModel": "x.Y"}}))
    with pytest.raises(Unsafe, match="auto_map"):
        made("FROM ./c", store, tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(Unsafe, match="convert them with the safetensors library"):
        made("FROM ./c", store, tmp_path)


def header(body: bytes) -> bytes:
    return len(body).to_bytes(8, "little") + body


@pytest.mark.parametrize(
    "data",
    [
        (2**63).to_bytes(8, "little") + b"{}",
        header(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}'
        )
        + bytes(6),
        header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}') + bytes(8),
        header(b'{"\xff\xfe":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}') + bytes(4),
    ],
    ids=["header of 2^63 bytes", "overlap", "hole", "not UTF-8"],
)
def test_row_66_bad_safetensors(store: Store, tmp_path: Path, data: bytes) -> None:
    folder = write_checkpoint(tmp_path / "c")
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(BadModel, match=r"model\.safetensors"):
        made("FROM ./c", store, tmp_path)
    assert store.list() == []


def test_s19_special_files_are_no_models(store: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "loop.gguf").symlink_to(tmp_path / "loop.gguf")
    for path in ("/dev/zero", "./pipe.gguf", "./folder.gguf", "./loop.gguf"):
        begin = time.monotonic()
        with pytest.raises((BadModel, StorageError)):
            made(f"FROM {path}", store, tmp_path)
        with pytest.raises((BadModel, StorageError)):
            made(f"FROM {tmp_path / 'ok.gguf'}\nADAPTER {path}", store, tmp_path)
        assert time.monotonic() - begin < 1.0
    assert store.list() == []


@pytest.mark.parametrize(("label", "data"), bad_ggufs(), ids=[label for label, _ in bad_ggufs()])
def test_s7_each_bad_gguf_is_one_line(store: Store, tmp_path: Path, label: str, data: bytes) -> None:
    (tmp_path / "bad.gguf").write_bytes(data)
    with pytest.raises(BadModel) as caught:
        made("FROM ./bad.gguf", store, tmp_path)
    assert "\n" not in str(caught.value)
    assert "bad.gguf" in str(caught.value)
    assert store.list() == []
    assert store.verify() == []


def test_s7_mutations_end_in_an_error_or_a_model(store: Store, base: Path, tmp_path: Path) -> None:
    good, refused, taken = base.read_bytes(), 0, 0
    for place, data in enumerate(mutations(good, 200, seed=7)):
        (tmp_path / "m.gguf").write_bytes(data)
        begin = time.monotonic()
        try:
            made("FROM ./m.gguf", store, tmp_path, f"m{place}")
            taken += 1
        except SizewiseError as error:
            refused += isinstance(error, BadModel | Unsupported)
        assert time.monotonic() - begin < 2.0
    assert refused > 100
    assert refused + taken == 200
    assert store.verify() == []


def test_two_licences_and_events_of_a_plain_file(store: Store, base: Path, tmp_path: Path) -> None:
    events: list[Progress] = []
    create("x", parts_of(parse(f"FROM {base}"), tmp_path, store), store, listen=events.append)
    assert any(event.unit == "bytes" and event.done == event.total for event in events)


def test_a_peft_adapter_is_converted(store: Store, base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "peft"
    folder.mkdir()
    rng = np.random.default_rng(0)
    sizes = {"q_proj": 64, "k_proj": 32, "v_proj": 32}
    tensors = {
        f"base_model.model.model.layers.0.self_attn.{name}.lora_{side}.weight": rng.standard_normal(
            (4, 64) if side == "A" else (rows, 4)
        ).astype(np.float32)
        for name, rows in sizes.items()
        for side in "AB"
    }
    save_file(tensors, str(folder / "adapter_model.safetensors"))
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    made(f"FROM {base}\nADAPTER ./peft", store, tmp_path)
    assert "adapter.gguf" in find_model("new", store).files
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(Unsupported, match="only plain LoRA"):
        made(f"FROM {base}\nADAPTER ./peft", store, tmp_path)
