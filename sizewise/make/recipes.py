"""Recipes of several steps: a flat TOML file says which methods follow one another, each with its options.

    seed = 0                      # of everything random; optional

    [[step]]
    method = "sparsegpt"
    sparsity = 0.5

    [[step]]
    method = "gptq"
    bits = 4
    calibration = "mine.txt"      # beside the recipe

The result of each step but the last is kept as a model in a store of the cache, under the digest of all that it
depends on, until the chain is done: a chain that was interrupted, or whose later steps were changed, goes on there.
"""

import re
import tomllib
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from sizewise.core.errors import BadModel, BadRow, Locked, StorageError, UnknownName, UsageError
from sizewise.core.events import Listener, silent
from sizewise.core.model import Model
from sizewise.core.params import Parameter, schema_of
from sizewise.core.recipe import Recipe, RecipeStep
from sizewise.core.references import parse_name, parse_reference
from sizewise.load.home import home
from sizewise.load.models import find_model
from sizewise.load.store.atomic import locked
from sizewise.load.store.store import Store
from sizewise.make.apply import Earlier, Job, carry_out, check_options
from sizewise.make.method import kind_of, methods, purpose_of, wants
from sizewise.make.shrink import settings_of

_KEYS = ("seed", "step")
_HEADER = re.compile(r"\s*\[\[\s*step\s*\]\]")
_MOST_BYTES = 1_000_000


def load_recipe(path: Path | str) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a .toml file.

    Raises:
        BadRow: a key, method or value is wrong; the message begins with file:line.
        StorageError: the file cannot be read.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            raw = file.read(_MOST_BYTES)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
    return _Reader(path, raw).chain()


def make_chain(
    chain: Recipe,
    base: str,
    *,
    name: str,
    seed: int | None = None,
    store: Store | None = None,
    listen: Listener = silent,
) -> Model:
    """Apply the steps of a chain one after the other and keep the last result in the store.

    Args:
        chain: what to do.
        base: reference of the model to start from.
        name: what to call the result; a model of that name is replaced.
        seed: in place of the chain's own.
        store: where the result goes and where `base` is looked up; None = the user's store.
        listen: hears progress.

    Raises:
        UnknownName: there is no such base.
        UsageError: a step does not fit the model; the message says which step.
        DiskFull: there is no room; finished steps are kept.
    """
    target, store = parse_name(name), store or Store()
    if parse_reference(base) == target:
        raise UsageError(f"{name} would replace the model that it is made from; choose another --name")
    between = Store(home() / "cache" / "steps")
    origin = find_model(base, store)
    with ExitStack() as uses:
        model, kept = _all_steps(chain, origin, name, seed, store, between, uses, listen)
    for each in kept:  # another chain that begins with the same steps removes them at its own end
        with suppress(Locked, UnknownName), _use(each, exclusive=True):
            between.remove(parse_name(each))
    return model


def _all_steps(
    chain: Recipe,
    origin: Model,
    name: str,
    seed: int | None,
    store: Store,
    between: Store,
    uses: ExitStack,
    listen: Listener,
) -> tuple[Model, list[str]]:
    """The last step's result, and the names of what the others left in `between`; `uses` holds on to these."""
    earlier, model = Earlier(origin), origin
    kept: list[str] = []
    for place, step in enumerate(chain.steps, 1):
        function = methods().get(step.method)
        options, settings = check_options(step.method, function, step.options)
        last = place == len(chain.steps)
        where, number = store if last else between, chain.seed if seed is None else seed
        job = Job(step.method, function, options, model, None, number, where, listen, settings, earlier)
        try:
            model = carry_out(job, name) if last else _resumed(job, between, uses)
        except UsageError as error:
            raise UsageError(f"step {place} ({step.method}): {error}") from error
        if not last:
            kept.append(model.name)
            model = replace(model, name=f"{origin.name} after step {place}")
        figures = tuple(model.lineage.figures["steps"])
        earlier = replace(earlier, steps=job.recipe.steps, figures=figures)
    return model, kept


def _use(name: str, *, exclusive: bool = False) -> AbstractContextManager[None]:
    """Nobody removes a step's result meanwhile, or, exclusive, nobody works with it."""
    return locked(home() / "cache" / "steps.locks" / name, exclusive=exclusive, wait_s=0 if exclusive else 30)


def _resumed(job: Job, between: Store, uses: ExitStack) -> Model:
    """The result of a step: of an earlier run, if it is still there."""
    name = f"step-{job.digest[7:39]}"
    uses.enter_context(_use(name))
    try:
        return find_model(name, between)
    except (UnknownName, BadModel):
        return carry_out(job, name)


class _Reader:
    """A recipe's text and its keys, with the lines that they are on."""

    def __init__(self, path: Path, raw: bytes) -> None:
        self.path = path
        try:
            text = raw.decode("utf-8-sig").replace("\r\n", "\n")
            self.keys = tomllib.loads(text)
        except UnicodeDecodeError:
            raise BadRow(path, 1, "not UTF-8 text; save the file as UTF-8") from None
        except tomllib.TOMLDecodeError as error:
            problem, _, place = str(error).partition(" (at ")
            digits = place.removeprefix("line ").partition(",")[0]
            line = int(digits) if digits.isdigit() else text.rstrip().count("\n") + 1
            raise BadRow(path, line, f"not TOML: {problem}") from None
        self.lines = text.split("\n")
        headers = [number for number, line in enumerate(self.lines, 1) if _HEADER.match(line)]
        self.starts = [0, *headers]

    def chain(self) -> Recipe:
        """All of it, checked."""
        for key in self.keys:
            if key not in _KEYS:
                raise self._bad(0, key, str(UnknownName("key of a recipe", key, _KEYS)))
        seed, steps = self.keys.get("seed", 0), self.keys.get("step", [])
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise self._bad(0, "seed", f"seed must be a whole number of at least 0, not {seed!r}")
        if not isinstance(steps, list) or not steps or not all(isinstance(step, dict) for step in steps):
            raise self._bad(0, "step", "a recipe has one or more tables [[step]], each with a method")
        made = tuple(self._step(place, step) for place, step in enumerate(steps, 1))
        self._check_order(made)
        return Recipe(made, seed)

    def _step(self, place: int, keys: dict[str, Any]) -> RecipeStep:
        known, method = methods(), keys.get("method")
        if not isinstance(method, str):
            raise self._bad(place, "method", 'a step names its method: method = "gptq"')
        if method not in known.names():
            raise self._bad(place, "method", str(UnknownName("method", method, known.names())))
        function = known.get(method)
        if kind_of(function) == "head" or (kind_of(function) == "model" and "base" not in wants(function)):
            raise self._bad(place, "method", f"{method} does not work on the model of the step before it")
        own = (*schema_of(function), *settings_of(function))
        options = self._options(place, method, {parameter.name: parameter for parameter in own}, keys)
        try:
            check_options(method, function, options)
        except UsageError as error:
            raise self._bad(place, "method", str(error)) from error
        return RecipeStep(method, options)

    def _options(self, place: int, method: str, schema: dict[str, Parameter], keys: dict[str, Any]) -> dict[str, Any]:
        options = {}
        for key, value in keys.items():
            if key == "method":
                continue
            if key not in schema:
                raise self._bad(place, key, str(UnknownName(f"option of {method}", key, schema)))
            try:
                options[key] = schema[key].check(value, method)
            except UsageError as error:
                raise self._bad(place, key, str(error)) from error
            if key == "calibration" and isinstance(value, str):
                options[key] = str(self.path.parent / value)
        return options

    def _check_order(self, steps: Iterable[RecipeStep]) -> None:
        packed = ""
        for place, step in enumerate(steps, 1):
            function = methods().get(step.method)
            if packed and kind_of(function) in ("weight", "structure"):
                problem = f"{step.method} would change weights that {packed} has put into a small form: do it before"
                raise self._bad(place, "method", problem)
            packed = step.method if purpose_of(function) in ("Quantize", "Factorize") else packed

    def _bad(self, place: int, key: str, problem: str) -> BadRow:
        """The error, at the line of a key of step `place`; 0 means before the first step."""
        start = self.starts[place] if place < len(self.starts) else 0
        end = self.starts[place + 1] - 1 if place + 1 < len(self.starts) else len(self.lines)
        pattern = re.compile(rf"""\s*["']?{re.escape(key)}["']?\s*=|\s*\[+\s*{re.escape(key)}\s*\]""")
        found = (number for number in range(start + 1, end + 1) if pattern.match(self.lines[number - 1]))
        return BadRow(self.path, next(found, start or 1), problem)
