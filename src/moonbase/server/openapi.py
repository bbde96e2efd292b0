"""The OpenAPI document, made from the wire types that requests are decoded with."""

from typing import Any

import msgspec

from moonbase import __version__
from moonbase.dialects.anthropic.decode import CountTokensRequest, MessagesRequest
from moonbase.dialects.anthropic.dialect import MESSAGES
from moonbase.dialects.openai.decode import ChatCompletionRequest, EstimateRequest

_ERRORS = {
    "400": "The request cannot be served as it is; the message names the field.",
    "401": "No, an ill-formed or an unknown key.",
    "404": "Unknown model, or a path that does not exist.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "421": "The Host header names another server.",
    "429": "A rate limit, the quota, or an overloaded engine; `error.type` tells which.",
    "431": "The head of the request is too large.",
    "500": "An error of the server, or output of the model that breaks what was demanded of it.",
    "503": "The engine is not available; Retry-After tells when to try again.",
    "504": "A time limit of the generation passed.",
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
        [ChatCompletionRequest, EstimateRequest, MessagesRequest, CountTokensRequest],
        ref_template="#/components/schemas/{name}",
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
            "/healthz": {"get": {**_operation("The process answers", None), "security": []}},
            "/readyz": {"get": {**_operation("Requests would be accepted", None), "security": []}},
        },
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _messages(summary: str, body: str, *, streams: bool = False) -> dict[str, Any]:
    """Of the Messages API: errors of two shapes, keys in two headers."""
    operation = _operation(summary, body, streams=streams, errors=("TypedError", "Error", "UnknownPath"))
    return operation | {"security": [{"key": []}, {"header": []}]}


def _operation(
    summary: str, body: str | None, *, streams: bool = False, errors: tuple[str, ...] = ("Error", "UnknownPath")
) -> dict[str, Any]:
    success: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
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


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}
