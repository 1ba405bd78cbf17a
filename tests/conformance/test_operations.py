"""The operation table against the service model of the installed botocore, and parameter checks against botocore's.

The table restates the newest model that was known when it was written. With a botocore that is older (any that a
supported aiobotocore brings), it may hold more than the model; with that botocore or a newer one, the two are equal.
Either way every member of the installed model must be in the table: a member that AWS adds fails here by its name.
"""

import re
from collections.abc import Iterator
from typing import Any

import botocore
import hypothesis.strategies as st
import pytest
from botocore.model import OperationModel, Shape, StructureShape
from botocore.session import get_session
from botocore.validate import ParamValidator
from hypothesis import given

from aiosmrt import errors
from aiosmrt._wire.operations import API_VERSION, BY_NAME, OPERATIONS, SERVICE_ID, SIGNING_NAME, Member, Operation
from aiosmrt._wire.params import HeadBuilder
from aiosmrt.errors import ParamValidationError
from tests.support.members import full_of, member_values, sendable

# The botocore release in which the newest of the table's members (PrefixAwareId) was already known.
TABLE_IS_EXACT_FROM = (1, 43, 117)

MODEL = get_session().get_service_model("sagemaker-runtime")
INSTALLED = tuple(int(part) for part in botocore.__version__.split("."))
IS_EXACT = INSTALLED >= TABLE_IS_EXACT_FROM

# Where an older model differs; remove a line when the oldest supported aiobotocore has passed it.
CHANGED_SINCE = {
    # Body joined InputLocation as its alternative, which made both optional.
    ("InvokeEndpointAsync", "InputLocation", "required"): True,
}


def model_of(operation: Operation) -> OperationModel:
    return MODEL.operation_model(operation.name)


def input_of(operation: Operation) -> StructureShape:
    shape = model_of(operation).input_shape
    assert shape is not None
    return shape


def type_of(shape: Shape) -> str:
    return "stream" if shape.serialization.get("eventstream") else str(shape.type_name)


def location_of(name: str, parent: StructureShape) -> str:
    if parent.serialization.get("payload") == name:
        return "payload"
    return str(parent.members[name].serialization.get("location", "body"))


def facts_of_model(name: str, parent: StructureShape) -> dict[str, Any]:
    shape = parent.members[name]
    location = location_of(name, parent)
    return {
        "type": type_of(shape),
        "min": shape.metadata.get("min"),
        "max": shape.metadata.get("max"),
        "pattern": shape.metadata.get("pattern"),
        "sensitive": bool(shape.metadata.get("sensitive", False)),
        "location": location,
        "header": shape.serialization["name"] if location == "header" else None,
        "required": name in parent.required_members,
    }


def facts_of_table(member: Member) -> dict[str, Any]:
    return {**member.rule._asdict(), "location": member.location, "header": member.header, "required": member.required}


def differences(operation: Operation, parent: StructureShape, table: tuple[Member, ...]) -> Iterator[str]:
    """What the installed model has and the table lacks, a line each."""
    members = {member.name: member for member in table}
    for name in parent.members:
        model = facts_of_model(name, parent)
        if name not in members:
            yield f"{operation.name}.{name} is in botocore {botocore.__version__} and not in the table: {model}"
            continue
        ours = facts_of_table(members[name])
        for fact, value in model.items():
            known = CHANGED_SINCE.get((operation.name, name, fact))
            if ours[fact] != value and (IS_EXACT or known is None or known != value):
                yield f"{operation.name}.{name}: {fact} is {value!r} in the model, {ours[fact]!r} in the table"
    if IS_EXACT:
        for name in members.keys() - parent.members.keys():
            yield f"{operation.name}.{name} is in the table and no longer in botocore {botocore.__version__}"
        if not members.keys() ^ parent.members.keys() and list(members) != list(parent.members):
            yield f"{operation.name}: the table's order is {list(members)}, the model's {list(parent.members)}"


def test_the_table_names_every_operation() -> None:
    # The bidirectional stream is HTTP/2 and botocore lacks it; if that changes, this fails.
    assert [operation.name for operation in OPERATIONS] == list(MODEL.operation_names)
    assert {name: operation.name for name, operation in BY_NAME.items()} == {n: n for n in MODEL.operation_names}


def test_the_service_facts_are_the_models() -> None:
    assert MODEL.api_version == API_VERSION
    assert str(MODEL.service_id) == SERVICE_ID
    assert MODEL.signing_name == SIGNING_NAME


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
class TestOperation:
    def test_request_members(self, operation: Operation) -> None:
        assert not list(differences(operation, input_of(operation), operation.members))

    def test_response_members(self, operation: Operation) -> None:
        shape = model_of(operation).output_shape
        assert shape is not None
        assert not list(differences(operation, shape, operation.results))

    def test_http_facts(self, operation: Operation) -> None:
        http = model_of(operation).http
        assert http["method"] == "POST"
        assert http["requestUri"] == "/endpoints/{EndpointName}" + operation.path_suffix
        assert http.get("responseCode", 200) == operation.status

    def test_python_name(self, operation: Operation) -> None:
        from botocore import xform_name

        assert operation.method == xform_name(operation.name)

    def test_streaming(self, operation: Operation) -> None:
        assert operation.streams == model_of(operation).has_event_stream_output

    def test_errors(self, operation: Operation) -> None:
        assert [shape.name for shape in model_of(operation).error_shapes] == list(operation.errors)

    def test_each_error_has_its_class(self, operation: Operation) -> None:
        for code in operation.errors:
            assert errors.ERROR_CODES[code].error_class is getattr(errors, code)

    def test_differences_are_noticed(self, operation: Operation) -> None:
        """The comparison itself can fail: a member taken away, a fact changed and a renamed header all show."""
        shape = input_of(operation)
        for index, member in enumerate(operation.members):
            if member.name not in shape.members:
                continue
            without = operation.members[:index] + operation.members[index + 1 :]
            assert any(f"{member.name} is in botocore" in line for line in differences(operation, shape, without))
            renamed = member._replace(header=f"{member.header}-X", required=not member.required)
            changed = (*operation.members[:index], renamed, *operation.members[index + 1 :])
            found = list(differences(operation, shape, changed))
            assert any(f"{member.name}: header" in line for line in found)


def check(operation: Operation, params: dict[str, Any]) -> list[str]:
    """The faults that our check finds; empty when it lets the call through."""
    builder = HeadBuilder(operation)
    try:
        builder.head(builder.values(params), params.get("Body"), params)
    except ParamValidationError as error:
        return error.faults
    return []


# How a botocore report names a parameter.
_NAMED = re.compile(r'parameter in input: "(\w+)"|for parameter (\w+)')


def botocore_check(operation: Operation, params: dict[str, Any]) -> set[str]:
    """The names of the parameters that botocore finds fault with."""
    report = ParamValidator().validate(params, input_of(operation))
    named = {first or second for first, second in _NAMED.findall(report.generate_report())}
    assert bool(named) == report.has_errors()
    return named


OPERATION = st.sampled_from(OPERATIONS)
SCALARS = (
    st.text(max_size=70)
    | st.integers(-10, 30000)
    | st.booleans()
    | st.floats(allow_nan=False)
    | st.binary(max_size=8)
    | st.lists(st.integers(), max_size=2)
    | st.just({})
    | st.just("")
    | st.just(object())
)


@st.composite
def faulty_calls(draw: st.DrawFn) -> tuple[Operation, dict[str, Any]]:
    """A call in which any member may be missing, valid or of any type, beside names that no operation has."""
    operation = draw(OPERATION)
    params: dict[str, Any] = {}
    for member in operation.members:
        fate = draw(st.sampled_from(("missing", "valid", "valid", "any")))
        if fate == "valid":
            params[member.name] = draw(member_values(member))
        elif fate == "any":
            params[member.name] = draw(SCALARS)
    for name in draw(st.sets(st.sampled_from(("Endpoint", "body", "TargetModle", "SessionID")), max_size=2)):
        params[name] = draw(SCALARS)
    return operation, params


@given(faulty_calls())
def test_whatever_botocore_refuses_is_refused_by_the_same_names(call: tuple[Operation, dict[str, Any]]) -> None:
    operation, params = call
    ours_only = {member.name for member in operation.members} - set(input_of(operation).members)
    theirs = botocore_check(operation, {name: value for name, value in params.items() if name not in ours_only})
    if not IS_EXACT:
        theirs.discard("InputLocation")
    faults = check(operation, params)
    for name in theirs:
        assert any(re.search(rf'parameter {name},|"{name}"', fault) for fault in faults), (name, faults)


@given(OPERATION.flatmap(lambda operation: st.tuples(st.just(operation), full_of(operation))))
def test_what_the_model_allows_passes_in_both(call: tuple[Operation, dict[str, Any]]) -> None:
    operation, params = call
    assert check(operation, params) == []
    if IS_EXACT:
        assert not botocore_check(operation, params)


@given(OPERATION.flatmap(lambda operation: st.tuples(st.just(operation), full_of(operation))), st.data())
def test_each_fault_of_a_call_is_named(call: tuple[Operation, dict[str, Any]], data: st.DataObject) -> None:
    operation, params = call
    broken = data.draw(
        st.sets(st.sampled_from([member.name for member in operation.members if member.name != "Body"]), min_size=2)
    )
    faults = check(operation, {**params, **dict.fromkeys(broken, 1.5)})
    assert {name for name in broken if any(f"parameter {name}," in fault for fault in faults)} == broken
    assert len(faults) >= len(broken)


class TestStricterThanBotocore:
    """Rules that the service has and botocore leaves to it."""

    BASE = {"EndpointName": "churn", "Body": b""}

    @pytest.mark.parametrize(
        ("name", "bad"),
        [
            ("EndpointName", "-churn"),
            ("EndpointName", "churn-"),
            ("EndpointName", "churn\n"),
            ("EndpointName", "a/../b"),
            ("EndpointName", "churn?x=1"),
            ("EndpointName", "é"),
            ("EndpointName", ""),
            ("EndpointName", "a" * 64),
            ("TargetVariant", "one two"),
            ("TargetVariant", "v" * 64),
            ("TargetContainerHostname", "host.name"),
            ("TargetModel", " leading"),
            ("TargetModel", "ünprintable"[1:] + "ü"),
            ("TargetModel", "m" * 1025),
            ("InferenceId", ""),
            ("InferenceId", "i" * 65),
            ("InferenceComponentName", "-component"),
            ("InferenceComponentName", "component-"),
            ("SessionId", "NEW_SESSION "),
            ("SessionId", "s" * 257),
            ("PrefixAwareId", "p" * 65),
            ("EnableExplanations", "e" * 65),
            ("ContentType", "text/csv; charset=ü"),
            ("ContentType", "t" * 1025),
            ("Accept", "t" * 1025),
            ("CustomAttributes", "c" * 1025),
        ],
    )
    def test_lengths_and_whole_patterns_of_invoke_endpoint(self, name: str, bad: str) -> None:
        self.refused("InvokeEndpoint", {**self.BASE, name: bad}, name)

    @pytest.mark.parametrize(
        ("name", "bad"),
        [
            ("InputLocation", "ftp://bucket/key"),
            ("InputLocation", "s3:///key"),
            ("InputLocation", "s3://" + "b" * 1020),
            ("S3OutputPathExtension", "s3:x"),
            ("S3OutputPathExtension", "https:x"),
            ("S3OutputPathExtension", "a b"),
            ("S3OutputPathExtension", "e" * 513),
            ("Filename", "a.b.c"),
            ("Filename", ".hidden"),
            ("Filename", "f" * 33),
            ("RequestTTLSeconds", 59),
            ("RequestTTLSeconds", 21601),
            ("RequestTTLSeconds", True),
            ("RequestTTLSeconds", 60.0),
            ("RequestTTLSeconds", "60"),
            ("InvocationTimeoutSeconds", 0),
            ("InvocationTimeoutSeconds", 3601),
        ],
    )
    def test_lengths_and_whole_patterns_of_invoke_endpoint_async(self, name: str, bad: object) -> None:
        self.refused("InvokeEndpointAsync", {"EndpointName": "e", "InputLocation": "s3://b/k", name: bad}, name)

    def refused(self, operation: str, params: dict[str, Any], name: str) -> None:
        builder = HeadBuilder(BY_NAME[operation])
        good = {key: value for key, value in params.items() if key != name}
        good.setdefault("EndpointName", "e")
        # Twice, because a checked head is remembered.
        for _ in range(2):
            faults = check(BY_NAME[operation], params)
            assert len(faults) == 1, faults
            assert f"parameter {name}" in faults[0]
            with pytest.raises(ParamValidationError):
                builder.head(builder.values(params), params.get("Body"))
            if "InputLocation" not in name:
                builder.head(builder.values(good), good.get("Body"))

    @given(st.sampled_from([*map(chr, range(32)), "\x7f", "\x80", "\x9f", "\ud800"]), st.data())
    def test_no_control_character_enters_a_header(self, character: str, data: st.DataObject) -> None:
        operation = data.draw(OPERATION)
        member = data.draw(
            st.sampled_from([m for m in operation.members if m.location != "payload" and m.rule.type == "string"])
        )
        params = data.draw(full_of(operation))
        value = data.draw(member_values(member))
        at = data.draw(st.integers(0, len(value)))
        limit = member.rule.max or 1024
        broken = (value[:at] + character + value[at:])[: limit - 1] + character
        if member.name in ("Body", "InputLocation"):
            params.pop("Body", None)
        faults = check(operation, {**params, member.name: broken})
        assert any(f"parameter {member.name}" in fault for fault in faults)
        assert all(character not in fault for fault in faults), "the report itself must not carry it"

    def test_exactly_one_of_body_and_input_location(self) -> None:
        operation = BY_NAME["InvokeEndpointAsync"]
        name = {"EndpointName": "churn"}
        assert check(operation, {**name, "Body": b""}) == []
        assert check(operation, {**name, "InputLocation": "s3://bucket/key"}) == []
        both = check(operation, {**name, "Body": b"", "InputLocation": "s3://bucket/key"})
        neither = check(operation, name)
        assert both == ["Exactly one of Body and InputLocation must be given, got both"]
        assert neither == ['Missing required parameter in input: "InputLocation" or "Body"']

    def test_new_session_is_for_invoke_endpoint_alone(self) -> None:
        assert check(BY_NAME["InvokeEndpoint"], {**self.BASE, "SessionId": "NEW_SESSION"}) == []
        faults = check(BY_NAME["InvokeEndpointWithResponseStream"], {**self.BASE, "SessionId": "NEW_SESSION"})
        assert len(faults) == 1
        assert "parameter SessionId" in faults[0]
        assert "SessionId" not in {member.name for member in BY_NAME["InvokeEndpointAsync"].members}

    def test_an_inline_async_body_is_limited_and_no_other_body_is(self) -> None:
        builder = HeadBuilder(BY_NAME["InvokeEndpointAsync"])
        builder.check_body_size(128_000)
        with pytest.raises(ParamValidationError, match="128001"):
            builder.check_body_size(128_001)
        for name in ("InvokeEndpoint", "InvokeEndpointWithResponseStream"):
            HeadBuilder(BY_NAME[name]).check_body_size(26_214_400)

    def test_custom_attributes_are_never_quoted(self) -> None:
        for bad in ("marker" * 200, "marker\n", "marker-ü", ["marker"]):
            faults = check(BY_NAME["InvokeEndpoint"], {**self.BASE, "CustomAttributes": bad})
            assert len(faults) == 1
            assert "marker" not in faults[0]

    @given(st.text(min_size=100, max_size=4000))
    def test_a_report_stays_short(self, value: str) -> None:
        (fault,) = check(BY_NAME["InvokeEndpoint"], {**self.BASE, "TargetVariant": value})
        assert len(fault) < 700

    def test_none_means_not_given(self) -> None:
        optional = {m.name: None for m in BY_NAME["InvokeEndpoint"].members if not m.required}
        assert check(BY_NAME["InvokeEndpoint"], {**self.BASE, **optional}) == []


@given(OPERATION.flatmap(lambda operation: st.tuples(st.just(operation), full_of(operation))))
def test_a_checked_head_found_again_is_the_same(call: tuple[Operation, dict[str, Any]]) -> None:
    operation, params = call
    builder = HeadBuilder(operation)
    values = builder.values(params)
    first = builder.head(values, params.get("Body"))
    assert builder.head(values, params.get("Body")) == first
    fresh = HeadBuilder(operation)
    assert fresh.head(values, params.get("Body")) == first
    assert dict(first.headers) == {
        str(member.header): str(params[member.name])
        for member in operation.members
        if member.location == "header" and member.name in params
    }
    assert all(sendable(value) for _, value in first.headers)
