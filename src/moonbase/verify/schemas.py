"""Calls of tools with many schemas: does everything that comes back keep to its schema?"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from moonbase.errors import ConfigurationError
from moonbase.formats.schemas import mfjs
from moonbase.formats.schemas.enforced import enforced
from moonbase.formats.schemas.nodes import graph
from moonbase.formats.schemas.shapes import Unenforceable
from moonbase.verify.answers import Answer, Json
from moonbase.verify.arguments import SchemaCheck, begins_json, bounded
from moonbase.verify.cases import named, tool, user
from moonbase.verify.endpoint import Endpoint
from moonbase.verify.report import Findings, Result, Selection
from moonbase.verify.tasks import together

CallChoice = Literal["named", "required", "auto"]
_NAMES = ("submit", "submit_2", "submit_20", "sub")
_ONLY_AS_ROOT = re.compile(r'"\$(?:ref|defs)"')


class SchemaCase(Struct, frozen=True):
    """One schema as the parameters of a tool. `is_bounded` tells whether it bounds the size of its values."""

    label: str
    schema: Json
    check: SchemaCheck
    is_bounded: bool


class SchemaRequest(Struct, frozen=True):
    """A request's body without the model, the case it is about, and which tools may be called, by name."""

    fields: Json
    case: SchemaCase
    allowed: dict[str, SchemaCase]


class SchemaPlan(Struct, frozen=True, kw_only=True):
    """`count` calls, over the cases in turn, in one piece and as a stream by turns; 0 is each case both ways.

    Fewer calls than that are spread evenly over the cases.
    """

    cases: tuple[SchemaCase, ...]
    count: int = 0
    choice: CallChoice = "named"
    max_tokens: int = 2000
    min_finished: float = 0.8
    extra: Json = {}

    def request(self, number: int) -> SchemaRequest:
        """Declares the tool of the case whose turn it is, among up to three of other cases that are as bounded."""
        turn, turns = number // 2, (self.count + 1) // 2
        at = turn * len(self.cases) // turns if 0 < turns < len(self.cases) else turn % len(self.cases)
        case = self.cases[at]
        tools = self._tools(case, turn)
        wanted = next(name for name, each in tools.items() if each is case)
        fields: dict[str, Any] = {
            "messages": [user(f"Call the function {wanted} with arguments of your choice.")],
            "tools": [tool(name, each.schema) for name, each in tools.items()],
            "tool_choice": named(wanted) if self.choice == "named" else self.choice,
            "max_tokens": self.max_tokens,
        } | self.extra
        if number % 2:
            fields["stream"] = True
        return SchemaRequest(fields, case, {wanted: case} if self.choice == "named" else tools)

    def _tools(self, case: SchemaCase, turn: int) -> dict[str, SchemaCase]:
        """What is declared: the case is at each place in turn."""
        alike = [each for each in self.cases if each.is_bounded == case.is_bounded]
        at = next(place for place, each in enumerate(alike) if each is case)
        declared = [alike[(at + step) % len(alike)] for step in range(min(len(alike), len(_NAMES)))]
        first = turn % len(declared)
        return dict(zip(_NAMES, declared[-first:] + declared[:-first], strict=False))


class SchemaCounts(Struct):
    """How answers ended, and what their calls were worth. `finished` answers are those that `length` did not cut."""

    requests: int = 0
    answered: int = 0
    tool_calls: int = 0
    length: int = 0
    other: int = 0
    calls: int = 0
    declared_names: int = 0
    valid_arguments: int = 0
    right_ids: int = 0
    valid_prefixes: int = 0

    @property
    def finished(self) -> int:
        return self.tool_calls + self.other


def read_cases(folder: Path) -> tuple[tuple[SchemaCase, ...], int]:
    """The cases of the `valid.jsonl` files under `folder`, else of all its .jsonl files: a schema a line.

    A schema whose root is no object becomes the only property of one, unless it refers to its own root. The number
    counts the lines that cannot be parameters. Raises `ConfigurationError`.
    """
    files = sorted(folder.rglob("valid.jsonl")) or sorted(folder.rglob("*.jsonl"))
    if not files:
        raise ConfigurationError(f"{folder}: there are no .jsonl files with schemas")
    cases: list[SchemaCase] = []
    left_out = 0
    for file in files:
        for number, line in enumerate(_lines(file), 1):
            case = _case(f"{file.parent.name}/{file.name}:{number}", line)
            left_out += case is None
            cases += [case] if case is not None else []
    if not cases:
        raise ConfigurationError(f"{folder}: no line is a schema that parameters may have")
    return tuple(cases), left_out


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: cannot be read ({error})") from error


def _case(label: str, line: str) -> SchemaCase | None:
    try:
        schema = msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"{label}: is no JSON ({error})") from error
    if not isinstance(schema, dict):
        return None
    if schema.get("type") != "object":
        if _ONLY_AS_ROOT.search(line):
            return None
        inner = {key: value for key, value in schema.items() if key != "$id"}
        schema = {"type": "object", "properties": {"value": inner}, "required": ["value"]}
    if mfjs.inspect(schema).hard is not None:
        return None
    try:
        return SchemaCase(label, schema, SchemaCheck.of(schema), bounded(graph(enforced(schema).tree)))
    except (ValueError, Unenforceable):
        return None


class SchemaRun:
    """Asks for the calls of a plan and counts. `overall` counts all of them, `limited` those of bounded schemas."""

    def __init__(self, endpoint: Endpoint, plan: SchemaPlan) -> None:
        self.overall = SchemaCounts()
        self.limited = SchemaCounts()
        self.total = plan.count or 2 * len(plan.cases)
        self._endpoint = endpoint
        self._plan = plan
        self._problems: dict[str, Findings] = {}

    async def run(self, done: Callable[[], None]) -> None:
        """Ask. `done` is called after each answer."""
        numbers = iter(range(self.total))

        async def work() -> None:
            for number in numbers:
                await self._one(number)
                done()

        await together([work() for _ in range(self._endpoint.concurrency)])

    def judge(self, selection: Selection) -> list[Result]:
        """The results of the checks over the answers that have come. Once, at the end."""
        self._judge_counts()
        return [self._found(name).result(name, rule) for name, rule in RULES.items() if selection.wants(name)]

    async def _one(self, number: int) -> None:
        request = self._plan.request(number)
        answer = await self._endpoint.chat(request.fields)
        for counts in [self.overall, *([self.limited] if request.case.is_bounded else [])]:
            self._count(counts, request, answer)

    def _count(self, counts: SchemaCounts, request: SchemaRequest, answer: Answer) -> None:
        counts.requests += 1
        label = f"{request.case.label}{', streamed' if answer.streamed else ''}"
        if not answer.whole:
            self._found("schemas.answered").fail(f"{label}: {answer.failure}")
            return
        counts.answered += 1
        match answer.first.finish_reason:
            case "length":
                counts.length += 1
                self._count_cut(counts, label, answer)
            case "tool_calls":
                counts.tool_calls += 1
                self._count_calls(counts, request.allowed, label, answer)
            case other:
                counts.other += 1
                if self._plan.choice != "auto":
                    self._found("schemas.answered").fail(f"{label}: finish_reason is {other!r}")

    def _count_cut(self, counts: SchemaCounts, label: str, answer: Answer) -> None:
        broken = [call.arguments for call in answer.first.calls if not begins_json(call.arguments)]
        counts.valid_prefixes += not broken
        for arguments in broken:
            self._found("schemas.prefixes").fail(f"{label}: {arguments[:60]!r}")

    def _count_calls(self, counts: SchemaCounts, allowed: dict[str, SchemaCase], label: str, answer: Answer) -> None:
        counts.calls += len(answer.first.calls)
        for index, call in enumerate(answer.first.calls):
            called = allowed.get(call.name)
            violation = "nothing to hold them to" if called is None else called.check.violation(call.arguments)
            right = call.id == f"{call.name}:{index}"
            counts.declared_names += called is not None
            counts.valid_arguments += violation is None
            counts.right_ids += right
            if called is None:
                self._found("schemas.names").fail(f"{label}: called {call.name!r}")
            elif violation is not None:
                self._found("schemas.arguments").fail(f"{label}: {violation}")
            if not right:
                self._found("schemas.ids").fail(f"{label}: the id is {call.id!r}")

    def _judge_counts(self) -> None:
        limited, overall = self.limited, self.overall
        if not overall.answered:
            for name in ("schemas.answered", "schemas.finished"):
                self._found(name).skip("there was no answer")
        if limited.length:
            cut = f"{limited.length} of {limited.answered} answers for bounded schemas were cut by max_tokens"
            self._found("schemas.bounded").fail(cut)
        if not limited.requests:
            self._found("schemas.bounded").skip("no schema is bounded")
        if overall.finished < self._plan.min_finished * overall.answered:
            self._found("schemas.finished").fail(f"{overall.finished} of {overall.answered}")
        for name in ("schemas.names", "schemas.arguments", "schemas.ids"):
            if not overall.calls:
                self._found(name).skip("no answer ended in calls")
        if not overall.length:
            self._found("schemas.prefixes").skip("no answer was cut")

    def _found(self, name: str) -> Findings:
        return self._problems.setdefault(name, Findings())


RULES = {
    "schemas.answered": "every request is answered, with a call where one is demanded",
    "schemas.names": "of the answers that end in calls, all name a declared tool, the demanded one where one is",
    "schemas.arguments": "of these, all arguments are valid under their schema",
    "schemas.ids": "of these, all ids are `name:index`",
    "schemas.prefixes": "answers cut by max_tokens hold the beginning of JSON",
    "schemas.bounded": "answers for schemas of bounded size are never cut",
    "schemas.finished": "enough answers end before max_tokens",
}
