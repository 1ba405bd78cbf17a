"""Checks a call's parameters against the service model and builds the head of its request.

Most calls of a program use the same endpoint, content type and variant, so checked heads are cached and found with one
dictionary look-up. Members that change from call to call (inference id, custom attributes, …) and members whose types
compare equal in Python (``60 == 60.0``) are checked each time. Patterns must match the whole value, although most of
the model's patterns are not anchored at the end. Control characters are refused, as they could start another header.
"""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from aiosmrt._wire.operations import Member, Operation
from aiosmrt.errors import ParameterNameError, ParameterTypeError, ParamValidationError

__all__ = ["Head", "HeadBuilder", "full_pattern"]

# More combinations of endpoint, variant, content type, … than programs use; bounds memory if names are generated.
MAX_HEADS = 1024

# Members that usually differ from call to call.
_VARYING = frozenset({"CustomAttributes", "InferenceId", "SessionId", "PrefixAwareId", "InputLocation", "Filename"})

# C0, DEL, C1, and lone surrogates, which cannot be encoded; compiled when it is first needed, as that takes 0.5 ms.
_UNSENDABLE = "[\x00-\x1f\x7f-\x9f\ud800-\udfff]"

_MISSING = "Missing required parameter in input:"
_WRONG_TYPE = "Invalid type for parameter "

_NO_PARAMS: Mapping[str, Any] = MappingProxyType({})

# How many characters of an invalid value an error quotes.
_QUOTED = 80


class Head(NamedTuple):
    """The parameters of a request, except its body, as they are sent.

    Args:
        endpoint_name: the EndpointName.
        path: the request path, percent-encoded.
        headers: name and value of each header of the service model; they are signed.
        lasting: whether the same parameters yield this object again, so that it can be the key of a cache.
        component: the inference component's name, if the path has it.
    """

    endpoint_name: str
    path: str
    headers: tuple[tuple[str, str], ...]
    lasting: bool = True
    component: str | None = None


def full_pattern(pattern: str) -> re.Pattern[str]:
    r"""Compile a pattern of the service model, which uses Java's syntax, for ``fullmatch``.

    >>> bool(full_pattern(r"\A\S[\p{Print}]*\z").fullmatch("request 1"))
    True
    >>> bool(full_pattern(r"\p{ASCII}*").fullmatch("é"))
    False
    """
    pattern = pattern.removeprefix(r"\A").removesuffix(r"\z")
    pattern = pattern.replace(r"[\p{Print}]", r"[\x20-\x7e]").replace(r"\p{ASCII}", r"[\x00-\x7f]")
    return re.compile(pattern)


class HeadBuilder:
    """Builds and caches the request heads of one operation.

    Args:
        operation: the operation.

    >>> from aiosmrt._wire.operations import INVOKE_ENDPOINT
    >>> builder = HeadBuilder(INVOKE_ENDPOINT)
    >>> values = builder.values({"EndpointName": "churn", "ContentType": "text/csv"})
    >>> builder.head(values, b"1,2,3").path
    '/endpoints/churn/invocations'
    >>> builder.head(values, b"1,2,3").headers
    (('Content-Type', 'text/csv'),)
    """

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.members: tuple[Member, ...] = tuple(m for m in operation.members if m.location != "payload")
        self._body = next(m for m in operation.members if m.location == "payload")
        self._endpoint_name = next(i for i, m in enumerate(self.members) if m.name == "EndpointName")
        self._input_location = next((i for i, m in enumerate(self.members) if m.name == "InputLocation"), None)
        self._fresh = tuple(i for i, m in enumerate(self.members) if m.name in _VARYING or m.rule.type == "integer")
        self._patterns: dict[str, re.Pattern[str]] = {}
        self._heads: dict[tuple[Any, ...], Head] = {}

    def __repr__(self) -> str:
        return f"<HeadBuilder {self.operation.name} heads={len(self._heads)}>"

    def values(self, params: Mapping[str, Any]) -> tuple[Any, ...]:
        """The parameters without ``Body`` in the service model's order, with None for each that is missing."""
        # From a list, whose length is known. A tuple that grew is not reused by the interpreter's free lists.
        return tuple([params.get(member.name) for member in self.members])

    def _unknown(self, params: Mapping[str, Any]) -> list[str]:
        """An error message for each name that the operation does not have."""
        # Messages are sent after the call has begun, not passed as a parameter.
        known = [member.name for member in self.operation.members if member.rule.type != "stream"]
        return [
            f'Unknown parameter in input: "{_quote(name)}", must be one of: {", ".join(known)}'
            for name in params
            if name not in known
        ]

    def head(
        self,
        values: tuple[Any, ...],
        body: object,
        params: Mapping[str, Any] = _NO_PARAMS,
        found: Sequence[str] = (),
    ) -> Head:
        """Check parameters and return the request head.

        Args:
            values: one per member, in the order of ``members``; None if a parameter is missing.
            body: the ``Body`` parameter; only its presence and type are checked.
            params: parameters under AWS's names; those that the operation does not have are reported.
            found: faults of other arguments, which are reported with them.

        Raises:
            ParamValidationError: a parameter is invalid; the message lists all that are.
            ParameterNameError: the same, if a parameter is missing or unknown.
            ParameterTypeError: the same, if a parameter is of the wrong type.
        """
        if type(body) is bytes and self._input_location is None and not params and not found:
            try:
                known = self._heads.get(values)
            except TypeError:  # an unhashable value, which the checks below report
                known = None
            if known is not None:
                return known
        faults = [*found, *(unknown := self._unknown(params)), *self._body_faults(values, body)]
        common = list(values)
        for i in self._fresh:
            common[i] = None
        key = tuple(common)
        try:
            base = self._heads.get(key)
        except TypeError:
            base = None
        checked = enumerate(self.members) if base is None else ((i, self.members[i]) for i in self._fresh)
        for i, member in checked:
            self._check(member, values[i], faults)
        if faults:
            # error trackers report locals
            names_differ = bool(unknown) or any(fault.startswith(_MISSING) for fault in faults)
            types_differ = any(fault.startswith(_WRONG_TYPE) for fault in faults)
            wrong: list[str] = []
            self._check(self.members[self._endpoint_name], values[self._endpoint_name], wrong)
            name = None if wrong else values[self._endpoint_name]
            del values, common, key, body, params
            kind = ParameterTypeError if types_differ else ParamValidationError
            error = ParameterNameError(faults) if names_differ else kind(faults)
            error.note_call(self.operation.name, name)
            try:
                raise error
            finally:
                del error
        if base is None:
            base = self._build(key)
            if len(self._heads) >= MAX_HEADS:
                self._heads.clear()
            self._heads[key] = base
        extra = tuple((str(self.members[i].header), _plain(values[i])) for i in self._fresh if values[i] is not None)
        return base._replace(headers=base.headers + extra, lasting=False) if extra else base

    def check_body_size(self, size_bytes: int) -> None:
        """Refuse a body that is too large for the service.

        Only asynchronous inference has a hard limit. The service accepts more than the 6 MiB that the model states for
        the other operations.

        Raises:
            ParamValidationError: the body is too large.
        """
        limit = self._body.rule.max
        if self._input_location is not None and limit is not None and size_bytes > limit:
            raise ParamValidationError(
                [f"Invalid length for parameter Body, size: {size_bytes} bytes, valid max size: {limit} bytes"]
            )

    def _build(self, key: Sequence[Any]) -> Head:
        name, component = "", None
        headers = []
        for member, value in zip(self.members, key, strict=True):
            if member.location == "uri" and member.required:
                name = _plain(value)
            elif member.location == "uri":
                component = None if value is None else _plain(value)
            elif value is not None and member.header is not None:
                headers.append((member.header, _plain(value)))
        # Names that match the patterns of EndpointName and InferenceComponentName need no percent-encoding.
        within = "" if component is None else f"/inference-components/{component}"
        path = f"/endpoints/{name}{within}{self.operation.path_suffix}"
        return Head(name, path, tuple(headers), component=component)

    def _body_faults(self, values: tuple[Any, ...], body: object) -> list[str]:
        if body is None:
            if self._input_location is None:
                return [f'{_MISSING} "Body"']
            if values[self._input_location] is None:
                return [f'{_MISSING} "InputLocation" or "Body"']
            return []
        faults = []
        if self._input_location is not None and values[self._input_location] is not None:
            faults.append("Exactly one of Body and InputLocation must be given, got both")
        if not isinstance(body, (bytes, bytearray, memoryview, str)) and not hasattr(body, "read"):
            faults.append(
                f"{_WRONG_TYPE}Body, type: {type(body)}, valid types: {bytes}, {bytearray}, "
                f"{memoryview}, {str}, seekable binary file"
            )
        return faults

    def _check(self, member: Member, value: Any, faults: list[str]) -> None:
        name, rule = member.name, member.rule
        if value is None:
            if member.required:
                faults.append(f'{_MISSING} "{name}"')
            return
        if rule.type == "integer":
            if not isinstance(value, int) or isinstance(value, bool):
                faults.append(_type_fault(member, value, int))
            elif (rule.min is not None and value < rule.min) or (rule.max is not None and value > rule.max):
                faults.append(
                    f"Invalid value for parameter {name}, value: {_quote(value)}, valid range: {rule.min} to {rule.max}"
                )
            return
        if not isinstance(value, str):
            faults.append(_type_fault(member, value, str))
            return
        length = len(value)
        shown = "" if rule.sensitive else f", value: {_quote(value)}"
        if rule.min is not None and length < rule.min:
            faults.append(f"Invalid length for parameter {name}{shown}, valid min length: {rule.min}")
        elif rule.max is not None and length > rule.max:
            faults.append(f"Invalid length for parameter {name}{shown}, length: {length}, valid max length: {rule.max}")
        elif not (value.isascii() and value.isprintable()) and re.search(_UNSENDABLE, value):
            faults.append(f"Invalid value for parameter {name}: control characters are not allowed in a header")
        elif rule.pattern is not None and not self._pattern(rule.pattern).fullmatch(value):
            faults.append(f"Invalid value for parameter {name}{shown}, valid pattern: {rule.pattern}")

    def _pattern(self, pattern: str) -> re.Pattern[str]:
        compiled = self._patterns.get(pattern)
        if compiled is None:
            compiled = self._patterns[pattern] = full_pattern(pattern)
        return compiled


def _type_fault(member: Member, value: object, right: type) -> str:
    """A fault in botocore's words. Of a value that may be a payload in the wrong place, only the type is named."""
    is_number = isinstance(value, (bool, int, float)) and not member.rule.sensitive
    shown = f" value: {_quote(value)}," if is_number else ""
    return f"{_WRONG_TYPE}{member.name},{shown} type: {type(value)}, valid types: {right}"


def _plain(value: Any) -> str:
    """The text to send. str() would return the names of enumeration members that are strings or integers."""
    return str.__str__(value) if isinstance(value, str) else int.__repr__(value)


def _quote(value: object) -> str:
    try:
        text = str(value)
    except ValueError:  # an integer with more digits than Python prints
        text = f"an {type(value).__name__}"
    return ascii(text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…")[1:-1]
