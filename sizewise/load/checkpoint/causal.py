"""A causal language model with torch: generate and score in batches. Runs in the child process of the torch runner.

Scoring is one forward pass over prompt + continuation. What all rows have in common (the examples of a few-shot
prompt) is computed once, its keys and values are copied to each row, and rows that are a beginning of another row are
read from that one. Rows are padded on the right: no real token ever attends to padding, so that needs no mask.
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from sizewise.core.errors import UsageError
from sizewise.load.checkpoint.decode import Answer, Tell, decode
from sizewise.load.templates import split_guarded

BATCH_TOKENS = {"cpu": 512, "cuda": 16_384}  # new tokens in one forward pass
CACHE_TOKENS = {"cpu": 32_768, "cuda": 262_144}  # tokens whose keys and values are held at once, copies counted
MIN_SHARED = 16  # a shorter common beginning is not worth a pass of its own
_LOGITS = 64_000_000  # logits held at once, as float32

Step = Callable[[int, int], None]  # (done, total)


@dataclass(slots=True)
class Read:
    """Log-probabilities wanted from a row: of `targets`, the first predicted by the logits at `position`."""

    position: int
    targets: list[int]
    slot: int  # where the result goes


@dataclass(slots=True)
class Row:
    """Input tokens of one forward pass, and who reads its logits."""

    tokens: tuple[int, ...]
    reads: list[Read] = field(default_factory=list)

    @property
    def first(self) -> int:
        """The first position whose logits are wanted."""
        return min(read.position for read in self.reads)


class Causal:
    """Generates and scores. `context` is the most tokens that prompt and answer may have together."""

    def __init__(self, model: Any, tokenizer: Any, context: int, step: Step, check: Callable[[], None]) -> None:
        """`step` hears how far the work is, `check` raises to cancel it."""
        self.model, self.tokenizer, self.context = model, tokenizer, context
        self.step, self.check = step, check
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._shares = True  # until a kind of model turns out to have a state that cannot be copied
        self._kept: tuple[tuple[int, ...], Any] = ((), None)
        bare, wrapped = self._ids("a"), tokenizer("a")["input_ids"]
        # some tokenizers put an end token after the text as well; a prompt is to be continued, so only BOS is kept
        self.lead: list[int] = (
            wrapped[:1] if wrapped[:1] == [tokenizer.bos_token_id] and bare[:1] != wrapped[:1] else []
        )

    def encode(self, text: str) -> list[int]:
        """Token ids, with exactly one BOS where the tokenizer adds one."""
        ids = self._ids(text)
        return ids if not self.lead or ids[:1] == self.lead else self.lead + ids

    def _ids(self, text: str) -> list[int]:
        """Token ids; control tokens are read as such, except where `templates.guard` marked someone's content."""
        ids: list[int] = []
        for piece in split_guarded(text):
            ids += self.tokenizer(piece, add_special_tokens=False)["input_ids"]
        return ids

    def split(self, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of the prompt and of what follows: spaces at the prompt's end go to the continuation."""
        bare = prompt.rstrip()
        continuation = prompt[len(bare) :] + continuation
        if not bare:
            start = self._start()
            ids = self.encode(continuation)
            return start, ids[1:] if ids[:1] == start else ids
        start = self.encode(bare)
        return start, self.encode(bare + continuation)[len(start) :]

    def _start(self) -> list[int]:
        """What stands in for an empty prompt, since the first token needs something before it."""
        ids = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, 0)
        return [next(token for token in ids if token is not None)]

    def score(self, requests: Sequence[tuple[str, Sequence[str]]]) -> list[list[tuple[float, int, bool]]]:
        """(log-probability, tokens, greedy) of each continuation of each (prompt, continuations).

        Raises:
            UsageError: a prompt with its continuation is longer than the context.
        """
        rows: dict[tuple[int, ...], Row] = {}
        shape: list[list[int]] = []
        results: list[tuple[float, int, bool]] = []
        for number, (prompt, continuations) in enumerate(requests):
            shape.append([])
            for continuation in continuations:
                start, targets = self.split(prompt, continuation)
                self._check_length(len(start) + len(targets), number)
                shape[-1].append(len(results))
                results.append((0.0, 0, True))
                if targets:
                    tokens = tuple(start + targets[:-1])
                    read = Read(len(start) - 1, targets, shape[-1][-1])
                    rows.setdefault(tokens, Row(tokens)).reads.append(read)
        self._run(list(rows.values()), results)
        return [[results[slot] for slot in slots] for slots in shape]

    def score_texts(self, texts: Sequence[str], window: int) -> list[tuple[float, int]]:
        """(log-probability, tokens that could be scored) of each text, in windows that do not overlap."""
        if window < 2 or window > self.context:
            raise UsageError(f"a window of {window} tokens is not possible: at least 2, at most {self.context}")
        rows: list[Row] = []
        owners: list[int] = []
        for number, text in enumerate(texts):
            ids, size = self._ids(text), window - len(self.lead)
            for at in range(0, len(ids), size):
                piece = self.lead + ids[at : at + size]
                if len(piece) > 1:
                    rows.append(Row(tuple(piece[:-1]), [Read(0, piece[1:], len(owners))]))
                    owners.append(number)
        results: list[tuple[float, int, bool]] = [(0.0, 0, True)] * len(owners)
        self._run(rows, results)
        totals = [(0.0, 0)] * len(texts)
        for number, (logprob, tokens, _) in zip(owners, results, strict=True):
            totals[number] = (totals[number][0] + logprob, totals[number][1] + tokens)
        return totals

    def generate(self, requests: Sequence[dict[str, Any]], parallel: int, tell: Tell) -> list[dict[str, Any]]:
        """Answer requests, each `{"text": the whole prompt, "sampling": fields of core's Sampling}`.

        Greedy requests are decoded together. Drawn ones run alone, each from its own seed: in a batch an answer would
        depend on its neighbours.

        Raises:
            UsageError: a prompt leaves no room in the context.
        """
        batches: dict[Any, list[Answer]] = {}
        samplings: dict[Any, dict[str, Any]] = {}
        answers = []
        for index, request in enumerate(requests):
            sampling, prompt = request["sampling"], self.encode(request["text"]) or self._start()
            self._check_length(len(prompt) + 1, index)
            limit = min(sampling["max_tokens"], self.context - len(prompt))
            answers.append(Answer(index, prompt, limit, tuple(sampling["stop"])))
            key = index if sampling["temperature"] > 0 else f"greedy, {sampling['repeat_penalty']}"
            if limit > 0:
                batches.setdefault(key, []).append(answers[-1])
                samplings[key] = sampling
        done = 0
        for key, waiting in batches.items():
            waiting.sort(key=lambda answer: len(answer.prompt), reverse=True)
            for at in range(0, len(waiting), max(1, parallel)):
                batch = waiting[at : at + max(1, parallel)]
                decode(self.model, self.tokenizer, batch, samplings[key], tell, self.check)
                done += len(batch)
                self.step(done, len(requests))
        return [_reply(answer) for answer in answers]

    def _check_length(self, tokens: int, number: int) -> None:
        if tokens > self.context:
            raise UsageError(f"request {number + 1}: {tokens} tokens, the model's context holds {self.context}")

    def _run(self, rows: list[Row], results: list[tuple[float, int, bool]]) -> None:
        """Fill `results`, one for each read."""
        rows = _merge(rows)
        done, total = 0, len(results)

        def report(batch: Sequence[Row]) -> None:
            nonlocal done
            done += sum(len(row.reads) for row in batch)
            self.step(done, total)

        with torch.inference_mode():
            cache, depth = self._beginning(rows)
            self._descend(cache, depth, rows, results, report)

    def _beginning(self, rows: list[Row]) -> tuple[Any, int]:
        """A cache of what all `rows` begin with, kept from the last call where it fits, and its length."""
        tokens, cache = self._kept
        shared = _shared(rows, 0)
        if cache is not None and (len(tokens) > shared or rows[0].tokens[: len(tokens)] != tokens):
            tokens, cache = (), None
        if self._shares and len(rows) > 1 and shared - len(tokens) >= MIN_SHARED:
            cache = self._extend(cache, rows[0].tokens[len(tokens) : shared])
            tokens = rows[0].tokens[:shared] if cache is not None else ()
        if cache is not None:
            self._kept = tokens, cache
        return cache, len(tokens)

    def _descend(
        self,
        cache: Any,
        depth: int,
        rows: list[Row],
        results: list[tuple[float, int, bool]],
        report: Callable[[Sequence[Row]], None],
    ) -> None:
        """Score `rows`, sorted, whose first `depth` tokens are in `cache`."""
        shared = _shared(rows, depth)
        if self._shares and len(rows) > 1 and shared - depth >= MIN_SHARED:
            longer = self._extend(cache, rows[0].tokens[depth:shared])
            if longer is not None:
                cache, depth = longer, shared
        flat: list[Row] = []
        device = self.model.device.type
        for group in _groups(rows, depth):
            inner = _shared(group, depth) - depth
            # the rows of one item share its text: one pass over that instead of one for each answer
            if self._shares and len(group) < len(rows) and inner * (len(group) - 1) >= 4 * MIN_SHARED:
                self._descend(cache, depth, group, results, report)
            else:
                flat += group
        flat.sort(key=lambda row: len(row.tokens), reverse=True)
        while flat:
            longest = len(flat[0].tokens)
            size = max(1, min(BATCH_TOKENS[device] // (longest - depth), CACHE_TOKENS[device] // longest))
            batch, flat = flat[:size], flat[size:]
            self._forward(cache, depth, batch, results)
            report(batch)

    def _extend(self, cache: Any, tokens: Sequence[int]) -> Any:
        """A new cache that holds `tokens` too, or None where this kind of model has no cache that can be shared."""
        keep = {"logits_to_keep": 1} if self._keeps else {}
        ids = torch.tensor([tokens], device=self.model.device)
        output = self.model(input_ids=ids, past_key_values=_copies(cache, 1), use_cache=True, **keep)
        made = getattr(output, "past_key_values", None)
        layers = getattr(made, "layers", [])
        self._shares = bool(layers) and all(hasattr(layer, "batch_repeat_interleave") for layer in layers)
        return made if self._shares else None

    def _forward(self, cache: Any, depth: int, rows: list[Row], results: list[tuple[float, int, bool]]) -> None:
        width = max(len(row.tokens) for row in rows) - depth
        ids = torch.tensor([[*row.tokens[depth:], *[0] * (width + depth - len(row.tokens))] for row in rows])
        first = min(row.first for row in rows) - depth
        keep = {"logits_to_keep": torch.arange(first, width, device=self.model.device)} if self._keeps else {}
        output = self.model(
            input_ids=ids.to(self.model.device),
            past_key_values=_copies(cache, len(rows)),
            use_cache=bool(depth),
            **keep,
        )
        offset = depth + (first if self._keeps else 0)
        reads = [(line, read) for line, row in enumerate(rows) for read in row.reads]
        room = max(1, _LOGITS // output.logits.shape[-1])
        batch: list[tuple[int, Read]] = []
        for line, read in reads:
            if batch and sum(len(one.targets) for _, one in batch) + len(read.targets) > room:
                _read(output.logits, batch, offset, results)
                batch = []
            batch.append((line, read))
        _read(output.logits, batch, offset, results)


def _reply(answer: Answer) -> dict[str, Any]:
    return {
        "text": answer.text,
        "finish": answer.finish or "length",
        "prompt_tokens": len(answer.prompt),
        "completion_tokens": len(answer.tokens),
        "first_token_s": answer.first_token_s,
        "total_s": answer.total_s,
    }


def _read(
    logits: torch.Tensor, reads: list[tuple[int, Read]], offset: int, results: list[tuple[float, int, bool]]
) -> None:
    """Log-softmax in float32 of just the logits (rows, positions, vocabulary) that are wanted."""
    lines = [line for line, read in reads for _ in read.targets]
    places = [read.position - offset + step for _, read in reads for step in range(len(read.targets))]
    targets = torch.tensor([token for _, read in reads for token in read.targets], device=logits.device)
    chosen = logits[lines, places].float()
    logprobs = (chosen.gather(1, targets[:, None])[:, 0] - chosen.logsumexp(1)).tolist()
    greedy = (chosen.argmax(1) == targets).tolist()
    at = 0
    for _, read in reads:
        end = at + len(read.targets)
        results[read.slot] = (sum(logprobs[at:end]), end - at, all(greedy[at:end]))
        at = end


def _copies(cache: Any, rows: int) -> Any:
    """The cache, once for each row. The model writes into what it is given, so the original stays as it is."""
    if cache is None:
        return None
    mine = copy.deepcopy(cache)
    if rows > 1:
        for layer in mine.layers:
            layer.batch_repeat_interleave(rows)
    return mine


def _merge(rows: list[Row]) -> list[Row]:
    """Sorted rows without those that are a beginning of another one, which answers for them."""
    kept: list[Row] = []
    for row in sorted(rows, key=lambda row: row.tokens, reverse=True):
        if kept and kept[-1].tokens[: len(row.tokens)] == row.tokens:
            kept[-1].reads += row.reads
        else:
            kept.append(row)
    return kept[::-1]


def _shared(rows: list[Row], depth: int) -> int:
    """How many tokens all rows begin with, short of the first whose logits are wanted. Rows are sorted."""
    limit = min((row.first for row in rows), default=depth)
    first, last = rows[0].tokens if rows else (), rows[-1].tokens if rows else ()
    while depth < limit and first[depth] == last[depth]:
        depth += 1
    return depth


def _groups(rows: list[Row], depth: int) -> list[list[Row]]:
    """Neighbours among sorted rows that have the next MIN_SHARED tokens in common."""
    groups: list[list[Row]] = []
    for row in rows:
        last = groups[-1][-1].tokens if groups else ()
        if groups and last[depth : depth + MIN_SHARED] == row.tokens[depth : depth + MIN_SHARED]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups
