"""NumPy arrays: the NPY format and archives of it. NumPy is imported when one of the codecs is first used."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, Any, Final

from aiosmrt._extras import installed
from aiosmrt.errors import SerializationError
from aiosmrt.serializers.codec import Codec, parsed
from aiosmrt.serializers.objects import SupportsRead, is_file, type_name

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["NPY", "NPZ", "NPYCodec", "NPZCodec"]


@dataclass(frozen=True, kw_only=True)
class _NumPyBased(Codec):
    """Makes an array of an object and writes it."""

    dtype: str | None = None

    def _option_faults(self) -> Iterable[str]:
        if self.dtype is not None and not isinstance(self.dtype, str):
            yield f"dtype must be the name of a type, such as 'float32', or None; got a {type_name(self.dtype)}"

    def _write(self, stream: IO[bytes], data: object, where: str) -> None:
        """Write an array in the NPY format."""
        array = self._array(data, where)
        if array.dtype.hasobject:
            raise SerializationError(f"{where} is an array of Python objects, which NPY would pickle")
        installed("numpy.lib.format", "numpy").write_array(stream, array, allow_pickle=False)

    def _array(self, data: object, where: str) -> NDArray[Any]:
        numpy = installed("numpy", "numpy")
        if isinstance(data, (str, bytes, bytearray)):
            raise SerializationError(f"{where} must be an array; got a {type_name(data)}")
        if "numpy.ma" in sys.modules:
            masked = numpy.ma.MaskedArray
            if isinstance(data, masked) or (
                isinstance(data, (list, tuple)) and any(isinstance(item, masked) for item in data)
            ):
                raise SerializationError(f"{where} is a masked array, whose mask NPY cannot express")
        try:
            array: NDArray[Any] = numpy.asarray(data, self.dtype)
            return array
        except MemoryError:
            raise
        except Exception:  # an array of another library has its own, such as PyTorch's for a tensor with a gradient
            target = "an array" if self.dtype is None else f"an array of {self.dtype}"
            fault = f"{where} cannot be converted to {target}; got a {type_name(data)}"
        raise SerializationError(fault)


def _read_array(stream: IO[bytes]) -> NDArray[Any]:
    """Read an array in the NPY format, with nothing after it; NumPy's and zipfile's own errors are not caught."""
    array: NDArray[Any] = installed("numpy.lib.format", "numpy").read_array(stream, allow_pickle=False)
    if stream.read(1):  # at its end, a member of an archive checks its CRC
        raise ValueError
    return array


@dataclass(frozen=True, kw_only=True)
class NPYCodec(_NumPyBased):
    """A NumPy array in the NPY format.

    Serializes arrays, objects that ``numpy.asarray`` converts, such as nested lists of numbers, and open NPY files,
    which are sent as they are. Refuses arrays of Python objects, which NPY would pickle, and masked arrays, whose mask
    it would lose. Deserializes to an array. Needs the extra ``numpy``.

    Args:
        dtype: the name of the type to convert arrays to, such as ``"float32"``. Defaults to their own.
        content_type: the request's type.
        accept: the response's type.

    Raises:
        ParamValidationError: a header is invalid, or an option has the wrong type.

    >>> body = NPYCodec(dtype="float32").serialize([[1, 2], [3, 4]])
    >>> NPY.deserialize(body, "application/x-npy")
    array([[1., 2.],
           [3., 4.]], dtype=float32)
    """

    content_type: str = "application/x-npy"
    accept: str = "application/x-npy"

    _kin = "application/(x-)?npy"

    def serialize(self, data: ArrayLike | SupportsRead, /) -> bytes:
        """Write an array.

        Raises:
            SerializationError: the object cannot be converted to an array, or only to one of Python objects.
            ConfigurationError: NumPy is not installed.
        """
        if is_file(data):
            return self._contents(data)
        body = io.BytesIO()
        self._write(body, data, "data")
        return body.getvalue()

    def deserialize(self, body: bytes, content_type: str, /) -> NDArray[Any]:
        """Read an array.

        Raises:
            DeserializationError: the response is of another type, malformed, or contains an array of Python objects.
            ConfigurationError: NumPy is not installed.
        """
        self._expect(content_type)
        return parsed(lambda: _read_array(io.BytesIO(body)), "an array in the NPY format without Python objects")


@dataclass(frozen=True, kw_only=True)
class NPZCodec(_NumPyBased):
    """NumPy arrays with names, in the NPZ format: a zip archive of NPY files.

    Serializes a mapping from names to objects that `NPYCodec` takes, except files; equal arrays make equal bodies.
    Deserializes to a dictionary of arrays. Needs the extra ``numpy``.

    Args:
        dtype: as for `NPYCodec`.
        compress: whether to compress the arrays with Deflate. Defaults to False.
        content_type: the request's type.
        accept: the response's type.

    Raises:
        ParamValidationError: a header is invalid, or an option has the wrong type.

    >>> NPZ.deserialize(NPZ.serialize({"x": [1, 2], "y": [[0.5]]}), "application/x-npz")
    {'x': array([1, 2]), 'y': array([[0.5]])}
    """

    compress: bool = False
    content_type: str = "application/x-npz"
    accept: str = "application/x-npz"

    _kin = "application/((x-)?npz|zip)"

    def _option_faults(self) -> Iterable[str]:
        yield from _NumPyBased._option_faults(self)
        if not isinstance(self.compress, bool):
            yield f"compress must be True or False; got a {type_name(self.compress)}"

    def serialize(self, data: Mapping[str, ArrayLike], /) -> bytes:
        """Write arrays.

        Raises:
            SerializationError: the object is not a mapping, a name cannot name a file, or a value cannot be converted
                to an array, or only to one of Python objects.
            ConfigurationError: NumPy is not installed.
        """
        import zipfile

        if not isinstance(data, Mapping):
            raise SerializationError(f"data must be a mapping from names to arrays; got a {type_name(data)}")
        body = io.BytesIO()
        with zipfile.ZipFile(body, "w") as archive:
            for number, (name, array) in enumerate(data.items()):
                if not isinstance(name, str) or re.search("[\0\ud800-\udfff]", name):
                    raise SerializationError(f"the name of data[{number}] cannot name a file")
                member = zipfile.ZipInfo(f"{name}.npy")  # dated 1980, so that equal arrays make equal bodies
                member.compress_type = zipfile.ZIP_DEFLATED if self.compress else zipfile.ZIP_STORED
                with archive.open(member, "w") as stream:
                    self._write(stream, array, f"data[{number}]")
        return body.getvalue()

    def deserialize(self, body: bytes, content_type: str, /) -> dict[str, NDArray[Any]]:
        """Read arrays.

        Raises:
            DeserializationError: the response is of another type, malformed, or contains an array of Python objects.
            ConfigurationError: NumPy is not installed.
        """
        self._expect(content_type)
        return parsed(lambda: self._read(body), "an archive in the NPZ format")

    def _read(self, body: bytes) -> dict[str, NDArray[Any]]:
        import zipfile

        arrays = {}
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            for number, member in enumerate(archive.infolist()):
                with archive.open(member) as stream:
                    arrays[member.filename.removesuffix(".npy")] = parsed(
                        partial(_read_array, stream),
                        f"an archive in the NPZ format: file {number} is not an array, or an array of Python objects",
                    )
        return arrays


NPY: Final = NPYCodec()
"""`NPYCodec` with its defaults."""

NPZ: Final = NPZCodec()
"""`NPZCodec` with its defaults."""
