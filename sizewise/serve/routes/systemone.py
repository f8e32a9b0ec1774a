"""POST /v1/systemone: typed decisions by any model in the store."""

from contextlib import suppress

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sizewise.core.errors import Unsupported
from sizewise.core.requests import ScoreRequest
from sizewise.serve.job import Job, Turn
from sizewise.serve.routes.common import json_answer, manager_of, read_fields
from sizewise.serve.session import Session
from sizewise.serve.wire import systemone
from sizewise.serve.wire.systemone import AskedDecision

Found = tuple[dict[str, list[float]], int]  # the probabilities of each question's options, and the tokens read


async def decide(request: Request) -> Response:
    """POST /v1/systemone."""
    asked = systemone.parse(await read_fields(request))
    async with manager_of(request).lease(asked.model, keep_alive=asked.keep_alive) as held:
        linear = held.session.model.kind == "linear"
        found, tokens = await held.run(lambda session: (_by_labels if linear else _by_words)(session, asked))
    answers = {key: systemone.answer(asked.questions[key], probabilities) for key, probabilities in found.items()}
    usage = {"input_tokens": tokens, "output_tokens": 0}
    method = systemone.BY_LABELS if linear else systemone.BY_WORDS
    warnings = ["instructions have no effect here: a classifier knows one question"] if linear else []
    return json_answer({"model": asked.model, "answers": answers, "usage": usage, "method": method}, warnings)


async def _by_words(session: Session, asked: AskedDecision) -> Found:
    requests, read = [], 0
    for question in asked.questions.values():
        prompt = await session.render(Job(turns=(Turn("user", question.prompt(asked.state)),)))
        lead = "" if prompt[-1:].isspace() else " "
        requests.append(ScoreRequest(prompt, tuple(lead + word for word in question.words)))
        with suppress(Unsupported):  # some engines do not show their tokens; then only those of the options count
            read += len(await session.tokenize(prompt, special=True, bos=True))
    rows = await session.score(requests)
    read += sum(score.tokens for row in rows for score in row)
    found = {}
    for (key, question), row in zip(asked.questions.items(), rows, strict=True):
        found[key] = systemone.normalised(question.words, [score.logprob for score in row])
    return found, read


async def _by_labels(session: Session, asked: AskedDecision) -> Found:
    from sizewise.load.linear_model import LinearModel

    names = {key: one.all_labels() for key, one in asked.questions.items()}
    rows = await session.score([ScoreRequest(asked.state, tuple(labels)) for labels in names.values()])
    classes = LinearModel.load(session.model.files).classes
    found = {}
    for (key, question), row in zip(asked.questions.items(), rows, strict=True):
        logprobs = {name: score.logprob for name, score in zip(names[key], row, strict=True)}
        found[key] = systemone.known_labels(question, logprobs, classes)
    return found, len(asked.state.split())


ROUTES = [Route("/v1/systemone", decide, methods=["POST"])]
