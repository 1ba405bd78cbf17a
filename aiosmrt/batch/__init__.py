"""Batch scoring: the rows of files through an endpoint, into a file that survives interruptions.

`score` is the job; the ``aiosmrt score`` command runs it from a shell. `source` reads rows, `requests` makes bodies of
them, `sink` makes records of answers, `outputlog` keeps them, and `job` puts it all together. `answers` has the codecs
for those who know content types only. `scorer` scores the record batches of other engines.
"""

from aiosmrt.batch.answers import ANY_ANSWER, AnyAnswer, codec_for
from aiosmrt.batch.job import Inputs, Progress, Records, Report, score
from aiosmrt.batch.requests import JoinSource
from aiosmrt.batch.scorer import OnError, OutputType, Scorer
from aiosmrt.batch.sink import OutputFormat
from aiosmrt.batch.source import InputFormat

__all__ = [
    "ANY_ANSWER",
    "AnyAnswer",
    "InputFormat",
    "Inputs",
    "JoinSource",
    "OnError",
    "OutputFormat",
    "OutputType",
    "Progress",
    "Records",
    "Report",
    "Scorer",
    "codec_for",
    "score",
]
