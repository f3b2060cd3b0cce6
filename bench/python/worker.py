"""A long-lived process of one environment: each line, JSON, asks for one repetition and is answered by its figure."""

import asyncio
import gc
import inspect
import json
import os
import sys
import traceback
from importlib import import_module, metadata

import cases


def hello(packages: list[str]) -> dict:
    versions = {}
    for package in packages:
        module = import_module(package)
        versions[package] = getattr(module, "__version__", None) or metadata.version(package)
    about = {"versions": versions, "python": sys.version.split()[0]}
    return about | {"gc": gc.get_threshold(), "switch interval": sys.getswitchinterval()}


def measure(case: cases.Case, contender: str, n: int, placement: str) -> dict:
    cases.placement = placement
    cases.pin(0)
    gc.collect()
    result = case.runs[contender](n)
    return {"us": asyncio.run(result) if inspect.iscoroutine(result) else result}


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a case prints is not an answer
    known = cases.load()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "packages" in request:
                reply = hello(**request)
            else:
                reply = measure(known[request.pop("case")], **request)
        except Exception:
            reply = {"error": traceback.format_exc()}
        print(json.dumps(reply), file=replies)


if __name__ == "__main__":
    main()
