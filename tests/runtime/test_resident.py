from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from primelens import resident
from primelens.resident import release_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="does nothing elsewhere")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A megabyte of random bytes; anything counts as worthwhile."""
    monkeypatch.setattr(resident, "_WORTHWHILE", 1)
    path = tmp_path / "some graph.weights"
    path.write_bytes(np.random.default_rng(0).bytes(1 << 20))
    return path


def _resident(path: Path) -> int:
    return sum(resident for *_, resident in resident._clean_mappings(str(path)))


def test_pages_are_given_back_and_read_again(file: Path) -> None:
    expected = file.read_bytes()
    with file.open("rb") as opened:
        view = mmap.mmap(opened.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    assert view[:] == expected
    assert _resident(file) == 1 << 20
    assert release_pages(file) == 1 << 20
    assert _resident(file) == 0
    assert view[:] == expected
    view.close()
    assert release_pages(file) == 0


# Many small blocks, which the allocator does not take from the system one by one; some stay, so
# that the heap cannot simply end earlier.
_HEAP = """
from pathlib import Path
from primelens.resident import release_heap
def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
before = anonymous()
blocks = [bytes(1000) for _ in range(60_000)]
held = anonymous()
keep = blocks[::10_000]
del blocks
print(held - before, release_heap(), held - anonymous(), len(keep))
"""


def test_free_heap_is_given_back() -> None:
    """In a process of its own: here, other tests may have left free memory."""
    done = subprocess.run([sys.executable, "-c", _HEAP], capture_output=True, text=True, check=True)
    taken, given, back, kept = done.stdout.split()
    assert int(taken) > 40_000_000
    assert given == "True"
    assert int(back) > 30_000_000
    assert kept == "6"


def test_a_mapping_that_was_written_to_is_left_alone(file: Path) -> None:
    with file.open("rb") as opened:
        view = mmap.mmap(opened.fileno(), 0, flags=mmap.MAP_PRIVATE)
    view[5] = (view[5] + 1) % 256
    changed = view[:]
    assert release_pages(file) == 0
    assert view[:] == changed
    view.close()


def test_small_mappings_and_other_files_are_left_alone(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with file.open("rb") as opened:
        view = mmap.mmap(opened.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    assert len(bytes(view[:])) == 1 << 20
    assert release_pages(file.with_name("another.weights")) == 0
    monkeypatch.setattr(resident, "_WORTHWHILE", 2 << 20)
    assert release_pages(file) == 0
    view.close()
