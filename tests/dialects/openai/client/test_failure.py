"""Answers of servers that refuse or fail, as the errors that a client of ours is told."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonbase.dialects.errors import encode_error, encode_unknown_path
from moonbase.dialects.openai.client.failure import refused
from moonbase.errors import (
    ApiError,
    ContentFiltered,
    EngineOverloaded,
    EngineUnavailable,
    InvalidAuthentication,
    InvalidRequest,
    ModelNotFound,
    PromptTooLong,
    UpstreamFailed,
)

HTML = b"<html><body><h1>504 Gateway Time-out</h1></body></html>"


def wire(body: Any) -> bytes:
    return json.dumps(body).encode()


def told(
    status: int, body: bytes = b"", *, retry_after: str | None = None, passed_on: str | None = "kimi-k9"
) -> ApiError:
    error = refused(status, body, retry_after=retry_after, passed_on=passed_on)
    assert isinstance(error.__cause__, UpstreamFailed)
    assert str(status) in error.__cause__.reason
    return error


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, encode_error(InvalidRequest("messages must not be empty")), InvalidRequest("messages must not be empty")),
        (400, encode_error(PromptTooLong(10, 20)), InvalidRequest(str(PromptTooLong(10, 20)), prefix=False)),
        (400, wire({"error": "just words"}), InvalidRequest("just words", prefix=False)),
        (400, wire({"object": "error", "message": "m", "code": 400}), InvalidRequest("m", prefix=False)),
        (422, wire({"detail": "field required"}), InvalidRequest("field required", prefix=False)),
        (422, wire({"detail": [{"loc": ["body"]}]}), InvalidRequest("what answers for this model refuses it")),
        (400, HTML, InvalidRequest("what answers for this model refuses it")),
        (413, b"", InvalidRequest("what answers for this model refuses it")),
        (400, encode_error(ContentFiltered()), ContentFiltered()),
        (400, wire({"error": {"message": "m", "code": "content_filter"}}), ContentFiltered()),
        (401, encode_error(InvalidAuthentication()), EngineUnavailable()),
        (402, wire({"error": {"message": "Insufficient Balance"}}), EngineUnavailable()),
        (403, encode_error(InvalidAuthentication()), EngineUnavailable()),
        (404, encode_error(ModelNotFound("kimi-k9")), ModelNotFound("kimi-k9")),
        (404, encode_unknown_path("POST", "/v1/x", "moonbase"), EngineUnavailable()),
        (404, wire({"detail": "Not Found"}), EngineUnavailable()),
        (404, HTML, EngineUnavailable()),
        (429, encode_error(EngineOverloaded()), EngineOverloaded()),
        (429, wire({"error": {"message": "Your account org-1<ak-2>", "type": "x"}}), EngineOverloaded()),
        (302, b"", EngineUnavailable()),
        (500, wire({"error": {"message": "CUDA error", "type": "server_error"}}), EngineUnavailable()),
        (502, HTML, EngineUnavailable()),
        (504, HTML, EngineUnavailable()),
    ],
)
def test_each_answer_has_its_error(status: int, body: bytes, expected: ApiError) -> None:
    error = told(status, body)
    assert type(error) is type(expected)
    assert (str(error), error.retry_after) == (str(expected), expected.retry_after)


def test_a_model_that_the_operator_chose_is_not_the_clients_matter() -> None:
    assert isinstance(told(404, encode_error(ModelNotFound("x")), passed_on=None), EngineUnavailable)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7), (" 30 ", 30), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("-1", None), ("", None)]
)
def test_retry_after_is_passed_on(status: int, header: str, seconds: int | None) -> None:
    error = told(status, retry_after=header)
    assert error.retry_after == (seconds if seconds is not None or status == 429 else 5)


def test_the_log_gets_the_type_and_no_text() -> None:
    error = told(500, wire({"error": {"message": "secret words", "type": "server\n_error: secret"}}))
    assert isinstance(error.__cause__, UpstreamFailed)
    assert error.__cause__.reason == "answered 500 server_errorsecret"


@given(
    st.integers(100, 599),
    st.binary(max_size=60)
    | st.builds(
        wire,
        st.dictionaries(
            st.sampled_from(["error", "message", "type", "code", "detail", "object"]),
            st.none()
            | st.integers()
            | st.text()
            | st.dictionaries(st.sampled_from(["message", "type", "code"]), st.text()),
        ),
    ),
)
def test_whatever_is_answered_becomes_an_error(status: int, body: bytes) -> None:
    assert isinstance(refused(status, body, retry_after=None, passed_on=None), ApiError)
