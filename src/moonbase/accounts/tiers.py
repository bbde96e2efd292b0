"""What organizations may do by their tier: the limits of the K2 era (moonshot-api.md 11.1, the classic column)."""

from moonbase.store.records import Caller, Limits

TIERS = (
    Limits(concurrency=1, rpm=3, tpm=500_000, tpd=1_500_000),
    Limits(concurrency=50, rpm=200, tpm=2_000_000),
    Limits(concurrency=100, rpm=500, tpm=3_000_000),
    Limits(concurrency=200, rpm=5_000, tpm=3_000_000),
    Limits(concurrency=400, rpm=5_000, tpm=4_000_000),
    Limits(concurrency=1_000, rpm=10_000, tpm=5_000_000),
)


def organization_limits(caller: Caller) -> Limits:
    """What the caller's organization may do: its own limits, and where it has none, those of its tier.

    A post-paid organization has only its own.
    """
    own = caller.organization_limits
    if caller.postpaid:
        return own
    tier = TIERS[min(max(caller.tier, 0), len(TIERS) - 1)]
    return Limits(*[getattr(tier if getattr(own, name) is None else own, name) for name in Limits.__struct_fields__])
