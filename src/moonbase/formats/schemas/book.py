"""The schemas of recent requests, so that a tool that comes with every request is read once."""

import threading
from collections import OrderedDict
from collections.abc import Callable

from moonbase.chat.request import ResponseFormat
from moonbase.errors import InvalidRequest
from moonbase.formats.schemas.schema import ANY_OBJECT, Refused, Schema, decode, read

_RESPONSE = "response_format.json_schema.schema"
_PARAMETERS = "tools.function.parameters"


class SchemaBook:
    """Schemas by their JSON text; the least recently used go when all together exceed `capacity` bytes of memory."""

    def __init__(self, capacity: int = 64 << 20) -> None:
        self._capacity = capacity
        self._used = 0
        self._schemas: OrderedDict[tuple[str, str], Schema] = OrderedDict()
        self._lock = threading.Lock()  # many new schemas are read in a thread

    def parameters(self, text: str, tool_name: str) -> Schema:
        """The schema of a tool's arguments. Raises `InvalidRequest` in the service's words (moonshot-api.md 9.3)."""
        try:
            return self._schema(text, _PARAMETERS, _check_root)
        except Refused as refused:
            raise _bad_parameters(refused, tool_name) from refused

    def any_parameters(self, text: str, tool_name: str) -> Schema:
        """The schema of the arguments of a tool that is not strict: any object, if `text` is that of one."""
        try:
            _check_root(text)
        except Refused as refused:
            raise _bad_parameters(refused, tool_name) from refused
        return ANY_OBJECT

    def answer(self, wanted: ResponseFormat) -> Schema | None:
        """The schema of an answer's text, None for free text. Raises `InvalidRequest` naming the field."""
        if wanted.kind == "text":
            return None
        if wanted.schema is None or not wanted.strict:
            return ANY_OBJECT
        try:
            return self._schema(wanted.schema, _RESPONSE)
        except Refused as refused:
            reason = refused.finding.message if refused.hard else refused.finding
            raise InvalidRequest(f"`{_RESPONSE}`: {reason}") from refused

    def _schema(self, text: str, field: str, check: Callable[[str], None] = lambda text: None) -> Schema:
        key = field, text
        with self._lock:
            known = self._schemas.get(key)
            if known is not None:
                self._schemas.move_to_end(key)
                return known
        check(text)
        schema = read(text, field)
        with self._lock:
            if key not in self._schemas:
                self._schemas[key] = schema
                self._used += _size(text, schema)
            while self._used > self._capacity:
                (_, oldest_text), oldest = self._schemas.popitem(last=False)
                self._used -= _size(oldest_text, oldest)
        return schema


def _bad_parameters(refused: Refused, tool_name: str) -> InvalidRequest:
    if refused.hard:
        reason = f"{_PARAMETERS} is not a valid moonshot flavored json schema"
    else:
        reason = f"tools.function[{tool_name}].parameters cannot be enforced"
    return InvalidRequest(f"{reason}, details: <{refused.finding}>")


def _check_root(text: str) -> None:
    """Arguments are an object, and the schema must say so."""
    tree = decode(text)
    if isinstance(tree, dict) and tree.get("type") not in ("object", ["object"]):
        raise InvalidRequest(f'{_PARAMETERS}.type is required and must be "object"')


def _size(text: str, schema: Schema) -> int:
    return schema.size + 4 * len(text)
