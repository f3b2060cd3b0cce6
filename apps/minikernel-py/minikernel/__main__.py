"""The command line."""

import argparse
import json
import logging
import os
import sys
import tempfile
from pathlib import Path

from . import kernel
from .message import Connection


def main() -> int:
    parser = argparse.ArgumentParser(prog="minikernel", description="A small Jupyter kernel: a toy language on real sockets.")
    parser.add_argument("-f", "--connection-file", metavar="FILE", help="run the kernel with this connection file")
    parser.add_argument(
        "--deadline",
        metavar="SECONDS",
        type=seconds,
        default=2.0,
        help="how long a shutdown lets cells run on before it cancels them (default: 2)",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log more than warnings")
    install_parser = parser.add_subparsers(dest="command").add_parser(
        "install", help="write the kernelspec, by which Jupyter finds the kernel"
    )
    install_parser.add_argument("--prefix", metavar="DIR", help="into DIR/share/jupyter/kernels, not the user's own")
    install_parser.add_argument("--name", default="minikernel-py", help="what clients call the kernel")
    arguments = parser.parse_args()
    if arguments.command is None and arguments.connection_file is None:
        parser.error("-f FILE is required, to run, or install")
    level = logging.DEBUG if arguments.verbose else logging.WARNING
    try:
        if arguments.command == "install":
            logging.basicConfig(level=logging.ERROR)
            install(arguments.prefix, arguments.name)
        else:
            handler = logging.StreamHandler()
            formatter = logging.Formatter if arguments.verbose else Brief
            handler.setFormatter(formatter("%(asctime)s %(levelname)s %(message)s"))
            logging.basicConfig(level=level, handlers=[handler])
            kernel.run(connection(arguments.connection_file), arguments.deadline)
    except Exception as error:
        print(f"minikernel: error: {explained(error)}", file=sys.stderr, flush=True)
        if isinstance(error, kernel.Stuck):
            os._exit(1)
        return 1
    return 0


class Brief(logging.Formatter):
    """Without tracebacks: where a service failed is for developers, and why is said at the end."""

    def formatException(self, ei: object) -> str:
        return ""


def seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1e9:
        raise argparse.ArgumentTypeError("not a number of seconds from 0 to 1e9")
    return number


def connection(path: str) -> Connection:
    try:
        return Connection(path)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"connection file {path}: {error!r}") from None


def explained(error: BaseException) -> str:
    """What failed, and the first cause of it."""
    first = str(error)
    while cause := error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__:
        error = cause
    last = str(error) or type(error).__name__
    return last if first in last else f"{first}: {last}"


def install(prefix: str | None, name: str) -> None:
    from jupyter_client.kernelspec import KernelSpecManager  # which is slow to import, and not needed to run

    spec = {
        "argv": [sys.executable, "-m", "minikernel", "-f", "{connection_file}"],
        "display_name": f"Mini ({name})",
        "language": "mini",
        "interrupt_mode": "message",
    }
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "kernel.json").write_text(json.dumps(spec, indent=2) + "\n")
        where = KernelSpecManager().install_kernel_spec(directory, name, user=prefix is None, prefix=prefix)
    print(f"installed {name} in {where}")


if __name__ == "__main__":
    sys.exit(main())
