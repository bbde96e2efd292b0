"""Logs and metrics. Neither ever holds prompt or answer text."""

import logging
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_TTFT_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_ITL_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Histogram:
    """Counts of observations in seconds by upper bound. Observing costs a fraction of a microsecond."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float, count: int = 1) -> None:
        """Count `count` observations of `seconds` each."""
        self._counts[bisect_left(self._bounds, seconds)] += count
        self._sum += seconds * count

    def add_to(self, family: HistogramMetricFamily, labels: list[str]) -> None:
        """Expose as cumulative Prometheus buckets."""
        buckets: list[tuple[str, float]] = []
        running = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            running += count
            buckets.append((bound, running))
        family.add_metric(labels, buckets, self._sum)


class ModelMetrics:
    """What is counted for one public model id."""

    __slots__ = (
        "cached_tokens",
        "completion_tokens",
        "inter_token",
        "invalid_outputs",
        "outcomes",
        "prompt_tokens",
        "removed_lines",
        "time_to_first_token",
    )

    def __init__(self) -> None:
        self.time_to_first_token = Histogram(_TTFT_BOUNDS)
        self.inter_token = Histogram(_ITL_BOUNDS)
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.invalid_outputs = 0
        self.removed_lines = 0
        self.outcomes: dict[str, int] = {}

    def ended(self, outcome: str, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> None:
        """Count a request that was run: tokens, and how it ended."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        self.prompt_tokens += prompt_tokens
        self.cached_tokens += cached_tokens
        self.completion_tokens += completion_tokens


class Metrics(Collector):
    """All metrics of a server, in `registry`, which another thread may scrape.

    Labels are models, statuses and outcomes: few values, no keys, no organizations.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.without_redis = 0
        """Requests whose limits were to be counted in Redis while it was away."""
        self._models: dict[str, ModelMetrics] = {}
        self._responses: dict[int, int] = {}
        self._gauges: list[tuple[str, str, str, Callable[[], float]]] = []
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
        self._gauges.append((name, help_text, model, read))

    def exposition(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterable[Metric]:
        responses = CounterMetricFamily("moonbase_http_responses", "HTTP answers by status.", labels=["status"])
        for status, count in list(self._responses.items()):
            responses.add_metric([str(status)], count)
        yield responses
        yield CounterMetricFamily(
            "moonbase_limits_without_redis",
            "Requests with limits that came while Redis was away.",
            value=self.without_redis,
        )
        ttft = HistogramMetricFamily(
            "moonbase_time_to_first_token_seconds", "Arrival to first output.", labels=["model"]
        )
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
        for name, model in list(self._models.items()):
            model.time_to_first_token.add_to(ttft, [name])
            model.inter_token.add_to(inter, [name])
            prompt.add_metric([name], model.prompt_tokens)
            cached.add_metric([name], model.cached_tokens)
            output.add_metric([name], model.completion_tokens)
            invalid.add_metric([name], model.invalid_outputs)
            removed.add_metric([name], model.removed_lines)
            for outcome, count in list(model.outcomes.items()):
                ended.add_metric([name, outcome], count)
        yield from (ttft, inter, prompt, cached, output, invalid, removed, ended)
        gauges: dict[str, GaugeMetricFamily] = {}
        for name, help_text, model_name, read in self._gauges:
            gauge = gauges.setdefault(name, GaugeMetricFamily(name, help_text, labels=["model"]))
            gauge.add_metric([model_name], read())
        yield from gauges.values()


def configure_logging(level: str, line_format: Literal["auto", "text", "json"]) -> None:
    """Write records of `level` and above to standard error; `auto` is text on a terminal, else JSON lines."""
    as_text = line_format == "text" or (line_format == "auto" and sys.stderr.isatty())
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
