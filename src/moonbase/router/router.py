"""Which deployment answers for a model."""

from moonbase.catalog.model import Model
from moonbase.chat.constraint import Constraint
from moonbase.errors import EngineUnavailable, InvalidRequest
from moonbase.router.deployment import TokenDeployment


class Router:
    """Every public id is answered by the one deployment that this server runs."""

    def __init__(self, deployment: TokenDeployment) -> None:
        self.deployment = deployment

    def serves(self, model: Model) -> TokenDeployment:
        """What would answer for `model`, ready or not."""
        return self.deployment

    def pick(self, model: Model, constraint: Constraint | None) -> TokenDeployment:
        """The deployment for a request now.

        Raises `EngineUnavailable` when none is ready, `InvalidRequest` when none can hold an output to `constraint`.
        """
        deployment = self.serves(model)
        if constraint is not None and not deployment.enforces(constraint):
            raise InvalidRequest(f"response_format is not supported: {deployment.name} cannot be held to a schema")
        if not deployment.engine.ready:
            raise EngineUnavailable()
        return deployment
