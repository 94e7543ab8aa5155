"""Audit every model of the zoo in every framework: a healthy model has nothing to be said of it.

Run from the repository's root: python -m scripts.audit_zoo [FAMILY ...] [--framework NAME ...]

Each audit runs in a process of its own with a time limit. Exit status: 0 if nothing is wrong or
suspicious anywhere, 1 otherwise, 2 if an audit could not be made.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from models import data

MODELS = Path(data.__file__).parent
FRAMEWORKS = ("torch", "numpy", "keras", "jax")
FRESH = "torch-fresh"  # the PyTorch model as its constructor leaves it


def families() -> list[str]:
    return sorted(path.parent.name for path in MODELS.glob("*/pair.py"))


def digits(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The labels that go with a batch of `models.data`, (N,) int64."""
    return data.digits_batch(0, len(inputs["x"]))[1]


def next_tokens(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """What a language model is to say at every position: the next token; of the last, nothing."""
    tokens = inputs["tokens"]
    return np.concatenate([tokens[:, 1:], np.full_like(tokens[:, :1], -100)], axis=1)


# These pairs are checked without a loss: their models were trained with this one.
LOSSES: dict[str, tuple[str, Callable[[dict[str, np.ndarray]], np.ndarray]]] = {
    "cnn": ("cross_entropy", digits),
    "gpt": ("cross_entropy", next_tokens),
    "mlp": ("cross_entropy", digits),
}
# What the audit of a family has to be told, in any framework.
DECLARED: dict[str, dict[str, Any]] = {
    "gcn": {"one_example": True},
    "gpt": {"causal": True},
    "llama": {"causal": True},
}


def audited(family: str, framework: str) -> dict[str, Any]:
    """The report of one audit, as in its JSON."""
    import crosscheck
    from crosscheck.auditing.pairs import of_pair
    from crosscheck.pair import load_pair

    pair = load_pair(MODELS / family)
    candidate = None if framework in ("torch", FRESH) else framework
    chosen = of_pair(pair, candidate)
    # A reference is trained, or its weights are drawn so that each matters; a port is as its
    # framework initialises it.
    options = {**DECLARED.get(family, {}), "trained": framework == "torch"}
    loss, targets = chosen.loss, chosen.targets
    if family in LOSSES:
        loss, made = LOSSES[family]
        targets = made(chosen.inputs)
    model = fresh(family) if framework == FRESH else chosen.model
    begun = time.process_time()
    report = crosscheck.audit(model, chosen.inputs, loss, targets, name=family, **options)
    return {**json.loads(report.to_json()), "cpu": time.process_time() - begun}


def fresh(family: str) -> Any:
    """The PyTorch model that ``build`` would have given weights to."""
    import torch

    module = importlib.import_module(f"models.{family}.reference")
    name = str(inspect.signature(module.build).return_annotation)
    torch.manual_seed(0)
    return getattr(module, name)().eval()


def in_a_process(family: str, framework: str, timeout: float) -> tuple[dict[str, Any], float]:
    """(report, seconds with the start of the process); ``{"verdict": "failed"}`` and why."""
    begun = time.monotonic()
    command = [sys.executable, "-m", "scripts.audit_zoo", "--one", family, framework]
    try:
        made = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"verdict": "failed", "why": f"no end after {timeout:g} s"}, timeout
    seconds = time.monotonic() - begun
    if made.returncode:
        said = made.stderr.strip().splitlines() or [f"exit status {made.returncode}"]
        return {"verdict": "failed", "why": said[-1]}, seconds
    return dict(json.loads(made.stdout.splitlines()[-1])), seconds


def lines(family: str, framework: str, report: dict[str, Any], seconds: float) -> list[str]:
    """A line of the table (CPU time of the audit, wall time of its process, its slowest checks),
    and one for everything that the audit speaks of."""
    findings = report.get("findings", [])
    spoken = [f for f in findings if f["status"] in ("fail", "error")]
    slowest = sorted(findings, key=lambda f: -float(f["seconds"]))[:2]
    where = ", ".join(f"{f['check']} {f['seconds']:.1f}" for f in slowest)
    cpu = f"{report.get('cpu', 0.0):6.1f} s CPU {seconds:6.1f} s"
    head = f"{family:13} {framework:11} {verdict(report):10} {cpu}  {where}"
    if "why" in report:
        return [head, f"    {report['why']}"]
    mark = {"error": "ERROR"}
    return [
        head,
        *(
            f"    {mark.get(f['status'], f['severity'])}: {f['check']}: {f['statement']}"
            for f in spoken
        ),
    ]


def verdict(report: dict[str, Any]) -> str:
    """``clean``, ``notes``, or the report's own where there is more."""
    if report["verdict"] != "healthy":
        return str(report["verdict"])
    return "notes" if any(f["status"] == "fail" for f in report["findings"]) else "clean"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", nargs="*", help="of the zoo; default: all")
    parser.add_argument("--framework", action="append", choices=[*FRAMEWORKS, FRESH])
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one audit")
    parser.add_argument("--one", nargs=2, metavar=("FAMILY", "FRAMEWORK"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(audited(*given.one)))
        return 0
    worst = 0
    for framework in given.framework or [*FRAMEWORKS, FRESH]:
        for family in given.family or families():
            report, seconds = in_a_process(family, framework, given.timeout)
            print(*lines(family, framework, report, seconds), sep="\n", flush=True)
            bad = {"healthy": 0, "wrong": 1, "suspicious": 1}.get(report["verdict"], 2)
            worst = max(worst, bad)
    return worst


if __name__ == "__main__":
    sys.exit(main())
