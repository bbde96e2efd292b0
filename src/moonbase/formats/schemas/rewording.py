"""What Moonshot's flavor lacks and can say in other words: `const` as an `enum` of one, `oneOf` as `anyOf`.

Programs write both without knowing: pydantic does, for `Literal["a"]` and for unions with a discriminator. The service
leaves them out (moonshot-api.md 10.1); here they are held to where that is possible.
"""

from typing import Any

from moonbase.formats.schemas.mfjs import MAX_NESTING, type_names


def reworded(schema: dict[str, Any]) -> dict[str, Any] | None:
    """The root `schema`, in which nothing hard was found, in such words; None where there is nothing to reword.

    The result is for another inspection: a branch of a `oneOf` may be anything. What stays unsaid, such as a `oneOf`
    beside an `anyOf`, stays as it is.
    """
    rewording = _Rewording()
    found = rewording.schema(schema, 0)
    return found if rewording.changed else None


class _Rewording:
    def __init__(self) -> None:
        self.changed = False

    def schema(self, schema: Any, depth: int) -> Any:
        """What is too deep stays as it is, for the inspection to find."""
        if not isinstance(schema, dict) or depth > MAX_NESTING:
            return schema
        found = dict(schema)
        if "const" in found and "enum" not in found and "anyOf" not in found:
            self._one_value(found)
        if isinstance(found.get("oneOf"), list) and not found.keys() & {"anyOf", "enum"}:
            found["anyOf"] = found.pop("oneOf")
            self.changed = True
        for keyword in ("properties", "$defs"):
            if isinstance(found.get(keyword), dict):
                found[keyword] = {name: self.schema(inner, depth + 1) for name, inner in found[keyword].items()}
        for keyword in ("items", "additionalProperties"):
            if keyword in found:
                found[keyword] = self.schema(found[keyword], depth + 1)
        if isinstance(found.get("anyOf"), list):
            found["anyOf"] = [self.schema(branch, depth + 1) for branch in found["anyOf"]]
        return found

    def _one_value(self, schema: dict[str, Any]) -> None:
        """Only plain values: an `enum` may have no others."""
        value = schema["const"]
        if not isinstance(value, str | int | float | bool):
            return
        types = type_names(value)
        given = schema.get("type", sorted(types)[0])
        if not types & set([given] if isinstance(given, str) else given):
            return
        del schema["const"]
        schema |= {"type": given, "enum": [value]}
        self.changed = True
