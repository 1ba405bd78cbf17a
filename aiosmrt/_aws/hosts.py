"""Where requests go and what region they are signed for: AWS's endpoint rules for SageMaker Runtime.

botocore ships the rule set of the service and AWS's partitions with their regions as data. They are evaluated once per
client with the inputs of a botocore client (region, FIPS, dual-stack): by ``endpoint_rules``, or by botocore if the
rules need more than that or the user has added data to botocore's. A custom endpoint needs no rules: as in botocore's
clients, it is called regardless of the other options.
"""

import ipaddress
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

import botocore

from aiosmrt._wire.http1 import DEFAULT_PORTS
from aiosmrt._wire.operations import API_VERSION, SIGNING_NAME
from aiosmrt.errors import EndpointResolutionError

if TYPE_CHECKING:
    from aiosmrt._aws.endpoint_rules import RuleEndpoint

__all__ = ["HTTP2_PORT", "ResolvedEndpoint", "http2_endpoint", "partition_of", "resolve_endpoint"]

SERVICE_NAME = "sagemaker-runtime"

# Labels as in botocore.utils.is_valid_endpoint_url, plus underscores: service names on container networks have them.
_HOST_NAME = re.compile(r"(?:(?!-)[a-z0-9_-]{1,63}(?<!-)\.)*(?!-)[a-z0-9_-]{1,63}(?<!-)\.?")
_MAX_HOST_NAME = 255


class ResolvedEndpoint(NamedTuple):
    """Where requests go and how they are signed.

    Attributes:
        url: scheme, host, port and, for a custom endpoint, its path; without a trailing slash.
        host: the Host header: lower case, with the port unless it is the scheme's default.
        signing_region: the region in the signature's scope; None is allowed for unsigned calls.
        signing_name: the service in the signature's scope.

    >>> ResolvedEndpoint("http://127.0.0.1:8080/v1", "127.0.0.1:8080", "eu-west-1").path
    '/v1'
    """

    url: str
    host: str
    signing_region: str | None
    signing_name: str = SIGNING_NAME

    @property
    def path(self) -> str:
        """The path before each operation's; empty for the service's own endpoints."""
        return urlsplit(self.url).path


def resolve_endpoint(
    region: str | None,
    *,
    use_fips: bool = False,
    use_dualstack: bool = False,
    endpoint_url: str | None = None,
) -> ResolvedEndpoint:
    """Resolve the endpoint that botocore's client for ``sagemaker-runtime`` would call; reads files.

    Args:
        region: the region; a FIPS pseudo-region such as ``fips-us-east-1`` stands for its region and ``use_fips``.
        use_fips: whether to call the FIPS endpoint; ignored for a custom endpoint.
        use_dualstack: whether to call the endpoint that also supports IPv6; ignored for a custom endpoint.
        endpoint_url: a custom endpoint (http or https, with or without a path). Defaults to the service's own.

    Raises:
        EndpointResolutionError: the rules do not allow the combination, such as dual-stack in a partition without it,
            or ``endpoint_url`` is not a valid URL.

    Source: the rule set ``endpoint-rule-set-1`` of sagemaker-runtime in the installed botocore, and
    ``ClientArgsCreator.compute_endpoint_resolver_builtin_defaults`` in botocore.args.

    >>> resolve_endpoint("eu-central-1").url
    'https://runtime.sagemaker.eu-central-1.amazonaws.com'
    >>> resolve_endpoint("us-east-1-fips").host
    'runtime-fips.sagemaker.us-east-1.amazonaws.com'
    >>> resolve_endpoint("eu-central-1", endpoint_url="http://LOCALHOST:8080/").url
    'http://localhost:8080'
    """
    if region is not None:
        normal = region.replace("fips-", "").replace("-fips", "")
        use_fips = use_fips or normal != region
        region = normal
    if endpoint_url is not None:
        url, host = _checked(endpoint_url)
        return ResolvedEndpoint(url, host, region)
    evaluated = _evaluate(region, use_fips, use_dualstack)
    url, host = _checked(evaluated.url)
    for scheme in evaluated.properties.get("authSchemes", ()):
        if scheme.get("name") == "sigv4":
            signing_region = scheme.get("signingRegion", region)
            return ResolvedEndpoint(url, host, signing_region, scheme.get("signingName", SIGNING_NAME))
    return ResolvedEndpoint(url, host, region)


HTTP2_PORT: Final = 8443


def http2_endpoint(endpoint: ResolvedEndpoint, http2_url: str | None) -> ResolvedEndpoint:
    """Where bidirectional streams go: the service's host at port 8443, or a custom endpoint.

    Args:
        endpoint: where the other requests go.
        http2_url: a custom endpoint (https, or http for HTTP/2 without TLS). If None, the host of the others.

    Raises:
        EndpointResolutionError: the URL is not valid, or the others' endpoint names its port, which says nothing
            about that of HTTP/2.

    >>> http2_endpoint(resolve_endpoint("eu-central-1"), None).url
    'https://runtime.sagemaker.eu-central-1.amazonaws.com:8443'
    """
    if http2_url is None:
        parts = urlsplit(endpoint.url)
        if parts.port is not None:
            raise EndpointResolutionError(
                "http2_endpoint_url is needed for bidirectional streams, because endpoint_url names a port"
            )
        http2_url = f"https://{parts.netloc}:{HTTP2_PORT}{parts.path}"
    url, host = _checked(http2_url)
    return endpoint._replace(url=url, host=host)


def partition_of(region: str | None) -> str:
    """The partition of a region, as botocore's ``client.meta.partition`` has it; reads a file.

    Args:
        region: the region. Without one the partition is ``"aws"``, as for a region that no partition knows.

    >>> partition_of("eu-central-1"), partition_of("cn-north-1")
    ('aws', 'aws-cn')
    """
    from aiosmrt._aws.endpoint_rules import partition_name

    partitions = None if _has_own_data() else _bundled("partitions")
    if partitions is None:
        from botocore.loaders import create_loader

        partitions = create_loader(os.environ.get("AWS_DATA_PATH")).load_data("partitions")
    return partition_name(region, partitions["partitions"])


def _evaluate(region: str | None, use_fips: bool, use_dualstack: bool) -> "RuleEndpoint":
    # a custom endpoint needs no rules
    from aiosmrt._aws.endpoint_rules import UnsupportedRuleError, evaluate_rules

    parameters = {"Region": region, "UseFIPS": use_fips, "UseDualStack": use_dualstack}
    if not _has_own_data():
        rules, partitions = _bundled(f"{SERVICE_NAME}/{API_VERSION}/endpoint-rule-set-1"), _bundled("partitions")
        if rules is not None and partitions is not None:
            try:
                return evaluate_rules(rules, partitions, parameters)
            except UnsupportedRuleError:
                pass  # a rule set newer than this package
    return _ask_botocore({name: value for name, value in parameters.items() if value is not None})


def _has_own_data() -> bool:
    return bool(os.environ.get("AWS_DATA_PATH")) or os.path.isdir(os.path.expanduser("~/.aws/models"))  # noqa: PTH111, PTH112


def _bundled(name: str) -> Any:
    """A data file of the botocore package; None if it is not a plain or gzipped file there."""
    path = Path(botocore.__file__).parent / "data" / f"{name}.json"
    try:
        if path.is_file():
            return json.loads(path.read_bytes())
        import gzip

        return json.loads(gzip.decompress(path.with_suffix(".json.gz").read_bytes()))
    except (OSError, ValueError):
        return None


def _ask_botocore(parameters: dict[str, Any]) -> "RuleEndpoint":
    from botocore.endpoint_provider import EndpointProvider
    from botocore.exceptions import EndpointProviderError
    from botocore.loaders import create_loader

    from aiosmrt._aws.endpoint_rules import RuleEndpoint

    loader = create_loader(os.environ.get("AWS_DATA_PATH"))
    rules = loader.load_service_model(SERVICE_NAME, "endpoint-rule-set-1", API_VERSION)
    try:
        found = EndpointProvider(rules, loader.load_data("partitions")).resolve_endpoint(**parameters)
    except EndpointProviderError as error:
        raise EndpointResolutionError(str(error)) from error
    return RuleEndpoint(found.url, found.properties)


def _checked(url: str) -> tuple[str, str]:
    """The URL in normal form and its Host header."""
    # urlsplit drops tabs and line breaks silently, and the path goes into signatures as it is.
    if not url.isascii() or not url.isprintable() or " " in url:
        raise _invalid("it contains white space, control characters or non-ASCII characters")
    split = _split(url)
    if split is None:
        raise _invalid("its host or port is malformed")
    parts, host, port = split
    if parts.scheme not in DEFAULT_PORTS:
        raise _invalid("its scheme must be http or https")
    if not host:
        raise _invalid("its host name is missing or malformed")
    if "@" in parts.netloc:
        raise _invalid("it must not contain a user name or password")
    if parts.query or parts.fragment:
        raise _invalid("it must not contain a query or a fragment")
    if port is not None and port != DEFAULT_PORTS[parts.scheme]:
        host = f"{host}:{port}"
    return f"{parts.scheme}://{host}{parts.path.rstrip('/')}", host


def _invalid(problem: str) -> EndpointResolutionError:
    # The URL is not quoted: it may contain a password.
    return EndpointResolutionError(f"Invalid endpoint URL: {problem}")


def _split(url: str) -> tuple[SplitResult, str, int | None] | None:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        if ":" in host:
            return parts, f"[{ipaddress.IPv6Address(host)}]", port
    except ValueError:
        return None
    if len(host) > _MAX_HOST_NAME or not _HOST_NAME.fullmatch(host):
        host = ""
    return parts, host, port
