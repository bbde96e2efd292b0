"""What the service objects to in a schema: its own cases, and ours."""

import json
from typing import Any

import pytest
from tests.formats.schemas import mfjs_cases

from moonbase.formats.schemas import mfjs
from moonbase.formats.schemas.schema import Refused, read

EXCEPTIONS = {
    "TestNestedDefsDepth 1": "the suite runs with a limit of 5 levels, the service with 30",
    "TestNestedDefsDepth 2": "the suite runs with a limit of 5 levels, the service with 30",
}
"""Invalid cases that we find nothing wrong with."""

UNENFORCEABLE = {"TestRangeConstraints 1": "no answer has 999,999,999,999 characters"}
"""Valid cases that are refused all the same, for a reason of ours."""

SOFT_WHERE_THE_SUITE_IS_STRICT = {
    "TestAnyOf 2": "type beside anyOf: the live service has relaxed it (moonshot-api.md 10.3)",
    "TestEnforcerCases 3": "type beside anyOf",
    "TestTypeLocation 0": "type beside anyOf",
    "TestRangeConstraints 4": "a fraction as the bound of an integer: only the strictest level looks",
    "TestRangeConstraints 10": "a fraction as the bound of an integer",
}


def findings(schema: str) -> tuple[list[str], str | None]:
    """The soft findings and the hard one."""
    try:
        return list(read(schema, "schema").warnings), None
    except Refused as refused:
        try:
            soft = mfjs.inspect(json.loads(schema)).soft
        except ValueError:
            soft = ()
        return list(map(str, soft)), str(refused)


def test_every_valid_case_is_free_of_findings() -> None:
    for case, schema in mfjs_cases.valid():
        soft, hard = findings(schema)
        assert not soft, case
        assert (hard is not None) == (case in UNENFORCEABLE), (case, hard)


def test_every_invalid_case_is_found_in_the_services_words() -> None:
    found = {case: findings(schema) for case, schema, _ in mfjs_cases.invalid()}
    expected = {case: expect for case, _, expect in mfjs_cases.invalid()}

    missed = {
        case for case, (soft, hard) in found.items() if not any(expected[case] in text for text in [*soft, hard or ""])
    }
    assert missed == EXCEPTIONS.keys()


def test_type_beside_any_of_and_fractions_as_bounds_are_let_pass() -> None:
    cases = {case: schema for case, schema, _ in mfjs_cases.invalid()}

    for case in SOFT_WHERE_THE_SUITE_IS_STRICT:
        soft, hard = findings(cases[case])
        assert soft, case
        assert hard is None, case


def props(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


ENDLESS = props(next={"$ref": "#/$defs/a"}) | {"required": ["next"]}
DEEP: dict[str, Any] = {"type": "string"}
for _ in range(31):
    DEEP = props(a=DEEP)

HARD: list[tuple[Any, str]] = [
    (None, "At path 'root': schema must be a dict"),
    ([], "At path 'root': JSON schema parsing error: it is not an object"),
    (props(x={"enum": ["a"]}), "At path 'properties.x': type is not defined"),
    ({"type": "text"}, "At path 'root': invalid type"),
    (props(x={"type": None}), "At path 'properties.x': type must be string or array of strings"),
    (props(x={"type": ["string", "text"]}), "At path 'properties.x': invalid type in type array"),
    (props(x={"type": []}), "At path 'properties.x': type array cannot be empty"),
    ({"type": "object", "properties": []}, "At path 'properties': properties must be an object"),
    (props(x=True), "At path 'properties': property schema for 'x' must be an object"),
    (props(x={"type": "object", "required": "a"}), "At path 'properties.x.required': required must be an array"),
    ({"type": "object", "required": [1]}, "At path 'required': items in required array must be strings"),
    (props(a={}) | {"required": ["x"]}, "At path 'required': required property 'x' is not defined in properties"),
    ({"type": "string", "enum": "a"}, "At path 'enum': enum must be an array"),
    ({"type": "string", "enum": []}, "At path 'enum': enum array cannot be empty"),
    ({"type": "integer", "enum": list(range(1001))}, "At path 'enum': enum array cannot have more than 1000 items"),
    ({"type": "string", "enum": [1.0]}, "At path 'enum': enum value (1) does not match any type in [string]"),
    (
        {"type": ["string", "null"], "enum": [True]},
        "At path 'enum': enum value (true) does not match any type in [string null]",
    ),
    (
        {"type": ["string", "integer"], "enum": ["a", 1]},
        "At path 'root': when type is array and enum is specified, currently only 2 types are supported, "
        "one must be null, and the other can be string/integer/number/boolean",
    ),
    ({"type": "array", "items": []}, "At path 'items': items must be an object"),
    (props(a={"$ref": 5}), "At path 'properties.a.$ref': $ref must be a string"),
    (props(a={"$ref": "a.json"}), "At path 'properties.a.$ref': references must start with #/$defs/"),
    (props(a={"$ref": "#/$defs/"}), "At path 'properties.a.$ref': definition name cannot be empty"),
    (props(a={"$ref": "#/$defs/b"}), "At path 'properties.a.$ref': $defs not found for reference: #/$defs/b"),
    (
        props(a={"type": "string", "$ref": "#"}),
        "At path 'properties.a': when using $ref, type should be defined in the referenced schema "
        "instead of the parent schema",
    ),
    ({"anyOf": {}}, "At path 'anyOf': anyOf must be an array"),
    ({"anyOf": []}, "At path 'anyOf': anyOf must have 1-500 items"),
    ({"anyOf": [{}] * 501}, "At path 'anyOf': anyOf must have 1-500 items"),
    ({"anyOf": [{}, 1]}, "At path 'anyOf': schema in anyOf must be an object"),
    ({"anyOf": [{"anyOf": [{"type": "text"}]}]}, "At path 'anyOf.anyOf': invalid type"),
    (
        {"minLength": 1, "anyOf": [{"type": "string", "minLength": 2}]},
        "At path 'root': conflicting keywords found in anyOf with parent: keywords (minLength) are defined on the "
        "parent schema and inside anyOf; remove them from the parent or from anyOf branches",
    ),
    (
        {"type": "object", "additionalProperties": 1},
        "At path 'additionalProperties': additionalProperties must be a boolean or an object",
    ),
    ({"type": "object", "$defs": []}, "At path '$defs': $defs must be an object"),
    ({"type": "object", "$defs": {"x": 1}}, "At path '$defs': $defs schema must be object: x"),
    (
        {"type": "object", "$defs": {"x": props(**{"a/b": {}})}},
        "At path '$defs': $defs property name 'a/b' cannot contain '/' character",
    ),
    ({"type": "string", "description": 1}, "At path 'description': description must be a string"),
    ({"type": "string", "$id": 1}, "At path '$id': $id must be a string"),
    ({"type": "string", "pattern": 1}, "At path 'pattern': pattern must be a string"),
    ({"type": "string", "minLength": "1"}, "At path 'root': minLength must be an integer"),
    ({"type": "string", "maxLength": True}, "At path 'root': maxLength must be an integer"),
    ({"type": "array", "maxItems": -1}, "At path 'root': maxItems must be non-negative"),
    ({"type": "number", "minimum": "1"}, "At path 'root': minimum must be a number"),
    ({"minimum": []}, "At path 'root': minimum must be a number"),
    ({"type": "integer", "minimum": {}}, "At path 'root': minimum must be an integer"),
    (
        {"type": "string", "minLength": 3, "maxLength": 2.0},
        "At path 'minLength': minLength (3) cannot be greater than maxLength (2)",
    ),
    (
        {"type": "number", "minimum": 0.5, "maximum": 0},
        "At path 'root': minimum (0.5) cannot be greater than maximum (0)",
    ),
    ({"$ref": "#"}, "At path 'root': detected infinite recursion without termination condition"),
    (
        {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        "At path 'root': detected infinite recursion without termination condition",
    ),
    (
        {
            "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}},
            "type": "object",
            "properties": {"x": {"$ref": "#/$defs/a"}},
        },
        "At path '$defs.a': detected infinite recursion without termination condition",
    ),
    (
        {"$defs": {"a": ENDLESS}, **ENDLESS},
        "At path 'root': detected infinite recursion without termination condition",
    ),
    (DEEP, f"At path '{'.'.join(['properties', 'a'] * 31)}': schema depth exceeds maximum limit of 30"),
    ({"title": "x" * 120_000}, "At path 'root': schema exceeds maximum allowed size"),
    (
        {"$defs": {str(i): props(**{f"p{j}": {} for j in range(1001)}) for i in range(3)}},
        "At path '$defs.2': total number of properties keys(3003) across all objects exceeds maximum limit of 3000",
    ),
]


@pytest.mark.parametrize(("schema", "text"), HARD)
def test_a_hard_finding_has_the_services_path_and_words(schema: Any, text: str) -> None:
    with pytest.raises(Refused) as refused:
        read(json.dumps(schema), "schema")
    assert str(refused.value) == text
    assert refused.value.hard


SOFT: list[tuple[Any, list[str]]] = [
    ({"$schema": "x", "type": "object", "$comment": "y"}, ["At path 'root': unsupported keywords: $comment, $schema"]),
    (props(a={"type": "string", "format": "uri"}), ["At path 'properties.a': unsupported keywords: format"]),
    ({"type": "object", "minLength": 1, "items": {}}, ["At path 'root': invalid keywords: items, minLength"]),
    (
        {"type": ["string", "null"], "maxLength": 1},
        [
            "At path 'root': keyword maxLength is not allowed in combination with multiple types",
            "At path 'root': invalid keywords: maxLength",
        ],
    ),
    ({"type": ["null", "null"]}, ["At path 'type': duplicate types in type array"]),
    (
        {"type": "string", "anyOf": [{"maxLength": 1}, {"enum": ["a"]}]},
        [
            "At path 'root': when using anyOf, type should be defined in anyOf items instead of the parent schema",
            "At path 'anyOf': type is not defined",
        ],
    ),
    (
        props(a={"default": None, "anyOf": [{"type": "null"}]}),
        ["At path 'properties.a': keyword 'default' is not allowed at the same level as anyOf"],
    ),
    (
        {"description": "x", "anyOf": [{"type": "null", "description": "y"}]},
        [
            "At path 'root': conflicting keywords found in anyOf with parent: keywords (description) are defined on "
            "the parent schema and inside anyOf; remove them from the parent or from anyOf branches"
        ],
    ),
    (
        {**props(a={"$ref": "#/$defs/d", "description": "x", "default": 1}), "$defs": {"d": {"description": "y"}}},
        [
            "At path 'properties.a': keyword 'default' is not allowed at the same level as $ref",
            "At path 'properties.a': conflicting keywords found after $ref expansion: description",
        ],
    ),
    (props(anyOf={}), ["At path 'properties': property name 'anyOf' is reserved for JSON Schema keywords"]),
    (
        {"type": "object", "properties": {"": {}}, "required": ["", ""]},
        [
            "At path 'properties': property name cannot be empty",
            "At path 'required': property names in required array cannot be empty",
            "At path 'required': duplicate items in required array: ",
        ],
    ),
    (props(a={"$defs": {"x": {}}, "type": "null"}), ["At path 'properties.a': keyword $defs must be at root level"]),
    (
        {**props(a={}), "anyOf": [{"required": ["a"]}]},
        [
            "At path 'root': when using anyOf, type should be defined in anyOf items instead of the parent schema",
            "At path 'root': keyword 'properties' is not allowed at the same level as anyOf",
            "At path 'anyOf.required': required keyword must be used with object",
            "At path 'anyOf.required': required specified but 'properties' keyword is missing",
        ],
    ),
    ({"type": "string", "minLength": None, "pattern": None, "$id": None}, []),
]


@pytest.mark.parametrize(("schema", "texts"), SOFT)
def test_soft_findings_are_warnings(schema: Any, texts: list[str]) -> None:
    assert list(read(json.dumps(schema), "schema").warnings) == texts


def test_of_many_soft_findings_the_first_are_kept() -> None:
    noisy = props(**{f"p{i}": {"type": "string", "format": "x" * 10} for i in range(2_000)})

    kept = read(json.dumps(noisy), "schema").warnings
    assert kept[0] == "At path 'properties.p0': unsupported keywords: format"
    assert len("".join(kept)) < 25_000
