"""The model container of the demo: a classifier of handwritten digits behind SageMaker's container interface.

Run as ``python -m aiosmrt.cli.digits``. It trains a support vector classifier on the first half of scikit-learn's
bundled digits (1,797 images of 8 by 8 pixels, the test set of "Optical Recognition of Handwritten Digits", UCI), then
serves ``GET /ping`` and ``POST /invocations`` on the port in ``SAGEMAKER_BIND_TO_PORT``. The second half, not shuffled,
is its test set.

Input is ``text/csv`` with 64 pixels per row, or ``application/json`` as ``{"instances": [[…], …]}``. Output is
``application/json`` as ``{"predictions": [3, …]}``, ``text/csv`` with one label per line, or ``application/jsonlines``
with one line per row, sent in chunks as they are computed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from aiohttp import web

__all__ = ["PIXELS", "TRAINING_ROWS", "create_application", "digits", "parse_rows"]

PIXELS = 64
TRAINING_ROWS = 898
ROWS_PER_CHUNK = 40
_JSON, _CSV, _LINES = "application/json", "text/csv", "application/jsonlines"


def digits() -> tuple[Any, Any]:
    """Return the images, a row of 64 pixels each, and their labels as NumPy arrays."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return images, labels


def trained_model() -> Any:
    """Train a classifier on the first half of the digits, with the parameters of scikit-learn's example."""
    from sklearn import svm

    classifier: Any = svm.SVC  # Inferred from the default, the type of gamma would be str.
    images, labels = digits()
    return classifier(gamma=0.001).fit(images[:TRAINING_ROWS], labels[:TRAINING_ROWS])


def parse_rows(content_type: str, body: bytes) -> list[list[float]]:
    """Parse the images in a request.

    Raises:
        ValueError: the body does not have the content type's format, or a row does not have 64 numbers. The message
            never quotes the body.

    >>> len(parse_rows("text/csv", b",".join([b"0"] * 64)))
    1
    """
    if content_type not in (_CSV, _JSON):
        raise ValueError(f"the content type must be {_CSV} or {_JSON}")
    try:
        if content_type == _JSON:
            cells = json.loads(body)["instances"]
        else:
            cells = [line.split(",") for line in body.decode().splitlines() if line.strip()]
        rows = [[float(pixel) for pixel in row] for row in cells]
    except (ValueError, TypeError, KeyError):
        raise ValueError('the body must be rows of numbers, in JSON as {"instances": [[…], …]}') from None
    if not rows or any(len(row) != PIXELS for row in rows):
        raise ValueError(f"the body must have at least one row, and {PIXELS} pixels in each row")
    return rows


def create_application(model: Any) -> web.Application:
    """Make the container's HTTP application for a model with ``predict``."""

    def predicted(rows: Sequence[Sequence[float]]) -> list[int]:
        return [int(label) for label in model.predict(rows)]

    def chunks(rows: Sequence[Sequence[float]]) -> Iterator[bytes]:
        for start in range(0, len(rows), ROWS_PER_CHUNK):
            yield b"".join(b'{"label": %d}\n' % label for label in predicted(rows[start : start + ROWS_PER_CHUNK]))

    async def ping(_: web.Request) -> web.Response:
        return web.Response()

    async def invocations(request: web.Request) -> web.StreamResponse:
        try:
            rows = parse_rows(request.content_type, await request.read())
        except ValueError as error:
            return web.Response(status=400, text=f"invalid input: {error}")
        accept = request.headers.get("Accept", _JSON)
        if accept == _LINES:
            response = web.StreamResponse(headers={"Content-Type": _LINES})
            await response.prepare(request)
            for chunk in chunks(rows):
                await response.write(chunk)
            return response
        labels = predicted(rows)
        if accept == _CSV:
            return web.Response(text="".join(f"{label}\n" for label in labels), content_type=_CSV)
        return web.json_response({"predictions": labels})

    app = web.Application(client_max_size=32 << 20)
    app.router.add_get("/ping", ping)
    app.router.add_post("/invocations", invocations)
    return app


def main() -> None:
    port = int(os.environ.get("SAGEMAKER_BIND_TO_PORT", "8080"))
    web.run_app(create_application(trained_model()), host="127.0.0.1", port=port, access_log=None, print=None)


if __name__ == "__main__":
    main()
