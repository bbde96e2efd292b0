"""Logs and metrics. Neither ever holds prompt or answer text."""

import logging
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from msgspec import Struct, field
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_TTFT_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_ITL_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Histogram(Struct):
    """Counts of observations in seconds by upper bound. Observing costs a fraction of a microsecond."""

    bounds: tuple[float, ...]
    counts: list[int] = []
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def observe(self, seconds: float, count: int = 1) -> None:
        """Count `count` observations of `seconds` each."""
        self.counts[bisect_left(self.bounds, seconds)] += count
        self.sum += seconds * count

    def add(self, other: "Histogram") -> None:
        """Count what another with the same bounds has counted."""
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum

    def add_to(self, family: HistogramMetricFamily, labels: list[str]) -> None:
        """Expose as cumulative Prometheus buckets."""
        buckets: list[tuple[str, float]] = []
        running = 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            running += count
            buckets.append((bound, running))
        family.add_metric(labels, buckets, self.sum)


def _first_token() -> Histogram:
    return Histogram(_TTFT_BOUNDS)


def _inter_token() -> Histogram:
    return Histogram(_ITL_BOUNDS)


class ModelMetrics(Struct):
    """What is counted for one public model id."""

    time_to_first_token: Histogram = field(default_factory=_first_token)
    inter_token: Histogram = field(default_factory=_inter_token)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    invalid_outputs: int = 0
    removed_lines: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)

    def ended(self, outcome: str, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> None:
        """Count a request that was run: tokens, and how it ended."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        self.prompt_tokens += prompt_tokens
        self.cached_tokens += cached_tokens
        self.completion_tokens += completion_tokens

    def add(self, other: "ModelMetrics") -> None:
        self.time_to_first_token.add(other.time_to_first_token)
        self.inter_token.add(other.inter_token)
        self.prompt_tokens += other.prompt_tokens
        self.cached_tokens += other.cached_tokens
        self.completion_tokens += other.completion_tokens
        self.invalid_outputs += other.invalid_outputs
        self.removed_lines += other.removed_lines
        _add(self.outcomes, other.outcomes)


class Gauge(Struct, frozen=True):
    """What is exposed as the value of `name` for a model or deployment now."""

    name: str
    help: str
    model: str


class Counts(Struct):
    """Everything that one process has counted since its start, and how its gauges stand."""

    responses: dict[int, int] = field(default_factory=dict)
    without_redis: int = 0
    models: dict[str, ModelMetrics] = field(default_factory=dict)
    gauges: list[tuple[Gauge, float]] = field(default_factory=list)

    def add(self, other: "Counts") -> None:
        """Count what another process has counted, too."""
        _add(self.responses, other.responses)
        self.without_redis += other.without_redis
        for name, model in list(other.models.items()):
            self.models.setdefault(name, ModelMetrics()).add(model)
        gauges = dict(self.gauges)
        for gauge, value in other.gauges:
            gauges[gauge] = gauges.get(gauge, 0.0) + value
        self.gauges = list(gauges.items())


def _add(counts: dict[Any, int], others: dict[Any, int]) -> None:
    for key, count in list(others.items()):
        counts[key] = counts.get(key, 0) + count


class Metrics(Collector):
    """All metrics of a server, in `registry`, which another thread may scrape.

    Labels are models, statuses and outcomes: few values, no keys, no organizations.
    """

    def __init__(self, others: Callable[[], Iterable[Counts]] = tuple) -> None:
        """`others` gives what other processes of the server have counted."""
        self.registry = CollectorRegistry()
        self.without_redis = 0
        """Requests whose limits were to be counted in Redis while it was away."""
        self._others = others
        self._models: dict[str, ModelMetrics] = {}
        self._responses: dict[int, int] = {}
        self._gauges: list[tuple[Gauge, Callable[[], float]]] = []
        self.registry.register(self)

    def model(self, model_id: str) -> ModelMetrics:
        """The metrics of a known public id."""
        found = self._models.get(model_id)
        if found is None:
            found = self._models[model_id] = ModelMetrics()
        return found

    def response(self, status: int) -> None:
        self._responses[status] = self._responses.get(status, 0) + 1

    def gauge(self, name: str, help_text: str, model: str, read: Callable[[], float]) -> None:
        """A value that is read when metrics are scraped."""
        self._gauges.append((Gauge(name, help_text, model), read))

    def counts(self) -> Counts:
        """What this process has counted; it goes on counting in the same objects."""
        gauges = [(gauge, read()) for gauge, read in self._gauges]
        return Counts(self._responses, self.without_redis, self._models, gauges)

    def exposition(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterable[Metric]:
        total = Counts()
        for counts in (self.counts(), *self._others()):
            total.add(counts)
        return _families(total)


def _families(counts: Counts) -> Iterable[Metric]:
    responses = CounterMetricFamily("moonbase_http_responses", "HTTP answers by status.", labels=["status"])
    for status, count in counts.responses.items():
        responses.add_metric([str(status)], count)
    yield responses
    yield CounterMetricFamily(
        "moonbase_limits_without_redis",
        "Requests with limits that came while Redis was away.",
        value=counts.without_redis,
    )
    ttft = HistogramMetricFamily("moonbase_time_to_first_token_seconds", "Arrival to first output.", labels=["model"])
    inter = HistogramMetricFamily("moonbase_inter_token_seconds", "Time between output tokens.", labels=["model"])
    prompt = CounterMetricFamily("moonbase_prompt_tokens", "Prompt tokens, cached ones included.", labels=["model"])
    cached = CounterMetricFamily("moonbase_cached_tokens", "Prompt tokens taken from the cache.", labels=["model"])
    output = CounterMetricFamily("moonbase_completion_tokens", "Output tokens.", labels=["model"])
    invalid = CounterMetricFamily(
        "moonbase_invalid_outputs", "Answers that were not what the request demanded.", labels=["model"]
    )
    removed = CounterMetricFamily(
        "moonbase_removed_lines",
        "Lines left out of system prompts because they change with every request.",
        labels=["model"],
    )
    ended = CounterMetricFamily("moonbase_requests", "Requests run, by their end.", labels=["model", "outcome"])
    for name, model in counts.models.items():
        model.time_to_first_token.add_to(ttft, [name])
        model.inter_token.add_to(inter, [name])
        prompt.add_metric([name], model.prompt_tokens)
        cached.add_metric([name], model.cached_tokens)
        output.add_metric([name], model.completion_tokens)
        invalid.add_metric([name], model.invalid_outputs)
        removed.add_metric([name], model.removed_lines)
        for outcome, count in model.outcomes.items():
            ended.add_metric([name, outcome], count)
    yield from (ttft, inter, prompt, cached, output, invalid, removed, ended)
    gauges: dict[str, GaugeMetricFamily] = {}
    for gauge, value in counts.gauges:
        family = gauges.setdefault(gauge.name, GaugeMetricFamily(gauge.name, gauge.help, labels=["model"]))
        family.add_metric([gauge.model], value)
    yield from gauges.values()


def configure_logging(level: str, line_format: Literal["auto", "text", "json"]) -> None:
    """Write records of `level` and above to standard error; `auto` is text on a terminal, else JSON lines."""
    as_text = line_format == "text" or (line_format == "auto" and sys.stderr.isatty())
    # What lines do not show is not looked up for each (https://docs.python.org/3/howto/logging.html#optimization).
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_TextFormatter() if as_text else _JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in ("alembic", "httpx", "uvicorn"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """What a call passed as `extra={"fields": {...}}`."""
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) else {}


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        line = f"{time} {record.levelname.lower():7} {record.getMessage()}"
        line += "".join([f" {name}={value}" for name, value in _fields(record).items() if value is not None])
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
