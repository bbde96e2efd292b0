import re

import pytest

from moonbase.accounts import ids


@pytest.mark.parametrize(
    ("make", "pattern"),
    [
        (ids.organization_id, r"org-[0-9a-f]{32}"),
        (ids.project_id, r"proj-[0-9a-f]{32}"),
        (ids.key_id, r"ak-[a-z0-9]{20}"),
        (ids.uid, r"[0-9a-v]{19}[0g]"),
        (ids.secret, r"sk-[A-Za-z0-9]{48}"),
    ],
)
def test_ids_have_the_shapes_of_the_service_and_do_not_repeat(make: object, pattern: str) -> None:
    assert callable(make)
    made = {make() for _ in range(200)}
    assert len(made) == 200
    assert all(re.fullmatch(pattern, text) for text in made)
