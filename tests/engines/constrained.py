"""Requests as deployments make them: what an output must be, in the engine's own dialect as well."""

import msgspec

from moonbase.engines.base import Engine, GenerateRequest, Generation
from moonbase.engines.grammar import Grammars


def generated(engine: Engine, asked: GenerateRequest) -> Generation:
    """`engine.generate`, with the grammar of the request's constraint."""
    dialect = engine.description.dialect
    if asked.constraint is None:
        return engine.generate(asked)
    assert dialect is not None
    return engine.generate(msgspec.structs.replace(asked, grammar=Grammars(dialect).write(asked.constraint)))
