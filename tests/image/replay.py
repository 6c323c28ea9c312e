"""Runs a Dockerfile's steps in a folder, so that a test of them cannot drift from them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from dockerfile_parse import DockerfileParser

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# What no process of ours uses: the base is copied for each run.
_LEFT_OUT = shutil.ignore_patterns(
    "site-packages", "test", "tests", "idlelib", "tkinter", "config-3*"
)
# How this machine installs packages.
_USERS = ("HOME", "PIP_", "UV_", "SSL_")


@dataclass
class Image:
    """What the last stage leaves: `root` stands for `/`, and its paths are under it."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    folder: Path = Path("/")
    user: tuple[int, int] = (0, 0)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    def placed(self, text: str) -> str:
        """Return `text` with the image's paths as they are on this machine."""
        return re.sub(r"(?<![\w.$/-])/(opt|app|build|tmp)\b", rf"{self.root}/\1", text)

    def start(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: IO[str],
    ) -> subprocess.Popen[str]:
        """Start a command as the image's user, who may write to `/tmp` alone."""
        values = self.environment | {
            name: self.placed(value) for name, value in environment.items()
        }
        (user, group), is_root = self.user, os.geteuid() == 0
        return subprocess.Popen(
            # `env` looks the command up in the image's own PATH.
            ["env", *command],  # noqa: S607
            cwd=self.folder,
            env=values,
            stdout=log,
            stderr=log,
            text=True,
            user=user if is_root else None,
            group=group if is_root else None,
            extra_groups=[] if is_root else None,
        )


class Replay:
    """One pass over a Dockerfile: a base that is a bare Python, `COPY`, `RUN`, `ENV`, `USER`."""

    def __init__(self, context: Path, root: Path) -> None:
        self._context = context
        self._image = Image(root)
        self._stage = root.parent / "stage"

    def run(self) -> Image:
        """Run every step; raises for a step that fails or that is not known here."""
        parser = DockerfileParser(path=str(self._context / "Dockerfile"))
        for step in parser.structure:
            name, value = step["instruction"], step["value"]
            if name in {"COMMENT", "ARG", "LABEL", "EXPOSE"}:
                continue
            getattr(self, f"_{name.lower()}")(value)
        return self._image

    def _from(self, _: str) -> None:
        root = self._image.root
        if root.exists():
            root.rename(self._stage)
        self._image = Image(root)
        library = Path(sysconfig.get_path("stdlib"))
        python = root / "usr/local"
        shutil.copytree(library, python / "lib" / library.name, ignore=_LEFT_OUT)
        for shared in Path(sysconfig.get_config_var("LIBDIR")).glob("libpython3*.so*"):
            shutil.copy2(shared, python / "lib")
        (python / "bin").mkdir()
        version = f"python3.{sys.version_info.minor}"
        shutil.copy2(Path(vars(sys)["_base_executable"]).resolve(), python / "bin" / version)
        (python / "bin/python").symlink_to(version)
        (root / "tmp").mkdir()
        (root / "tmp").chmod(0o777)
        self._image.environment = {
            "PATH": f"{python}/bin:/usr/bin:/bin",
            "LD_LIBRARY_PATH": str(python / "lib"),
        }
        if not self._stage.exists():
            self._shell("python -m ensurepip")

    def _env(self, value: str) -> None:
        known = self._image.environment
        for name, given in re.findall(r'(\w+)=("[^"]*"|\S+)', value):
            text = re.sub(r"\$\{?(\w+)\}?", lambda found: known[found[1]], given.strip('"'))
            known[name] = self._image.placed(text)

    def _workdir(self, value: str) -> None:
        self._image.folder = Path(self._image.placed(value))
        self._image.folder.mkdir(parents=True, exist_ok=True)

    def _copy(self, value: str) -> None:
        *sources, target = value.split()
        stage = [word for word in sources if word.startswith("--from=")]
        place = self._image.folder / self._image.placed(target)
        for source in (word for word in sources if not word.startswith("--")):
            found = self._stage / source.lstrip("/") if stage else self._allowed(source)
            into = place / found.name if target.endswith("/") else place
            into.parent.mkdir(parents=True, exist_ok=True)
            if found.is_dir():
                skipped = None if stage else self._left_out
                shutil.copytree(found, into, symlinks=True, ignore=skipped)
            else:
                shutil.copy2(found, into)

    def _left_out(self, folder: str, names: list[str]) -> set[str]:
        """Return what `.dockerignore` keeps out of a folder of the context."""
        rules = (self._context / ".dockerignore").read_text().split("\n")
        place = Path(folder).relative_to(self._context)
        found = shutil.ignore_patterns("__pycache__", "*.pyc")(folder, names)
        return found | {name for name in names if str(place / name) in rules}

    def _allowed(self, source: str) -> Path:
        """Return a file of the context, if `.dockerignore` lets it in."""
        rules = (self._context / ".dockerignore").read_text().split("\n")
        assert f"!{source.partition('/')[0]}" in rules, f".dockerignore keeps {source} out"
        return self._context / source

    def _run(self, value: str) -> None:
        if value.startswith("apt-get"):
            self._packages(re.findall(r'"([a-z0-9-]+)=[^"]+"', value))
            return
        self._shell(re.sub(r"--mount=\S+\s*", "", value))

    def _packages(self, names: Sequence[str]) -> None:
        """Install what Debian has; a stand-in where this machine lacks it, as nothing can be fetched."""
        assert names == ["tini"]
        place = self._image.root / "usr/local/bin/tini"
        if real := shutil.which("tini"):
            shutil.copy2(real, place)
        else:
            place.write_text('#!/bin/sh\nshift\nexec "$@"\n')
            place.chmod(0o755)

    def _shell(self, script: str) -> None:
        done = subprocess.run(
            ["sh", "-ec", self._image.placed(script)],  # noqa: S607
            cwd=self._image.folder,
            # The cache of packages is this user's, as the build's cache mount is the builder's.
            env={name: os.environ[name] for name in os.environ if name.startswith(_USERS)}
            | self._image.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"

    def _user(self, value: str) -> None:
        user, group = value.split(":")
        self._image.user = (int(user), int(group))

    def _entrypoint(self, value: str) -> None:
        self._image.entrypoint = json.loads(value)

    def _cmd(self, value: str) -> None:
        self._image.command = json.loads(value)
