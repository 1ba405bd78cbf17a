"""NPY and NPZ: round trips through NumPy's own functions, refusals, and damaged files."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from aiosmrt.serializers import NPY, NPZ, NPYCodec, NPZCodec
from tests.endpoint.serializers.samples import header, refused, same, unreadable

ARRAYS = st_numpy.arrays(
    st_numpy.scalar_dtypes()
    | st_numpy.byte_string_dtypes()
    | st_numpy.unicode_string_dtypes()
    | st_numpy.array_dtypes(allow_subarrays=False),
    st_numpy.array_shapes(min_dims=0, min_side=0, max_side=4),
)
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


class Unconvertible:
    """An array that its library does not convert, such as a tensor of PyTorch that requires a gradient."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        raise RuntimeError("secret")


@given(ARRAYS)
@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
def test_npy_round_trip(array: Any) -> None:
    body = NPY.serialize(array)
    assert same(np.load(io.BytesIO(body), allow_pickle=False), array)
    assert same(NPY.deserialize(body, "application/x-npy"), array)
    saved = io.BytesIO()
    np.save(saved, array, allow_pickle=False)
    assert same(NPY.deserialize(saved.getvalue(), ""), array)


@given(st.dictionaries(NAMES, ARRAYS, max_size=3), st.booleans())
@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
def test_npz_round_trip(arrays: dict[str, Any], compress: bool) -> None:
    body = NPZCodec(compress=compress).serialize(arrays)
    assert same(NPZ.deserialize(body, "application/x-npz"), arrays)
    with np.load(io.BytesIO(body), allow_pickle=False) as archive:
        assert len(archive.files) == len(arrays)
        assert all(same(archive[name], arrays[name]) for name in arrays)


def test_npz_of_numpy_is_read() -> None:
    for save in (np.savez, np.savez_compressed):
        saved = io.BytesIO()
        save(saved, x=np.arange(3), y=np.eye(2))
        assert same(NPZ.deserialize(saved.getvalue(), "application/zip"), {"x": np.arange(3), "y": np.eye(2)})


def test_equal_arrays_give_equal_archives() -> None:
    assert b"\x00\x00\x21\x00" in NPZ.serialize({"x": [1]})  # the first of January 1980, midnight
    assert NPZ.serialize({"x": [1]}) == NPZ.serialize({"x": np.array([1])})


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]])),
        (1.5, np.array(1.5)),
        (np.arange(6).reshape(2, 3).T, np.arange(6).reshape(2, 3).T),
        (np.arange(10)[::3], np.array([0, 3, 6, 9])),
        (memoryview(b"ab"), np.array([97, 98], "u1")),
    ],
)
def test_npy_of_objects_that_convert_to_an_array(data: Any, expected: Any) -> None:
    assert same(NPY.deserialize(NPY.serialize(data), ""), expected)


def test_arrays_are_sent_in_the_requested_type() -> None:
    assert NPY.deserialize(NPYCodec(dtype="float32").serialize([1, 2]), "").dtype == np.dtype("f4")
    assert NPZ.deserialize(NPZCodec(dtype="int8").serialize({"x": np.eye(2)}), "")["x"].dtype == np.dtype("i1")


NO_ARRAYS: list[tuple[Any, str]] = [
    (np.array([1, None]), "is an array of Python objects, which NPY would pickle"),
    ([1, {"a": 2}], "is an array of Python objects, which NPY would pickle"),
    ({"a": 1}, "is an array of Python objects, which NPY would pickle"),
    (np.zeros(2, [("a", "O"), ("b", "i4")]), "is an array of Python objects, which NPY would pickle"),
    ([[1, 2], [3]], "cannot be converted to an array; got a list"),
    ("text", "must be an array; got a str"),
    (b"\x93NUMPY", "must be an array; got a bytes"),
    (np.ma.masked_array([1, 2], [False, True]), "is a masked array, whose mask NPY cannot express"),
    ([[1, 2], np.ma.masked_array([1, 2], [False, True])], "is a masked array, whose mask NPY cannot express"),
    (Unconvertible(), "cannot be converted to an array; got a Unconvertible"),
]


@pytest.mark.parametrize(("data", "said"), NO_ARRAYS)
def test_objects_that_do_not_convert_to_an_array(data: Any, said: str) -> None:
    assert refused(data, NPY) == f"data {said}"
    assert refused({"x": [1], "y": data}, NPZ) == f"data[1] {said}"


def test_an_unknown_array_type_is_named() -> None:
    assert refused(["a"], NPYCodec(dtype="float32")) == "data cannot be converted to an array of float32; got a list"
    assert refused([1], NPYCodec(dtype="flaot32")) == "data cannot be converted to an array of flaot32; got a list"
    assert refused([2**70], NPYCodec(dtype="int8")) == "data cannot be converted to an array of int8; got a list"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([1, 2], "data must be a mapping from names to arrays; got a list"),
        (np.arange(3), "data must be a mapping from names to arrays; got a ndarray"),
        ({1: [1]}, "the name of data[0] cannot name a file"),
        ({"a": [1], "b\0c": [1]}, "the name of data[1] cannot name a file"),
        ({"\ud800": [1]}, "the name of data[0] cannot name a file"),
    ],
)
def test_npz_takes_names_and_arrays(data: Any, said: str) -> None:
    assert refused(data, NPZ) == said


class Trap:
    """An object whose pickle writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    array = np.array([Trap(sprung)], dtype=object)
    saved, archived = io.BytesIO(), io.BytesIO()
    np.save(saved, array, allow_pickle=True)
    np.savez(archived, x=array)
    assert "without Python objects" in unreadable(saved.getvalue(), NPY)
    assert "file 0 is not an array, or an array of Python objects" in unreadable(archived.getvalue(), NPZ)
    assert "without Python objects" in unreadable(pickle.dumps(array), NPY)
    assert not sprung.exists()
    np.load(io.BytesIO(saved.getvalue()), allow_pickle=True)
    assert sprung.exists()


def test_a_truncated_array_is_an_error() -> None:
    body = NPY.serialize(np.arange(10))
    for size in range(len(body)):
        assert "the response is not an array" in unreadable(body[:size], NPY)
    assert "the response is not an array" in unreadable(body + b"\0", NPY)
    assert "not an array" in unreadable(NPZ.serialize({"x": [1]}), NPY)
    assert same(NPY.deserialize(header("(0,)"), ""), np.zeros(0, "u1"))
    for shape in ("(1,)", "(-1,)", "(2**70,)", f"({2**50},)"):
        assert unreadable(header(shape), NPY).startswith("the response ")


def test_a_damaged_archive_is_an_error() -> None:
    body = NPZ.serialize({"x": np.arange(10)})
    for size in range(len(body)):
        assert "the response is not an archive" in unreadable(body[:size], NPZ)
    assert "the response is not an archive" in unreadable(NPY.serialize([1]), NPZ)
    place = body.index(np.arange(10).tobytes()) + 8
    flipped = body[:place] + b"\x07" + body[place + 1 :]
    assert "file 0 is not an array" in unreadable(flipped, NPZ)


def test_an_archive_of_other_files_is_refused() -> None:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr("x.npy", NPY.serialize([1]))
        archive.writestr("readme.txt", "text")
    assert "file 1 is not an array" in unreadable(written.getvalue(), NPZ)
