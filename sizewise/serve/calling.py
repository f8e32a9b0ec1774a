"""Whether a model without a form for function calls should call, and the call itself.

A small model that is told of functions seldom begins a call by itself, but it knows what a call would be: made to write
one, it fills in the right values. So the call is written first, held by a grammar, and weighed: how much likelier is it
after this question than after "Hello."? Where the question asks for it, its values come from the question and the
difference is large (SmolLM2-135M, 12 questions: 6.6 and more; at most -0.8 after those that ask for no function).
It costs the tokens of one call, twice; the answer in words that may follow is then given without the functions, which
would only confuse it. After a function's result the model answers in words.
"""

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from typing import Any

from sizewise.serve import tools
from sizewise.serve.completion import Completion
from sizewise.serve.engine import Engine
from sizewise.serve.job import Done, Event, Job, Piece, TokenLogprob, ToolCall, Turn
from sizewise.serve.json_grammar import literal_grammar

Fit = Callable[[Job], Awaitable[tuple[Completion, Job]]]  # the completion of a job whose prompt has been made to fit
Answer = Callable[[Job], AsyncGenerator[Event, None]]
_THRESHOLD = 3.0  # log units between a call that the question asks for and one that it does not
_NEUTRAL = Turn("user", "Hello.")
_TRIAL_TOKENS = 192


async def call_or_answer(engine: Engine, job: Job, fit: Fit, answer: Answer) -> AsyncGenerator[Event, None]:
    """Answer a job with tools: by a call, or in words."""
    functions = tools.checked_tools(job)
    turns = job.turns
    words = replace(job, turns=tools.in_words(turns), tools=(), tool_choice=None)
    must = job.tool_choice not in (None, "auto", "none")
    if not functions or job.tool_choice == "none" or (turns[-1].role != "user" and not must):
        async for event in answer(words):
            yield event
        return
    grammar = tools.call_grammar(functions)
    told = replace(words, turns=tools.with_functions(turns, functions), schema=None, grammar=None)
    if must:
        async for event in _forced(engine, told, grammar, fit):
            yield event
        return
    call, done = await _trial(engine, told, grammar, fit)
    if call and done:
        yield Piece(tool_calls=(call,))
        yield done
        return
    async for event in answer(words):
        yield event


async def _forced(engine: Engine, job: Job, grammar: str, fit: Fit) -> AsyncGenerator[Event, None]:
    """A call, drawn as the job says. One that is cut off by the limit of tokens is given as text."""
    completion, _ = await fit(job)
    text, done = "", None
    logprobs: list[TokenLogprob] = []
    async for events in engine.complete(completion.body({"grammar": grammar})):
        piece = await completion.piece(events)
        text += piece.text if piece else ""
        logprobs += piece.logprobs if piece else ()
        done = completion.done(events[-1])
    call = tools.parsed_call(text)
    if call:
        yield Piece(tool_calls=(_named(call),), logprobs=tuple(logprobs))
    elif text:
        yield Piece(text=text, logprobs=tuple(logprobs))
    if done:
        yield replace(done, finish="tool_calls") if call else done


async def _trial(engine: Engine, job: Job, grammar: str, fit: Fit) -> tuple[ToolCall | None, Done | None]:
    """The call that the model would make, if the question asks for one."""
    greedy = replace(job.draw, temperature=0.0, max_tokens=_TRIAL_TOKENS, stop=(), logit_bias=())
    job = replace(job, draw=greedy, top_logprobs=None)
    completion, _ = await fit(job)
    text, total, last = await _weighed(engine, completion, {"grammar": grammar})
    call = tools.parsed_call(text)
    if call is None:
        return None, None
    system = tuple(turn for turn in job.turns if turn.role == "system")
    neutral, _ = await fit(replace(job, turns=(*system, _NEUTRAL)))
    same, usual, _ = await _weighed(engine, neutral, {"grammar": literal_grammar(text)})
    if same != text or total - usual < _THRESHOLD:
        return None, None
    return _named(call), replace(completion.done(last), finish="tool_calls")


async def _weighed(engine: Engine, completion: Completion, limits: dict[str, Any]) -> tuple[str, float, dict[str, Any]]:
    """An answer, its log-probability had nothing limited it, and the last event."""
    text, total, last = "", 0.0, {}
    async for events in engine.complete({**completion.body(limits), "n_probs": 1}):
        for last in events:
            text += last["content"]
            total += sum(entry["logprob"] for entry in last.get("completion_probabilities", ()))
    return text, total, last


def _named(call: ToolCall) -> ToolCall:
    return replace(call, id=f"call_{secrets.token_hex(12)}")
