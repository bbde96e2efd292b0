"""What organizations may do by their tier: the limits of the K2 era (moonshot-api.md 11.1, the classic column)."""

from moonbase.store.records import Limits

TIERS = (
    Limits(concurrency=1, rpm=3, tpm=500_000, tpd=1_500_000),
    Limits(concurrency=50, rpm=200, tpm=2_000_000),
    Limits(concurrency=100, rpm=500, tpm=3_000_000),
    Limits(concurrency=200, rpm=5_000, tpm=3_000_000),
    Limits(concurrency=400, rpm=5_000, tpm=4_000_000),
    Limits(concurrency=1_000, rpm=10_000, tpm=5_000_000),
)


def effective_limits(own: Limits, *, tier: int, postpaid: bool) -> Limits:
    """What an organization may do: its own limits, and where it has none, those of its tier.

    A post-paid organization has only its own.
    """
    if postpaid:
        return own
    given = TIERS[min(max(tier, 0), len(TIERS) - 1)]
    return Limits(*[getattr(given if getattr(own, name) is None else own, name) for name in Limits.__struct_fields__])
