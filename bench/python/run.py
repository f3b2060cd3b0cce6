"""The Python table: microio, the original 0.1.4 from PyPI and the peers, interleaved in one run.

Three processes live through the run: the package, the original (in an environment of its own: it has the same import
name) and the peers. Each round asks every contender of a case for one repetition, in an order that rotates; a ratio is
the median over the rounds of the ratio inside one round. A short repetition of each warms up first. Every thread is
pinned: `same` has the threads of a case on one CPU, `cross` on two (there the targets of the throughput rows were set,
which the other placement shows without a verdict). The collector is on, with its default thresholds, after a full
collection before each repetition; the switch interval is the default too. Figures are microseconds per
operation, minimum/median/maximum. Only ratios inside one run count: these figures are no promise on another machine.
"""

import argparse
import json
import os
import platform
import select
import statistics
import subprocess
import sys
from pathlib import Path

import cases

HERE = Path(__file__).resolve().parent
VENVS = HERE.parents[1] / "target" / "bench-python"
PEERS = [line.split("==")[0] for line in (HERE / "requirements.txt").read_text().splitlines() if "==" in line]
SLOWEST = 120  # seconds for one repetition; what takes longer hangs


class Worker:
    """One process of one environment, asked one line at a time."""

    def __init__(self, name: str, python: Path, packages: list[str]):
        self.name, self.command = name, [str(python), str(HERE / "worker.py")]
        # A source tree on PYTHONPATH is the package under test; the original must not see it. Imports find byte code.
        hidden = {"PYTHONDONTWRITEBYTECODE"} | ({"PYTHONPATH"} if name != "ours" else set())
        self.env = {name: value for name, value in os.environ.items() if name not in hidden}
        if not python.exists():
            raise SystemExit(f"{name}: there is no {python}; `make bench-python` sets the environments up")
        self.start()
        self.about = self.ask(packages=packages)
        if "error" in self.about:
            reason = self.about["error"].strip().splitlines()[-1]
            raise SystemExit(f"{name}: {python} lacks a package ({reason}); `make bench-python` sets it up")
        if name == "original" and self.about["versions"]["microio"] != "0.1.4":
            raise SystemExit(f"original: {python} has microio {self.about['versions']['microio']}, not 0.1.4")

    def start(self) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, text=True, env=self.env)

    def ask(self, **request) -> dict:
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            answered = select.select([self.process.stdout], [], [], SLOWEST)[0]
            reply = self.process.stdout.readline() if answered else None
        except BrokenPipeError:
            reply = ""
        if reply:
            return json.loads(reply)
        self.end()
        died = f"the process died, exit code {self.process.returncode}"
        self.start()
        return {"error": f"no answer within {SLOWEST} s" if reply is None else died}

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def contenders(case: cases.Case, workers: dict[str, Worker]) -> dict[str, tuple[Worker, str]]:
    found = {who: (workers[who], "microio") for who in ("ours", "original") if who in workers}
    if "peers" in workers:
        found |= {who: (workers["peers"], who) for who in case.runs if who != "microio"}
    return found


def measure(
    case: cases.Case, placement: str, workers: dict[str, Worker], rounds: int, shrink: float
) -> dict[str, list[float]]:
    field, figures = contenders(case, workers), {}
    names = list(field)
    for turn in range(-1, rounds):  # turn -1 warms up
        at = turn % len(names)
        length = (1 if case.fixed else shrink) * (0.1 if turn < 0 else 1)
        for who in names[at:] + names[:at]:
            worker, contender = field[who]
            n = max(1, round(case.n * case.shares.get(who, 1) * length))
            reply = worker.ask(case=case.name, contender=contender, n=n, placement=placement)
            if "error" in reply:
                print(f"{case.name}, {who}: {reply['error']}", file=sys.stderr)
                del field[who]
                figures.pop(who, None)
            elif turn >= 0:
                figures.setdefault(who, []).append(reply["us"])
        names = list(field)
        if not names:
            break
    return figures


def ratio(over: list[float], under: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under))


def digest(case: cases.Case, placement: str, figures: dict[str, list[float]]) -> dict:
    row = {"case": case.name, "what": case.what, "placement": placement, "noted": case.noted, "figures": figures}
    median = {who: statistics.median(values) for who, values in figures.items()}
    peers = [who for who in median if who not in ("ours", "original", *case.limits)]
    best = row["best"] = min(peers, key=median.get, default=None)
    faster = case.target and ("level" if case.target < 1 else f"x{case.target:g}")
    row["goal"] = ", ".join(filter(None, (faster, case.level and f"<= {case.level:g} of best")))
    kept = []
    if "ours" in figures and "original" in figures and case.noted:
        row["faster"] = ratio(figures["original"], figures["ours"])
        if case.target:
            kept.append(row["faster"] >= case.target)
    if "ours" in figures and best:
        row["of best"] = ratio(figures["ours"], figures[best])
        if case.level:
            kept.append(row["of best"] <= case.level)
    row["verdict"] = ("met" if all(kept) else "MISSED") if kept and placement in case.judged else "-"
    return row


def short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.1 else f"{value:.3f}"


def spread(values: list[float] | None) -> str:
    return "/".join(map(short, (min(values), statistics.median(values), max(values)))) if values else "-"


COLUMNS = "case", "place", "ours", "original", "faster", "best peer", "ours / peer", "target", "verdict", "others"
WIDTHS = 21, 5, 20, 20, 6, 40, 11, 19, 7, 0


def line(cells) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS)) + " |"


def render(row: dict) -> str:
    figures, best = row["figures"], row["best"]
    rest = [who for who in figures if who not in ("ours", "original", best)]
    return line((
        row["case"], row["placement"], spread(figures.get("ours")), spread(figures.get("original")),
        f"x{row['faster']:.3g}" if "faster" in row else "-",
        f"{best} {spread(figures[best])}" if best else "-",
        f"{row['of best']:.2f}" if "of best" in row else "-",
        row["goal"], row["verdict"], ", ".join(f"{who} {short(statistics.median(figures[who]))}" for who in rest),
    ))


def arguments(known: dict[str, cases.Case]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter repetitions, within two minutes")
    parser.add_argument("--cases", metavar="A,B", default="", help="only the cases whose names begin so (see --list)")
    parser.add_argument("--repeat", type=int, metavar="N", help="rounds per case (7, with --quick 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there as well")
    parser.add_argument("--python", type=Path, metavar="PATH", default=VENVS / "ours/bin/python",
                        help="the interpreter that has microio and the peers")
    parser.add_argument("--original", type=Path, metavar="PATH", default=VENVS / "original/bin/python",
                        help="the interpreter that has microio 0.1.4")
    parser.add_argument("--without", action="append", default=[], choices=("ours", "original", "peers"),
                        help="leave one out")
    parser.add_argument("--list", action="store_true", help="list the cases and end")
    options = parser.parse_args()
    options.cases = [case for case in known.values() if case.name.startswith(tuple(options.cases.split(",")))]
    if not options.cases:
        parser.error("no case has such a name; --list prints them")
    options.repeat = options.repeat or (3 if options.quick else 7)
    return options


def main() -> int:
    options = arguments(cases.load())
    if options.list:
        print(*(f"{case.name:22} {case.what}" for case in options.cases), sep="\n")
        return 0
    ours, original, peers = (options.python, ["microio"]), (options.original, ["microio"]), (options.python, PEERS)
    environments = {"ours": ours, "original": original, "peers": peers}
    workers = {who: Worker(who, *how) for who, how in environments.items() if who not in options.without}
    about = [worker.about for worker in workers.values()]
    if len(pythons := {each["python"] for each in about}) > 1:
        raise SystemExit("the environments have different Python versions: " + ", ".join(pythons))
    head = {who: worker.about.pop("versions") for who, worker in workers.items()} | about[0]
    head |= {"machine": platform.platform(), "cpus": cases.CPUS, "load": os.getloadavg(), "rounds": options.repeat}
    print(*(f"{key}: {value}" for key, value in head.items()), "", sep="\n")
    print(line(COLUMNS), line("-" * max(3, width) for width in WIDTHS), sep="\n", flush=True)
    rows, broken = [], 0
    for case in options.cases:
        for placement in case.placements[: len(cases.CPUS) or 1]:
            figures = measure(case, placement, workers, options.repeat, 0.2 if options.quick else 1)
            broken += len(figures) < len(contenders(case, workers))
            rows.append(digest(case, placement, figures))
            print(render(rows[-1]), flush=True)
    for worker in workers.values():
        worker.end()
    judged = [row["verdict"] for row in rows if row["verdict"] != "-"]
    print(f"\n{judged.count('met')} of {len(judged)} targets met, {broken} rows with errors")
    if options.json:
        options.json.write_text(json.dumps({"about": head, "rows": rows}, indent=1) + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
