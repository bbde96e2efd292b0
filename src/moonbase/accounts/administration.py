"""All that an administrator may do, on the command line and over HTTP."""

from collections.abc import Callable

from moonbase.accounts import fields
from moonbase.accounts.admins import Admins
from moonbase.accounts.changes import Changes, milliseconds
from moonbase.accounts.credit import Credit
from moonbase.accounts.keys import Keys
from moonbase.accounts.organizations import Organizations
from moonbase.accounts.price_list import PriceList, billed_models
from moonbase.accounts.projects import Projects
from moonbase.accounts.usage import UsageReports
from moonbase.catalog.catalog import Catalog
from moonbase.config import Currency
from moonbase.store.audit import list_audit
from moonbase.store.database import Database
from moonbase.store.records import AuditRow


class Administration:
    """What `actor` does is in the audit log under that name.

    A request is carried out as a whole or not at all; whatever is wrong with it is an `ApiError` that says so.
    """

    def __init__(
        self,
        database: Database,
        actor: str,
        catalog: Catalog,
        *,
        currency: Currency,
        clock: Callable[[], int] = milliseconds,
        on_key_changed: Callable[[str], None] | None = None,
    ) -> None:
        """`database` is open and stays its owner's; the rest is as `Keys` and `Changes` take it."""
        changes = Changes(database, actor, clock)
        self.organizations = Organizations(changes)
        self.projects = Projects(changes)
        self.keys = Keys(changes, currency=currency, models=catalog.models, on_changed=on_key_changed)
        self.credit = Credit(changes)
        self.prices = PriceList(changes, billed_models(catalog.listed()))
        self.usage = UsageReports(database)
        self.admins = Admins(changes)
        self._database = database

    async def audit_log(
        self, *, target: str | None = None, before: int | None = None, limit: int = 100
    ) -> list[AuditRow]:
        """What was changed, the newest first; further rows with the last id as `before`. Raises `InvalidField`."""
        if target is not None:
            fields.printable("target", target)
        async with self._database.read() as connection:
            return await list_audit(connection, target=target, before=before, limit=limit)
