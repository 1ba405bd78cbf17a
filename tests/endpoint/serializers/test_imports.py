"""Nothing is imported before it is needed, and a missing package is named."""

import subprocess
import sys
from pathlib import Path

from aiosmrt.serializers import NPZ

ROOT = Path(__file__).parents[3]


def run(program: str) -> list[str]:
    """The lines that a program prints in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


EXTRAS = {"numpy", "pyarrow"}
LATER = {*EXTRAS, "csv", "zipfile"}


# Statements one after the other, each with what it is the first to load.
STATEMENTS: list[tuple[str, set[str]]] = [
    ("import aiosmrt.serializers as s", set()),
    ("s.JSON.deserialize(s.JSON.serialize({'a': [1.5]}), '')", set()),
    ("s.estimated_size([1, object()])", set()),
    ("s.JSON_LINES.deserialize(s.JSON_LINES.serialize([1]), '')", set()),
    ("s.TEXT.serialize('a'); s.BYTES.serialize(b'')", set()),
    ("import pickle; [pickle.loads(pickle.dumps(c)) for c in (s.NPY, s.NPZ, s.ARROW, s.PARQUET)]", set()),
    ("s.CSV.serialize([1])", {"csv"}),
    ("s.NPY.serialize([1])", {"numpy"}),
]


def test_nothing_is_imported_before_it_is_needed() -> None:
    watched = f"print(*sorted({LATER!r}.intersection(sys.modules)))"
    said = run("import sys\n" + "".join(f"{statement}\n{watched}\n" for statement, _ in STATEMENTS))
    loaded: set[str] = set()
    for (statement, adds), line in zip(STATEMENTS, said, strict=True):
        loaded |= adds
        assert set(line.split()) == loaded, statement


WITHOUT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
import aiosmrt.serializers as s
from aiosmrt.errors import ConfigurationError

for call in (
    lambda: s.NPY.serialize([1]),
    lambda: s.NPY.deserialize(b"", ""),
    lambda: s.NPZ.serialize({{"a": [1]}}),
    lambda: s.NPZ.deserialize({npz!r}, ""),
    lambda: s.ARROW.serialize({{"a": [1]}}),
    lambda: s.ARROW.deserialize(b"", ""),
    lambda: s.PARQUET.serialize({{"a": [1]}}),
    lambda: s.PARQUET.deserialize(b"", ""),
):
    try:
        call()
    except ConfigurationError as error:
        print(error)
assert s.JSON.serialize([1]) == b"[1]"
assert s.CSV.serialize([[1]]) == b"1"
assert s.JSON_LINES.serialize([1]) == b"1"
"""


def test_a_missing_package_is_named_with_its_extra() -> None:
    said = run(WITHOUT.format(blocked=EXTRAS, npz=NPZ.serialize({"a": [1]})))
    assert len(said) == 8
    for line in said[:4]:
        assert line.startswith("numpy")
        assert "pip install 'aiosmrt[numpy]'" in line
    for line in said[4:]:
        assert line.startswith("pyarrow")
        assert "pip install 'aiosmrt[arrow]'" in line
