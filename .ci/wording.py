"""Checks files for words that CONTRIBUTING.md's style rules out:  wording.py [FILE...]

Without files, all Python and Markdown files that git tracks. A line that has to keep such a word ends in "wording: ok".
"""

import re
import subprocess
import sys
from pathlib import Path

RULES = {
    r"\bwhole number from\b": 'write "an integer >= 1"',
    r"\bseconds from 0\b": 'write "a non-negative number of seconds"',
    r"\bin vain\b": "say what failed",
    r"\bfor ever\b": 'write "without end" or name the limit',
    r"\b(whoever|somebody)\b": "name the caller, the task or the server",
    r"\bmeanwhile\b": "say what happens at the same time",
    r"\bof (its|their) own\b": 'write "its own ..."',
    r"\bgives? (it|them) back\b": "return or release it",
    r"\bhand(s|ed)? out\b": "return, yield or lend it",
    r"\b(place|permit|turn) of the limiter\b": "the permit of a call is a slot",
    r"\bthis (file|module) is long\b": "split it or leave it",
    r"[a-z]\.  [A-Z]": "one space after a full stop",
}
PATTERNS = [(re.compile(pattern, re.IGNORECASE), advice) for pattern, advice in RULES.items()]


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z", "*.py", "*.md"], capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name]


def main(names: list[str]) -> int:
    found = 0
    for name in names or tracked():
        if Path(name).resolve() == Path(__file__).resolve():
            continue
        for number, line in enumerate(Path(name).read_text(encoding="utf-8").splitlines(), 1):
            if line.rstrip().endswith("wording: ok"):
                continue
            for pattern, advice in PATTERNS:
                if match := pattern.search(line):
                    found += 1
                    print(f"{name}:{number}: {match[0]!r}: {advice}")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
