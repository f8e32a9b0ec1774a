"""Chains of methods: checked line by line before any work, kept step by step, told whole in the lineage."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sizewise.core.errors import BadRow, StorageError, UnknownName, UsageError
from sizewise.core.events import Progress
from sizewise.core.model import Model
from sizewise.core.recipe import Recipe, RecipeStep
from sizewise.load.home import home
from sizewise.load.models import find_model
from sizewise.load.store.store import Store
from sizewise.make.apply import make
from sizewise.make.recipes import load_recipe, make_chain

Family = Callable[[str], Path]
SMALL = "tokens = 240\nwindow = 40\n"
CHAIN = f"""# prune, then quantize
seed = 3

[[step]]
method = "wanda"
sparsity = 0.5
{SMALL}
[[step]]
method = "magnitude"
sparsity = 0.3
parts = "down"

[[step]]
method = "gptq"
bits = 3
group = 16
{SMALL}"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "chain.toml"
    path.write_text(text)
    return path


def bytes_of(model: Model) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in model.files.items()}


def test_a_recipe_is_read_as_it_is_written(tmp_path: Path) -> None:
    chain = load_recipe(written(tmp_path, '\ufeff[[step]]\r\nmethod = "wanda"\r\ncalibration = "mine.txt"\r\n'))
    assert chain == Recipe((RecipeStep("wanda", {"calibration": str(tmp_path / "mine.txt")}),), 0)
    assert [step.method for step in load_recipe(written(tmp_path, CHAIN)).steps] == ["wanda", "magnitude", "gptq"]


def test_a_chain_is_its_steps_one_by_one(family: Family, tmp_path: Path, store: Store) -> None:
    chain, base = load_recipe(written(tmp_path, CHAIN)), str(family("llama"))
    made = make_chain(chain, base, name="chained", store=store)
    for place, step in enumerate(chain.steps):
        last = make(step.method, base if place == 0 else f"by-hand-{place}", name=f"by-hand-{place + 1}",
                    options=step.options, seed=3, store=store)  # fmt: skip
    assert bytes_of(made) == bytes_of(last)
    assert find_model("chained", store) == made


def test_the_lineage_tells_the_whole_chain(family: Family, tmp_path: Path, store: Store) -> None:
    base = find_model(str(family("llama")))
    lineage = make_chain(load_recipe(written(tmp_path, CHAIN)), base.name, name="chained", store=store).lineage
    assert lineage.recipe is not None
    assert [step.method for step in lineage.recipe.steps] == ["wanda", "magnitude", "gptq"]
    assert lineage.recipe.seed == 3
    assert lineage.recipe.steps[0].options["sparsity"] == 0.5
    assert (lineage.parent_name, lineage.parent_digest) == (base.name, base.digest)
    assert lineage.figures["bytes_before"] == base.size_bytes
    steps = lineage.figures["steps"]
    assert [step["method"] for step in steps] == ["wanda", "magnitude", "gptq"]
    assert steps[0]["zeros"] == pytest.approx(0.5, abs=0.01)
    assert steps[0]["data_digest"] == steps[2]["data_digest"] == lineage.data_digest
    assert "data_digest" not in steps[1]
    assert lineage.figures["seconds"] == pytest.approx(sum(step["seconds"] for step in steps), abs=0.002)
    other = make_chain(load_recipe(written(tmp_path, CHAIN)), base.name, name="c", seed=4, store=store).lineage.recipe
    assert other is not None
    assert other.digest != lineage.recipe.digest


def test_what_was_between_is_gone_when_all_is_done(family: Family, tmp_path: Path, store: Store) -> None:
    make_chain(load_recipe(written(tmp_path, CHAIN)), str(family("llama")), name="chained", store=store)
    between = Store(home() / "cache" / "steps")
    assert not between.list()
    assert not list(between.layout.blobs.iterdir())
    assert [str(each.name) for each in store.list()] == ["chained:latest"]


def test_a_step_that_does_not_fit_is_named_and_earlier_ones_are_kept(
    family: Family, tmp_path: Path, store: Store
) -> None:
    base, wrong = str(family("llama")), CHAIN.replace("group = 16", "group = 24")
    with pytest.raises(UsageError, match=r"step 3 \(gptq\): .*groups of 24 do not divide"):
        make_chain(load_recipe(written(tmp_path, wrong)), base, name="chained", store=store)
    assert not store.list()
    heard: list[Progress] = []
    made = make_chain(load_recipe(written(tmp_path, CHAIN)), base, name="chained", store=store, listen=heard.append)
    assert {"wanda", "magnitude"}.isdisjoint(progress.what for progress in heard)
    assert "gptq" in {progress.what for progress in heard}
    again = make_chain(load_recipe(written(tmp_path, CHAIN)), base, name="again", store=store, listen=heard.append)
    assert "wanda" in {progress.what for progress in heard}
    assert bytes_of(made) == bytes_of(again)


def test_a_chain_leaves_another_the_steps_that_they_share(family: Family, tmp_path: Path, store: Store) -> None:
    """The second begins and ends while the first is in its last step; both are what they are alone."""
    base, chain = str(family("llama")), load_recipe(written(tmp_path, CHAIN))
    other = load_recipe(written(tmp_path, CHAIN.replace("bits = 3", "bits = 4")))
    between = Store(home() / "cache" / "steps")
    left: list[str] = []

    def listen(progress: Progress) -> None:
        if progress.what == "gptq" and not left:
            left.append("")
            make_chain(other, base, name="second", store=store)
            left.extend(str(each.name) for each in between.list())

    first = make_chain(chain, base, name="first", store=store, listen=listen)
    assert len(left) == 3  # both steps were there when the second was done
    assert not between.list()
    assert bytes_of(first) == bytes_of(make_chain(chain, base, name="alone", store=store))


@pytest.mark.parametrize("fault", ["rename:5", "rename:16", "rename:30"])
def test_killed_in_any_step_the_same_recipe_goes_on(fault: str, family: Family, tmp_path: Path, store: Store) -> None:
    path, base = written(tmp_path, CHAIN), str(family("llama"))
    code = (
        "import sys, torch; from pathlib import Path; torch.set_num_threads(1)\n"  # as many as the fixture sets
        "from sizewise.load.store.store import Store; from sizewise.make.recipes import load_recipe, make_chain\n"
        "make_chain(load_recipe(sys.argv[1]), sys.argv[2], name='chained', store=Store(Path(sys.argv[3])))"
    )
    command = [sys.executable, "-c", code, str(path), base, str(store.root)]
    killed = subprocess.run(command, env=os.environ | {"SIZEWISE_FAULT": f"{fault}:kill"}, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    made = make_chain(load_recipe(path), base, name="chained", store=store)
    whole = make_chain(load_recipe(path), base, name="whole", store=store)
    assert bytes_of(made) == bytes_of(whole)
    assert not store.verify()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sed = 1\n" + CHAIN, r"chain.toml:1: no key of a recipe named 'sed': did you mean 'seed'"),
        (CHAIN.replace("sparsity = 0.5", "sparsty = 0.5"), r"chain.toml:6: no option of wanda named 'sparsty'"),
        (CHAIN.replace('"magnitude"', '"heal"'), r"chain.toml:11: no method named 'heal'"),
        (CHAIN.replace('"gptq"', '"gtpq"'), r"chain.toml:16: no method named 'gtpq': did you mean 'gptq'"),
        (CHAIN.replace("bits = 3", "bits = 33"), r"chain.toml:17: gptq: bits must be between 2 and 16, not 33"),
        (CHAIN.replace("sparsity = 0.3", 'sparsity = "0.3"'), r"chain.toml:12: magnitude: sparsity must be float"),
        (CHAIN.replace('"down"', '"dwn"'), r"chain.toml:11: no part named 'dwn': did you mean 'down'"),
        (CHAIN.replace('method = "magnitude"\n', ""), r"chain.toml:10: a step names its method"),
        (CHAIN.replace("sparsity = 0.3", "dequantize = true"), r"chain.toml:12: no option of magnitude"),
        (CHAIN.replace('"magnitude"', '"head-tfidf"'), r"chain.toml:11: head-tfidf does not work on the model"),
        (CHAIN.replace('"wanda"\nsparsity = 0.5', '"rtn"'), r"chain.toml:10: magnitude would change weights that rtn"),
        (CHAIN.replace("seed = 3", "seed = -1"), r"chain.toml:2: seed must be a whole number of at least 0"),
        ("", r"chain.toml:1: a recipe has one or more tables"),
        ("step = 3", r"chain.toml:1: a recipe has one or more tables"),
        ("[step]\nmethod = 'wanda'", r"chain.toml:1: a recipe has one or more tables"),
        (CHAIN + "bits = 4\n", r"chain.toml:\d+: not TOML"),
        ("seed = \n", r"chain.toml:1: not TOML"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_their_line(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(BadRow, match=says) as error:
        load_recipe(written(tmp_path, text))
    assert "\n" not in str(error.value)


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none\.toml: cannot be read: No such file"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "chain.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadRow, match=r"chain.toml:1: not UTF-8"):
        load_recipe(tmp_path / "chain.toml")


def test_names_that_cannot_be_used(family: Family, tmp_path: Path, store: Store) -> None:
    chain = load_recipe(written(tmp_path, '[[step]]\nmethod = "magnitude"\n'))
    make_chain(chain, str(family("llama")), name="one", store=store)
    with pytest.raises(UsageError, match="would replace the model that it is made from"):
        make_chain(chain, "one", name="One:latest", store=store)
    with pytest.raises(UnknownName, match="nothing-here"):
        make_chain(chain, "nothing-here", name="two", store=store)


def test_the_command_takes_the_file_with_or_without_its_word(family: Family, tmp_path: Path) -> None:
    path = written(tmp_path, CHAIN)
    for words, name in (([], "one"), (["recipe"], "two")):
        command = [sys.executable, "-m", "sizewise", "make", *words, str(path), str(family("llama")), "--name", name]
        command += ["--account", "none"]
        subprocess.run(command, check=True, timeout=120, capture_output=True)
    one, two = find_model("one"), find_model("two")
    assert one.digest == two.digest
    shown = subprocess.run(
        [sys.executable, "-m", "sizewise", "show", "one"], check=True, timeout=60, capture_output=True, text=True
    ).stdout
    places = [shown.index(f"{method}(") for method in ("wanda", "magnitude", "gptq")]
    assert places == sorted(places)
