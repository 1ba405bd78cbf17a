"""Request bodies from Python objects, and Python objects from response bodies.

A `Serializer` returns bytes and has the content type that describes them; a `Deserializer` reads bytes and has the
``Accept`` header that asks for them. A *codec* is both. `JSON`, `JSON_LINES`, `CSV`, `TEXT`, `BYTES`, `NPY`, `NPZ`,
`ARROW` and `PARQUET` are ready to use; their classes take options. Codecs are values: frozen, equal if their options
are, pickled by them, and stateless, so that one serves any number of calls and threads.

Content types, and the objects that each codec takes, follow the serializers of the SageMaker Python SDK
(https://github.com/aws/sagemaker-python-sdk, ``base_serializers.py`` and ``base_deserializers.py`` of its version 2),
which containers know. Where the SDK guesses, or sends something that cannot be meant, a codec refuses:

- NaN and the infinities are not JSON; they are sent only on request. They are always read, as Python's json does: a NaN
  in an answer is what the model wrote.
- Values without a text form (containers in a field, bytes) are not put into CSV, and neither JSON Lines nor CSV is made
  of nothing.
- Pickles are neither written nor read, and neither are arrays of Python objects.
- A response of another type, such as a proxy's text/html in place of JSON, is an error. As containers are careless
  about the header, a response without a type or with a general one (application/octet-stream, and text/plain for text
  formats) is read, and so is every type that ``accept`` names or covers: a container that labels its JSON as text/html
  is read with ``JSONCodec(accept="application/json, text/html")``.

Text is in the charset of the header's ``charset`` parameter, by default UTF-8. Error messages give the position of a
fault and never quote content: ``data[0][3]`` counts from 0, and the entries of a dictionary are counted like items.
The parsers' own errors, which quote their input, are not passed on.

NumPy and pyarrow come with the extras ``numpy`` and ``arrow`` and are imported when their codecs are first used.
"""

from aiosmrt.serializers.arrays import NPY, NPZ, NPYCodec, NPZCodec
from aiosmrt.serializers.codec import Deserializer, Serializer
from aiosmrt.serializers.csvtext import CSV, CSVCodec
from aiosmrt.serializers.jsontext import JSON, JSON_LINES, JSONCodec, JSONLinesCodec
from aiosmrt.serializers.objects import SupportsRead
from aiosmrt.serializers.size import OFF_LOOP_BYTES, estimated_size
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
    "estimated_size",
    "weight",
]

weight = estimated_size
"""The earlier name of `estimated_size`."""
