"""Where a measurement was made: everything that a reader needs in order to believe or repeat it."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = [
    "Environment",
    "Load",
    "Neighbours",
    "capture",
    "differences",
    "last_level_cache",
    "load_now",
    "memory_limit",
    "package_versions",
    "too_busy",
    "usable_cores",
]

PACKAGES = (
    "primelens",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "tokenizers",
    "Pillow",
    "torch",
    "transformers",
    "scipy",
)
_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "OPENBLAS_CORETYPE",
    "MKL_NUM_THREADS",
    "ORT_DISABLE_ALL_OPTIMIZATIONS",
    "MALLOC_ARENA_MAX",
    "LD_PRELOAD",
)
# What kernels are chosen by; the whole list would be a screen long.
_TELLING_FLAGS = (
    *("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni"),
    *("avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
_BUSY_SHARE = 0.15  # of all cores, by others, before a measurement starts


@dataclass(frozen=True)
class Load:
    """How busy the machine was.

    Attributes:
        average_1min: the system's load average.
        others: share (0 to 1) of all cores that other processes used just now; None if unknown.
    """

    average_1min: float
    others: float | None

    @property
    def busy(self) -> bool:
        """Whether a measurement now would measure the neighbours too."""
        return too_busy(self.others)


def too_busy(others: float | None) -> bool:
    """Whether others' share of the cores is one that would be measured too."""
    return others is not None and others > _BUSY_SHARE


@dataclass(frozen=True)
class Environment:
    """A machine and its software at the time of a run; every field is compared by `differences`.

    Attributes:
        cpu: model name, vendor's words.
        flags: those of the CPU's features that kernels are chosen by.
        cores: cores of the machine; ``usable`` those that this process may run on.
        governor: frequency governor of the first core, or "none" where there is no control.
        cache: bytes of the last-level cache, or None.
        memory: bytes of memory; ``memory_limit`` the control group's, or None.
        virtual: whether a hypervisor stands between.
        variables: those environment variables that change how numeric libraries run.
        packages: distribution → version, as far as installed.
    """

    cpu: str
    flags: tuple[str, ...]
    cores: int
    usable: int
    governor: str
    cache: int | None
    memory: int
    memory_limit: int | None
    virtual: bool
    system: str
    python: str
    variables: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For ``result.json``."""
        return {**asdict(self), "flags": list(self.flags)}

    @property
    def line(self) -> str:
        """One line for people."""
        return (
            f"{self.cpu}, {self.usable} of {self.cores} cores, {self.memory / 2**30:.0f} GiB, "
            f"{self.system}, Python {self.python}"
        )


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def last_level_cache() -> int | None:
    """Bytes of the largest cache that the first core sees; None where the system does not tell."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text(encoding="ascii").strip()
        factor = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 0)
        if factor and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * factor)
    return max(sizes, default=None)


def memory_limit() -> int | None:
    """The control group's limit in bytes, or None where there is none."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        file = Path("/sys/fs/cgroup") / name
        if file.is_file():
            text = file.read_text(encoding="ascii").strip()
            if text.isdigit() and int(text) < 2**60:
                return int(text)
    return None


def package_versions(names: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Distribution → version of those that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def load_now(seconds: float = 0.5) -> Load:
    """The load average, and what other processes use of the cores during ``seconds``."""
    average = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    before = _busy_ticks()
    if before is None:
        return Load(average, None)
    own = time.process_time()
    time.sleep(seconds)
    own = time.process_time() - own
    after = _busy_ticks()
    assert after is not None
    busy, total = after[0] - before[0], after[1] - before[1]
    ticks = os.sysconf("SC_CLK_TCK")
    others = max(0.0, busy - own * ticks) / total if total else 0.0
    return Load(average, others)


class Neighbours:
    """What other processes use of the cores from now on, as a share (0 to 1) of all of them."""

    def __init__(self) -> None:
        self._ticks, self._own = _busy_ticks(), _own_seconds()

    def share(self) -> float | None:
        """Their share since this object was made; None where the system does not tell.

        Work of children counts as ours once they are waited for, so look when they are gone.
        """
        now = _busy_ticks()
        if self._ticks is None or now is None or now[1] == self._ticks[1]:
            return None
        own = (_own_seconds() - self._own) * os.sysconf("SC_CLK_TCK")
        return max(0.0, now[0] - self._ticks[0] - own) / (now[1] - self._ticks[1])


def _own_seconds() -> float:
    """Of all processors: this process and its children that ended."""
    return sum(os.times()[:4])


def _busy_ticks() -> tuple[int, int] | None:
    """Clock ticks of all cores: busy (steal included: someone else's), and all."""
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    except OSError:
        return None
    numbers = [int(word) for word in line.split()[1:9]]
    idle = numbers[3] + numbers[4]
    return sum(numbers) - idle, sum(numbers)


def capture(packages: Mapping[str, str] | None = None) -> Environment:
    """Look at this machine now.

    Args:
        packages: versions to record; None takes what `package_versions` finds here.
    """
    fields = _cpu_fields()
    flags = fields.get("flags", fields.get("Features", "")).split()
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return Environment(
        cpu=fields.get("model name", platform.processor() or platform.machine()),
        flags=tuple(flag for flag in _TELLING_FLAGS if flag in flags),
        cores=os.cpu_count() or 1,
        usable=usable_cores(),
        governor=governor.read_text(encoding="ascii").strip() if governor.is_file() else "none",
        cache=last_level_cache(),
        memory=_memory(),
        memory_limit=memory_limit(),
        virtual="hypervisor" in flags,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=sys.version.split()[0],
        variables={name: os.environ[name] for name in _VARIABLES if name in os.environ},
        packages=dict(package_versions() if packages is None else packages),
    )


def _cpu_fields() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _memory() -> int:
    if "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    """Where two environments (as `Environment.as_dict` gives them) differ, one line each.

    Two results may be compared only where this is empty: what differs could be the cause. The
    version of primelens itself is no part of the environment: it may be what is compared.
    """
    found: list[str] = []
    for key in sorted({*left, *right}):
        a, b = left.get(key), right.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += [
                f"{key}.{name}: {a.get(name)} and {b.get(name)}"
                for name in sorted({*a, *b})
                if a.get(name) != b.get(name) and name != "primelens"
            ]
        elif a != b:
            found.append(f"{key}: {a} and {b}")
    return found
