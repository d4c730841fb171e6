"""METEOR and SPICE, which exist only as Java programs.

The jars are those of the COCO caption evaluation; the Python package ``pycocoevalcap`` carries
them. primelens neither ships nor fetches them: give the folder that holds ``meteor/meteor-1.5.jar``
and ``spice/spice-1.0.jar``. METEOR's jar is asked for its match statistics only; the score is
computed here from their sums (METEOR 1.5, English ranking parameters), which gives the jar's own
number and makes METEOR a `Tally` like the others.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from primelens.errors import DependencyError, EngineError
from primelens.tune.metrics.ngrams import Tokens
from primelens.tune.metrics.tally import Floats, Tally, mean_tally

__all__ = ["METEOR_JAR", "SPICE_JAR", "JavaScorer"]

METEOR_JAR = "meteor/meteor-1.5.jar"
SPICE_JAR = "spice/spice-1.0.jar"

_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_STAGE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase
_STATISTICS = 23


@dataclass(frozen=True)
class JavaScorer:
    """Runs the official jars.

    Attributes:
        folder: holds ``meteor/`` and ``spice/``.
        java: the Java program.
        memory: of the Java heap.
    """

    folder: Path
    java: str = "java"
    memory: str = "2G"

    def meteor(self, candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Tally:
        """METEOR 1.5 of N tokenised captions.

        Raises:
            DependencyError: there is no Java, or the jar is not in the folder.
            EngineError: the jar failed.
        """
        jar = self._jar(METEOR_JAR)
        lines = [
            " ||| ".join(["SCORE", *(_line(other) for other in others), _line(own)])
            for own, others in zip(candidates, references, strict=True)
        ]
        command = ["-jar", jar.name, "-", "-", "-stdio", "-l", "en", "-norm"]
        answer = self._run(command, jar, "\n".join(lines) + "\n").splitlines()
        try:
            rows = np.array([[float(x) for x in line.split()] for line in answer], np.float64)
        except ValueError as error:
            raise EngineError(f"{jar} gave statistics that are no numbers: {error}.") from error
        if rows.shape != (len(candidates), _STATISTICS):
            raise EngineError(
                f"{jar} gave an array {rows.shape}, not {(len(candidates), _STATISTICS)}.",
                remedy="It must be METEOR 1.5.",
            )
        return Tally(("METEOR",), rows, _finish_meteor)

    def spice(self, candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Tally:
        """SPICE of N tokenised captions; a caption without a scene graph counts as 0.

        Its jar needs the Stanford CoreNLP 3.6.0 jars in ``spice/lib``.

        Raises:
            DependencyError: there is no Java, or the jar is not in the folder.
            EngineError: the jar failed.
        """
        jar = self._jar(SPICE_JAR)
        rows = [
            {"image_id": row, "test": _line(own), "refs": [_line(other) for other in others]}
            for row, (own, others) in enumerate(zip(candidates, references, strict=True))
        ]
        with tempfile.TemporaryDirectory() as folder:
            asked, told = Path(folder, "in.json"), Path(folder, "out.json")
            asked.write_text(json.dumps(rows), encoding="utf-8")
            places = [str(asked), "-cache", folder, "-out", str(told)]
            self._run(["-jar", jar.name, *places, "-subset", "-silent"], jar, "")
            if not told.is_file():
                raise EngineError(f"{jar} wrote no result.", remedy="Are all jars in spice/lib?")
            found = json.loads(told.read_text(encoding="utf-8"))
        scores = {item["image_id"]: item["scores"]["All"]["f"] for item in found}
        values = np.array([float(scores[row]) for row in range(len(rows))])
        return mean_tally("SPICE", np.nan_to_num(values))

    def _jar(self, name: str) -> Path:
        if shutil.which(self.java) is None:
            raise DependencyError(
                f"This metric needs Java, and {self.java!r} is not found.",
                remedy="Install a Java runtime, or leave the metric out.",
            )
        jar = self.folder / name
        if not jar.is_file():
            raise DependencyError(
                f"{jar} is missing.",
                remedy="Give the folder of the package pycocoevalcap, or leave the metric out.",
            )
        return jar.resolve()

    def _run(self, arguments: Sequence[str], jar: Path, text: str) -> str:
        done = subprocess.run(
            [self.java, f"-Xmx{self.memory}", *arguments],
            cwd=jar.parent,
            input=text,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
            raise EngineError(f"{jar} ended with exit code {done.returncode}: {reason[0]}")
        return done.stdout


def _line(tokens: Tokens) -> str:
    """The caption as the jars read it: their separator must not occur in it."""
    return " ".join(tokens).replace("|||", "")


def _finish_meteor(sums: Floats) -> Floats:
    test_length, reference_length, test_function, reference_function = np.moveaxis(
        sums[..., :4], -1, 0
    )
    stages = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 4)
    # [content of test, content of reference, function words of test, of reference]
    matched = np.einsum("...sk,s->...k", stages, _STAGE_WEIGHTS)
    chunks, test_words, reference_words = np.moveaxis(sums[..., 20:], -1, 0)
    precision = _share(matched[..., 0], matched[..., 2], test_length, test_function)
    recall = _share(matched[..., 1], matched[..., 3], reference_length, reference_function)
    mean = _divide(precision * recall, _ALPHA * precision + (1 - _ALPHA) * recall)
    fragments = _divide(chunks, (test_words + reference_words) / 2)
    whole = (test_words == test_length) & (reference_words == reference_length) & (chunks == 1)
    penalty = np.where(whole, 0.0, _GAMMA * fragments**_BETA)
    return np.asarray((mean * (1 - penalty))[..., None], np.float64)


def _share(content: Floats, function: Floats, length: Floats, function_words: Floats) -> Floats:
    weight = _DELTA * (length - function_words) + (1 - _DELTA) * function_words
    return _divide(_DELTA * content + (1 - _DELTA) * function, weight)


def _divide(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
