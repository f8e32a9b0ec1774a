"""What was done to get a model: a recipe (hashed, stored with the model) and the lineage that it leaves."""

from dataclasses import asdict, dataclass, field
from typing import Any

from sizewise.core.digests import digest_of_json


@dataclass(frozen=True, slots=True)
class RecipeStep:
    """One method with every option that changes its result (never device or threads)."""

    method: str
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Steps applied in order to a base model. Two runs of one recipe on one base and data give one digest."""

    steps: tuple[RecipeStep, ...]
    seed: int = 0

    @property
    def digest(self) -> str:
        """Content address of the recipe."""
        return digest_of_json(self.as_json())

    def as_json(self) -> dict[str, Any]:
        """The recipe as JSON."""
        return {"steps": [asdict(step) for step in self.steps], "seed": self.seed}


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a model came from. `figures` holds numbers about the making (bytes before and after, seconds, ...)."""

    recipe: Recipe | None
    parent_name: str | None = None
    parent_digest: str | None = None
    data_name: str | None = None
    data_digest: str | None = None
    source: str | None = None  # for a pulled model: the reference that it came from
    note: str = ""
    made_by: str = ""  # sizewise version
    figures: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The lineage as JSON, empty fields left out."""
        body = asdict(self) | {"recipe": self.recipe.as_json() if self.recipe else None}
        return {key: value for key, value in body.items() if value not in (None, "", {})}

    @staticmethod
    def from_json(body: dict[str, Any]) -> "Lineage":
        """The inverse of `as_json`; unknown keys are ignored so that older readers can read newer notes."""
        known = {key: value for key, value in body.items() if key in Lineage.__dataclass_fields__}
        raw = known.pop("recipe", None)
        recipe = None
        if raw:
            steps = tuple(RecipeStep(step["method"], dict(step["options"])) for step in raw["steps"])
            recipe = Recipe(steps, int(raw.get("seed", 0)))
        return Lineage(recipe=recipe, **known)
