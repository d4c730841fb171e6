"""The verbs of the bench, one function each; `primelens.bench.__main__` names them."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from primelens.bench import aa, beams, coldstart, ops, scale, step, targets
from primelens.bench.bandwidth import measure_limits
from primelens.bench.compare import (
    CellComparison,
    compare_results,
    compare_systems,
    comparison_lines,
)
from primelens.bench.exports import FORMATS
from primelens.bench.files import write_text
from primelens.bench.peer_environments import PEERS, environment_of
from primelens.bench.report import render_report
from primelens.bench.result import Result, read_result
from primelens.bench.run import RunOptions, Say, run_bundles, run_spec
from primelens.bench.samples import write_samples
from primelens.bench.spec import SPECS, Spec, read_spec
from primelens.bench.table import result_lines
from primelens.errors import DependencyError, OptionError

__all__ = ["main"]

_OWN_PARSERS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "aa": aa.main,
    "beams": beams.main,
    "coldstart": coldstart.main,
    "ops": ops.main,
    "scale": scale.main,
    "step": step.main,
    "targets": targets.main,
}
_PACKAGES = ("matplotlib", "onnx", "pyarrow", "scipy")  # the extra [bench]


def main(
    arguments: Sequence[str] | None = None, *, program: str = "python -m primelens.bench"
) -> int:
    """Run the command line; returns the exit status.

    Args:
        arguments: without the program's name; None takes the process's.
        program: the name in the usage.

    Raises:
        PrimelensError: something is wrong with what was asked for.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] and given[0] in _OWN_PARSERS:
        return _OWN_PARSERS[given[0]](given[1:])
    chosen = _parser(program).parse_args(given or ["run", "default", "--quick"])
    _require_packages()
    verb: Callable[[argparse.Namespace], int] = chosen.verb
    return verb(chosen)


def _require_packages() -> None:
    """What is needed to read graphs and to write results, before minutes are spent on measuring."""
    absent = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise DependencyError(
            f"Measuring needs packages that are not installed: {', '.join(absent)}.",
            remedy="Run `pip install 'primelens[bench]'`.",
        )


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Measure primelens and its peers. Without arguments: run default --quick.",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    _add_run(verbs)
    _add_compare(verbs)
    _add_loadgen(verbs)
    limits = verbs.add_parser("limits", help="what this machine can do at most")
    limits.set_defaults(verb=_limits)
    verbs.add_parser("step", help="one decode step beside transformers' (step --help)")
    verbs.add_parser("beams", help="what beams cost beside greedy decoding (beams --help)")
    verbs.add_parser("ops", help="kernels beside the engine's own operators (ops --help)")
    verbs.add_parser("aa", help="compare a bundle with itself, 20 times (aa --help)")
    verbs.add_parser("targets", help="what is promised, measured and judged (targets --help)")
    verbs.add_parser("scale", help="how cost and memory grow (scale --help)")
    verbs.add_parser("coldstart", help="process start to first caption (coldstart --help)")
    peers = verbs.add_parser("peers", help="build or list the environments of peers")
    peers.add_argument("what", choices=("build", "list"))
    peers.add_argument("names", nargs="*", metavar="PEER", help="default: all")
    peers.add_argument("--folder", type=Path)
    peers.set_defaults(verb=_peers)
    report = verbs.add_parser("report", help="write report.html, or another format, of a result")
    report.add_argument("result", type=Path)
    report.add_argument("--out", type=Path, required=True)
    report.add_argument("--export", choices=sorted(FORMATS), metavar="pyperf|csv")
    report.set_defaults(verb=_report)
    return parser


def _add_run(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = verbs.add_parser("run", help="run a spec")
    run.add_argument("spec", help=f"a TOML file, or one of: {', '.join(_shipped())}")
    run.add_argument("--peers", type=_words, default=(), metavar="NAME,NAME,…")
    run.add_argument("--peer-folder", type=Path, help="where their environments lie")
    run.add_argument("--quick", action="store_true", help="fewer and shorter blocks")
    run.add_argument("--force", action="store_true", help="conclude on a busy machine too")
    run.add_argument("--out", type=Path, help="folder for result.json, samples, report.html")
    run.add_argument("--work", type=Path, help="keep made checkpoints and bundles there")
    run.add_argument("--export", choices=sorted(FORMATS), metavar="pyperf|csv")
    run.add_argument("--model", help="another bundle than the spec's")
    run.set_defaults(verb=_run)


def _add_compare(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    compare = verbs.add_parser(
        "compare",
        help="is B slower than A?",
        description="A and B are results (files, or folders with a result.json), or two bundles, "
        "which are then run in turns. Status 1 if B is slower by more than 5 %, significantly.",
    )
    compare.add_argument("first", metavar="A")
    compare.add_argument("second", metavar="B")
    compare.add_argument("--spec", default="default", help="for bundles: what to run")
    compare.add_argument("--quick", action="store_true")
    compare.add_argument("--force", action="store_true", help="conclude on a busy machine too")
    compare.set_defaults(verb=_compare)


def _add_loadgen(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    loadgen = verbs.add_parser("loadgen", help="let MLCommons LoadGen drive a bundle")
    loadgen.add_argument("--model", default="default")
    loadgen.add_argument("--scenario", default="SingleStream")
    loadgen.add_argument("--seconds", type=float, default=10.0)
    loadgen.add_argument("--expected", type=float, metavar="PICTURES/S", help="default: measured")
    loadgen.add_argument("--tokens", type=int, help="forced length; default: the natural end")
    loadgen.add_argument("--out", type=Path, required=True, help="folder for LoadGen's logs")
    loadgen.set_defaults(verb=_loadgen)


def _shipped() -> list[str]:
    return sorted(path.stem for path in SPECS.glob("*.toml"))


def _words(text: str) -> tuple[str, ...]:
    names = tuple(word for word in text.split(",") if word)
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        known = ", ".join(sorted(PEERS))
        raise argparse.ArgumentTypeError(f"no peer {', '.join(unknown)}; known: {known}")
    return names


def _say(text: str) -> None:
    print(f"… {text}", file=sys.stderr, flush=True)


def _run(chosen: argparse.Namespace) -> int:
    spec = read_spec(chosen.spec)
    if chosen.model is not None:
        spec = replace(spec, model=chosen.model)
    if chosen.quick:
        spec = spec.quick()
    options = RunOptions(chosen.peers, chosen.peer_folder, chosen.force, chosen.work)
    outcome = run_spec(spec, options, quick=chosen.quick, say=_say)
    print("\n".join(result_lines(outcome.result)))
    if chosen.out is not None:
        chosen.out.mkdir(parents=True, exist_ok=True)
        outcome.result.write(chosen.out / "result.json")
        write_samples(chosen.out / "samples.parquet", outcome.samples)
        write_text(chosen.out / "report.html", render_report(outcome.result))
        if chosen.export:
            suffix = {"csv": "csv", "pyperf": "pyperf.json"}[chosen.export]
            write_text(chosen.out / f"result.{suffix}", FORMATS[chosen.export](outcome.result))
        _say(f"written to {chosen.out}")
    elif chosen.export:
        raise OptionError("--export needs --out, the folder to write to.")
    return 0


def _compare(chosen: argparse.Namespace) -> int:
    paths = [Path(chosen.first), Path(chosen.second)]
    if all((path / "bundle.json").is_file() or str(path) == "default" for path in paths):
        rows = _interleaved(chosen, _say)
    else:
        rows = compare_results(*(_read(path, force=chosen.force) for path in paths))
    print("\n".join(comparison_lines(rows)))
    slower = [row for row in rows if row.slower]
    print(f"B is slower in {len(slower)} of {len(rows)} cells" if slower else "B is not slower")
    return 1 if slower else 0


def _read(path: Path, *, force: bool) -> Result:
    result = read_result(path)
    return replace(result, load={**result.load, "concluded": True}) if force else result


def _interleaved(chosen: argparse.Namespace, say: Say) -> list[CellComparison]:
    spec: Spec = replace(read_spec(chosen.spec), checkpoint=None)
    kept = [s for s in spec.scenarios if s in ("single", "multi", "offline", "encode")]
    spec = replace(spec, scenarios=tuple(kept), model=chosen.first)
    if chosen.quick:
        spec = spec.quick()
    options = RunOptions(force=chosen.force)
    outcome = run_bundles(spec, {"A": chosen.first, "B": chosen.second}, options, say=say)
    if not outcome.result.load["concluded"]:
        raise OptionError(
            "The machine is busy: a comparison now would compare the neighbours.",
            remedy="Run it again alone, or with --force.",
        )
    return compare_systems(outcome.result, "A", "B")


def _loadgen(chosen: argparse.Namespace) -> int:
    from primelens.bench.loadgen import LoadGenOptions, run_loadgen
    from primelens.bench.pictures import PictureSource
    from primelens.bench.workers import WorkerSystem

    options = LoadGenOptions(
        scenario=chosen.scenario,
        least_seconds=chosen.seconds,
        expected=chosen.expected,
        max_new_tokens=chosen.tokens,
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        WorkerSystem("primelens", {"model": chosen.model}) as system,
    ):
        pictures = PictureSource(Path(folder), 0).fresh(64)
        found = run_loadgen(system, pictures, chosen.out, options)
    for name, value in found.fields.items():
        print(f"{name}: {value}")
    for error in found.errors[:5]:
        print(f"error: {error}")
    print("MLPerf-style, unofficial")
    return 0 if found.valid else 1


def _limits(_: argparse.Namespace) -> int:
    print("\n".join(measure_limits().lines()))
    return 0


def _peers(chosen: argparse.Namespace) -> int:
    names = chosen.names or sorted(set(PEERS.values()))
    environments = {e.name: e for e in (environment_of(n, chosen.folder) for n in names)}
    for environment in environments.values():
        if environment.lacking:
            print(f"{environment.name}: {environment.lacking}")
            continue
        if chosen.what == "build" and not environment.built:
            _say(f"building {environment.name} in {environment.folder}")
            environment.build()
        print(f"{environment.name}: {'built' if environment.built else 'not built'}")
    return 0


def _report(chosen: argparse.Namespace) -> int:
    result = read_result(chosen.result)
    text = FORMATS[chosen.export](result) if chosen.export else render_report(result)
    write_text(chosen.out, text)
    return 0
