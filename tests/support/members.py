"""Values for the members of an operation, made from the rules that the service model states.

Where a member's pattern allows control characters, none is made: no client may put one into a header, so such a call
cannot be compared on the wire. Leading and trailing spaces are left out for the same reason: HTTP strips them.
"""

import re
import string
from functools import cache
from typing import Any

import hypothesis.strategies as st

from aiosmrt._wire.operations import Member, Operation, Rule

_ALNUM = string.ascii_letters + string.digits
_PRINTABLE = "".join(map(chr, range(32, 127)))
_LIKELY_LENGTH = 24


def sendable(value: str) -> bool:
    """Whether a header carries the value unchanged."""
    return value == value.strip() and re.search(r"[\x00-\x1f\x7f-\x9f]", value) is None


def _text(alphabet: str, edge: str, least: int, most: int) -> st.SearchStrategy[str]:
    """Strings over `alphabet` that begin and end with one of `edge`: mostly short, now and then the longest."""

    def assemble(first: str, middle: str, last: str) -> str:
        return first + middle + last

    def of_length(length: int) -> st.SearchStrategy[str]:
        repeated = st.sampled_from(alphabet).map(lambda character: character * (length - 2))
        return st.builds(assemble, st.sampled_from(edge), repeated, st.sampled_from(edge))

    short = st.text(alphabet, max_size=min(_LIKELY_LENGTH, most - 2))
    common = st.builds(assemble, st.sampled_from(edge), short, st.sampled_from(edge))
    single = st.sampled_from(edge)
    empty = [st.just("")] if least == 0 else []
    return st.one_of(common, single, of_length(most), *empty)


@cache
def _values(rule: Rule) -> st.SearchStrategy[Any]:
    if rule.type == "integer":
        return st.integers(rule.min, rule.max)
    if rule.type == "blob":
        return st.binary(max_size=300)
    least, most = rule.min or 0, rule.max or 1024
    name = _text(_ALNUM + "-", _ALNUM, 1, min(most, 256))
    visible = _PRINTABLE.strip()
    match rule.pattern:
        case r"^[a-zA-Z0-9](-*[a-zA-Z0-9])*" | r"^[a-zA-Z0-9](-*[a-zA-Z0-9])*$":
            return name
        case r"^[a-zA-Z0-9]([\-a-zA-Z0-9]*[a-zA-Z0-9])?$":
            return name
        case r"^(NEW_SESSION)$|^[a-zA-Z0-9](-*[a-zA-Z0-9])*$":
            return st.just("NEW_SESSION") | name
        case r"\p{ASCII}*" | r"\A\S[\p{Print}]*\z" | ".*":
            return _text(_PRINTABLE, visible, least, most)
        case "^(https|s3)://([^/]+)/?(.*)$":
            key = _text(_PRINTABLE, visible, 0, most - 40)
            bucket = _text(_ALNUM, _ALNUM, 1, 30)
            return st.builds("{}://{}/{}".format, st.sampled_from(("https", "s3")), bucket, key)
        case r"^(?!s3:|https:)[a-zA-Z0-9!_.*'()/-]+$":
            extension = _ALNUM + "!_.*'()/-"
            return _text(extension, extension, least, most)
        case r"^(?!.*\..*\.)[a-zA-Z0-9][a-zA-Z0-9-_\.]*$":
            stem = _text(_ALNUM + "-_", _ALNUM, 1, most - 5)
            return st.builds(str.__add__, stem, st.sampled_from(("", ".csv", "._")))
    raise NotImplementedError(f"no values are known for the pattern {rule.pattern!r}: add them here")


def member_values(member: Member) -> st.SearchStrategy[Any]:
    """Values that the model allows for a member."""
    return _values(member.rule)


@st.composite
def full_of(
    draw: st.DrawFn, operation: Operation, *, without: frozenset[str] = frozenset(), everything: bool = False
) -> dict[str, Any]:
    """Parameters of a valid call: what is required, and any or all of the rest."""
    params: dict[str, Any] = {}
    names = {member.name for member in operation.members} - without
    chosen = names if everything else draw(st.sets(st.sampled_from(sorted(names))))
    for member in operation.members:
        if member.name not in without and (member.required or member.name in chosen):
            params[member.name] = draw(member_values(member))
    if any(member.name == "InputLocation" for member in operation.members):
        # Exactly one of the two.
        if "InputLocation" in params:
            params.pop("Body", None)
        elif "Body" not in params:
            params["Body"] = draw(st.binary(max_size=300))
    return params
