"""The examples, against the runtime that they describe."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from aiosmrt.cli.digits import digits
from tests.support.command_line import PROGRAM, environment, run, started

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


async def test_examples(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = environment(tmp_path, PATH=path)
    async with started(*PROGRAM, "serve", str(EXAMPLES / "digits.toml"), env=env) as runtime:
        assert runtime.stdout is not None
        env["AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME"] = (await runtime.stdout.readline()).decode().strip()

        ended = await run(sys.executable, str(EXAMPLES / "classify.py"), env=env)
        assert (ended.code, ended.stderr) == (0, b"")
        found = re.fullmatch(r"(\d+) of 100 correct, retries: \{'throttling': (\d+)\}\n", ended.stdout.decode())
        assert found is not None
        assert int(found[1]) > 90
        assert int(found[2]) >= 10

        images, labels = digits()
        rows = "\n".join(",".join(f"{pixel:g}" for pixel in image) for image in images[:5])
        ended = await run(sys.executable, str(EXAMPLES / "stream.py"), env=env, stdin=rows.encode())
        assert (ended.code, ended.stderr) == (0, b"")
        assert len(ended.stdout.split()) == 5
        assert ended.stdout.split()[0] == b"%d" % labels[0]

        (tmp_path / "rows.csv").write_text(f"{rows}\nnot a row\n")
        ended = await run(sys.executable, str(EXAMPLES / "fan_out.py"), "digits", str(tmp_path / "rows.csv"), env=env)
        assert ended.code == 1
        assert [line.strip() for line in ended.stdout.decode().split("\n")] == [
            *(str(label) for label in labels[:5]),
            "",
            "",
        ]
        assert re.fullmatch(rb"row 6: .*ModelError.*\n", ended.stderr, re.DOTALL)
