"""What can never end: references that lead back to themselves, and what has no finite value."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from moonbase.formats.schemas import mfjs
from moonbase.formats.schemas.shapes import (
    Array,
    Choice,
    Node,
    Nothing,
    Null,
    Object,
    Property,
    Reference,
    Unenforceable,
)

_MAX_WAYS = 10_000  # from a schema to one it refers to; engines that follow a grammar try them all at every token


def check_chains(tree: dict[str, Any]) -> None:
    """Refuse references that lead back to themselves, or on too many ways to others, before anything is written.

    Kahn's algorithm over definitions; an edge is a reference that needs no step into the value.
    """
    definitions = {"": tree, **tree.get("$defs", {})}
    follow = {name: _at_once(schema) for name, schema in definitions.items()}
    open_ends = dict.fromkeys(definitions, 0)
    for names in follow.values():
        for name in names:
            open_ends[name] += 1
    ready, length = [name for name, count in open_ends.items() if not count], dict.fromkeys(definitions, 0)
    ways = dict.fromkeys(ready, 1)
    done = 0
    while ready:
        name = ready.pop()
        done += 1
        if length[name] > mfjs.MAX_NESTING:
            raise Unenforceable(mfjs.ROOT, mfjs.TOO_DEEP, hard=True)
        if ways[name] > _MAX_WAYS:
            raise Unenforceable(mfjs.ROOT, mfjs.TOO_LARGE)
        for following, times in follow[name].items():
            length[following] = max(length[following], length[name] + 1)
            ways[following] = ways.get(following, 0) + ways[name] * times
            open_ends[following] -= 1
            if not open_ends[following]:
                ready.append(following)
    if done < len(definitions):
        name = next(name for name, count in open_ends.items() if count)
        raise Unenforceable(f"$defs.{name}" if name else mfjs.ROOT, mfjs.ENDLESS, hard=True)


def _at_once(schema: dict[str, Any]) -> Counter[str]:
    """The definitions that a value of `schema` may have to satisfy itself, and how often each is named."""
    found, rest = Counter[str](), [schema]
    while rest:
        schema = rest.pop()
        rest += schema.get("anyOf", ())
        if "$ref" in schema:
            found[definition(schema["$ref"])] += 1
    return found


def definition(reference: str) -> str:
    """The definition that a `$ref` of an enforced schema names; the root is the empty name."""
    return reference.removeprefix("#").removeprefix("/$defs/")


def finite(definitions: Mapping[str, Node]) -> dict[str, Node] | None:
    """What the root leads to, without what has no finite value; None where the root itself has none."""
    live = _live(definitions)
    return _Pruning(definitions, live).run() if id(definitions[""]) in live else None


def _needs(node: Node, definitions: Mapping[str, Node]) -> tuple[Node, ...]:
    """What must have a finite value that `node` may have one: all of it, but of a choice one."""
    match node:
        case Choice(branches):
            return branches
        case Reference(name):
            return (definitions[name],)
        case Array(item, least) if least:
            return (item,)
        case Object(properties):
            return tuple([each.value for each in properties if each.required])
        case _:
            return ()


def _inside(node: Node) -> tuple[Node, ...]:
    match node:
        case Choice(branches):
            return branches
        case Array(item):
            return (item,)
        case Object(properties, extra):
            return (*[each.value for each in properties], *([] if extra is None else [extra]))
        case _:
            return ()


def _live(definitions: Mapping[str, Node]) -> set[int]:
    """The nodes that have a finite value, by identity."""
    nodes: dict[int, Node] = {}
    rest = list(definitions.values())
    while rest:
        node = rest.pop()
        if id(node) not in nodes:
            nodes[id(node)] = node
            rest += _inside(node)
    dependents: dict[int, list[int]] = {}
    missing: dict[int, int] = {}
    live: set[int] = set()
    ready: list[int] = []
    for key, node in nodes.items():
        needs = {id(need) for need in _needs(node, definitions)}
        missing[key] = min(len(needs), 1) if isinstance(node, Choice) else len(needs)
        for need in needs:
            dependents.setdefault(need, []).append(key)
        if not needs and not isinstance(node, Nothing):
            ready.append(key)
    while ready:
        key = ready.pop()
        if key in live:
            continue
        live.add(key)
        for dependent in dependents.get(key, ()):
            missing[dependent] -= 1
            if missing[dependent] <= 0:
                ready.append(dependent)
    return live


class _Pruning:
    """Copies what the root leads to, without what is not live."""

    def __init__(self, definitions: Mapping[str, Node], live: set[int]) -> None:
        self._definitions = definitions
        self._live = live
        self._known: dict[int, Node] = {}
        self._wanted = [""]

    def run(self) -> dict[str, Node]:
        pruned: dict[str, Node] = {}
        while self._wanted:
            name = self._wanted.pop()
            if name not in pruned:
                pruned[name] = self._node(self._definitions[name])
        return pruned

    def _node(self, node: Node) -> Node:
        """`node`, which is live, without its parts that are not."""
        known = self._known.get(id(node))
        if known is None:
            known = self._known[id(node)] = self._copy(node)
        return known

    def _copy(self, node: Node) -> Node:
        match node:
            case Choice(branches):
                kept = [self._node(branch) for branch in branches if id(branch) in self._live]
                return kept[0] if len(kept) == 1 else Choice(tuple(kept))
            case Reference(name):
                self._wanted.append(name)
                return node
            case Array(item, least, most):
                return Array(self._node(item), least, most) if id(item) in self._live else Array(Null(), 0, 0)
            case Object(properties, extra, taken):
                kept_properties = [
                    Property(each.name, self._node(each.value), each.required)
                    for each in properties
                    if id(each.value) in self._live
                ]
                kept_extra = None if extra is None or id(extra) not in self._live else self._node(extra)
                return Object(tuple(kept_properties), kept_extra, taken)
            case _:
                return node
