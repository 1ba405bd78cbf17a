"""Request bodies from Python objects, and Python objects from response bodies.

A `Serializer` gives bytes and the content type that says what they are; a `Deserializer` reads bytes and has the
``Accept`` header that asks for them.  A *codec* is both.  The ready ones are `JSON`, `JSON_LINES`, `CSV`, `TEXT`,
`BYTES`, `NPY`, `NPZ`, `ARROW` and `PARQUET`; their classes take options.  Codecs are values: frozen, equal when their
options are, pickled by them, and without state, so that one serves any number of calls and threads.

Content types and what each codec takes follow the serializers of the SageMaker Python SDK
(https://github.com/aws/sagemaker-python-sdk, ``base_serializers.py`` and ``base_deserializers.py`` of its version 2),
which containers know.  Where the SDK guesses, or sends what cannot be meant, a codec refuses:

- NaN and the infinities are not JSON; they are sent only when asked for.  They are read, as Python's json does: a NaN
  in an answer is what the model said.
- What has no text of its own (a container in a field, bytes, a table that iterates over its columns) is not put into
  CSV, and neither JSON Lines nor CSV is made of nothing.
- Pickles are neither written nor read, so there are no arrays of Python objects.
- A response of another type, say a proxy's text/html for JSON, is an error, and not a parser's puzzle.  As containers
  are careless about the header, a response without a type or with a general one (application/octet-stream, and
  text/plain for text formats) is read, and so is every type that ``accept`` names or covers: a container that calls
  its JSON text/html is read with ``JSONCodec(accept="application/json, text/html")``.

Text is in the charset of the header's ``charset`` parameter, in UTF-8 without one.  Faults are told by place and never
by content: ``data[0][3]`` counts from 0, and the entries of a dictionary are counted like items.  The parsers' own
errors, which quote what they choke on, end here.

NumPy and pyarrow come with the extras ``numpy`` and ``arrow`` and are imported when their codecs are first used.
"""

from aiosmrt.serializers.arrays import NPY, NPZ, NPYCodec, NPZCodec
from aiosmrt.serializers.codec import Deserializer, Serializer
from aiosmrt.serializers.csvtext import CSV, CSVCodec
from aiosmrt.serializers.jsontext import JSON, JSON_LINES, JSONCodec, JSONLinesCodec
from aiosmrt.serializers.objects import OFF_LOOP_BYTES, SupportsRead, weight
from aiosmrt.serializers.tables import (
    ARROW,
    PARQUET,
    ArrowCodec,
    ParquetCodec,
    SupportsArrowArray,
    SupportsArrowStream,
)
from aiosmrt.serializers.text import BYTES, TEXT, BytesCodec, TextCodec

__all__ = [
    "ARROW",
    "BYTES",
    "CSV",
    "JSON",
    "JSON_LINES",
    "NPY",
    "NPZ",
    "OFF_LOOP_BYTES",
    "PARQUET",
    "TEXT",
    "ArrowCodec",
    "BytesCodec",
    "CSVCodec",
    "Deserializer",
    "JSONCodec",
    "JSONLinesCodec",
    "NPYCodec",
    "NPZCodec",
    "ParquetCodec",
    "Serializer",
    "SupportsArrowArray",
    "SupportsArrowStream",
    "SupportsRead",
    "TextCodec",
    "weight",
]
