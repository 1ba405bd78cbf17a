"""Concurrent calls: classify the first hundred of scikit-learn's digits, with one call per digit.

    AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=http://127.0.0.1:8000 python examples/classify.py

Without that variable it calls the endpoint "digits" in your AWS account.
"""

import asyncio
import json

from sklearn.datasets import load_digits

import aiosmrt


async def classify(client: aiosmrt.Client, pixels: list[float]) -> int:
    response = await client.invoke_endpoint(
        EndpointName="digits",
        Body=json.dumps({"instances": [pixels]}),
        ContentType="application/json",
        Accept="application/json",
    )
    label: int = json.loads(await response["Body"].read())["predictions"][0]
    return label


async def main() -> None:
    images, true_labels = load_digits(return_X_y=True)
    # All calls can start at once: at most max_concurrency are in flight, first come, first served.
    async with aiosmrt.Client(max_concurrency=16, retry=aiosmrt.RetryPolicy(max_attempts=6)) as client:
        labels = await asyncio.gather(*(classify(client, image.tolist()) for image in images[:100]))
        retries = client.statistics().retries
    correct = sum(label == true for label, true in zip(labels, true_labels, strict=False))
    print(f"{correct} of {len(labels)} correct, retries: {dict(retries)}")


asyncio.run(main())
