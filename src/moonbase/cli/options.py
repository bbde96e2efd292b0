"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    Path | None, typer.Option("--config", envvar="MOONBASE_CONFIG", help="Configuration file (TOML).", metavar="FILE")
]
