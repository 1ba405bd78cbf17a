"""How long does one signature take, beside botocore's?

The request is an InvokeEndpoint call as a client sends it: five headers besides the signer's, a body of 1 KiB, with and
without a session token of the usual size. Peers:

- ``aiosmrt``: ``Signer.sign_lines`` plus the hash of the body, which botocore's call includes.
- ``aiosmrt, steps``: the pure functions without any cache, as a verifying server calls them.
- ``botocore``: ``SigV4Auth.add_auth`` on one existing request, so that building requests is not counted.

Before timing, every peer must produce the same signature. Rounds are interleaved, so that a slow spell of the machine
affects all peers alike; the report has the median of the rounds' means.

    python benchmarks/signing.py [--rounds 15] [--json signing.json]
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import botocore
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotocoreCredentials

from aiosmrt import __version__
from aiosmrt._wire.sigv4 import canonical
from aiosmrt._wire.sigv4.signer import Credentials, SignedRequest, Signer

REGION = "eu-central-1"
HOST = f"runtime.sagemaker.{REGION}.amazonaws.com"
PATH = "/endpoints/churn-prediction-production/invocations"
BODY = bytes(range(256)) * 4
HEADERS = [
    ("Content-Type", "application/json"),
    ("Accept", "application/json"),
    ("X-Amzn-SageMaker-Custom-Attributes", "trace=7f3a; tenant=42"),
    ("amz-sdk-invocation-id", "0f8fad5b-d9cb-469f-a165-70867728950e"),
    ("amz-sdk-request", "attempt=1; max=3"),
]
SCENARIOS = {
    "long-lived credentials": None,
    "session token of 900 characters": "not-a-real-token" * 56 + "abcd",
}


def peers(token: str | None) -> dict[str, Callable[[float], str]]:
    """Return the functions to time: each takes a time in epoch seconds and returns an Authorization header."""
    keys = Credentials("AKIDEXAMPLE", "not-a-real-secret", token)
    signer = Signer(region=REGION)
    request_to_sign = SignedRequest("POST", HOST, PATH, "", tuple(HEADERS))

    def cached(timestamp: float) -> str:
        payload = sha256(BODY).hexdigest()
        lines = signer.sign_lines(keys, timestamp, request_to_sign, payload)
        return lines[lines.index("Authorization: ") + 15 : -2]

    def steps(timestamp: float) -> str:
        date = canonical.amz_date(timestamp)
        scope = canonical.credential_scope(date[:8], REGION, "sagemaker")
        headers = [("host", HOST), ("x-amz-date", date), *HEADERS]
        if token:
            headers.append(("x-amz-security-token", token))
        text = canonical.canonical_request("POST", PATH, "", headers, sha256(BODY).hexdigest())
        key = canonical.signing_key(keys.secret_key, date[:8], REGION, "sagemaker")
        names = text.split("\n")[-2]
        signed = canonical.signature(key, canonical.string_to_sign(date, scope, text))
        return f"{canonical.ALGORITHM} Credential={keys.access_key}/{scope}, SignedHeaders={names}, Signature={signed}"

    auth = SigV4Auth(BotocoreCredentials(keys.access_key, keys.secret_key, token), "sagemaker", REGION)
    request = AWSRequest("POST", f"https://{HOST}{PATH}", headers=dict(HEADERS), data=BODY)

    def botocores(timestamp: float) -> str:
        auth.add_auth(request)
        return str(request.headers["Authorization"])

    return {"aiosmrt": cached, "aiosmrt, steps": steps, "botocore": botocores}


def check(candidates: dict[str, Callable[[float], str]]) -> None:
    """Check that all peers sign alike; botocore reads the clock itself, so retry when a second ends in between."""
    for _ in range(5):
        now = time.time()
        if len({sign(now) for sign in candidates.values()}) == 1:
            return
    sys.exit("the peers produce different signatures")


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Return the median seconds per signature, by scenario and peer."""
    result = {}
    for scenario, token in SCENARIOS.items():
        candidates = peers(token)
        check(candidates)
        timings: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(rounds):
            for name, sign in candidates.items():
                calls = 200 if name == "botocore" else 2000
                start = time.perf_counter()
                for _ in range(calls):
                    sign(time.time())
                timings[name].append((time.perf_counter() - start) / calls)
        result[scenario] = {name: statistics.median(values) for name, values in timings.items()}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Time one signature against botocore's.")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds per scenario (default 15)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()

    seconds = measure(arguments.rounds)
    print(f"Python {platform.python_version()}, botocore {botocore.__version__}, aiosmrt {__version__}")
    for scenario, by_peer in seconds.items():
        print(f"\n{scenario:<36}{'µs/signature':>14}{'botocore is':>16}")
        for name, value in by_peer.items():
            print(f"  {name:<34}{value * 1e6:>14.2f}{by_peer['botocore'] / value:>15.1f}x")
    if arguments.json:
        document = {
            "benchmark": "signing",
            "python": platform.python_version(),
            "machine": platform.machine(),
            "versions": {"botocore": botocore.__version__, "aiosmrt": __version__},
            "rounds": arguments.rounds,
            "seconds_per_signature": seconds,
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
