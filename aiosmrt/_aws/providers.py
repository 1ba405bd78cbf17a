"""Where credentials come from: arguments, a given object or function, the environment, or botocore's chain.

Each provider has two ways to answer. ``peek`` answers from memory: it neither waits nor imports more of botocore.
``fetch`` may read files, start processes and call services. Which sources there are, their order and their rules are
botocore's (``botocore.credentials``); whatever takes more than a dictionary look-up is left to botocore, in a daemon
thread, so that neither its imports nor its file reading delays a call.

botocore's credentials objects know when they expire and how to renew themselves. Such an object is kept and asked again
with ``get_frozen_credentials`` when it is due. Only its private ``_expiry_time`` is read besides.
"""

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from aiosmrt import errors
from aiosmrt._aws.settings import configured_authorities
from aiosmrt._aws.shared_config import load_shared_config, selected_profile
from aiosmrt._aws.tls import fault_for_botocore
from aiosmrt._daemon import run_in_daemon_thread
from aiosmrt._one_process import OneProcess
from aiosmrt._wire.sigv4.signer import Credentials

if TYPE_CHECKING:
    from aiosmrt._aws.lookup import LookUp

__all__ = [
    "CredentialsFunction",
    "Found",
    "FrozenCredentialsSource",
    "Provider",
    "provider_for",
]

# Seconds after which a given object is asked again that may renew itself and does not say when.
REASK_INTERVAL = 60.0

# What a source may raise that is passed on as it is. Any other error of ours would be taken for the call's.
_SAID = (errors.ConfigurationError, errors.ClientStateError)

# of the threads in which credentials are looked up
_THREAD = "aiosmrt-credentials"

_TOKEN_KEYS = ("aws_security_token", "aws_session_token")
# With one of these in a profile, something else may take precedence over its static keys.
_INDIRECT_KEYS = frozenset({"role_arn", "source_profile", "credential_source", "web_identity_token_file"})
_INDIRECT_PREFIX = "sso_"


class Found(NamedTuple):
    """An answer.

    Attributes:
        credentials: the credentials.
        source: botocore's name for the source.
        reask_after: seconds after which to ask again although nothing expires, if any.
    """

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
        """Answer from memory; None if only ``fetch`` can tell."""
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
        profile_name: a profile; if given, environment variables are ignored, as in botocore.
        region_name: the region of services that provide credentials. Defaults to the configured one.

    Raises:
        PartialCredentialsError: one key came without the other.
        ParamValidationError: ``credentials`` is of another type, or keys were given as well.

    >>> provider_for(access_key="AKIDEXAMPLE", secret_key="not-a-real-secret").peek().source
    'explicit'
    """
    if access_key is not None or secret_key is not None:
        if not access_key or not secret_key:
            raise partial_error("explicit", "aws_secret_access_key" if access_key else "aws_access_key_id")
        if credentials is not None:
            raise errors.ParamValidationError(["credentials and aws_access_key_id cannot both be given"])
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


class _Fixed(OneProcess):
    def __init__(self, credentials: Credentials) -> None:
        self._found = Found(credentials, "explicit")

    def peek(self) -> Found:
        return self._found

    async def fetch(self) -> Found:
        return self._found


class _Function(OneProcess):
    def __init__(self, function: CredentialsFunction) -> None:
        self._function = function

    def peek(self) -> None:
        return None

    async def fetch(self) -> Found:
        name = "the credentials function"
        try:
            asked: Any = self._function()
            is_async = inspect.isawaitable(asked)
            answer = await asked if is_async else asked
        except _SAID:
            raise
        except Exception as error:
            # Its text may contain anything, so it is left to the cause.
            raise retrieval_error(name, type(error).__name__, error) from error
        if not is_async:
            raise retrieval_error(name, f"it must be async; it returned {type(answer).__name__}")
        if isinstance(answer, FrozenCredentialsSource):
            return await _Given(answer).fetch()
        # Frozen ones of botocore do not say when they expire.
        return Found(_thaw(answer, name), "function", None if isinstance(answer, Credentials) else REASK_INTERVAL)


class _Given(OneProcess):
    """A credentials object that belongs to the caller, with the locks and connections in it."""

    def __init__(self, source: FrozenCredentialsSource) -> None:
        self._source = source
        self._name = str(getattr(source, "method", None) or type(source).__name__)

    def peek(self) -> None:
        return None

    async def fetch(self) -> Found:
        get = self._source.get_frozen_credentials
        frozen: Any
        try:
            # A plain one may renew itself, which blocks.
            frozen = await (get() if inspect.iscoroutinefunction(get) else self._in_thread(get))
            if inspect.isawaitable(frozen):
                frozen = await frozen
        except _SAID:
            raise
        except Exception as error:
            failure = translated(error, self._name)
        else:
            credentials = _thaw(frozen, self._name, _expires_at(self._source))
            return Found(credentials, self._name, None if credentials.expires_at is not None else REASK_INTERVAL)
        raise failure

    async def _in_thread(self, get: Callable[[], Any]) -> Any:
        if self._name != "assume-role":
            return await run_in_daemon_thread(get, _THREAD)
        # It may ask for an MFA code.
        from aiosmrt._aws.lookup import LookUp

        look_up = LookUp()

        def ask() -> Any:
            with look_up.prompting():
                return get()

        try:
            return await run_in_daemon_thread(ask, _THREAD)
        except asyncio.CancelledError:
            look_up.abandon()
            raise


class _DefaultChain(OneProcess):
    """Environment variables, then the configuration files, containers and instances."""

    def __init__(self, profile_name: str | None, region_name: str | None) -> None:
        self._profile_name = profile_name
        self._region_name = region_name
        self._source: Any = None

    def peek(self) -> Found | None:
        if self._profile_name is not None or self._source is not None:
            return None
        return environment_credentials(os.environ)

    async def fetch(self) -> Found:
        # used by this provider alone
        from aiosmrt._aws.lookup import LookUp

        look_up = LookUp()
        try:
            return await run_in_daemon_thread(partial(self._fetch, look_up), _THREAD)
        except asyncio.CancelledError:
            look_up.abandon()
            raise

    def _fetch(self, look_up: "LookUp") -> Found:
        try:
            if self._source is None:
                if (found := profile_keys(self._profile_name)) is not None:
                    return found
                self._source = self._resolve(look_up)
            source = self._source
            frozen = None if source is None else source.get_frozen_credentials()
        except errors.AiosmrtError:
            raise
        except Exception as error:
            failure = translated(
                error,
                getattr(self._source, "method", "the default chain"),
                authorities_fault(error, self._profile_name),
            )
        else:
            if source is None:
                raise errors.NoCredentialsError("Unable to locate credentials")
            return Found(_thaw(frozen, source.method, _expires_at(source)), str(source.method))
        # Raised out here: a parser's error may have what it read in its attributes.
        raise failure

    def _resolve(self, look_up: "LookUp") -> Any:
        from botocore.session import Session

        session = Session(profile=self._profile_name)
        # botocore does not read AWS_REGION.
        region_name = self._region_name or (os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION"))
        if region_name:
            session.set_config_variable("region", region_name)
        chain = session.get_component("credential_provider")
        # Both are arguments of the providers, which the session makes by itself.
        chain.get_provider("assume-role")._prompter = look_up.ask
        chain.get_provider("custom-process")._popen = look_up.start_process
        return chain.load_credentials()


def environment_credentials(environ: Mapping[str, str]) -> Found | None:
    """Read credentials from environment variables; None if ``AWS_ACCESS_KEY_ID`` is unset or empty.

    Args:
        environ: the variables.

    Raises:
        PartialCredentialsError: ``AWS_SECRET_ACCESS_KEY`` is unset or empty.
        CredentialRetrievalError: ``AWS_CREDENTIAL_EXPIRATION`` is not a time.

    Source: botocore.credentials.EnvProvider.

    >>> environment_credentials({"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "not-real"}).source
    'env'
    """
    access_key = environ.get("AWS_ACCESS_KEY_ID")
    if not access_key:
        return None
    secret_key = environ.get("AWS_SECRET_ACCESS_KEY")
    if not secret_key:
        raise partial_error("env", "AWS_SECRET_ACCESS_KEY")
    token = environ.get("AWS_SECURITY_TOKEN") or environ.get("AWS_SESSION_TOKEN")
    expires_at = None
    if expiration := environ.get("AWS_CREDENTIAL_EXPIRATION"):
        expires_at = _time_of(expiration.strip())
        if expires_at is None:
            raise retrieval_error(
                "env", "AWS_CREDENTIAL_EXPIRATION is not a time, such as one in ISO 8601", ValueError()
            )
    return Found(_build("env", access_key, secret_key, token, expires_at), "env")


def profile_keys(profile_name: str | None) -> Found | None:
    """Read a profile's static keys; None if it lacks them or another source may take precedence.

    Args:
        profile_name: the profile. Defaults to the environment's, then ``default``.

    Raises:
        ProfileNotFoundError: the profile does not exist.
        ConfigFileError: a file cannot be parsed.
        PartialCredentialsError: there is an access key without a secret key.

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
        raise partial_error(source, "aws_secret_access_key")
    token = next((keys[key] for key in _TOKEN_KEYS if key in keys), None)
    return Found(_build(source, keys["aws_access_key_id"], keys["aws_secret_access_key"], token), source)


def partial_error(source: str, missing: str) -> errors.PartialCredentialsError:
    """The error for one key without the other."""
    error = errors.PartialCredentialsError(f"Partial credentials found in {source}, missing: {missing}")
    error.kwargs = {"provider": source, "cred_var": missing}
    return error


def retrieval_error(source: str, reason: str, cause: Exception | None = None) -> errors.CredentialRetrievalError:
    """The error for a source that failed.

    Args:
        source: the source's name.
        reason: the failure.
        cause: the error behind it; ``except`` clauses for its class catch the result too, if it is botocore's or
            Python's own.
    """
    error = errors.credential_retrieval_error(f"Error when retrieving credentials from {source}: {reason}", cause)
    error.kwargs |= {"provider": source, "error_msg": reason}
    return error


def authorities_fault(error: Exception, profile_name: str | None) -> str | None:
    """What is wrong with the configured authorities, if that can be why botocore's TLS has failed; reads files.

    Args:
        error: botocore's error.
        profile_name: the profile. Defaults to the environment's, then ``default``.
    """
    from botocore.exceptions import SSLError

    if not isinstance(error, SSLError) or (bundle := configured_authorities(profile_name)) is None:
        return None
    return fault_for_botocore(bundle)


def translated(error: Exception, source: str, reason: str | None = None) -> errors.AiosmrtError:
    """Our error for one that botocore or aiobotocore raised.

    Args:
        error: the error.
        source: the name of the credentials' source.
        reason: what is behind the error, if more is known than its own text.

    Only botocore's own messages are repeated, and only its own errors become the cause: a parser's quote what was read,
    or carry it as attributes. botocore's messages contain no secrets, except that they include what a credential
    process writes to its standard error; AWS tells authors of such programs to write no secrets there.
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
        failure = retrieval_error(source, reason or f"{type(error).__name__}: {error}", error)
        failure.__cause__ = _without_frames(error)
        return failure
    elif isinstance(error, OSError) or type(error) is RuntimeError:
        # A program or file that does not exist; "credentials were refreshed, but … are still expired".
        failure = retrieval_error(source, str(error) or type(error).__name__, error)
        failure.__cause__ = _without_frames(error)
        return failure
    else:
        return retrieval_error(source, type(error).__name__, error)
    failure.kwargs = error.kwargs
    failure.__cause__ = _without_frames(error)
    return failure


def _without_frames(error: Exception) -> Exception:
    """Drop the tracebacks of an error and of those behind it: botocore's frames have keys and signatures in them."""
    link: BaseException | None = error
    while link is not None and link.__traceback__ is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def _thaw(frozen: Any, source: str, expires_at: float | None = None) -> Credentials:
    if isinstance(frozen, Credentials):
        return frozen
    access_key, secret_key = getattr(frozen, "access_key", None), getattr(frozen, "secret_key", None)
    if not isinstance(access_key, str) or not isinstance(secret_key, str):
        raise retrieval_error(source, f"the answer contains no keys ({type(frozen).__name__})")
    return _build(source, access_key, secret_key, getattr(frozen, "token", None), expires_at)


def _build(
    source: str, access_key: str, secret_key: str, token: str | None, expires_at: float | None = None
) -> Credentials:
    try:
        return Credentials(access_key, secret_key, token or None, expires_at)
    except ValueError as error:
        reason = str(error)
    # error trackers report locals
    del access_key, secret_key, token
    raise retrieval_error(source, reason)


def _expires_at(source: object) -> float | None:
    expiry = getattr(source, "_expiry_time", None)
    return _timestamp(expiry) if isinstance(expiry, datetime) else None


def _time_of(text: str) -> float | None:
    """A time in seconds since 1970; None if the text is not a time."""
    try:
        return _timestamp(datetime.fromisoformat(text))
    except ValueError:
        # botocore's parser, which knows more forms
        from dateutil.parser import parse  # type: ignore[import-untyped]

        try:
            return _timestamp(parse(text))
        except (ValueError, OverflowError):
            return None


def _timestamp(moment: datetime) -> float:
    # AWS writes times in UTC; some programs drop the Z.
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
