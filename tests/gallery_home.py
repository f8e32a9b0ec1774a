"""A home with something for the web page to show."""

from dataclasses import replace
from pathlib import Path

from hostile import save_hostile
from served import CHAT, save_tiny
from tiny_gguf import write_tiny_llama

from sizewise.core.measurement import Measurement
from sizewise.core.recipe import Lineage, Recipe, RecipeStep
from sizewise.core.results import (
    Bar,
    Candidate,
    ComparedAnswer,
    ComparedModel,
    Comparison,
    Decision,
    Evaluation,
    FitResult,
    Interval,
)
from sizewise.load.models import find_model, save_model
from sizewise.load.store.store import Store
from sizewise.measure.ledger import Key, Ledger
from sizewise.pick.kept import keep

MACHINE = {"cpu": "a processor", "cores": 2, "memory_bytes": 8_000_000_000}


def fill_gallery(home: Path) -> None:
    """Models `tiny`, `tiny2` (made from it), `tiny3`, `hostile` and `hostile2`, evaluations, a fit and a comparison."""
    store = Store(home / "models")
    save_tiny(store, home, "tiny", 0)
    parent = find_model("tiny", store)
    recipe = Recipe((RecipeStep("quantize_gguf", {"type": "q4_0"}),))
    lineage = Lineage(recipe, parent_name="tiny", parent_digest=parent.digest)
    file = write_tiny_llama(home / "tiny2.gguf", seed=1)
    save_model("tiny2", "gguf", {"model.gguf": file}, template=CHAT, lineage=lineage, store=store)
    save_tiny(store, home, "tiny3", 2)
    save_hostile(store, home, "hostile")
    save_hostile(store, home, "hostile2", last="something")
    with Ledger(home / "ledger.db") as ledger:
        for name, value in (("tiny", 0.71), ("tiny2", 0.62)):
            digest = find_model(name, store).digest
            quality = Interval(value, value - 0.06, value + 0.06, 300)
            result = Evaluation(name, digest, "sentiment", "sha256:t", "test", "accuracy", quality, 0, 1.0, 0.1, ())
            ledger.finish(Key(digest, "sha256:t", {"engine": "e"}, 0, name, "sentiment"), result)
    keep(a_fit(), home / "reports")
    keep(a_comparison(), home / "reports")


def a_fit(task: str = "sentiment") -> FitResult:
    """A fit that somebody made."""
    quality = Interval(0.71, 0.65, 0.77, 300)
    candidates = (
        Candidate("tiny", "prompted", quality, quality, 0.01, 0.02, 40_000, digest="sha256:" + "a" * 64),
        Candidate("tiny2", "prompted", replace(quality, value=0.66), None, 0.01, 0.02, 20_000, "below the bar"),
    )
    decision = Decision("pass", "tiny", "tiny, 40 kB, gets 71 % right.", smallest="tiny")
    return FitResult(task, "sha256:t", "accuracy", decision, Bar(at_least=0.7), candidates, MACHINE, 0, 3.0)


def a_comparison(text: str = "An answer.") -> Comparison:
    """A comparison that somebody made."""
    speed = Measurement("tokens_per_second", "tokens/s", 40.0, method="counted")
    answer = ComparedAnswer("An instruction", "Say something.", text, "stop", (speed,))
    models = tuple(ComparedModel(name, "sha256:x", 40_000, 1000, "F32", (answer,), (speed,)) for name in ("a", "b"))
    return Comparison(models, MACHINE, 2.0)
