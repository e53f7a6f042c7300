"""Rules of the house that no linter knows, checked in `make check`: each is one function that yields what breaks it."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

# A broad except stands around one message's task, around the recorder, its stores and who listens to outcomes, and at the edge of HTTP.
BROAD_EXCEPTS = {
    "src/omni/gateway/chat_queues.py",
    "src/omni/channels/whatsapp/lanes.py",
    "src/omni/channels/whatsapp/delivery.py",
    "src/omni/tracing/recorder.py",
    "src/omni/store/draining.py",
    "src/omni/web/errors.py",
}
BANNED_NAMES = re.compile(r"(^|_)(utils?|helpers?|common|services|managers?)\.py$")
MAX_LINES = 400


def sleeping_tests() -> Iterator[str]:
    """No test waits for time to pass; sleep(0) only gives other tasks a turn."""
    for path in TESTS:
        if "tests/support/" in _name(path):
            continue  # servers that tests start; their pauses are the pace of a model
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if re.search(r"\b(time|asyncio|anyio)\.sleep\((?!0\))", line):
                yield f"{_name(path)}:{number}: a test must not sleep"


def asking_the_time() -> Iterator[str]:
    """Only clock.py asks what time it is."""
    for path in SOURCES:
        if _name(path) == "src/omni/clock.py":
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if re.search(r"\btime\.(time|monotonic|perf_counter)|datetime\.(now|utcnow)\(", line):
                yield f"{_name(path)}:{number}: take the time from a Clock"


def broad_excepts() -> Iterator[str]:
    """`except Exception` stands in the places the style names."""
    for path in SOURCES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if re.search(r"except\s*(Base)?Exception\b|except\s*:", line) and _name(path) not in BROAD_EXCEPTS:
                yield f"{_name(path)}:{number}: broad except"


def file_names_and_sizes() -> Iterator[str]:
    """A file does one thing and its name says which."""
    for path in SOURCES:
        if BANNED_NAMES.search(path.name):
            yield f"{_name(path)}: the name says nothing about what is inside"
        num_lines = len(path.read_text(encoding="utf-8").splitlines())
        if num_lines > MAX_LINES:
            yield f"{_name(path)}: {num_lines} lines, more than {MAX_LINES}"


def addresses_of_registries() -> Iterator[str]:
    """Pinned requirements name versions and hashes only."""
    for path in sorted((ROOT / "requirements").glob("*.txt")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if "://" in line or line.startswith("-"):
                yield f"{_name(path)}:{number}: an address or an option in a requirements file"


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def main() -> int:
    """Print every breach; exit code 1 when there is one."""
    rules = (sleeping_tests, asking_the_time, broad_excepts, file_names_and_sizes, addresses_of_registries)
    breaches = [breach for rule in rules for breach in rule()]
    for breach in breaches:
        print(breach)
    print(f"house rules: {len(rules)} rules, {len(breaches)} breaches")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
