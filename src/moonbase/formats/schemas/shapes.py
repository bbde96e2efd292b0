"""The parts of a schema's graph, and the error of a schema that can have none. Data only."""

from msgspec import Struct

from moonbase.formats.schemas.pattern import Group


class AnyValue(Struct, frozen=True):
    pass


class Boolean(Struct, frozen=True):
    pass


class Null(Struct, frozen=True):
    pass


class Nothing(Struct, frozen=True):
    """What no value satisfies. Not in a finished graph."""


class Enumeration(Struct, frozen=True):
    """`values` are compact JSON texts."""

    values: tuple[str, ...]


class String(Struct, frozen=True):
    """`least` and `most` are in characters."""

    least: int = 0
    most: int | None = None
    pattern: Group | None = None


class Number(Struct, frozen=True):
    """From `first` to `last`, both in units of 10 to the power of -`places`; any number where both are None.

    An integer has no places. On a side without a bound of its own (`no_low`, `no_high`) stands what the digits allow.
    """

    whole: bool
    first: int | None = None
    last: int | None = None
    places: int = 0
    no_low: bool = False
    no_high: bool = False


class Array(Struct, frozen=True):
    item: "Node"
    least: int = 0
    most: int | None = None


class Property(Struct, frozen=True):
    name: str
    value: "Node"
    required: bool


class Object(Struct, frozen=True):
    """`extra` is what members with other names are, None: there are none; `taken` are the names they may not have."""

    properties: tuple[Property, ...]
    extra: "Node | None"
    taken: tuple[str, ...] = ()


class Choice(Struct, frozen=True):
    branches: tuple["Node", ...]


class Reference(Struct, frozen=True):
    """A definition of the graph by its name; the empty name is the root."""

    name: str


Node = AnyValue | Boolean | Null | Nothing | Enumeration | String | Number | Array | Object | Choice | Reference


class Graph(Struct, frozen=True):
    """Every node of it has a finite value. `definitions` holds what references name, the root as the empty name."""

    definitions: dict[str, Node]


class Unenforceable(Exception):
    """No engine could be held to the schema. `path` is as in `mfjs.Finding`; `hard`: the service refuses it too."""

    def __init__(self, path: str, reason: str, *, hard: bool = False) -> None:
        super().__init__(reason)
        self.path = path
        self.reason = reason
        self.hard = hard
