"""Parses URIs of S3 objects: ``s3://bucket/key``."""

import re

__all__ = ["S3_URI_FORM", "split_s3_uri"]

S3_URI_FORM = (
    "an S3 URI must be of the form s3://bucket/key, with a bucket of 3 to 255 letters, digits, dots, hyphens and "
    "underscores"
)
"""The beginning of a message about one that is not."""

# As permissive as botocore about bucket names, because old buckets may have names that are invalid today.
_URI = re.compile(r"s3://([a-zA-Z0-9._-]{3,255})(?:/(.*))?", re.DOTALL)


def split_s3_uri(uri: str) -> tuple[str, str] | None:
    """Split the URI of an object or prefix into bucket and key; returns None if it is not an S3 URI.

    The key may be empty. It is not percent-decoded.

    >>> split_s3_uri("s3://results/churn/1%20.out"), split_s3_uri("s3://results"), split_s3_uri("https://results/1.out")
    (('results', 'churn/1%20.out'), ('results', ''), None)
    """
    match = _URI.fullmatch(uri)
    return None if match is None else (match[1], match[2] or "")
