"""The tools turn: JSON and TypeScript as Moonshot's own code writes them (kimi-protocol.md 2.4, 2.5)."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonbase.chat.request import Tool
from moonbase.errors import InvalidRequest
from moonbase.formats.kimi_k2.declaration import Declarations


def tool(declaration: object) -> Tool:
    written = declaration if isinstance(declaration, str) else json.dumps(declaration)
    return Tool(name="f", declaration=written, parameters="{}")


def function(parameters: object = None, **fields: object) -> dict[str, Any]:
    given = {"name": "f"} | ({} if parameters is None else {"parameters": parameters}) | fields
    return {"type": "function", "function": given}


def as_json(*tools: object) -> str:
    return Declarations("json").text(tuple([tool(given) for given in tools]))


def as_typescript(*tools: object) -> str:
    return Declarations("typescript").text(tuple([tool(given) for given in tools]))


def body(parameters: object, **fields: object) -> str:
    """What stands between the braces of the namespace."""
    text = as_typescript(function(parameters, **fields))
    assert text.startswith("# Tools\n\n## functions\nnamespace functions {\n"), text
    assert text.endswith("\n}\n")
    return text.removeprefix("# Tools\n\n## functions\nnamespace functions {\n").removesuffix("\n}\n")


def field(schema: object, name: str = "a") -> str:
    """How one optional field with this schema is written."""
    text = body({"type": "object", "properties": {name: schema}})
    return text.removeprefix("type f = (_: {\n").removesuffix("\n}) => any;")


CREATE_USER = {
    "type": "function",
    "function": {
        "name": "create_user",
        "description": "Create a user.\n\nSecond paragraph.",
        "parameters": {
            "type": "object",
            "$defs": {
                "Zebra": {"type": "object", "properties": {"s": {"type": "integer"}}, "required": ["s"]},
                "Apple": {
                    "type": "object",
                    "description": "A fruit",
                    "properties": {"c": {"type": "string"}},
                },
            },
            "properties": {
                "z": {"$ref": "#/$defs/Zebra"},
                "user": {
                    "type": "object",
                    "description": "The user",
                    "properties": {
                        "name": {"type": "string", "minLength": 1, "maxLength": 10},
                        "tags": {
                            "type": "array",
                            "maxItems": 5,
                            "items": {"type": "string", "description": "one tag"},
                        },
                        "opt": {"type": ["string", "null"]},
                        "flag": {"type": "boolean", "default": True},
                        "age": {"type": "integer", "minimum": 0, "maximum": 150, "default": 3},
                    },
                    "required": ["name"],
                },
                "u": {"anyOf": [{"type": "string", "description": "lost"}, {"type": "integer"}]},
                "any": {},
                "a": {"$ref": "#/$defs/Apple"},
                "e": {"enum": ["x", 1, None, True]},
            },
            "required": ["user", "z"],
            "additionalProperties": False,
        },
    },
}
GOLDEN = """# Tools

## functions
namespace functions {
// A fruit
interface Apple {
  c?: string
}
interface Zebra {
  s: number
}
// Create a user.

// Second paragraph.
type create_user = (_: {
  // The user
  user: {
    // maxLength: 10, minLength: 1
    name: string,
    // maximum: 150, minimum: 0
    // Default: 3
    age?: number,
    // Default: True
    flag?: boolean,
    opt?: string | null,
    // maxItems: 5
    tags?: Array<
      // one tag
      string
    >
  },
  z: Zebra,
  a?: Apple,
  any?: any,
  e?: "x" | 1 | None | True,
  u?: string | number,
  [k: string]: never
}) => any;
type noargs = (_: {}) => any;
type noparams = (_: {}) => any;
}
"""


def test_the_published_declaration() -> None:
    noargs = {"type": "function", "function": {"name": "noargs", "parameters": {"type": "object", "properties": {}}}}
    noparams = {"type": "function", "function": {"name": "noparams"}}
    assert as_typescript(CREATE_USER, noargs, noparams) == GOLDEN


def test_the_published_recursive_declaration() -> None:
    tree = {
        "type": "object",
        "properties": {"v": {"type": "string"}, "kids": {"type": "array", "items": {"$ref": "#"}}},
        "required": ["v"],
    }
    expected = (
        "interface parameters {\n  kids?: Array<parameters>,\n  v: string\n}\ntype tree = (_: parameters) => any;"
    )
    assert body(tree, name="tree") == expected


def test_json_is_compact_and_sorted_all_the_way_down() -> None:
    text = as_json(
        {"type": "function", "strict": True, "function": {"name": "f", "parameters": {"b": [{"z": 1, "a": 2}]}}}
    )
    expected = '[{"function":{"name":"f","parameters":{"b":[{"a":2,"z":1}]}},"strict":true,"type":"function"}]'
    assert text == expected


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("1.0", "1.0"),
        ("1e5", "100000.0"),
        ("1E-7", "1e-07"),
        ("-0.0", "-0.0"),
        ("0.1", "0.1"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("1e999", "Infinity"),
        ('"\\u00e9\\u4f60"', '"é你"'),
        ('"\\ud83e\\udd14"', '"🤔"'),
        ('"a\\/b\\u0001\\u2028\\u007f"', '"a/b\\u0001\u2028\x7f"'),
        ('"<b>&\'"', '"<b>&\'"'),
        ('{"é":1,"z":2,"Z":3,"🤔":4,"\\uffff":5}', '{"Z":3,"z":2,"é":1,"\uffff":5,"🤔":4}'),
        ('{"a":1,"b":2,"a":3}', '{"a":3,"b":2}'),
        ("[ 1 , null , true ]", "[1,null,true]"),
    ],
)
def test_values_are_written_as_python_writes_them(given: str, written: str) -> None:
    assert as_json(f'{{"function":{given},"type":"x"}}') == f'[{{"function":{written},"type":"x"}}]'


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=4))
def test_json_is_that_of_the_standard_library(declaration: dict[str, Any]) -> None:
    declaration = json.loads(json.dumps(declaration))
    expected = json.dumps([declaration], ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    assert as_json(json.dumps(declaration)) == expected


@pytest.mark.parametrize("declaration", ["[" * 100_000, "1" * 5000, '{"a":"\\ud800"}', "", "{"])
@pytest.mark.parametrize("style", ["json", "typescript"])
def test_a_declaration_that_cannot_be_shown_is_refused(declaration: str, style: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^Invalid request: tools cannot be read: "):
        Declarations(style).text((tool(declaration),))


@pytest.mark.parametrize(
    ("schema", "written"),
    [
        ({"type": "string"}, "  a?: string"),
        ({"type": "number"}, "  a?: number"),
        ({"type": "integer"}, "  a?: number"),
        ({"type": "boolean"}, "  a?: boolean"),
        ({"type": "null"}, "  a?: null"),
        ({"type": "decimal"}, "  a?: decimal"),
        ({"type": "object"}, "  a?: {}"),
        ({"type": "object", "properties": {}}, "  a?: {}"),
        ({"type": "object", "properties": {"b": {}}}, "  a?: {\n    b?: any\n  }"),
        ({"type": "object", "additionalProperties": True}, "  a?: {\n    [k: string]: any\n  }"),
        ({"type": "object", "additionalProperties": False}, "  a?: {\n    [k: string]: never\n  }"),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, "  a?: {\n    [k: string]: number\n  }"),
        ({"type": "object", "additionalProperties": {}}, "  a?: {\n    [k: string]: any\n  }"),
        ({"type": "object", "additionalProperties": None}, "  a?: {}"),
        ({"type": "array"}, "  a?: Array<any>"),
        ({"type": "array", "items": {}}, "  a?: Array<any>"),
        ({"type": "array", "items": False}, "  a?: Array<any>"),
        ({"type": "array", "items": True}, "  a?: Array<any>"),
        ({"type": "array", "items": {"type": "string"}}, "  a?: Array<string>"),
        ({"type": "array", "minItems": 1, "maxItems": 2}, "  // maxItems: 2, minItems: 1\n  a?: Array<any>"),
        (
            {"type": "array", "items": {"type": "object", "properties": {"b": {}}}},
            "  a?: Array<{\n    b?: any\n  }>",
        ),
        (
            {"type": "array", "items": {"type": "object", "description": "D", "properties": {"b": {}}}},
            "  a?: Array<\n    // D\n    {\n      b?: any\n    }\n  >",
        ),
        (
            {"type": "array", "items": {"type": "integer", "minimum": 1}},
            "  a?: Array<\n    // minimum: 1\n    number\n  >",
        ),
        ({}, "  a?: any"),
        (True, "  a?: any"),
        (False, "  a?: null"),
        ({"type": ["object", "array", "integer", "null"]}, "  a?: {} | Array<any> | number | null"),
        ({"type": ["string"], "maxLength": 3, "description": "D"}, "  // D\n  a?: string"),
        ({"enum": ["x"]}, '  a?: "x"'),
        ({"enum": ['q"\n', 1.0, -2, False, None]}, '  a?: "q"\n" | 1.0 | -2 | False | None'),
        ({"type": "string", "enum": ["x", None], "maxLength": 3}, '  a?: "x" | None'),
        ({"type": ["string", "null"], "enum": ["x", None]}, '  a?: "x" | None'),
        ({"type": ["null", "integer"], "enum": [1]}, "  a?: 1"),
        ({"type": ["boolean"], "enum": [True]}, "  a?: True"),
        ({"type": "number", "enum": [1, 2.5]}, "  a?: 1 | 2.5"),
        ({"type": "array", "enum": [[1, "x"]]}, "  a?: [1, 'x']"),
        ({"anyOf": [{"type": "string", "description": "lost"}, {"type": "null"}]}, "  a?: string | null"),
        ({"anyOf": [{"type": "string"}], "description": "kept"}, "  // kept\n  a?: string"),
        ({"anyOf": []}, "  a?: "),
        (
            {"anyOf": [{"type": "object", "properties": {"b": {}}}, {"type": "null"}]},
            "  a?: {\n    b?: any\n  } | null",
        ),
        ({"type": "string", "description": "one\n\ntwo"}, "  // one\n\n  // two\n  a?: string"),
        ({"type": "string", "description": ""}, "  a?: string"),
        (
            {"type": "string", "pattern": "^a$", "minLength": 1, "maxLength": 2, "minimum": 3},
            "  // maxLength: 2, minLength: 1, pattern: ^a$\n  a?: string",
        ),
        ({"type": "number", "maximum": 1e5, "minLength": 1}, "  // maximum: 100000.0\n  a?: number"),
        (
            {"type": "integer", "minimum": 0, "default": 5, "description": "D"},
            "  // D\n  // minimum: 0\n  // Default: 5\n  a?: number",
        ),
        ({"type": "boolean", "minimum": 0}, "  a?: boolean"),
        ({"type": "string", "default": None}, "  a?: string"),
        ({"type": "string", "default": 'é"'}, '  // Default: "é\\""\n  a?: string'),
        ({"type": "boolean", "default": False}, "  // Default: False\n  a?: boolean"),
        ({"type": "number", "default": 1e-7}, "  // Default: 1e-07\n  a?: number"),
        ({"type": "array", "default": [1, "x"]}, '  // Default: [1, "x"]\n  a?: Array<any>'),
        ({"type": "object", "default": {"b": 1, "a": None}}, '  // Default: {"a": null, "b": 1}\n  a?: {}'),
        ({"anyOf": [{"type": "string"}], "enum": [1], "type": "string"}, "  a?: string"),
        ({"enum": [1], "type": "integer"}, "  a?: 1"),
    ],
)
def test_a_field(schema: object, written: str) -> None:
    assert field(schema) == written


def test_required_fields_come_first_each_kind_by_name() -> None:
    properties = {name: {"type": "string"} for name in ("d", "B", "c", "a")}
    text = body({"type": "object", "properties": properties, "required": ["d", "c", "missing"]})
    assert text == "type f = (_: {\n  c: string,\n  d: string,\n  B?: string,\n  a?: string\n}) => any;"


@pytest.mark.parametrize("parameters", [None, {}, {"type": "object"}, {"anyOf": [{"type": "string"}]}])
def test_no_properties_are_an_empty_object(parameters: object) -> None:
    assert body(parameters) == "type f = (_: {}) => any;"


def test_a_function_without_a_name_has_one() -> None:
    assert as_typescript({"type": "function", "function": {"description": "D"}}).splitlines()[4:6] == [
        "// D",
        "type function = (_: {}) => any;",
    ]


def test_a_definition_may_be_anything() -> None:
    parameters = {
        "$defs": {"U": {"type": ["string", "null"]}, "A": {"type": "array", "items": {"$ref": "#/$defs/U"}}},
        "properties": {"a": {"$ref": "#/$defs/A", "description": "D", "default": []}},
    }
    expected = (
        "interface A Array<U>\ninterface U string | null\ntype f = (_: {\n  // D\n  // Default: []\n  a?: A\n}) => any;"
    )
    assert body(parameters) == expected


def test_definitions_inside_are_known_from_there_on() -> None:
    inner = {"type": "object", "$defs": {"N": {"type": "string"}}, "properties": {"n": {"$ref": "#/$defs/N"}}}
    later = {"$ref": "#/$defs/N"}
    text = body({"type": "object", "properties": {"a": inner, "b": later}})
    assert text == "interface N string\ntype f = (_: {\n  a?: {\n    n?: N\n  },\n  b?: N\n}) => any;"
    assert as_typescript(function({"type": "object", "properties": {"a": later, "b": inner}})).startswith("[{")


def test_a_root_that_only_a_definition_refers_to_has_no_interface() -> None:
    parameters = {"$defs": {"N": {"type": "array", "items": {"$ref": "#"}}}, "properties": {"n": {"$ref": "#/$defs/N"}}}
    assert body(parameters) == "interface N Array<parameters>\ntype f = (_: {\n  n?: N\n}) => any;"


@pytest.mark.parametrize(
    "schema",
    [
        {"const": 1},
        {"title": "T"},
        {"description": "D"},
        {"oneOf": [{"type": "string"}]},
        {"allOf": [{"type": "string"}]},
        {"not": {"type": "string"}},
        {"$ref": "#/$defs/Nowhere"},
        {"$ref": "#/definitions/D"},
        {"$ref": "https://example.com/schema"},
        {"$ref": "#/$defs/Any"},
        {"type": "string", "enum": [1]},
        {"type": "integer", "enum": [1.5]},
        {"type": "number", "enum": ["1"]},
        {"type": "boolean", "enum": [1]},
        {"type": ["string", "integer"], "enum": ["x"]},
        {"type": ["string", "integer", "null"], "enum": ["x"]},
        {"type": ["string", "decimal"]},
        {"type": "array", "items": {"const": 1}},
        {"type": "object", "properties": [1]},
        {"type": "object", "properties": {}, "required": None},
        {"type": "object", "additionalProperties": 1},
        {"anyOf": [{"type": "string"}, {"const": 1}]},
        {"type": "string", "description": 5},
        "string",
        None,
        5,
    ],
)
def test_one_schema_that_cannot_be_written_turns_all_into_json(schema: object) -> None:
    simple = function({"type": "object", "properties": {}}, name="simple")
    broken = function({"type": "object", "$defs": {"Any": True}, "properties": {"a": schema}})
    assert as_typescript(simple, broken) == as_json(simple, broken)
    assert as_json(simple, broken).startswith('[{"function":{"name":"simple"')


def test_tools_of_other_types_are_left_out_of_typescript_unless_there_is_nothing_else() -> None:
    plugin = {"type": "_plugin", "_plugin": {"name": "p"}}
    search = {"type": "builtin_function", "function": {"name": "$web_search"}}
    assert as_typescript(plugin, function(), search) == as_typescript(function())
    assert as_typescript(plugin, search) == as_json(plugin, search)


def tools_of_a_program(count: int, name: str = "tool") -> tuple[Tool, ...]:
    given = json.dumps(CREATE_USER)
    return tuple([tool(given.replace("create_user", f"{name}_{index}")) for index in range(count)])


@pytest.mark.parametrize("style", ["json", "typescript"])
def test_a_declaration_is_written_once(style: Any) -> None:
    declarations, tools = Declarations(style), tools_of_a_program(128)
    text = declarations.text(tools)
    assert declarations.text(tools_of_a_program(128)) is text


def test_other_tools_or_another_order_are_another_declaration() -> None:
    declarations = Declarations("typescript")
    first, second = tools_of_a_program(2)
    assert declarations.text((first, second)) != declarations.text((second, first))
    assert declarations.text((first,)) == Declarations("typescript").text((first,))


def test_what_is_remembered_is_bounded() -> None:
    text = Declarations("json").text(tools_of_a_program(1, "first"))
    declarations = Declarations("json", max_characters=5 * len(text))
    first = declarations.text(tools_of_a_program(1, "first"))
    assert declarations.text(tools_of_a_program(1, "first")) is first
    for index in range(3):
        declarations.text(tools_of_a_program(1, f"other_{index}"))
    again = declarations.text(tools_of_a_program(1, "first"))
    assert again == first
    assert again is not first
    large = declarations.text(tools_of_a_program(10))
    assert declarations.text(tools_of_a_program(10)) is not large
    assert declarations.text(tools_of_a_program(1, "first")) is again
