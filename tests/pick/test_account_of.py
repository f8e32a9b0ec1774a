"""Made, then measured: figures in the lineage, through the command line, and what an interrupted account leaves."""

import json
from pathlib import Path

import pytest
from tiny_gguf import write_tiny_llama

from sizewise.cli.accounting import print_account
from sizewise.cli.main import run
from sizewise.core.errors import Locked, UsageError
from sizewise.core.measurement import Measurement
from sizewise.core.model import Model
from sizewise.load.models import add_figures, find_model
from sizewise.load.store.store import Store
from sizewise.make.apply import make
from sizewise.measure.account import CHARACTERS
from sizewise.pick import account as counted
from sizewise.pick.account import account_of, parent_of

NAMES = ("bytes", "parameters", "bits_per_weight", "compression_ratio", "flops_per_token")
OF_TEXTS = ("perplexity", "bits_per_byte", "perplexity_ratio", "kl", "same_top", "flips")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "base.gguf")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of a few windows: the tiny vocabulary has a token for each letter."""
    monkeypatch.setitem(CHARACTERS, "quick", 400)


@pytest.mark.usefixtures("short")
def test_make_measures_what_it_made(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["make", "quantize-gguf", str(base), "--name", "packed", "--type", "Q4_0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    figures = {one["name"]: one for one in told["lineage"]["figures"]["account"]}
    assert {
        *NAMES,
        *("tokens_per_second", "speed_ratio", "peak_memory_bytes"),
        *(f"{name}_{text}" for name in OF_TEXTS for text in ("mixed", "speeches")),
    } == (set(figures))
    assert all(one["value"] is not None for one in figures.values())
    assert figures["bytes"]["value"] == told["bytes"]
    assert 0 < figures["speed_ratio"]["low"] <= figures["speed_ratio"]["value"] <= figures["speed_ratio"]["high"]
    assert figures["compression_ratio"]["value"] == pytest.approx(told["bytes"] / base.stat().st_size)
    for text in ("mixed", "speeches"):
        kl, ratio = figures[f"kl_{text}"], figures[f"perplexity_ratio_{text}"]
        assert 0 < kl["low"] < kl["value"] < kl["high"]
        assert "text" in kl["method"]
        assert ratio["low"] <= ratio["value"] <= ratio["high"]
        assert figures[f"same_top_{text}"]["value"] < 1
    assert run(["show", "packed"]) == 0
    assert "kl_speeches" in capsys.readouterr().out
    assert find_model("packed").digest == told["digest"]  # figures change no answer


@pytest.mark.usefixtures("short")
def test_an_account_later_and_against_another_model(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("quantize-gguf", str(base), name="one", options={"type": "Q8_0"})
    assert "account" not in find_model("one").lineage.figures
    assert run(["account", "one"]) == 0
    assert "same_top_mixed" in capsys.readouterr().out
    before = find_model("one").lineage.figures
    assert run(["account", "one", "--parent", "one", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["lineage"]["figures"]
    again = {one["name"]: one["value"] for one in figures["account"]}
    assert (again["kl_mixed"], again["flips_mixed"], again["same_top_mixed"]) == (0, 0, 1)
    assert {key: value for key, value in figures.items() if key != "account"} == {
        key: value for key, value in before.items() if key != "account"
    }


@pytest.mark.parametrize("ratio", [0.8, 1.0, None])
def test_a_model_that_is_no_faster_is_told_of(ratio: float | None, capsys: pytest.CaptureFixture[str]) -> None:
    speed = Measurement("tokens_per_second", "tokens/s", 20.0, method="counted")
    compared = Measurement("speed_ratio", "", ratio, method="counted", why="" if ratio else "no parent")
    print_account(Model("small", "checkpoint", "sha256:0", {}, 1), [speed, compared])
    said = capsys.readouterr().err
    wanted = "small answers no faster than what it was made from: 20 tokens/s against 25, each in the engine"
    assert (wanted in said) == (ratio == 0.8)


def test_interrupted_the_model_is_there(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(counted, "account", interrupt)
    assert run(["make", "quantize-gguf", str(base), "--name", "kept", "--type", "Q8_0"]) == 130
    assert "`sizewise account kept`" in capsys.readouterr().err
    assert find_model("kept").quantization == "Q8_0"


def test_models_that_are_used_in_place_have_no_lineage_to_write_to(base: Path) -> None:
    with pytest.raises(UsageError, match="not in the store"):
        account_of(str(base))


def test_a_model_that_was_replaced_meanwhile_gets_no_figures_of_another(base: Path) -> None:
    store = Store()
    old = make("quantize-gguf", str(base), name="same", options={"type": "Q8_0"})
    make("quantize-gguf", str(base), name="same", options={"type": "Q4_0"})
    with pytest.raises(Locked, match="was replaced"):
        add_figures(old, {"account": []}, store)
    assert "account" not in find_model("same").lineage.figures


def test_the_parent_is_found_by_its_digest(base: Path) -> None:
    store = Store()
    first = make("quantize-gguf", str(base), name="first", options={"type": "F16"})
    second = make("quantize-gguf", "first", name="second", options={"type": "Q8_0"})
    found = parent_of(second, store)
    assert found is not None
    assert found.digest == first.digest
    make("quantize-gguf", str(base), name="first", options={"type": "Q8_0"})  # the name means another model now
    assert parent_of(second, store) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tokenz", "9"], "--tokenz"),
        (["--tokens", "0"], "--tokens"),
        (["--window", "1"], "--window"),
        (["--parts", "knee"], "knee"),
        (["--account", "ful"], "ful"),
    ],
)
def test_typos_in_flags_are_one_line(
    arguments: list[str], said: str, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["make", "gptq", str(base), "--name", "never", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert not Store().layout.manifests.exists()
