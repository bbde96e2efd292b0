"""The K2 vendor verifier's measures, on its files (kimi-protocol.md 4.1).

Requests are JSON lines; results and the summary have the verifier's field names, so that either program can read
what the other wrote.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from msgspec import Struct

from moonbase.errors import ConfigurationError
from moonbase.verify.answers import Answer, Json, items, mapping
from moonbase.verify.arguments import SchemaCheck, parsed
from moonbase.verify.endpoint import Endpoint
from moonbase.verify.report import Findings, Result, Selection
from moonbase.verify.tasks import together


class VendorPlan(Struct, frozen=True, kw_only=True):
    """`overrides` replace fields of every request; `extra` is what the endpoint adds to it, for the record.

    `against` are the results of the official service; F1 must exceed `min_f1`, schema accuracy reach `min_accuracy`.
    """

    requests: Path
    output: Path
    summary: Path
    overrides: Mapping[str, Any] = {}
    extra: Mapping[str, Any] = {}
    incremental: bool = False
    against: Path | None = None
    min_f1: float = 0.8
    min_accuracy: float = 1.0


class Trigger(Struct, frozen=True):
    """Whether both sides called tools, request by request: true and false positives and negatives."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def precision(self) -> float:
        return self.tp / (self.tp + self.fp) if self.tp + self.fp else 0.0

    @property
    def recall(self) -> float:
        return self.tp / (self.tp + self.fn) if self.tp + self.fn else 0.0

    @property
    def f1(self) -> float:
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


class Prepared(Struct, frozen=True):
    """A request as it is sent. `index` is its line, from 1; `digest` knows it again in results of another run."""

    index: int
    request: Json
    digest: str


class VendorRun:
    """Sends the requests that have no result yet, and measures all of them."""

    def __init__(self, endpoint: Endpoint, plan: VendorPlan) -> None:
        """Raises `ConfigurationError` for a file that cannot be read."""
        self._endpoint = endpoint
        self._plan = plan
        self._prepared = [
            prepare(number, line, endpoint.model, plan.overrides) for number, line in read_lines(plan.requests)
        ]
        if not self._prepared:
            raise ConfigurationError(f"{plan.requests}: there are no requests")
        self._official = None if plan.against is None else read_reasons(plan.against)
        self._results: dict[int, Json] = self._known()
        self.total = len(self._prepared) - len(self._results)

    def _known(self) -> dict[int, Json]:
        """Results of an earlier run that need not be asked for again."""
        if not self._plan.incremental or not self._plan.output.exists():
            return {}
        found = {record.get("hash"): record for _, record in read_lines(self._plan.output)}
        return {
            prepared.index: found[prepared.digest] | {"data_index": prepared.index}
            for prepared in self._prepared
            if found.get(prepared.digest, {}).get("status") == "success"
        }

    async def run(self, selection: Selection, done: Callable[[], None]) -> tuple[list[Result], Json]:
        """The results of the checks, and the summary with the measures. Results are written as they come."""
        started, started_at = time.monotonic(), _now()
        waiting = iter([prepared for prepared in self._prepared if prepared.index not in self._results])
        _replace(self._plan.output, map(_line, self._results.values()))
        with _appending(self._plan.output) as file:

            async def work() -> None:
                for prepared in waiting:
                    record = await self._one(prepared)
                    self._results[prepared.index] = record
                    file.write(_line(record))
                    file.flush()
                    done()

            await together([work() for _ in range(self._endpoint.concurrency)])
        records = [self._results[index] for index in sorted(self._results)]
        _replace(self._plan.output, map(_line, records))
        summary = summarize(self._endpoint.model, records) | {
            "eval_started_at": started_at,
            "eval_finished_at": _now(),
            "eval_duration_ms": int((time.monotonic() - started) * 1000),
        }
        _replace(self._plan.summary, [json.dumps(summary, ensure_ascii=False, indent=4)])
        return self._judge(records, summary, selection)

    async def _one(self, prepared: Prepared) -> Json:
        started = time.monotonic()
        answer = await self._endpoint.chat(prepared.request)
        reason = answer.first.finish_reason or "stop" if answer.choices else None
        return {
            "data_index": prepared.index,
            "request": prepared.request,
            "extra_body": dict(self._plan.extra),
            "response": _response(answer) if answer.whole else _error(answer),
            "status": "success" if answer.whole else "failed",
            "finish_reason": reason if answer.whole else None,
            "tool_calls_valid": calls_valid(answer, prepared.request) if answer.whole else None,
            "last_run_at": _now(),
            "duration_ms": int((time.monotonic() - started) * 1000),
            "hash": prepared.digest,
        }

    def _judge(self, records: list[Json], summary: Json, selection: Selection) -> tuple[list[Result], Json]:
        plan = self._plan
        found = {name: Findings() for name in RULES}
        for record in records:
            where = f"request {record['data_index']}"
            if record["status"] != "success":
                found["vendor.answered"].fail(f"{where}: {mapping(record['response']).get('error')}")
        calls, valid = summary["finish_tool_calls"], summary["successful_tool_call_count"]
        accuracy = valid / calls if calls else None
        if accuracy is None:
            found["vendor.schema_accuracy"].skip("no answer ended in calls")
        elif accuracy < plan.min_accuracy:
            found["vendor.schema_accuracy"].fail(f"{valid} of {calls}: {accuracy:.2%}, wanted {plan.min_accuracy:.2%}")
        figures = summary | {"schema_accuracy": accuracy}
        if self._official is None:
            found["vendor.f1"].skip("there is nothing to compare with; give --against")
        else:
            trigger = compare(self._official, {record["data_index"]: record["finish_reason"] for record in records})
            figures |= {name: getattr(trigger, name) for name in ("tp", "fp", "fn", "tn", "precision", "recall", "f1")}
            if trigger.f1 <= plan.min_f1:
                found["vendor.f1"].fail(f"{trigger.f1:.4f}, wanted more than {plan.min_f1:g}")
        results = [found[name].result(name, rule) for name, rule in RULES.items() if selection.wants(name)]
        return results, figures


RULES = {
    "vendor.answered": "every request of the file is answered",
    "vendor.schema_accuracy": "answers that end in calls hold valid calls",
    "vendor.f1": "calls come where the official answers have them (F1)",
}


def prepare(index: int, line: Json, model: str, overrides: Mapping[str, Any]) -> Prepared:
    """The request of a line as the verifier sends it: role `_input` is `system`, streams report their usage."""
    request = line | {"model": model} | dict(overrides)
    request["messages"] = [
        message | {"role": "system"} if message.get("role") == "_input" else message
        for message in items(line.get("messages"))
    ]
    if request.get("stream"):
        request["stream_options"] = {"include_usage": True} | mapping(request.get("stream_options"))
    serialized = json.dumps(request, sort_keys=True, ensure_ascii=False)
    return Prepared(index, request, hashlib.md5(serialized.encode(), usedforsecurity=False).hexdigest())


def calls_valid(answer: Answer, request: Json) -> bool | None:
    """Whether all calls of an answer that ends in calls are valid; None where there is none to judge."""
    if answer.first.finish_reason != "tool_calls" or not answer.first.calls:
        return None
    schemas = {
        mapping(tool.get("function")).get("name"): mapping(tool.get("function")).get("parameters")
        for tool in items(request.get("tools"))
    }
    return all(_valid(call.arguments, schemas.get(call.name)) for call in answer.first.calls)


def _valid(arguments: str, schema: Any) -> bool:
    """The verifier takes a tool without parameters, or one that is not declared, as a failure."""
    if not schema or parsed(arguments)[1] is not None:
        return False
    try:
        return SchemaCheck.of(schema).violation(arguments) is None
    except ValueError:
        return False


def compare(official: Mapping[int, str | None], own: Mapping[int, str | None]) -> Trigger:
    """Trigger agreement over the requests that both have. Raises `ConfigurationError` when there are none."""
    common = official.keys() & own.keys()
    if not common:
        raise ConfigurationError("--against: its results share no data_index with these requests")
    pairs = [(official[index] == "tool_calls", own[index] == "tool_calls") for index in common]
    counts = [pairs.count(pair) for pair in ((True, True), (False, True), (True, False), (False, False))]
    return Trigger(*counts)


def summarize(model: str, records: list[Json]) -> Json:
    """The verifier's summary, without its times. An answer that ends in calls and has no valid ones is an error."""
    reasons = [record["finish_reason"] for record in records]
    others = [reason for reason in reasons if reason and reason not in ("stop", "tool_calls")]
    calls = [record for record in records if record["finish_reason"] == "tool_calls"]
    valid = sum([record["tool_calls_valid"] is True for record in calls])
    usages = [mapping(mapping(record["response"]).get("usage")) for record in records]
    return {
        "model": model,
        "success_count": sum([record["status"] == "success" for record in records]),
        "failure_count": sum([record["status"] != "success" for record in records]),
        "finish_stop": reasons.count("stop"),
        "finish_tool_calls": len(calls),
        "finish_others": len(others),
        "finish_others_detail": {reason: others.count(reason) for reason in sorted(set(others))},
        "schema_validation_error_count": len(calls) - valid,
        "successful_tool_call_count": valid,
        "usage": {
            name: sum([usage[name] for usage in usages if isinstance(usage.get(name), int)])
            for name in ("prompt_tokens", "completion_tokens", "total_tokens")
        },
    }


def read_lines(file: Path) -> list[tuple[int, Json]]:
    """The JSON objects of a file by their line, from 1. Raises `ConfigurationError`."""
    found: list[tuple[int, Json]] = []
    try:
        for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
            if line.strip():
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise ConfigurationError(f"{file}, line {number}: is no JSON object")
                found.append((number, value))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: cannot be read ({error})") from error
    except ValueError as error:
        raise ConfigurationError(f"{file}, line {number}: is no JSON ({error})") from error
    return found


def read_reasons(file: Path) -> dict[int, str | None]:
    """The finish reason of each request in a file of results. Raises `ConfigurationError`."""
    try:
        return {record["data_index"]: record["finish_reason"] for _, record in read_lines(file)}
    except KeyError as error:
        raise ConfigurationError(f"{file}: a result has no {error}") from error


def _response(answer: Answer) -> Json:
    """The body of an answer; that of a stream as the verifier folds it."""
    if not answer.chunks:
        return mapping(answer.body)
    choice, first = answer.first, mapping(answer.chunks[0])
    message: Json = {
        "role": "assistant",
        "content": choice.content,
        "tool_calls": [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in choice.calls
        ]
        or None,
    }
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    return {
        "id": first.get("id"),
        "object": "chat.completion",
        "created": first.get("created"),
        "model": answer.request["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": choice.finish_reason or "stop"}],
        "usage": choice.usage or answer.usage,
    }


def _error(answer: Answer) -> Json:
    kind = "APIConnectionError" if answer.status == 0 else "APIStatusError" if answer.status != 200 else "APIError"
    return {"error_type": kind, "error_message": answer.failure, "error": answer.failure}


def _replace(file: Path, lines: Iterable[str]) -> None:
    """Give `file` this content. What it had is there until all of the new is; a device is just written to."""
    target = file.resolve()
    beside = target.with_name(f"{target.name}.part") if target.is_file() else target
    try:
        with beside.open("w", encoding="utf-8") as writing:
            writing.writelines(lines)
            writing.flush()
            if beside != target:
                os.fsync(writing.fileno())
        if beside != target:
            beside.replace(target)
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be written ({error.strerror})") from error
    finally:
        if beside != target:
            beside.unlink(missing_ok=True)


def _appending(file: Path) -> TextIO:
    try:
        return file.open("a", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be written ({error.strerror})") from error


def _line(record: Json) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _now() -> str:
    return datetime.now().isoformat()  # noqa: DTZ005  (local time without a zone, as the verifier writes it)
