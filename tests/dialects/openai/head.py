"""What is known of the answers that the tests of this dialect encode."""

from moonbase.dialects.base import Head

ID, NOW, MODEL = "chatcmpl-0123456789abcdef01234567", 1_700_000_000, "kimi-k2-0905-preview"


def head(*, include_usage: bool = False) -> Head:
    return Head(
        id=ID,
        created=NOW,
        model=MODEL,
        served_by="echo",
        prompt_tokens=1,
        cached_tokens=0,
        include_usage=include_usage,
    )
