"""The admin API: what `moonbase orgs`, `keys`, `credit` and the others do, over HTTP with JSON."""

from collections.abc import Callable

import msgspec

from moonbase.accounts.accounts import Accounts, bearer
from moonbase.accounts.administration import Administration
from moonbase.accounts.admins import AdminAuthenticator
from moonbase.accounts.changes import milliseconds
from moonbase.catalog.catalog import Catalog
from moonbase.config import Currency
from moonbase.dialects.body import decode_body
from moonbase.errors import UnknownOperation
from moonbase.server.admin_operations import OPERATIONS, Call, Operation
from moonbase.server.exchange import Exchange
from moonbase.server.query import decode_query
from moonbase.store.database import Database


class AdminEndpoint:
    """An operation behind the administrators' authentication.

    While there is no admin key, there is nothing behind the path.
    """

    def __init__(self, operation: Operation, admins: AdminAuthenticator, make: Callable[[str], Administration]) -> None:
        self._operation = operation
        self._admins = admins
        self._make = make
        self._decoder = None if operation.body is None else msgspec.json.Decoder(operation.body)

    async def __call__(self, exchange: Exchange) -> None:
        if not await self._admins.enabled():
            raise UnknownOperation("the admin API opens with the first admin key: moonbase admin create --name NAME")
        administration = self._make(await self._admins.find(bearer(exchange.header(b"authorization"))))
        call = Call(
            exchange.scope.get("path_params", {}).get("id", ""),
            None if self._decoder is None else decode_body(self._decoder, await exchange.body()),
            decode_query(self._operation.query, exchange),
            exchange.arrival.at,
            exchange.header(b"idempotency-key") if self._operation.takes_once else None,
        )
        operation = self._operation
        answer = await operation.run(administration, call)
        if operation.is_list:
            body = encode_list([operation.view(each) for each in answer])
        else:
            body = _encode(operation.view(answer))
        await exchange.respond(body, headers=[])


def admin_endpoints(
    accounts: Accounts, database: Database, catalog: Catalog, currency: Currency
) -> list[tuple[Operation, AdminEndpoint]]:
    """All operations, with what serves them."""
    admins = AdminAuthenticator(database, milliseconds)

    def make(actor: str) -> Administration:
        return Administration(database, actor, catalog, currency=currency, on_key_changed=accounts.forget)

    return [(operation, AdminEndpoint(operation, admins, make)) for operation in OPERATIONS]


def encode_list(rows: object) -> bytes:
    """A list as the service writes lists."""
    return _encode({"object": "list", "data": rows})


_encode = msgspec.json.Encoder().encode
