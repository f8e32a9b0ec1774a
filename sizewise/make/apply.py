"""One method applied to one base: options checked, work done aside, the result named and its lineage written."""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sizewise.core.digests import digest_of_json
from sizewise.core.errors import BadRow, Locked, UnknownName, Unsupported, UsageError
from sizewise.core.events import Listener, silent
from sizewise.core.model import Model
from sizewise.core.params import schema_of, validate
from sizewise.core.recipe import Lineage, Recipe, RecipeStep
from sizewise.core.references import parse_name, parse_reference
from sizewise.core.task import Item, Task
from sizewise.load.linear_model import ENCODER_PREFIX
from sizewise.load.models import find_model, save_model
from sizewise.load.store.atomic import locked, storage_errors, temporary
from sizewise.load.store.store import Store
from sizewise.make.calibration import Calibration
from sizewise.make.method import Made, kind_of, methods, wants
from sizewise.make.shrink import Order, settings_of, shrink, walk_settings


class Fitted(Protocol):
    """What a head method gives back."""

    @property
    def kind(self) -> str:
        """What sort of head it is, for people: "tfidf", ..."""
        ...

    @property
    def parameters(self) -> int:
        """Number of weights."""
        ...

    def save(self, folder: Path) -> dict[str, Path]:
        """Write the files; returns file name -> path."""
        ...


@dataclass(frozen=True, slots=True)
class Earlier:
    """What a chain did before the step at hand: `figures` has what each of `steps` noted about itself."""

    origin: Model
    steps: tuple[RecipeStep, ...] = ()
    figures: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """A checked order."""

    method: str
    function: Callable[..., Any]
    options: dict[str, Any]
    base: Model | None
    task: Task | None
    seed: int
    store: Store
    listen: Listener
    settings: dict[str, Any]  # `walk_settings`, for methods that `shrinks` is true of
    earlier: Earlier | None = None  # None where the method is all of the recipe

    @property
    def origin(self) -> Model | None:
        """The model that the whole recipe begins with."""
        return self.earlier.origin if self.earlier else self.base

    @property
    def shrinks(self) -> bool:
        """True where the method works on the weights of a network, or needs calibration text."""
        return kind_of(self.function) in ("weight", "structure") or "calibration" in wants(self.function)

    @property
    def whole(self) -> bool:
        """True where the result does the job of its base: not for a head, which has another than its encoder."""
        return kind_of(self.function) != "head"

    @property
    def recipe(self) -> Recipe:
        """What changes the result. Which text it was calibrated on, the lineage says by its digest."""
        own = {key: value for key, value in self.settings.items() if key != "calibration"}
        before = self.earlier.steps if self.earlier else ()
        return Recipe((*before, RecipeStep(self.method, self.options | own)), self.seed)

    @property
    def digest(self) -> str:
        """Names everything that the bytes of the result depend on, the calibration text by its content."""
        path = self.settings.get("calibration")
        text = Path(path).read_bytes() if path and Path(path).is_file() else b""
        base = self.base.digest if self.base else ""
        return digest_of_json([self.recipe.as_json(), base, hashlib.sha256(text).hexdigest()])


def make(
    method: str,
    base: str | None,
    *,
    name: str,
    options: Mapping[str, Any] | None = None,
    task: Task | None = None,
    seed: int = 0,
    store: Store | None = None,
    listen: Listener = silent,
) -> Model:
    """Make a model and keep it in the store under `name`.

    The same method, options, base, data and seed give the same bytes. Until all is done the store shows no trace of
    the work; when it fails or is interrupted, what was written is removed.

    Args:
        method: a file of `make/methods`, for example "quantize-gguf".
        base: reference of the model to start from; None for methods that start from data alone.
        name: what to call the result; a model of that name is replaced.
        options: the method's options, and for weight and structure methods those of `walk_settings`; those left out
            get their defaults.
        task: where a method that learns finds its examples: the train split.
        seed: of all randomness in the method.
        store: where the result goes and where names are looked up; None = the user's store.
        listen: hears progress.

    Raises:
        UnknownName: there is no such method, option or base.
        UsageError: an option is out of bounds, or base or task are missing or not wanted.
        DiskFull: there is no room; nothing is left behind.
    """
    function = methods().get(method)
    checked, settings = check_options(method, function, options or {})
    target, store = parse_name(name), store or Store()
    _check_inputs(method, function, base, task)
    if base is not None and parse_reference(base) == target:
        raise UsageError(f"{name} would replace the model that it is made from; choose another --name")
    found = find_model(base, store) if base is not None else None
    return carry_out(Job(method, function, checked, found, task, seed, store, listen, settings), name)


def carry_out(job: Job, name: str) -> Model:
    """Do what a checked order says and keep the result under `name`."""
    started = time.perf_counter()
    with _workspace(job) as folder:
        made, calibration = _work(job, folder)
        return _keep(job, made, folder, name, time.perf_counter() - started, calibration)


def check_options(
    method: str, function: Callable[..., Any], given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The method's options and the walk's, each checked and with defaults filled in.

    Raises:
        UnknownName: an option is none of either.
        UsageError: an option is out of bounds.
    """
    shared = {parameter.name: parameter for parameter in settings_of(function)}
    known = (*(parameter.name for parameter in schema_of(function)), *shared)
    for name in given:
        if name not in known:
            raise UnknownName(f"option of {method}", name, known)
    settings = {name: one.check(given.get(name, one.default), method) for name, one in shared.items()}
    walk_settings(**settings)
    return validate(function, {key: value for key, value in given.items() if key not in shared}, method), settings


def _work(job: Job, folder: Path) -> tuple[Made, Calibration | None]:
    if job.shrinks and job.base is not None:
        settings = walk_settings(**job.settings)
        order = Order(job.method, job.function, job.options, settings, job.base, job.seed, job.listen)
        done = shrink(order, folder)
        return done.made, done.calibration
    made = _convert(job, folder) if kind_of(job.function) == "model" else _fit_head(job, folder)
    return made, None


def _check_inputs(method: str, function: Callable[..., Any], base: str | None, task: Task | None) -> None:
    wanted = wants(function)
    needs_base = kind_of(function) in ("weight", "structure") or "base" in wanted or "embeddings" in wanted
    needs_task = kind_of(function) == "head"
    if needs_base and base is None:
        what = "an encoder" if "embeddings" in wanted else "a model"
        raise UsageError(f"{method} needs {what} to start from: sizewise make {method} MODEL --name NAME")
    if not needs_base and base is not None:
        raise UsageError(f"{method} starts from data alone; leave {base!r} out")
    if needs_task and task is None:
        raise UsageError(f"{method} learns from examples: name a task file with --task")
    if not needs_task and task is not None:
        raise UsageError(f"{method} uses no data; leave the task {task.name!r} out")


def _convert(job: Job, folder: Path) -> Made:
    given = {"base": job.base, "out": folder, "seed": job.seed, "listen": job.listen}
    made = job.function(*(given[name] for name in wants(job.function)), **job.options)
    if not isinstance(made, Made):
        raise TypeError(f"{job.method} returned {type(made).__name__}, not Made")
    return made


def _fit_head(job: Job, folder: Path) -> Made:
    items = _examples(job)
    texts = [item.input for item in items]
    given: dict[str, Any] = {"texts": texts, "labels": [item.expected for item in items], "seed": job.seed}
    files: dict[str, Path] = {}
    parameters = 0
    if "embeddings" in wants(job.function) and job.base is not None:
        given["embeddings"] = _embed(job, job.base, texts)
        files = {ENCODER_PREFIX + title: path for title, path in job.base.files.items()}
        parameters = job.base.parameters or 0
    head: Fitted = job.function(*(given[name] for name in wants(job.function)), **job.options)
    files |= head.save(folder)
    figures = {"train_rows": len(items), "head_parameters": head.parameters}
    return Made("linear", files, parameters=parameters + head.parameters, figures=figures, architecture=head.kind)


def _examples(job: Job) -> tuple[Item, ...]:
    task = job.task
    items = task.splits.get("train", ()) if task else ()
    if not task or not items:
        raise UsageError(f"{job.method} learns from the train split, which the task does not have; add `train = ...`")
    for item in items:
        if item.expected is None:
            raise BadRow(task.source, None, f"train row {item.id} has no label")
    if len({item.expected for item in items}) < 2:
        raise UsageError(f"{task.source}: all {len(items)} train rows have one label; there is nothing to learn")
    return items


def _embed(job: Job, base: Model, texts: list[str]) -> Any:
    from sizewise.load.open import open_runner

    if base.kind != "encoder":
        raise Unsupported(f"{base.name} is a {base.kind} model; {job.method} needs an encoder such as minilm")
    with open_runner(base, store=job.store) as runner:
        return runner.embed(texts, job.listen)


def _keep(job: Job, made: Made, folder: Path, name: str, seconds: float, calibration: Calibration | None) -> Model:
    after = sum(path.stat().st_size for path in made.files.values())
    base = job.base
    whole = job.whole
    # the context that a converted model has is in its own files
    converted = base is not None and {base.kind, made.kind} == {"gguf", "checkpoint"}
    return save_model(
        name,
        made.kind,
        made.files,
        architecture=made.architecture or (base.architecture if base and whole else ""),
        parameters=made.parameters,
        quantization=made.quantization,
        context_length=base.context_length if base and not converted else None,
        embedding_length=base.embedding_length if base and not converted else None,
        template=base.template if base and whole else None,
        system=base.system if base and whole else "",
        license=base.license if base else "",
        defaults=base.defaults if base and whole else None,
        lineage=_lineage(job, made, after, seconds, calibration),
        store=job.store,
        move=all(path.is_relative_to(folder) for path in made.files.values()),  # an encoder's files stay where they are
        listen=job.listen,
    )


def _lineage(job: Job, made: Made, after: int, seconds: float, calibration: Calibration | None) -> Lineage:
    base, task, origin = job.base, job.task, job.origin
    own = dict(made.figures) | {"bytes_after": after, "seconds": round(seconds, 3)}
    figures = dict(own)
    if origin and job.whole:
        figures |= {"bytes_before": origin.size_bytes, "compression_ratio": round(after / origin.size_bytes, 4)}
    if made.parameters:
        figures["parameters"] = made.parameters
        figures["bits_per_weight"] = round(after * 8 / made.parameters, 3)
    rows = [[item.input, item.expected] for item in task.splits.get("train", ())] if task else []
    data: tuple[str | None, str | None] = (task.name, digest_of_json(rows)) if task else (None, None)
    data = (calibration.name, calibration.digest) if calibration else data
    if job.earlier:
        own |= {"data_name": data[0], "data_digest": data[1]} if data[0] else {}
        figures["steps"] = [*job.earlier.figures, {"method": job.method} | own]
        figures["seconds"] = round(sum(step["seconds"] for step in figures["steps"]), 3)
        if data[0] is None and base:
            data = (base.lineage.data_name, base.lineage.data_digest)
    return Lineage(
        recipe=job.recipe,
        parent_name=origin.name if origin else None,
        parent_digest=origin.digest if origin else None,
        data_name=data[0],
        data_digest=data[1],
        note=made.note or (base.lineage.note if base and job.whole else ""),  # errors stay
        figures=figures,
    )


@contextmanager
def _workspace(job: Job) -> Iterator[Path]:
    """A folder on the store's own disk, so that finished files move in without a copy.

    It is gone afterwards, except that an interrupted walk keeps its blocks: the same order finds them again.
    """
    incoming = job.store.layout.incoming
    folder = incoming / f"make-{job.digest[7:39]}" if job.shrinks else temporary(incoming)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / "lock", exclusive=True, wait_s=0.5):
            yield folder
    except Locked:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or not job.shrinks:  # else Ctrl-C or SIGTERM
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
