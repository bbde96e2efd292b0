"""The models use case: what is served, as it really is."""

from msgspec import Struct

from moonbase.catalog.catalog import Catalog
from moonbase.catalog.model import Capabilities, Model
from moonbase.errors import ModelNotFound
from moonbase.router.deployment import window
from moonbase.router.router import Router
from moonbase.store.records import Caller


class ServedModel(Struct, frozen=True):
    """A public id with its real window in tokens, its real abilities, and what answers for it."""

    model: Model
    window: int
    capabilities: Capabilities
    served_by: str


def permitted(catalog: Catalog, caller: Caller, model_id: str) -> Model:
    """The model of that id. Raises `ModelNotFound` for an unknown one and for one that the key does not open."""
    if caller.models is not None and model_id not in caller.models:
        raise ModelNotFound(model_id)
    return catalog.resolve(model_id)


def served_models(catalog: Catalog, router: Router, caller: Caller) -> list[ServedModel]:
    """The public ids that the key opens. A window is never reported larger than the serving model's own."""
    return [
        ServedModel(model, window(deployment, model.window), deployment.capabilities, deployment.name)
        for model in catalog.listed()
        if caller.models is None or model.id in caller.models
        for deployment in [router.serves(model)]
    ]
