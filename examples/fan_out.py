"""Score the rows of a file with one call per row, and report the rows that failed.

    python examples/fan_out.py churn rows.csv > scores.csv

The file is read only as fast as calls are made, so it may be larger than memory. Results keep its order.
"""

import asyncio
import sys
from collections.abc import Iterable
from pathlib import Path

import aiosmrt
from aiosmrt.serializers import TEXT


async def main(endpoint_name: str, rows: Iterable[str]) -> int:
    failed = 0
    async with aiosmrt.Client(max_concurrency=64) as client:
        endpoint = client.endpoint(
            endpoint_name, serializer=TEXT, deserializer=TEXT, content_type="text/csv", accept="text/csv"
        )
        async with endpoint.map(row.rstrip("\n") for row in rows) as results:
            async for result in results:
                if result.error is None:
                    print(result.unwrap().strip())
                else:
                    failed += 1
                    print()
                    print(f"row {result.index + 1}: {result.error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    with Path(sys.argv[2]).open(encoding="utf-8") as file:
        sys.exit(asyncio.run(main(sys.argv[1], file)))
