"""Where credentials come from: arguments, a given object or function, the environment, or aiobotocore's chain.

Every provider has two ways to answer. ``peek`` is for what is at hand: it neither waits nor loads anything of
botocore. ``fetch`` may read files, start processes and ask services. Which sources there are, their order and their
rules are botocore's (``botocore.credentials``); what needs more than a dictionary lookup is left to aiobotocore, on
a private event loop, so that neither its imports nor its file reading ever holds up a call.

botocore's credentials objects know when they expire and how to renew themselves. Such an object is kept, and asked
again with ``get_frozen_credentials`` when the time comes; all that is read of it beyond that is ``_expiry_time``,
for which there is no public name.
"""

import inspect
import os
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from aiosmrt import errors
from aiosmrt._aws.shared_config import load_shared_config, selected_profile
from aiosmrt._wire.sigv4.signer import Credentials

__all__ = [
    "CredentialsFunction",
    "Found",
    "FrozenCredentialsSource",
    "Provider",
    "provider_for",
]

# Some given objects renew themselves but do not say when. They are asked again this often, in seconds.
REASK_INTERVAL = 60.0

_TOKEN_KEYS = ("aws_security_token", "aws_session_token")
# With one of these in a profile, something other than its static keys may come first.
_INDIRECT_KEYS = frozenset({"role_arn", "source_profile", "credential_source", "web_identity_token_file"})
_INDIRECT_PREFIX = "sso_"


class Found(NamedTuple):
    """An answer: the credentials, botocore's name for the source, and when to ask again although nothing expires."""

    credentials: Credentials
    source: str
    reask_after: float | None = None


@runtime_checkable
class FrozenCredentialsSource(Protocol):
    """A credentials object of boto3, botocore or aiobotocore: ``get_frozen_credentials``, plain or async."""

    def get_frozen_credentials(self) -> Any: ...


CredentialsFunction: TypeAlias = Callable[[], Awaitable[Credentials]]


class Provider(Protocol):
    """A source of credentials."""

    def peek(self) -> Found | None:
        """Answer at once from what is at hand; None means to ``fetch``."""
        ...

    async def fetch(self) -> Found:
        """Obtain credentials, or renew them."""
        ...


def provider_for(
    *,
    access_key: str | None = None,
    secret_key: str | None = None,
    session_token: str | None = None,
    credentials: Credentials | FrozenCredentialsSource | CredentialsFunction | None = None,
    profile_name: str | None = None,
    region_name: str | None = None,
) -> Provider:
    """Choose the provider for a client's arguments.

    Args:
        access_key: an access key id; wins over everything else, as in botocore, and needs ``secret_key``.
        secret_key: its secret key.
        session_token: the session token of temporary keys; ignored without keys, as in botocore.
        credentials: Credentials, a credentials object of botocore or aiobotocore, or an async function.
        profile_name: a profile; given explicitly, environment variables are not looked at, as in botocore.
        region_name: the region for calls that credentials are obtained with; None takes the configured one.

    Raises:
        PartialCredentialsError: one key came without the other.
        ParamValidationError: ``credentials`` is none of the above, or keys were given as well.

    >>> provider_for(access_key="AKIDEXAMPLE", secret_key="not-a-real-secret").peek().source
    'explicit'
    """
    if access_key is not None or secret_key is not None:
        if not access_key or not secret_key:
            raise partial("explicit", "aws_secret_access_key" if access_key else "aws_access_key_id")
        if credentials is not None:
            raise errors.ParamValidationError(["credentials and aws_access_key_id exclude each other"])
        return _Fixed(_build("explicit", access_key, secret_key, session_token))
    if credentials is None:
        return _DefaultChain(profile_name, region_name)
    if isinstance(credentials, Credentials):
        return _Fixed(credentials)
    if isinstance(credentials, FrozenCredentialsSource):
        return _Given(credentials)
    if callable(credentials):
        return _Function(credentials)
    raise errors.ParamValidationError(
        [f"credentials must be Credentials, a botocore object or an async function; got {type(credentials).__name__}"]
    )


class _Fixed:
    def __init__(self, credentials: Credentials) -> None:
        self._found = Found(credentials, "explicit")

    def peek(self) -> Found:
        return self._found

    async def fetch(self) -> Found:
        return self._found


class _Function:
    def __init__(self, function: CredentialsFunction) -> None:
        self._function = function

    def peek(self) -> None:
        return None

    async def fetch(self) -> Found:
        try:
            answer: object = await self._function()
        except errors.AiosmrtError:
            raise
        except Exception as error:
            # Its text is not ours to repeat; whoever wrote the function finds it in the cause.
            raise retrieval_error("the credentials function", type(error).__name__) from error
        return Found(answer if isinstance(answer, Credentials) else _thaw(answer, "function"), "function")


class _Given:
    """A credentials object that belongs to the caller, and so do the locks and connections in it."""

    def __init__(self, source: FrozenCredentialsSource) -> None:
        self._source = source
        self._name = str(getattr(source, "method", None) or type(source).__name__)

    def peek(self) -> None:
        return None

    async def fetch(self) -> Found:
        get = self._source.get_frozen_credentials
        frozen: Any
        try:
            if inspect.iscoroutinefunction(get):
                frozen = await get()
            else:
                # It may renew itself meanwhile, which blocks.
                from aiosmrt._aws.private_loop import run_on_private_loop

                frozen = await run_on_private_loop(_awaitable(get))
                if inspect.isawaitable(frozen):
                    frozen = await frozen
        except errors.AiosmrtError:
            raise
        except Exception as error:
            failure = translated(error, self._name)
        else:
            credentials = _thaw(frozen, self._name, _expires_at(self._source))
            return Found(credentials, self._name, None if credentials.expires_at is not None else REASK_INTERVAL)
        raise failure


def _awaitable(function: Callable[[], Any]) -> Callable[[], Awaitable[Any]]:
    async def call() -> Any:
        return function()

    return call


class _DefaultChain:
    """Environment variables, then what the configuration files, containers and instances offer."""

    def __init__(self, profile_name: str | None, region_name: str | None) -> None:
        self._profile_name = profile_name
        self._region_name = region_name
        self._source: Any = None

    def peek(self) -> Found | None:
        if self._profile_name is not None or self._source is not None:
            return None
        return environment_credentials(os.environ)

    async def fetch(self) -> Found:
        from aiosmrt._aws.private_loop import run_on_private_loop

        # Sessions and clients live on a loop that ends with the work; the credentials object holds none of them.
        return await run_on_private_loop(self._fetch)

    async def _fetch(self) -> Found:
        try:
            if self._source is None:
                if (found := profile_keys(self._profile_name)) is not None:
                    return found
                self._source = await self._resolve()
            source = self._source
            frozen = None if source is None else await source.get_frozen_credentials()
        except errors.AiosmrtError:
            raise
        except Exception as error:
            failure = translated(error, getattr(self._source, "method", "the default chain"))
        else:
            if source is None:
                raise errors.NoCredentialsError("Unable to locate credentials")
            return Found(_thaw(frozen, source.method, _expires_at(source)), str(source.method))
        # Raised out here: what a parser stumbled over may be in the attributes of its error.
        raise failure

    async def _resolve(self) -> Any:
        from aiobotocore.session import AioSession

        session = AioSession(profile=self._profile_name)
        # botocore does not know AWS_REGION.
        region_name = self._region_name or (os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION"))
        if region_name:
            session.set_config_variable("region", region_name)
        return await session.get_credentials()


def environment_credentials(environ: Mapping[str, str]) -> Found | None:
    """Read credentials from environment variables; None when ``AWS_ACCESS_KEY_ID`` is unset or empty.

    Args:
        environ: the variables.

    Raises:
        PartialCredentialsError: ``AWS_SECRET_ACCESS_KEY`` is unset or empty.
        CredentialRetrievalError: ``AWS_CREDENTIAL_EXPIRATION`` is no ISO 8601 time.

    Source: botocore.credentials.EnvProvider.

    >>> environment_credentials({"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "not-real"}).source
    'env'
    """
    access_key = environ.get("AWS_ACCESS_KEY_ID")
    if not access_key:
        return None
    secret_key = environ.get("AWS_SECRET_ACCESS_KEY")
    if not secret_key:
        raise partial("env", "AWS_SECRET_ACCESS_KEY")
    token = environ.get("AWS_SECURITY_TOKEN") or environ.get("AWS_SESSION_TOKEN")
    expires_at = None
    if expiration := environ.get("AWS_CREDENTIAL_EXPIRATION"):
        try:
            expires_at = _timestamp(datetime.fromisoformat(expiration.strip()))
        except ValueError:
            raise retrieval_error("env", "AWS_CREDENTIAL_EXPIRATION is no ISO 8601 time") from None
    return Found(_build("env", access_key, secret_key, token, expires_at), "env")


def profile_keys(profile_name: str | None) -> Found | None:
    """Read a profile's own static keys; None when anything else might have precedence, or there are none.

    Args:
        profile_name: the profile named by the caller; None takes the environment's, then ``default``.

    Raises:
        ProfileNotFoundError: the profile does not exist.
        ConfigFileError: a file cannot be parsed.
        PartialCredentialsError: there is an access key and no secret key.

    Source: the order of providers in botocore.credentials.create_credential_resolver.

    >>> profile_keys(None) is None or profile_keys(None).source
    True
    """
    shared = load_shared_config()
    name = selected_profile(profile_name)
    profile = shared.profile(name)
    if not _INDIRECT_KEYS.isdisjoint(profile) or any(key.startswith(_INDIRECT_PREFIX) for key in profile):
        return None
    if profile_name is None and os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        return None
    name = name or "default"
    keys, source = shared.credentials_profiles.get(name, {}), "shared-credentials-file"
    if "aws_access_key_id" not in keys:
        if "login_session" in profile or "credential_process" in profile:
            return None
        keys, source = shared.config_profiles.get(name, {}), "config-file"
    if "aws_access_key_id" not in keys:
        return None
    if not keys.get("aws_secret_access_key"):
        raise partial(source, "aws_secret_access_key")
    token = next((keys[key] for key in _TOKEN_KEYS if key in keys), None)
    return Found(_build(source, keys["aws_access_key_id"], keys["aws_secret_access_key"], token), source)


def partial(source: str, missing: str) -> errors.PartialCredentialsError:
    """The error for a key without its counterpart."""
    error = errors.PartialCredentialsError(f"Partial credentials found in {source}, missing: {missing}")
    error.kwargs = {"provider": source, "cred_var": missing}
    return error


def retrieval_error(source: str, reason: str) -> errors.CredentialRetrievalError:
    """The error for a source that did not deliver."""
    error = errors.CredentialRetrievalError(f"Error when retrieving credentials from {source}: {reason}")
    error.kwargs = {"provider": source, "error_msg": reason}
    return error


def translated(error: Exception, source: str) -> errors.AiosmrtError:
    """Our error for one that botocore or aiobotocore raised.

    Only botocore's own messages are repeated, and only its own errors become the cause: those of parsers quote, or
    carry as attributes, what was read. botocore puts no secret into its messages, except that a credential process's
    standard error is in them; AWS tells authors of such processes to keep secrets out of it.
    """
    from botocore import exceptions as boto

    failure: errors.AiosmrtError
    if isinstance(error, boto.ProfileNotFound):
        failure = errors.ProfileNotFoundError(str(error))
    elif isinstance(error, boto.PartialCredentialsError):
        failure = errors.PartialCredentialsError(str(error))
    elif isinstance(error, boto.NoCredentialsError):
        failure = errors.NoCredentialsError(str(error))
    elif isinstance(error, boto.ConfigParseError):
        return errors.ConfigFileError(str(error))
    elif isinstance(error, boto.CredentialRetrievalError):
        failure = errors.CredentialRetrievalError(str(error))
    elif isinstance(error, boto.BotoCoreError | boto.ClientError):
        failure = retrieval_error(source, f"{type(error).__name__}: {error}")
        failure.__cause__ = error
        return failure
    elif isinstance(error, OSError) or type(error) is RuntimeError:
        # A program or file that is not there; "credentials were refreshed, but … are still expired".
        failure = retrieval_error(source, str(error) or type(error).__name__)
        failure.__cause__ = error
        return failure
    else:
        return retrieval_error(source, type(error).__name__)
    failure.kwargs = error.kwargs
    failure.__cause__ = error
    return failure


def _thaw(frozen: Any, source: str, expires_at: float | None = None) -> Credentials:
    access_key, secret_key = getattr(frozen, "access_key", None), getattr(frozen, "secret_key", None)
    if not isinstance(access_key, str) or not isinstance(secret_key, str):
        raise retrieval_error(source, f"it answered with no keys ({type(frozen).__name__})")
    return _build(source, access_key, secret_key, getattr(frozen, "token", None), expires_at)


def _build(
    source: str, access_key: str, secret_key: str, token: str | None, expires_at: float | None = None
) -> Credentials:
    try:
        return Credentials(access_key, secret_key, token or None, expires_at)
    except ValueError as error:
        raise retrieval_error(source, str(error)) from None


def _expires_at(source: object) -> float | None:
    expiry = getattr(source, "_expiry_time", None)
    return _timestamp(expiry) if isinstance(expiry, datetime) else None


def _timestamp(moment: datetime) -> float:
    # AWS writes times in UTC, with a Z that some programs drop.
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
