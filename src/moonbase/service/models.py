"""The models use case: what is served, as it really is."""

from msgspec import Struct

from moonbase.catalog.catalog import Catalog
from moonbase.catalog.model import Capabilities, Model
from moonbase.router.deployment import window
from moonbase.router.router import Router


class ServedModel(Struct, frozen=True):
    """A public id with its real window in tokens, its real abilities, and what answers for it."""

    model: Model
    window: int
    capabilities: Capabilities
    served_by: str


def served_models(catalog: Catalog, router: Router) -> list[ServedModel]:
    """All public ids. A window is never reported larger than the serving model's own."""
    return [
        ServedModel(model, window(deployment, model.window), deployment.capabilities, deployment.name)
        for model in catalog.listed()
        for deployment in [router.serves(model)]
    ]
