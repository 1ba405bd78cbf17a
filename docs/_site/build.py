"""Builds the site, and fails on any warning:  python docs/_site/build.py [FOLDER]

A folder that is there is replaced. Without one, the site goes to .cache/site.
"""

import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import main

ROOT = Path(__file__).parents[2]


def build(target: Path, source: Path = ROOT / "docs") -> int:
    """The exit status of Sphinx, which reports on standard error.

    Args:
        target: the folder to make.
        source: the pages. Defaults to those of this checkout.
    """
    shutil.rmtree(target, ignore_errors=True)
    return main(
        [
            *("--quiet", "--fail-on-warning", "--keep-going", "--fresh-env"),
            *("--conf-dir", str(ROOT / "docs"), "--doctree-dir", str(target / ".doctrees")),
            *("--builder", "html", str(source), str(target)),
        ]
    )


if __name__ == "__main__":
    folders = [Path(name) for name in sys.argv[1:]]
    sys.exit(build(*(folders or [ROOT / ".cache" / "site"])))
