"""What a server's `/v1/models` tells of the model that it serves."""

from msgspec import Struct

from moonbase.errors import ConfigurationError


class ServedModel(Struct, frozen=True):
    """`max_model_len` is the window in tokens; `parent` the model that an adapter belongs to."""

    id: str
    max_model_len: int
    parent: str | None = None


class ServedModels(Struct, frozen=True):
    data: list[ServedModel]

    def pick(self, wanted: str | None) -> ServedModel:
        """The model of that id, else the only one there is. Raises `ConfigurationError` when it is unclear which.

        `wanted` is None when any will do.
        """
        for model in self.data:
            if model.id == wanted:
                return model
        whole = [model for model in self.data if model.parent is None]
        if len(whole) != 1:
            found = ", ".join([model.id for model in self.data]) or "none"
            lacks = "no one model" if wanted is None else f"no model {wanted!r}"
            raise ConfigurationError(f"the server has {lacks}; it has: {found}")
        return whole[0]
