"""What the server counts, for Prometheus: latency, tokens, queue, memory, and the energy of each request."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sizewise.measure.meters.energy import energy, read_rapl, spent
from sizewise.measure.processes import exact_cpu_seconds
from sizewise.serve.job import Done
from sizewise.serve.session import Session

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_JOULES = (0.01, 0.1, 0.5, 1, 2, 5, 10, 25, 50, 100, 500, 1000)


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("sizewise_requests", "Answered requests", ["route", "status"], registry=registry)
        self.seconds = Histogram(
            "sizewise_request_seconds", "From request to end of answer", ["route"], buckets=_SECONDS, registry=registry
        )
        self.tokens = Counter("sizewise_tokens", "Tokens read and written", ["model", "kind"], registry=registry)
        self.first_token = Histogram(
            "sizewise_first_token_seconds",
            "From the model to its first token",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.energy_j = Counter(
            "sizewise_energy_joules", "Energy of answers", ["model", "provenance"], registry=registry
        )
        self.request_energy_j = Histogram(
            "sizewise_request_energy_joules", "Energy of one answer", ["provenance"], buckets=_JOULES, registry=registry
        )
        self.loads = Counter("sizewise_loads", "Models loaded", ["model"], registry=registry)
        self.load_seconds = Histogram("sizewise_load_seconds", "Loading", buckets=_SECONDS, registry=registry)
        self.crashes = Counter("sizewise_crashes", "Processes of models that died", ["model"], registry=registry)
        self.stalls = Counter("sizewise_stalls", "Processes of models that hung", ["model"], registry=registry)
        self.evictions = Counter("sizewise_evictions", "Models pushed out by others", ["model"], registry=registry)
        self.memory_bytes = Gauge("sizewise_model_memory_bytes", "Memory held", ["model"], registry=registry)
        self._meters: dict[int, _Meter] = {}
        self._counters = read_rapl() is not None

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A value that is read when somebody looks."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        """Everything, in Prometheus's text format."""
        return generate_latest(self.registry)

    def finished(self, route: str, status: int, seconds: float) -> None:
        """A request has been answered."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def answered(self, model: str, start: float, first: float, done: Done | None) -> None:
        """A model has answered, or stopped half-way (`done` is None)."""
        if first:
            self.first_token.labels(model).observe(first - start)
        if done:
            self.tokens.labels(model, "prompt").inc(done.prompt_tokens)
            self.tokens.labels(model, "completion").inc(done.completion_tokens)

    def loaded(self, model: str, seconds: float) -> None:
        """A model has been loaded."""
        self.loads.labels(model).inc()
        self.load_seconds.observe(seconds)

    def crashed(self, model: str) -> None:
        """A model's process has died."""
        self.crashes.labels(model).inc()

    def stalled(self, model: str) -> None:
        """A model's process hung, and was killed."""
        self.stalls.labels(model).inc()

    def evicted(self, model: str) -> None:
        """A model was unloaded to make room."""
        self.evictions.labels(model).inc()

    @contextmanager
    def energy(self, session: Session, model: str) -> Iterator[None]:
        """Count the energy of what is done meanwhile, shared evenly with what else the session does at the time."""
        # The machine's counters tell of all models together, processor time of each one.
        key, pids = (0, list[int]()) if self._counters else (id(session), session.pids())
        meter = self._meters.setdefault(key, _Meter())
        share = meter.begin(pids)
        try:
            yield
        finally:
            joules, provenance = meter.end(pids, share)
            if not meter.active:
                self._meters.pop(key, None)
            if joules is not None:
                self.energy_j.labels(model, provenance).inc(joules)
                self.request_energy_j.labels(provenance).observe(joules)


class _Meter:
    """Energy while requests come and go: each stretch between two events is split among those at work."""

    def __init__(self) -> None:
        self.active = 0
        self._each = 0.0  # joules that a request would have used that was there from the beginning
        self._last: _Reading | None = None

    def begin(self, pids: Iterable[int]) -> float:
        """A request begins; returns what `end` wants to know."""
        self._step(pids)
        self.active += 1
        return self._each

    def end(self, pids: Iterable[int], share: float) -> tuple[float | None, str]:
        """A request has ended: its joules, None where they are unknown, and how they are known."""
        self._step(pids)
        self.active -= 1
        return (None, "") if self._last is None else (self._each - share, self._last[0])

    def _step(self, pids: Iterable[int]) -> None:
        now = _read(pids)
        if self.active:
            self._each += _joules(self._last, now) / self.active
        self._last = now


_Reading = tuple[str, Any]


def _read(pids: Iterable[int]) -> _Reading | None:
    """The machine's energy counters, else the processor time of these processes; None where neither can be seen."""
    counters = read_rapl()
    if counters:
        return "measured", counters
    seconds = [exact_cpu_seconds(pid) for pid in pids]
    return ("estimated", sum(one for one in seconds if one is not None)) if any(seconds) else None


def _joules(before: _Reading | None, after: _Reading | None) -> float:
    if before is None or after is None or before[0] != after[0]:
        return 0.0
    if after[0] == "measured":
        return spent(before[1], after[1]) or 0.0
    return energy(max(0.0, after[1] - before[1])).value or 0.0  # a process that died takes its time with it
