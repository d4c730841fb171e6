"""Environments of peers: one virtual environment each, from a committed file of exact pins.

``python -m primelens.bench peers build`` makes them; ``peers list`` says which are there. They lie
outside of the repository (``--folder``, or the variable ``PRIMELENS_PEERS``), and each carries the
digest of the pins that it was built from: change a pin, and it counts as not built.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from primelens.bench.peers.served_vllm import graphics_processors
from primelens.errors import DependencyError, EngineError, OptionError

__all__ = ["PEERS", "PeerEnvironment", "default_folder", "environment_of"]

FOLDER_VARIABLE = "PRIMELENS_PEERS"
_PINS = Path(__file__).with_name("peers")
_STAMP = "primelens-pins.sha256"

PEERS = {
    "transformers": "transformers",
    "compiled": "transformers",
    "optimum": "optimum",
    "openvino": "openvino",
    "vllm": "vllm",
}
"""Peer → the environment that it runs in, and the name of its pins."""

_ON_A_GPU = {"vllm"}


def default_folder() -> Path:
    """Where environments lie unless a folder is given."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    if chosen:
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "primelens" / "peers"


@dataclass(frozen=True)
class PeerEnvironment:
    """One environment.

    Attributes:
        name: of its pins.
        folder: the virtual environment.
        pins: the requirements file.
    """

    name: str
    folder: Path
    pins: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / ("Scripts" if os.name == "nt" else "bin") / "python"

    @property
    def digest(self) -> str:
        """SHA-256 of its pins."""
        return hashlib.sha256(self.pins.read_bytes()).hexdigest()

    @property
    def lacking(self) -> str | None:
        """What this machine lacks for it, or None: it can be built and run here."""
        if self.name in _ON_A_GPU and not graphics_processors():
            return "needs an NVIDIA GPU, and the driver lists none on this machine"
        return None

    @property
    def built(self) -> bool:
        """Whether it is there, complete, and of these pins."""
        stamp = self.folder / _STAMP
        return stamp.is_file() and stamp.read_text(encoding="ascii").strip() == self.digest

    def require(self) -> Path:
        """Its interpreter.

        Raises:
            EngineError: this machine cannot run it.
            DependencyError: it is not built.
        """
        if self.lacking:
            raise EngineError(
                f"The peer {self.name!r} {self.lacking}.",
                remedy="Leave it out of --peers, or measure on a machine that has one.",
            )
        if not self.built:
            raise DependencyError(
                f"The environment of the peer {self.name!r} is not built in {self.folder}.",
                remedy=f"Run `python -m primelens.bench peers build {self.name}`.",
            )
        return self.python

    def build(self) -> None:
        """Make it anew; the stamp is written last, so a broken build never counts as built.

        Raises:
            DependencyError: the installer failed.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        pip = [str(self.python), "-m", "pip", "install", "--quiet"]
        lines = self.pins.read_text(encoding="utf-8").splitlines()
        torch = [line for line in lines if line.startswith("torch==")]
        commands = [[sys.executable, "-m", "venv", str(self.folder)]]
        if torch:
            commands += [
                [*pip, *torch],  # with what its build for this platform brings along
                [*pip, "--no-deps", "-r", str(self.pins)],  # the rest exactly as it was measured
            ]
        else:  # a package that pins its own
            commands += [[*pip, "-r", str(self.pins)]]
        for command in commands:
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                said = done.stderr.strip()[-800:]
                raise DependencyError(
                    f"Building the environment of {self.name!r} failed: {said}",
                    remedy="Check the network and the pins, then build it again.",
                )
        (self.folder / _STAMP).write_text(f"{self.digest}\n", encoding="ascii")


def environment_of(peer: str, folder: Path | None = None) -> PeerEnvironment:
    """The environment that a peer runs in.

    Raises:
        OptionError: no such peer.
    """
    if peer not in PEERS:
        raise OptionError(
            f"There is no peer {peer!r}.", remedy=f"Known peers: {', '.join(sorted(PEERS))}."
        )
    name = PEERS[peer]
    return PeerEnvironment(name, (folder or default_folder()) / name, _PINS / f"{name}.txt")
