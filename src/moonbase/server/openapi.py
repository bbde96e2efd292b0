"""The OpenAPI document, made from the wire types that requests are decoded with."""

from typing import Any

import msgspec
from msgspec import Struct

from moonbase import __version__
from moonbase.dialects.anthropic.decode import CountTokensRequest, MessagesRequest
from moonbase.dialects.anthropic.dialect import MESSAGES
from moonbase.dialects.openai.decode import ChatCompletionRequest, EstimateRequest
from moonbase.server.admin_operations import OPERATIONS
from moonbase.server.query import UsageParameters
from moonbase.service.views import RequestUsageView, UsageView

_ERRORS = {
    "400": "The request cannot be served as it is; the message names the field.",
    "401": "No, an ill-formed or an unknown key.",
    "403": "A key that does not open this endpoint.",
    "404": "Unknown model, or a path that does not exist.",
    "408": "The body did not arrive in time.",
    "409": "What is there does not allow the change; the message says what is in the way.",
    "413": "The body is too large.",
    "421": "The Host header names another server.",
    "429": "A rate limit, the quota, or an overloaded engine; `error.type` tells which.",
    "431": "The head of the request is too large.",
    "500": "An error of the server, or output of the model that breaks what was demanded of it.",
    "503": "The engine is not available; Retry-After tells when to try again.",
    "504": "A time limit of the generation passed.",
}
_REFERENCE = "#/components/schemas/{name}"
_ANSWERS = (UsageView, RequestUsageView, *[operation.answer for operation in OPERATIONS])
_BODIES = [operation.body for operation in OPERATIONS if operation.body is not None]
_ONCE = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same request of an organization with the same key is carried out once.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}
_REQUIRED = {
    "ChatCompletionRequest": ["model", "messages"],
    "EstimateRequest": ["model", "messages"],
    "MessagesRequest": ["model", "messages", "max_tokens"],
    "CountTokensRequest": ["model", "messages"],
}


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 description of the public endpoints."""
    _, components = msgspec.json.schema_components(
        [ChatCompletionRequest, EstimateRequest, MessagesRequest, CountTokensRequest, *_ANSWERS, *_BODIES],
        ref_template=_REFERENCE,
    )
    for name, required in _REQUIRED.items():
        components[name]["required"] = required
    components["Error"] = _object(error=_object(message={"type": "string"}, type={"type": "string"}))
    components["TypedError"] = _object(
        type={"const": "error"}, error=_object(type={"type": "string"}, message={"type": "string"})
    )
    components["UnknownPath"] = _object(
        code={"type": "integer"},
        error={"type": "string"},
        message={"type": "string"},
        method={"type": "string"},
        scode={"type": "string"},
        status={"type": "boolean"},
        ua={"type": "string"},
        url={"type": "string"},
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "Moonbase", "version": __version__, "license": {"name": "Apache-2.0"}},
        "security": [{"key": []}],
        "paths": {
            "/v1/chat/completions": {
                "post": _operation("Create a chat completion", "ChatCompletionRequest", streams=True)
            },
            "/v1/models": {"get": _operation("List the models", None)},
            "/v1/tokenizers/estimate-token-count": {
                "post": _operation("Count the tokens of a conversation", "EstimateRequest")
            },
            **{path: {"post": _messages("Create a message", "MessagesRequest", streams=True)} for path in MESSAGES},
            **{
                f"{path}/count_tokens": {"post": _messages("Count the tokens of a prompt", "CountTokensRequest")}
                for path in MESSAGES
            },
            "/v1/users/me/balance": {"get": _operation("Read the balance", None)},
            "/v1/usage": {
                "get": {
                    **_operation("Sum the usage of the organization", None, answer=_list_of(UsageView)),
                    "parameters": _query(UsageParameters),
                }
            },
            "/v1/usage/{id}": {
                "get": {
                    **_operation("Show what one request used", None, answer=_reference(RequestUsageView)),
                    "parameters": _path_parameters("/v1/usage/{id}"),
                }
            },
            **_admin_paths(),
            "/healthz": {"get": {**_operation("The process answers", None), "security": []}},
            "/readyz": {"get": {**_operation("Requests would be accepted", None), "security": []}},
        },
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "admin": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _messages(summary: str, body: str, *, streams: bool = False) -> dict[str, Any]:
    """Of the Messages API: errors of two shapes, keys in two headers."""
    operation = _operation(summary, body, streams=streams, errors=("TypedError", "Error", "UnknownPath"))
    return operation | {"security": [{"key": []}, {"header": []}]}


def _operation(
    summary: str,
    body: str | None,
    *,
    streams: bool = False,
    errors: tuple[str, ...] = ("Error", "UnknownPath"),
    answer: dict[str, Any] | None = None,
) -> dict[str, Any]:
    success: dict[str, Any] = {"application/json": {"schema": answer or {"type": "object"}}}
    if streams:
        success["text/event-stream"] = {"schema": {"type": "string"}}
    error = {"schema": {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in errors]}}
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": {"description": "The answer.", "content": success},
            **{
                status: {"description": text, "content": {"application/json": error}}
                for status, text in _ERRORS.items()
            },
        },
    }
    if body is not None:
        reference = {"schema": {"$ref": f"#/components/schemas/{body}"}}
        operation["requestBody"] = {"required": True, "content": {"application/json": reference}}
    return operation


def _admin_paths() -> dict[str, dict[str, Any]]:
    """The admin API, from the operations that serve it."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        answer = _list_of(operation.answer) if operation.is_list else _reference(operation.answer)
        body = None if operation.body is None else operation.body.__name__
        described = _operation(operation.summary, body, answer=answer)
        described["security"] = [{"admin": []}]
        described["parameters"] = [*_path_parameters(operation.path), *_query(operation.query)]
        if operation.takes_once:
            described["parameters"].append(_ONCE)
        paths.setdefault(operation.path, {})[operation.method.lower()] = described
    return paths


def _reference(kind: type[Struct]) -> dict[str, Any]:
    return {"$ref": _REFERENCE.format(name=kind.__name__)}


def _list_of(kind: type[Struct]) -> dict[str, Any]:
    return _object(object={"const": "list"}, data={"type": "array", "items": _reference(kind)})


def _path_parameters(path: str) -> list[dict[str, Any]]:
    if "{id}" not in path:
        return []
    return [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]


def _query(kind: type[Struct]) -> list[dict[str, Any]]:
    _, components = msgspec.json.schema_components([kind], ref_template=_REFERENCE)
    described = components[kind.__name__]
    required = described.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": schema}
        for name, schema in described["properties"].items()
    ]


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}
