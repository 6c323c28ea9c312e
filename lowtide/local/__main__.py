"""The daemon that `lowtide up --detach` starts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lowtide.local.options import LocalError, Options
from lowtide.local.runtime import up


def main() -> None:
    """Run the stack; exits with 1 and a message on LocalError."""
    parser = argparse.ArgumentParser(description="Run the local stack in the foreground.")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--portal-port", type=int, required=True)
    parser.add_argument("--ready-timeout", type=float, required=True)
    parser.add_argument("--monitoring", action="store_true")
    parser.add_argument("--prometheus", type=Path)
    parser.add_argument("--alertmanager", type=Path)
    parser.add_argument("--synchronous-broker", action="store_true")
    parser.add_argument("--via", type=_detour, action="append", default=[], metavar="NAME=PORT")
    parser.add_argument("--cells", type=int, default=0)
    args = parser.parse_args()
    try:
        up(
            Options(
                root=args.root,
                data_dir=args.data_dir,
                port=args.port,
                portal_port=args.portal_port,
                ready_timeout=args.ready_timeout,
                monitoring=args.monitoring,
                prometheus=args.prometheus,
                alertmanager=args.alertmanager,
                synchronous_broker=args.synchronous_broker,
                via=dict(args.via),
                cells=args.cells,
            )
        )
    except LocalError as error:
        sys.exit(f"lowtide: {error}")


def _detour(text: str) -> tuple[str, int]:
    """Parse the name of a process and the port of the proxy in front of it."""
    name, _, port = text.partition("=")
    if name not in {"postgres", "broker"} or not port.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: use postgres=PORT or broker=PORT.")
    return name, int(port)


if __name__ == "__main__":
    main()
