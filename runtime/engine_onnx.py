"""ONNX Runtime behind the `primelens.engine.Engine` protocol.

ONNX Runtime is imported when a graph is opened, not when primelens is. Hot calls are pre-bound: an
``OrtValue`` made by ``ortvalue_from_numpy`` shares its memory with the NumPy array on CPU, so a
step writes its arrays in place and calls ``run_with_iobinding`` (4-8 µs of overhead, against 7-72
µs of ``run``).

A graph may use the compiled operators of `primelens.kernels`. Where those are absent, the functions
that the graph carries for them compute the same, slower; that is logged once per engine.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from primelens.engine import Array, BoundCall, TensorSpec
from primelens.errors import EngineError
from primelens.kernels import DOMAIN, Library, library
from primelens.resident import release_pages

__all__ = ["OnnxEngine", "OnnxGraph"]

logger = logging.getLogger("primelens.engine")

_registering = threading.Lock()
_shared: bool | None = None  # whether sessions of this process share an arena; None: not yet asked
# Every graph has threads of its own. Those of one that has run wait for the next run for as long as
# the decode loop needs between two steps, lest they be woken at every step; by default they would
# spin for 16 to 50 ms, on the cores that the next graph needs.
_SPINNING = "1000"  # microseconds
_ARENA = {"arena_extend_strategy": 1}  # kSameAsRequested
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(bool)": "bool",
}


class OnnxEngine:
    """Opens ONNX graphs on the CPU.

    Args:
        threads: intra-op threads; None takes ONNX Runtime's own choice (one per physical core).
        spin: let pool threads spin between the operators of a run, and for a millisecond behind it:
            faster steps, busier cores.
    """

    def __init__(self, *, threads: int | None = None, spin: bool = True) -> None:
        self._threads = threads
        self._spin = spin
        self._kernels: Library | None = None  # what graphs were opened with that use them

    @property
    def name(self) -> str:
        threads = "default threads" if self._threads is None else f"{self._threads} threads"
        found = self._kernels
        if found is not None:
            threads += f", kernels {found.version}" if found.path else ", without kernels"
        return f"onnxruntime {_onnxruntime().__version__} (CPU, {threads})"

    def open(self, path: Path) -> OnnxGraph:
        ort = _onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = (
            3  # errors only: warnings of the optimiser mean nothing to users
        )
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        # A block per set of shapes is kept beside the arena otherwise, and made nothing faster.
        options.enable_mem_pattern = False
        if _memory_is_shared():
            options.add_session_config_entry("session.use_env_allocators", "1")
        if self._spin:
            options.add_session_config_entry("session.intra_op.spin_duration_us", _SPINNING)
        else:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._add_kernels(path, options)
            session = ort.InferenceSession(
                str(path), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises a dozen unrelated classes
            raise EngineError(
                f"ONNX Runtime {ort.__version__} cannot open {path}: {error}",
                remedy="Check the bundle with `primelens verify`, or upgrade onnxruntime.",
            ) from error
        released = release_pages(path.with_suffix(".weights"))
        logger.debug("opened %s, %d bytes given back", path.name, released)
        return OnnxGraph(session, path.name)

    def _add_kernels(self, path: Path, options: Any) -> None:
        """Register the compiled operators for a graph that uses them."""
        if DOMAIN.encode() not in path.read_bytes():
            return
        found = library()
        if found.path is not None:
            options.register_custom_ops_library(str(found.path))
        elif self._kernels != found:
            logger.warning(
                "Running without the compiled kernels, with the same results but slower: %s.",
                found.reason,
            )
        self._kernels = found


class OnnxGraph:
    """An ONNX Runtime session; made by `OnnxEngine.open`."""

    def __init__(self, session: Any, name: str) -> None:
        self._session = session
        self._name = name
        self._inputs = _specifications(session.get_inputs())
        self._outputs = _specifications(session.get_outputs())
        self._output_names = list(self._outputs)

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return self._inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        return self._outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        try:
            values = self._session.run(self._output_names, dict(feeds))
        except Exception as error:
            raise _failed(self._name, error) from error
        return dict(zip(self._output_names, values, strict=True))

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> BoundCall:
        return _OnnxCall(self._session, self._name, inputs, outputs)


class _OnnxCall:
    """Holds the OrtValues: the binding itself keeps no reference to the arrays."""

    def __init__(
        self,
        session: Any,
        name: str,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
    ) -> None:
        ort = _onnxruntime()
        self._name = name
        self._run = session.run_with_iobinding
        self._binding = session.io_binding()
        self._values: dict[int, Any] = {}
        try:
            for key, array in inputs.items():
                self._binding.bind_ortvalue_input(key, self._share(ort, key, array))
            for key, array in outputs.items():
                self._binding.bind_ortvalue_output(key, self._share(ort, key, array))
        except EngineError:
            raise
        except Exception as error:
            raise _failed(name, error) from error

    def _share(self, ort: Any, key: str, array: Array) -> Any:
        if not (array.flags.c_contiguous and array.flags.writeable and array.dtype.isnative):
            raise EngineError(
                f"The buffer for {key!r} of {self._name} must be contiguous and writeable."
            )
        known = self._values.get(id(array))
        if known is None:
            known = ort.OrtValue.ortvalue_from_numpy(array)
            self._values[id(array)] = known
            if array.size and known.data_ptr() != array.ctypes.data:
                raise EngineError(
                    f"ONNX Runtime copied the buffer for {key!r} instead of sharing it."
                )
        return known

    def run(self) -> None:
        try:
            self._run(self._binding)
        except Exception as error:
            raise _failed(self._name, error) from error


def _memory_is_shared() -> bool:
    """Let all sessions of the process allocate from one arena that grows by what is asked for.

    By default every session has an arena of its own, which grows by doubling and never shrinks:
    what the tower needed for a large batch would stay beside what the decoder needs. False where
    the host application has registered an allocator of its own; then sessions keep theirs.
    """
    global _shared  # noqa: PLW0603 - it is the process's own
    ort = _onnxruntime()
    with _registering:
        if _shared is not None:
            return _shared
        try:
            memory = ort.OrtMemoryInfo(
                "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
            )
            ort.create_and_register_allocator(memory, ort.OrtArenaCfg(_ARENA))
        except Exception as error:  # noqa: BLE001 - onnxruntime raises a dozen unrelated classes
            logger.debug("sessions keep arenas of their own: %s", error)
            _shared = False
        else:
            _shared = True
        return _shared


def _specifications(arguments: Any) -> dict[str, TensorSpec]:
    specs = {}
    for argument in arguments:
        dtype = _DTYPES.get(argument.type, argument.type)
        shape = tuple(n if isinstance(n, int) else None for n in argument.shape)
        specs[argument.name] = TensorSpec(argument.name, dtype, shape)
    return specs


def _failed(name: str, error: Exception) -> EngineError:
    return EngineError(
        f"ONNX Runtime failed while running {name}: {error}",
        remedy="Check the bundle with `primelens verify`; if it passes, report this message.",
    )


def _onnxruntime() -> Any:
    from primelens.installation import onnxruntime_module

    return onnxruntime_module()
