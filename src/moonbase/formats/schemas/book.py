"""The schemas of recent requests, so that a tool that comes with every request is read once."""

from collections.abc import Callable

from moonbase.chat.request import ChatRequest, ResponseFormat, Tool
from moonbase.errors import InvalidRequest
from moonbase.formats.recent import Recent
from moonbase.formats.schemas.schema import ANY_OBJECT, Refused, Schema, decode, read

_QUICK = 8 * 1024  # characters of schemas, of which a thousand take half a millisecond
_PATTERN = 800  # characters that take as long as a pattern


class SchemaBook:
    """Schemas by their JSON text; the least recently used go when all together exceed `capacity` bytes of memory.

    May be used from any thread.
    """

    def __init__(self, capacity: int = 64 << 20) -> None:
        self._schemas: Recent[tuple[str, str], Schema] = Recent(capacity)

    def takes_long(self, request: ChatRequest) -> bool:
        """Whether reading the schemas that are new would hold the event loop for more than a few milliseconds."""
        keys = [(tool.field, tool.parameters) for tool in request.tools if tool.strict]
        if (wanted := request.response_format).schema is not None and wanted.strict:
            keys.append((wanted.field, wanted.schema))
        if sum([_effort(text) for _, text in keys]) < _QUICK:
            return False
        return sum([_effort(key[1]) for key in keys if self._schemas.get(key) is None]) >= _QUICK

    def parameters(self, tool: Tool) -> Schema:
        """The schema of a tool's arguments; any object, if it is one's, where the tool is not strict.

        Raises `InvalidRequest` in the service's words (moonshot-api.md 9.3).
        """
        try:
            if tool.strict:
                return self._schema(tool.parameters, tool.field, _check_root)
            _check_root(tool.parameters, tool.field)
        except Refused as refused:
            raise _bad_parameters(refused, tool) from refused
        return ANY_OBJECT

    def answer(self, wanted: ResponseFormat) -> Schema | None:
        """The schema of an answer's text, None for free text. Raises `InvalidRequest` naming the field."""
        if wanted.kind == "text":
            return None
        if wanted.schema is None or not wanted.strict:
            return ANY_OBJECT
        try:
            return self._schema(wanted.schema, wanted.field)
        except Refused as refused:
            raise InvalidRequest(f"`{wanted.field}`: {refused.finding}") from refused

    def _schema(self, text: str, field: str, check: Callable[[str, str], None] = lambda *_: None) -> Schema:
        key = field, text
        schema = self._schemas.get(key)
        if schema is None:
            check(text, field)
            schema = read(text, field)
            self._schemas.keep(key, schema, schema.size + 4 * len(text))
        return schema


def _effort(text: str) -> int:
    """Of reading a new schema, in characters."""
    return len(text) + _PATTERN * text.count('"pattern"')


def _bad_parameters(refused: Refused, tool: Tool) -> InvalidRequest:
    if refused.hard:
        reason = f"{tool.field} is not a valid moonshot flavored json schema"
    else:
        holder, _, name = tool.field.rpartition(".")
        reason = f"{holder}[{tool.name}].{name} cannot be enforced"
    return InvalidRequest(f"{reason}, details: <{refused.finding}>")


def _check_root(text: str, field: str) -> None:
    """Arguments are an object, and the schema must say so."""
    tree = decode(text)
    if isinstance(tree, dict) and tree.get("type") not in ("object", ["object"]):
        raise InvalidRequest(f'{field}.type is required and must be "object"')
