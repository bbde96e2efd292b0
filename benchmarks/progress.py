"""Says how far a run is."""

import sys


def tell(what: str) -> None:
    """On standard error, at once."""
    print(what, file=sys.stderr, flush=True)
