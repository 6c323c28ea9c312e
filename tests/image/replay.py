"""Replay of a Dockerfile's steps in a folder, so that tests run the real steps."""

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

# Parts of Python that no process uses, to keep the copy of the base small.
_UNUSED = shutil.ignore_patterns(
    "site-packages", "test", "tests", "idlelib", "tkinter", "config-3*"
)
# Variables for installing packages on this machine.
_INSTALL_VARIABLES = ("HOME", "PIP_", "UV_", "SSL_")


@dataclass
class Image:
    """The result of the last stage; `root` stands for `/`."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    folder: Path = Path("/")
    user: tuple[int, int] = (0, 0)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    def locate(self, text: str) -> str:
        """Return `text` with the image's paths replaced by their paths on this machine."""
        return re.sub(r"(?<![\w.$/-])/(opt|app|build|tmp)\b", rf"{self.root}/\1", text)

    def start(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: IO[str],
    ) -> subprocess.Popen[str]:
        """Start a command as the image's user, which may only write to `/tmp`."""
        values = self.environment | {
            name: self.locate(value) for name, value in environment.items()
        }
        (user, group), is_root = self.user, os.geteuid() == 0
        return subprocess.Popen(
            # `env` looks up the command in the image's PATH.
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
    """A replay of a Dockerfile on a bare Python as its base."""

    def __init__(self, context: Path, root: Path) -> None:
        self._context = context
        self._image = Image(root)
        self._stage = root.parent / "stage"

    def run(self) -> Image:
        """Run every step; raise for a failed or unsupported step."""
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
        shutil.copytree(library, python / "lib" / library.name, ignore=_UNUSED)
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
        variables = self._image.environment
        for name, raw in re.findall(r'(\w+)=("[^"]*"|\S+)', value):
            text = re.sub(r"\$\{?(\w+)\}?", lambda match: variables[match[1]], raw.strip('"'))
            variables[name] = self._image.locate(text)

    def _workdir(self, value: str) -> None:
        self._image.folder = Path(self._image.locate(value))
        self._image.folder.mkdir(parents=True, exist_ok=True)

    def _copy(self, value: str) -> None:
        *sources, target = value.split()
        stage = [word for word in sources if word.startswith("--from=")]
        place = self._image.folder / self._image.locate(target)
        for source in (word for word in sources if not word.startswith("--")):
            path = self._stage / source.lstrip("/") if stage else self._allowed(source)
            into = place / path.name if target.endswith("/") else place
            into.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                ignore = None if stage else self._ignored
                shutil.copytree(path, into, symlinks=True, ignore=ignore)
            else:
                shutil.copy2(path, into)

    def _ignored(self, folder: str, names: list[str]) -> set[str]:
        """Return the names in a folder of the context that `.dockerignore` excludes."""
        rules = (self._context / ".dockerignore").read_text().split("\n")
        place = Path(folder).relative_to(self._context)
        caches = shutil.ignore_patterns("__pycache__", "*.pyc")(folder, names)
        return caches | {name for name in names if str(place / name) in rules}

    def _allowed(self, source: str) -> Path:
        """Return a path of the context, asserting that `.dockerignore` includes it."""
        rules = (self._context / ".dockerignore").read_text().split("\n")
        assert f"!{source.partition('/')[0]}" in rules, f".dockerignore excludes {source}"
        return self._context / source

    def _run(self, value: str) -> None:
        if value.startswith("apt-get"):
            self._packages(re.findall(r'"([a-z0-9-]+)=[^"]+"', value))
            return
        self._shell(re.sub(r"--mount=\S+\s*", "", value))

    def _packages(self, names: Sequence[str]) -> None:
        """Copy tini from this machine, or write a stand-in if it is missing."""
        assert names == ["tini"]
        place = self._image.root / "usr/local/bin/tini"
        if real := shutil.which("tini"):
            shutil.copy2(real, place)
        else:
            place.write_text('#!/bin/sh\nshift\nexec "$@"\n')
            place.chmod(0o755)

    def _shell(self, script: str) -> None:
        done = subprocess.run(
            ["sh", "-ec", self._image.locate(script)],  # noqa: S607
            cwd=self._image.folder,
            # This user's package cache stands in for the build's cache mount.
            env={
                name: os.environ[name] for name in os.environ if name.startswith(_INSTALL_VARIABLES)
            }
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
