import asyncio
from collections.abc import AsyncIterator

import pytest

from moonbase.accounts.authentication import KEY_TTL_MS, Authenticator
from moonbase.accounts.changes import Changes
from moonbase.accounts.keys import Keys
from moonbase.accounts.requests import NewKey
from moonbase.errors import InvalidAuthentication
from moonbase.store.database import Database

pytestmark = pytest.mark.anyio


class Clock:
    """Milliseconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1_795_000_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(database: Database) -> Keys:
    """As another process has them: nobody is told of a revocation."""
    return Keys(Changes(database, "test"), currency="USD", models=())


@pytest.fixture
async def authenticator(database: Database, clock: Clock) -> AsyncIterator[Authenticator]:
    async with Authenticator(database, clock=clock) as authenticator:
        yield authenticator


async def test_a_key_revoked_elsewhere_is_refused_within_two_seconds(
    authenticator: Authenticator, keys: Keys, clock: Clock
) -> None:
    key, secret = await keys.create(NewKey(name="mine"))
    await authenticator.find(secret)
    await keys.revoke(key.id)
    clock.now += KEY_TTL_MS - 1
    await authenticator.find(secret)
    clock.now += 1
    with pytest.raises(InvalidAuthentication):
        await authenticator.find(secret)
    assert KEY_TTL_MS <= 2000


async def test_a_clock_set_back_does_not_prolong_a_revoked_key(
    authenticator: Authenticator, keys: Keys, clock: Clock
) -> None:
    key, secret = await keys.create(NewKey(name="mine"))
    await authenticator.find(secret)
    await keys.revoke(key.id)
    clock.now -= 3_600_000
    with pytest.raises(InvalidAuthentication):
        await authenticator.find(secret)


async def test_a_known_key_is_found_without_giving_way_to_other_tasks(authenticator: Authenticator, keys: Keys) -> None:
    _, secret = await keys.create(NewKey(name="mine"))
    await authenticator.find(secret)
    finding = authenticator.find(secret)
    with pytest.raises(StopIteration):  # it returns on the first step, so it never reached the loop
        finding.send(None)


async def test_a_key_in_use_is_refreshed_and_never_waits_for_the_database(
    authenticator: Authenticator, database: Database, keys: Keys, clock: Clock
) -> None:
    _, secret = await keys.create(NewKey(name="mine"))
    await authenticator.find(secret)
    for _ in range(3):
        clock.now += KEY_TTL_MS * 3 // 4
        await authenticator.find(secret)
        await authenticator.refresh()
    await database.close()
    await authenticator.find(secret)


async def test_a_refresh_notices_a_revocation(authenticator: Authenticator, keys: Keys) -> None:
    key, secret = await keys.create(NewKey(name="mine"))
    await authenticator.find(secret)
    await keys.revoke(key.id)
    await authenticator.refresh()
    with pytest.raises(InvalidAuthentication):
        await authenticator.find(secret)


async def test_many_at_once_each_get_their_own_answer(authenticator: Authenticator, keys: Keys) -> None:
    created = [await keys.create(NewKey(name=str(number))) for number in range(5)]
    secrets = [secret for _, secret in created] + [f"sk-{guess:048}" for guess in range(700)]
    answers = await asyncio.gather(*map(authenticator.find, secrets * 2), return_exceptions=True)
    found = [caller.key_id for caller in answers if not isinstance(caller, BaseException)]
    assert found == [key.id for key, _ in created] * 2
    assert sum(isinstance(answer, InvalidAuthentication) for answer in answers) == 1400


async def test_one_who_gives_up_takes_nobody_with_him(authenticator: Authenticator, keys: Keys) -> None:
    _, secret = await keys.create(NewKey(name="mine"))
    first, second = (asyncio.create_task(authenticator.find(secret)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).currency == "USD"
    await asyncio.wait([first])


async def test_guesses_do_not_push_out_keys(database: Database, keys: Keys, clock: Clock) -> None:
    _, secret = await keys.create(NewKey(name="mine"))
    async with Authenticator(database, clock=clock, remembered=2) as authenticator:
        await authenticator.find(secret)
        for guess in range(5):
            with pytest.raises(InvalidAuthentication):
                await authenticator.find(f"sk-{guess:048}")
        await database.close()
        await authenticator.find(secret)


async def test_what_is_too_old_to_count_is_forgotten(authenticator: Authenticator, keys: Keys, clock: Clock) -> None:
    secrets = [(await keys.create(NewKey(name="mine")))[1] for _ in range(3)]
    for secret in secrets:
        await authenticator.find(secret)
    for guess in range(4):
        with pytest.raises(InvalidAuthentication):
            await authenticator.find(f"sk-{guess:048}")
    assert authenticator.in_memory == 7
    clock.now += KEY_TTL_MS
    authenticator.tidy()
    assert authenticator.in_memory == 3, "they count while the database is away"
    clock.now += 60_000 - KEY_TTL_MS - 1
    await authenticator.find(secrets[0])
    clock.now += 1
    authenticator.tidy()
    assert authenticator.in_memory == 1
