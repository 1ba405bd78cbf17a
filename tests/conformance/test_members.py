"""The values that the suites make for a member are those that its rule allows."""

import pytest
from hypothesis import given

from aiosmrt._wire.operations import OPERATIONS, Member
from aiosmrt._wire.params import full_pattern
from tests.support.members import member_values, sendable

STRINGS = {
    member.name: member for operation in OPERATIONS for member in operation.members if member.rule.type == "string"
}


@pytest.mark.parametrize("member", STRINGS.values(), ids=STRINGS)
def test_made_values_match_their_rule(member: Member) -> None:
    seen = set()

    @given(member_values(member))
    def check(value: str) -> None:
        seen.add(len(value))
        assert sendable(value)
        assert (member.rule.min or 0) <= len(value) <= (member.rule.max or 1024)
        if member.rule.pattern is not None:
            assert full_pattern(member.rule.pattern).fullmatch(value)

    check()
    assert len(seen) > 3
