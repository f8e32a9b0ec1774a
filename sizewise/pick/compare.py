"""The same instructions to several models, side by side, with what each answer took.

Fair timing: one model in memory at a time, in the order given; each writes a few words first that do not count (they
pay for memory that is mapped on first touch); then one instruction at a time, so that no answer waits for another.
"""

import json
import shlex
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sizewise.core.errors import StorageError, UnknownName, Unsupported, UsageError
from sizewise.core.events import Listener, Progress, silent
from sizewise.core.measurement import Measurement, unmeasured
from sizewise.core.requests import GenerateRequest, Message, Reply, Sampling
from sizewise.core.results import ComparedAnswer, ComparedModel, Comparison
from sizewise.load.runner import Runner

if TYPE_CHECKING:
    from sizewise.core.model import Model
    from sizewise.load.store.store import Store

OWN = Path(__file__).with_name("instructions.toml")
_WARM_UP = "Name three colours."
_WARM_UP_TOKENS = 8
_ORDER = (
    "one model in memory at a time, in the order shown, each after a warm-up of {tokens} tokens that does not count"
)
_WRITERS = ("gguf", "checkpoint", "endpoint")


@dataclass(frozen=True, slots=True)
class Instruction:
    """What every model is asked, and the name that people know it by."""

    title: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Prices:
    """What running costs: own hardware by the hour, the grid by its factor. None: unknown, and so is the number."""

    usd_per_hour: float | None = None
    country: str | None = None  # three letters, for the grid's CO2
    g_per_kwh: float | None = None


def compare(
    models: Sequence[str],
    *,
    instructions: Sequence[Instruction] | None = None,
    max_tokens: int = 160,
    seed: int = 0,
    prices: Prices | None = None,
    store: "Store | None" = None,
    listen: Listener = silent,
) -> Comparison:
    """Ask several models the same and lay the answers side by side.

    Args:
        models: references of the models, in the order in which they are to run.
        instructions: what to ask; None: the five that come with sizewise.
        max_tokens: the longest answer.
        seed: of the sampling, which is greedy, so that it changes nothing where an engine is deterministic.
        prices: for money and CO2.
        store: where models are looked up; None: the usual one.
        listen: told of each answer.

    Returns:
        One column for each model, in the order given.

    Raises:
        UnknownName: no such model; said before anything runs.
        Unsupported: a model cannot write.
        UsageError: nothing to compare, or a prompt does not fit into a model's context.
        EngineFailed: an engine died.
    """
    from sizewise.load.models import find_model
    from sizewise.measure.machine import fingerprint

    asked = tuple(instructions) if instructions is not None else read_instructions()
    if not models or not asked:
        raise UsageError("name at least one model and one instruction to compare")
    began = time.perf_counter()
    found = [find_model(name, store) for name in models]  # a misspelt last name must not cost the first ones' time
    for model in found:
        if model.kind not in _WRITERS:
            raise Unsupported(f"{model.name} is of kind {model.kind} and cannot write; compare takes language models")
    total = len(found) * len(asked)
    columns = []
    for place, model in enumerate(found):
        sampling = Sampling(max_tokens=max_tokens, seed=seed)
        heard = _Counted(listen, place * len(asked), total)
        columns.append(_column(model, asked, sampling, prices or Prices(), store, heard))
    command = shlex.join(["sizewise", "compare", *models, "--max-tokens", str(max_tokens)])
    return Comparison(
        tuple(columns),
        fingerprint(),
        time.perf_counter() - began,
        seed=seed,
        max_tokens=max_tokens,
        notes=(_ORDER.format(tokens=_WARM_UP_TOKENS), *_notes(found)),
        command=command,
    )


def read_instructions(path: Path | None = None, prompts: Sequence[str] | None = None) -> tuple[Instruction, ...]:
    """Instructions from a TOML file or from single prompts; neither: the five that come with sizewise.

    Args:
        path: a file of `[[instruction]]` tables, each with `title` and `prompt`.
        prompts: texts that are title and prompt at once.

    Raises:
        UsageError: the file is no such TOML, or a prompt is empty.
        UnknownName: it has a key that means nothing.
        StorageError: it cannot be read.
    """
    if prompts:
        return tuple(
            _instruction({"title": _title(text), "prompt": text}, f"prompt {n}") for n, text in _counted(prompts)
        )
    source = path or OWN
    try:
        body = tomllib.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{source}: no such file; it holds [[instruction]] tables with title and prompt") from error
    except OSError as error:
        raise StorageError(f"{source}: {error.strerror}") from error
    except ValueError as error:  # bad TOML or not UTF-8
        raise UsageError(f"{source}: no TOML: {error}") from error
    for key in body:
        if key != "instruction":
            raise UnknownName(f"key of {source}", key, ["instruction"])
    entries = body.get("instruction")
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"{source}: holds no [[instruction]] with title and prompt")
    return tuple(_instruction(entry, f"{source}: instruction {number}") for number, entry in _counted(entries))


def _counted(entries: Sequence[Any]) -> list[tuple[int, Any]]:
    return list(enumerate(entries, 1))


def _title(prompt: str) -> str:
    """The beginning of a prompt, to call it by."""
    line = " ".join(prompt.split())
    return line if len(line) <= 60 else line[:60].rsplit(" ", 1)[0] + "…"


def _instruction(entry: Any, where: str) -> Instruction:
    if not isinstance(entry, dict):
        raise UsageError(f"{where}: must be a table with title and prompt")
    for key in entry:
        if key not in ("title", "prompt"):
            raise UnknownName(f"key of {where}", key, ["title", "prompt"])
    for key in ("title", "prompt"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise UsageError(f"{where}: {key} must be a text that is not empty")
    return Instruction(entry["title"].strip(), entry["prompt"].strip())


@dataclass(frozen=True, slots=True)
class _Counted:
    """Tells a listener of answers as parts of the whole comparison."""

    listen: Listener
    before: int
    total: int

    def __call__(self, what: str, done: int) -> None:
        self.listen(Progress(what, self.before + done, self.total, "answers"))


def _column(
    model: "Model", asked: Sequence[Instruction], sampling: Sampling, prices: Prices, store: "Store | None",
    heard: _Counted,
) -> ComparedModel:  # fmt: skip
    """Everything about one model: load it, warm it up, ask, unload it."""
    from sizewise.load.open import open_runner
    from sizewise.measure.meters.memory import memory

    heard(f"load {model.name}", 0)
    began = time.perf_counter()
    with open_runner(model, store=store) as runner:
        load_s = time.perf_counter() - began
        with memory(runner.pids()) as watch:
            runner.generate([_request(runner, _WARM_UP, Sampling(max_tokens=_WARM_UP_TOKENS, seed=sampling.seed))])
            answers, replies = [], []
            for number, instruction in enumerate(asked, 1):
                answer, reply = _answer(runner, instruction, sampling, prices)
                answers.append(answer)
                replies.append(reply)
                heard(f"{model.name}: {instruction.title}", number)
        peak = watch.measurement()
    return ComparedModel(
        model.name,
        model.digest,
        model.size_bytes if model.kind != "endpoint" else None,
        model.parameters,
        model.quantization,
        tuple(answers),
        tuple(_whole(model, load_s, peak, answers, replies)),
    )


def _request(runner: Runner, prompt: str, sampling: Sampling) -> GenerateRequest:
    """A conversation of one turn; an engine without chat gets the family's known prompt form, or the bare text."""
    from sizewise.load.templates import prompt_form, render_without_template

    messages = (Message("user", prompt),)
    if "chat" in runner.abilities:
        return GenerateRequest(messages=messages, sampling=sampling)
    if "generate" not in runner.abilities:
        raise Unsupported(f"{runner.model.name} cannot write with {runner.engine}; compare takes language models")
    form = prompt_form(runner.model.architecture)
    return GenerateRequest(render_without_template(messages, form), sampling=sampling)


def _answer(
    runner: Runner, instruction: Instruction, sampling: Sampling, prices: Prices
) -> tuple[ComparedAnswer, Reply]:
    from sizewise.measure.meters.energy import EnergyWatch

    with EnergyWatch(runner.pids()) as watch:
        (reply,) = runner.generate([_request(runner, instruction.prompt, sampling)])
    measurements = (*_times(reply), *_spendings(runner.model, reply, watch.measurement(), prices))
    answer = ComparedAnswer(instruction.title, instruction.prompt, reply.text.strip(), reply.finish, measurements)
    return answer, reply


def _times(reply: Reply) -> list[Measurement]:
    from sizewise.measure.machine import machine_id

    machine = machine_id()

    def given(name: str, unit: str, value: float | None, method: str, why: str) -> Measurement:
        if value is None:
            return unmeasured(name, unit, why)
        return Measurement(name, unit, value, n=1, method=method, machine=machine)

    first, total, tokens = reply.first_token_s, reply.total_s, reply.completion_tokens
    return [
        given("first_token_s", "s", first, "from request to first token", "the engine does not tell"),
        given("total_s", "s", total, "from request to last token", ""),
        given("tokens_per_second", "tokens/s", _speed([reply]), _SPEED, _NO_SPEED),
        given("tokens", "tokens", tokens, "counted by the engine", "the engine does not count"),
    ]


_SPEED = "tokens after the first, by the time since it"
_NO_SPEED = "fewer than two tokens were told of"


def _speed(replies: Sequence[Reply]) -> float | None:
    """Tokens after the first of each answer, by the time since it."""
    tokens, seconds = 0, 0.0
    for reply in replies:
        if reply.first_token_s is not None and (reply.completion_tokens or 0) > 1:
            tokens += (reply.completion_tokens or 0) - 1
            seconds += reply.total_s - reply.first_token_s
    return tokens / seconds if seconds > 0 else None


def _spendings(model: "Model", reply: Reply, energy: Measurement, prices: Prices) -> list[Measurement]:
    from sizewise.measure.meters.co2 import co2
    from sizewise.measure.meters.cost import api_cost, cost

    carbon = co2(energy, prices.country, prices.g_per_kwh)
    if model.kind == "endpoint":
        return [energy, carbon, api_cost(_list_price(model), reply.prompt_tokens, reply.completion_tokens)]
    return [energy, carbon, cost(reply.total_s, prices.usd_per_hour)]


def _list_price(model: "Model") -> dict[str, Any]:
    """The catalogue's price of an endpoint's model; nothing where it does not know that name."""
    from sizewise.load.catalogue import entries

    name = model.remote.partition(":")[2]
    entry = entries().get(name) or entries().get(model.name)
    return dict(entry.prices) if entry else {}


def _whole(
    model: "Model", load_s: float, peak: Measurement, answers: Sequence[ComparedAnswer], replies: Sequence[Reply]
) -> list[Measurement]:
    """What a model takes as a whole."""
    from sizewise.measure.machine import machine_id
    from sizewise.measure.meters.flops import flops
    from sizewise.measure.meters.latency import spread
    from sizewise.measure.meters.size import size

    first = [reply.first_token_s for reply in replies if reply.first_token_s is not None]
    speed = _speed(replies)
    return [
        *size(model),
        flops(model),
        Measurement("load_s", "s", load_s, n=1, method="until the engine is ready to answer", machine=machine_id()),
        peak,
        spread("first_token_s", "s", first, "from request to first token", "the engine does not tell"),
        unmeasured("tokens_per_second", "tokens/s", _NO_SPEED)
        if speed is None
        else Measurement("tokens_per_second", "tokens/s", speed, n=len(replies), method=_SPEED, machine=machine_id()),
        *(_sum(name, answers) for name in ("total_s", "tokens", "energy_j", "co2_g", "cost_usd")),
    ]


def _sum(name: str, answers: Sequence[ComparedAnswer]) -> Measurement:
    """The sum over all answers; with one missing there is none."""
    parts = [each for answer in answers for each in answer.measurements if each.name == name]
    missing = next((each for each in parts if each.value is None), None)
    if missing:
        return missing
    total = sum(each.value or 0.0 for each in parts)
    method = f"sum over {len(parts)} answers; {parts[0].method}"
    return Measurement(
        name,
        parts[0].unit,
        total,
        n=len(parts),
        provenance=parts[0].provenance,
        method=method,
        machine=parts[0].machine,
    )


def _notes(models: Sequence["Model"]) -> list[str]:
    from sizewise.load.templates import prompt_form

    bare = [model for model in models if model.kind != "endpoint" and not _has_template(model)]
    known = [model.name for model in bare if prompt_form(model.architecture)]
    plain = [model.name for model in bare if not prompt_form(model.architecture)]
    notes = []
    if known:
        notes.append(f"without a chat template, asked in the known form of their family: {', '.join(known)}")
    if plain:
        notes.append(f"without a chat template, asked in plain text: {', '.join(plain)}")
    return notes


def _has_template(model: "Model") -> bool:
    """True where a chat template is stored with the model or in its files."""
    from sizewise.load.gguf.file import read_gguf

    if model.template or "chat_template.jinja" in model.files:
        return True
    if model.kind == "gguf":
        return bool(read_gguf(next(iter(model.files.values()))).template)
    settings = model.files.get("tokenizer_config.json")
    return bool(settings and json.loads(settings.read_text(encoding="utf-8")).get("chat_template"))
