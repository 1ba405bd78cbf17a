"""How S3's objects are named: ``s3://bucket/key``."""

import re

__all__ = ["split_s3_uri"]

# The bucket's name is checked as widely as botocore does: names were less restricted once.
_URI = re.compile(r"s3://([a-zA-Z0-9._-]{3,255})(?:/(.*))?", re.DOTALL)


def split_s3_uri(uri: str) -> tuple[str, str] | None:
    """Bucket and key of an object, or of a prefix, whose key may be empty; None for what is no S3 URI.

    The key is taken as it stands: nothing in it is percent-decoded.

    >>> split_s3_uri("s3://results/churn/1%20.out"), split_s3_uri("s3://results"), split_s3_uri("https://results/1.out")
    (('results', 'churn/1%20.out'), ('results', ''), None)
    """
    match = _URI.fullmatch(uri)
    return None if match is None else (match[1], match[2] or "")
