"""Which deployment answers for a model."""

from collections.abc import Iterable, Mapping

from moonbase.catalog.model import Model
from moonbase.errors import EngineUnavailable
from moonbase.router.deployment import Deployment


class Router:
    """Every public id is answered by the deployment it names, else by the default one."""

    def __init__(self, default: Deployment, by_model: Mapping[str, Deployment]) -> None:
        """`by_model` has the ids that do not go to `default`."""
        self.default = default
        self._by_model = by_model

    @property
    def deployments(self) -> Iterable[Deployment]:
        """All that may answer, each once, the default first."""
        return {id(deployment): deployment for deployment in (self.default, *self._by_model.values())}.values()

    def serves(self, model: Model) -> Deployment:
        """What would answer for `model`, ready or not."""
        return self._by_model.get(model.id, self.default)

    def pick(self, model: Model) -> Deployment:
        """The deployment for a request now. Raises `EngineUnavailable` when none is ready."""
        deployment = self.serves(model)
        if not deployment.ready:
            raise EngineUnavailable()
        return deployment
