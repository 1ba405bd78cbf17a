"""Runs the first Python block of a page against a local SageMaker Runtime:  first_lines.py PAGE

Nothing may come from a checkout, and nothing but the required dependencies may be needed.
"""

import asyncio
import os
import re
import sys
import tempfile
from pathlib import Path

import aiosmrt
from aiosmrt.local import Credentials, LocalRuntime

KEY = Credentials("AKIDEXAMPLE", "not-a-real-secret")


async def churn(invocation):
    return b"0.5\n", {"Content-Type": "text/csv"}


async def main(code):
    with tempfile.TemporaryDirectory() as folder:
        async with LocalRuntime({"churn": churn}, region="eu-central-1", credentials=KEY) as runtime:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                del os.environ[name]
            os.environ |= {
                "AWS_ACCESS_KEY_ID": KEY.access_key,
                "AWS_SECRET_ACCESS_KEY": KEY.secret_key,
                "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": runtime.url,
                "AWS_CONFIG_FILE": f"{folder}/config",
                "AWS_SHARED_CREDENTIALS_FILE": f"{folder}/credentials",
            }
            await asyncio.to_thread(exec, code, {"__name__": "__main__"})
            return len(runtime.requests)


page = Path(sys.argv[1])
if Path(aiosmrt.__file__).is_relative_to(page.parent / "aiosmrt"):
    sys.exit(f"aiosmrt comes from the checkout: {aiosmrt.__file__}")
block = re.search(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
served = asyncio.run(main(compile(block[1], page.name, "exec")))
if not served:
    sys.exit(f"the first lines of {page.name} made no call")
print(f"{page.name}: its first lines made {served} calls")
