"""Tool calls of another server's answer, put together from what comes of them."""

from moonbase.dialects.openai.client.chunk import WireCall
from moonbase.dialects.openai.client.failure import broken

_MAX_NAME = 256  # characters, as of declared tools
_MAX_NAMELESS = 65_536  # characters of arguments before a call's name
_MAX_BLANK = 1_024  # characters of white space before a call's arguments


class Call:
    """A call that comes in pieces.

    `index` counts the started calls of the choice; `blank` says that its arguments are white space so far.

    `held` is what came of the arguments and is not given yet, `holding` its characters.
    """

    __slots__ = ("blank", "held", "holding", "id", "index", "name")

    def __init__(self, id: str) -> None:
        self.id = id
        self.index = -1
        self.name = ""
        self.blank = True
        self.held: list[str] = []
        self.holding = 0

    @property
    def started(self) -> bool:
        return self.index >= 0

    def extend_name(self, more: str) -> None:
        """Servers that repeat a name repeat all of it."""
        if more != self.name:
            self.name += more
        if len(self.name) > _MAX_NAME:
            raise broken(f"called a function whose name has more than {_MAX_NAME} characters")

    def hold(self, arguments: str) -> None:
        """Raises when it is more white space than any server sends, or more without a name."""
        if not arguments:
            return
        self.held.append(arguments)
        self.holding += len(arguments)
        if self.blank and self.holding > _MAX_BLANK:
            raise broken(f"sent more than {_MAX_BLANK} characters of white space as arguments of a call")
        if self.holding > _MAX_NAMELESS:
            raise broken(f"sent more than {_MAX_NAMELESS} characters of arguments of a call without a name")


def begins_another(call: Call, wire: WireCall, name: str) -> bool:
    """Whether a delta with the index of `call`, or none, is of a new call.

    Some servers give all calls the same index, some none at all; others repeat name and id, or make up a new id for
    every delta. A name that comes again under another id is a new call; without index and id any name is.
    """
    if not name or not call.name:
        return False
    if wire.id:
        return wire.id != call.id
    return wire.index is None
