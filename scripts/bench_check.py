"""What a check costs: time and peak memory, beside the bare forward and backward of both sides.

    python scripts/bench_check.py [CASE ...] [--effort quick thorough] [--repeat N]
                                  [--device cuda] [--against polygraphy] [--stages]
                                  [--markdown F.md]

Cases: see `scripts.bench_models`; all of them by default. Every measurement is a process of its
own, which builds and imports everything first and runs each side once on a cut of the inputs; bare
runs and checks take turns, and the best of N counts. Before each, `TOUCHED` bytes of memory are
written once and given back: where a virtual machine's memory is lent to others while it is free,
the first use of a page is slow, and a check uses more pages than a bare run (``--cold`` leaves
that out). Time is wall time and, since other programs
may be running, CPU time of all threads. Memory is the high-water mark of the process (imports,
both models, everything). "trace" is the size of what one run of the reference shows.

With ``--device cuda`` both sides of the PyTorch pairs run there, the bare runs on models that are
there already, and memory is what PyTorch's allocator held on the device at most.

With ``--against polygraphy`` (pip install polygraphy), both tools compare one ONNX file under ONNX
Runtime, whole process against whole process: crosscheck the values between all layers, unoptimised
against optimised, at either effort and else by default; Polygraphy two equal sessions, once every
value and once only those that crosscheck sees. Cases are those of `ENCODERS`.
"""

from __future__ import annotations

import argparse
import copy
import json
import mmap
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from scripts.bench_models import CASES, LARGE, MEDIUM, Case, Sizes, made, reference

Row = dict[str, Any]

TOUCHED = 6 << 30
"""Bytes: more than a check of the largest case takes."""


def main() -> None:
    options = _options()
    if options.child:
        print(json.dumps(_measured(options.cases[0], options.child, options.device)))
        return
    if options.against:
        table = "\n\n".join(_against_polygraphy(name, options) for name in options.cases)
    else:
        jobs = ["bare", *options.effort, "trace"]
        table = _table([_case(name, jobs, options) for name in options.cases], options.effort)
    print(table)
    if options.markdown:
        options.markdown.write_text(f"{_machine(options.device)}\n\n{table}\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--effort", nargs="+", default=["quick", "thorough"])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--against", choices=["polygraphy"])
    parser.add_argument("--cold", action="store_true", help="no memory is touched beforehand")
    parser.add_argument("--stages", action="store_true", help="seconds of each stage on stderr")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    known = list(ENCODERS if options.against else CASES)
    if options.device == "cuda":
        if options.against:
            parser.error("--against runs on the CPU only")
        import torch

        if not torch.cuda.is_available():
            parser.error("PyTorch sees no CUDA device")
        known = [name for name in known if _is_of_torch(CASES[name])]
    options.cases = options.cases or known[: 2 if options.against else None]
    unknown = set(options.cases) - set(known)
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return options


def _is_of_torch(case: Case) -> bool:
    return case.sizes is not None and case.candidate == "torch"


def _machine(device: str) -> str:
    if device == "cuda":
        import torch

        name, version = torch.cuda.get_device_name(), torch.version.cuda
        return f"{name}, CUDA {version}, PyTorch {torch.__version__}"
    return (
        f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, "
        f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}, "
        f"Python {platform.python_version()}, NumPy {np.__version__}"
    )


# -- one case, in processes of their own -----------------------------------------------------------


def _case(name: str, jobs: Sequence[str], options: argparse.Namespace) -> Row:
    runs: dict[str, list[Row]] = {job: [] for job in jobs}
    for turn in range(options.repeat):
        for job in jobs:
            if job != "trace" or turn == 0:
                if not options.cold:
                    _touch()
                runs[job].append(_child(name, job, options))
    row: Row = {"what": CASES[name].what}
    for job, found in runs.items():
        row[job] = {key: min(one[key] for one in found) for key in ("wall", "cpu", "peak")}
    row["trace"] = runs["trace"][0]["bytes"]
    return row


def _touch() -> None:
    """Write to memory that nobody uses: the next process finds it in the machine."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with mmap.mmap(-1, min(TOUCHED, free // 2)) as room:
        for page in range(0, len(room), mmap.PAGESIZE):
            room[page] = 1


def _child(name: str, job: str, options: argparse.Namespace) -> Row:
    command = [sys.executable, __file__, name, "--child", job, "--device", options.device]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: Row = json.loads(done.stdout.splitlines()[-1])
    if options.stages:
        for seconds, line in found.get("stages", ()):
            print(f"{name} {job}: {seconds:8.2f} s  {line}", file=sys.stderr)
    return found


def _measured(name: str, job: str, device: str) -> Row:
    """One job in this process: time, memory and what else it has to say."""
    case = CASES[name]
    sides = made(case)
    import crosscheck.api  # noqa: F401

    work = {"bare": _bare, "trace": _trace}.get(job) or _checks(job)
    warm = sides if device == "cpu" else copy.deepcopy(sides)
    for model in warm[:2] if device == "cuda" else ():
        model.to(device)
    _bare(case, (*warm[:2], _cut(case, warm[2])), device)  # imports, thread pools, compilations
    if job == "bare":
        sides = warm
    del warm
    peak = _from_here_on(device)
    clock, cpu = time.perf_counter(), time.process_time()
    more = work(case, sides, device)
    wall, cpu = time.perf_counter() - clock, time.process_time() - cpu
    return {"wall": wall, "cpu": cpu, "peak": peak(), **more}


def _cut(case: Case, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One example of each input, where the model takes a batch of any size."""
    return inputs if case.candidate in ("keras", "onnx") else {n: a[:1] for n, a in inputs.items()}


def _from_here_on(device: str) -> Callable[[], int]:
    """What tells the peak of memory; on a device, the one from now on."""
    if device == "cpu":
        return _peak
    import torch

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated


def _peak() -> int:
    """The high-water mark in bytes. (Not ru_maxrss: it starts from the parent's.)"""
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return 1024 * next(int(s.split()[1]) for s in lines if s.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


# -- what is measured ------------------------------------------------------------------------------


def _checks(effort: str) -> Callable[[Case, Any, str], Row]:
    def check(case: Case, sides: Any, device: str) -> Row:
        import crosscheck

        stages: list[tuple[float, str]] = []
        last = [time.perf_counter(), "start"]

        def say(line: str) -> None:
            now = time.perf_counter()
            stages.append((now - last[0], last[1]))
            last[:] = [now, line]

        report = crosscheck.check(
            *sides,
            effort=effort,
            gradients=case.gradients,
            blind_spots=False,
            device=device,
            progress=say,
        )
        say("end")
        if report.verdict != "agree" or report.environment["effort"] != effort:
            sys.exit(f"an honest pair, and the check does not agree at once:\n{report}")
        return {"stages": stages, "sites": len(report.sites)}

    return check


def _bare(case: Case, sides: Any, device: str) -> Row:
    first, second, inputs = sides
    for model in (first, second):
        _forward_and_backward(model, list(inputs.values()), device, backward=case.gradients)
    return {}


def _trace(case: Case, sides: Any, device: str) -> Row:
    """The size of everything that one run of the reference shows."""
    from crosscheck.adapters import adapt
    from crosscheck.cotangents import ReferenceCotangents
    from crosscheck.run import Runner

    sent = ReferenceCotangents(0) if case.gradients else None
    trace = Runner("reference", adapt(sides[0]), sides[2], sent).record(passive=True)
    values = [*trace.values.values(), *trace.info.parameter_gradients.values()]
    return {"bytes": sum(value.nbytes for value in values)}


def _forward_and_backward(
    model: Any, inputs: list[np.ndarray], device: str, *, backward: bool
) -> None:
    """As a training step would, without a loss: a cotangent of ones for the output."""
    if "torch" in sys.modules and isinstance(model, sys.modules["torch"].nn.Module):
        _torch_step(model, inputs, device, backward)
    elif "keras" in sys.modules and isinstance(model, sys.modules["keras"].Model):
        _keras_step(model, inputs, backward)
    elif "onnx" in sys.modules and isinstance(model, sys.modules["onnx"].ModelProto):
        _onnx_step(model, inputs)
    elif hasattr(model, "forward"):
        y = model.forward(*inputs)
        if backward:
            model.backward(np.ones_like(y))
    else:
        raise TypeError(f"no bare run for a {type(model).__name__}")


def _onnx_step(model: Any, inputs: list[np.ndarray]) -> None:
    """Forward only."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [one.name for one in session.get_inputs()]
    session.run(None, dict(zip(names, inputs, strict=True)))


def _torch_step(model: Any, inputs: list[np.ndarray], device: str, backward: bool) -> None:
    import torch

    tensors = [torch.from_numpy(a).to(device) for a in inputs]
    with torch.set_grad_enabled(backward):
        y = model(*tensors)
    if backward:
        torch.autograd.grad(y, [*model.parameters()], torch.ones_like(y))
    if device == "cuda":
        torch.cuda.synchronize()


def _keras_step(model: Any, inputs: list[np.ndarray], backward: bool) -> None:
    import tensorflow as tf

    with tf.GradientTape() as tape:
        y = model(*inputs)
    if backward:
        variables = [v.value for v in model.trainable_variables]
        tape.gradient(y, variables, output_gradients=tf.ones_like(y))


# -- the table -------------------------------------------------------------------------------------


def _table(rows: Sequence[Row], efforts: Sequence[str]) -> str:
    head = "| pair | bare: wall, CPU | peak | trace |"
    for effort in efforts:
        head += f" {effort}: wall | x bare (CPU) | peak | peak over bare + trace |"
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    for row in rows:
        bare, trace = row["bare"], row["trace"]
        line = f"| {row['what']} | {bare['wall']:.2f} s, {bare['cpu']:.2f} s "
        line += f"| {_mib(bare['peak'])} | {_mib(trace)} |"
        for effort in efforts:
            own = row[effort]
            ratios = own["wall"] / bare["wall"], own["cpu"] / bare["cpu"]
            line += f" {own['wall']:.2f} s | {ratios[0]:.2f} ({ratios[1]:.2f}) "
            line += f"| {_mib(own['peak'])} | {own['peak'] / (bare['peak'] + trace):.2f} |"
        lines.append(line)
    return "\n".join(lines)


def _mib(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB"


# -- against Polygraphy ----------------------------------------------------------------------------

ENCODERS = {
    "medium": ("8 layers, width 384, 4 x 128 tokens", MEDIUM),
    "twelve": ("12 layers, width 384, 512 tokens", Sizes(384, 12, 12, 8192, 1, 512)),
    "large": ("12 layers, width 768, 4 x 128 tokens", LARGE),
}
_CHECK = """
import crosscheck
a, b = (crosscheck.adapt({path!r}, optimization=level) for level in ("none", "all"))
inputs = {{"ids": "int64[{s.batch},{s.length}] 0..{s.words}"}}
report = crosscheck.check(a, b, inputs, effort={effort!r})
assert report.verdict == "agree" and report.environment["effort"] == {effort!r}, report
"""
_POLYGRAPHY = "import sys; from polygraphy.tools import main; sys.exit(main())"


@dataclass(frozen=True)
class _Cost:
    """Of a process, from its start to its end: seconds, seconds of all its threads, bytes."""

    wall: float
    cpu: float
    peak: int


def _against_polygraphy(name: str, options: argparse.Namespace) -> str:
    """Both tools, end to end, on one file."""
    what, sizes = ENCODERS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "encoder.onnx")
        _export(sizes, path)
        commands = {
            f"crosscheck, {effort}": _python(_CHECK.format(path=path, s=sizes, effort=effort))
            for effort in options.effort
        }
        for tool, values in (("all values", ["mark", "all"]), ("ours", _seen(path))):
            commands[f"Polygraphy, {tool}"] = [
                *(*_python(_POLYGRAPHY), "run", path, "--onnxrt", "--onnxrt"),
                *("--onnx-outputs", *values, "--val-range", f"[0,{sizes.words - 1}]"),
                *("--atol", "1e-3", "--rtol", "1e-3"),
            ]
        runs: dict[str, list[_Cost]] = {tool: [] for tool in commands}
        for _ in range(options.repeat):
            for tool, command in commands.items():
                runs[tool].append(_whole_process(command))
    lines = [f"| {what} | wall | CPU | peak | x wall | x CPU | x peak |", "|---" * 7 + "|"]
    best = {tool: _least(found) for tool, found in runs.items()}
    theirs = best["Polygraphy, all values"]
    for tool, own in best.items():
        line = f"| {tool} | {own.wall:.2f} s | {own.cpu:.2f} s | {_mib(own.peak)} "
        ratios = theirs.wall / own.wall, theirs.cpu / own.cpu, theirs.peak / own.peak
        lines.append(line + "".join(f"| {ratio:.1f} " for ratio in ratios) + "|")
    return "\n".join(lines)


def _seen(path: str) -> list[str]:
    """The values that crosscheck compares, without the model's inputs."""
    import onnx

    from crosscheck.adapters.onnx.structure import Structure

    graph = onnx.load(path).graph
    fed = {value.name for value in graph.input}
    return [v for v in dict.fromkeys(e.value for e in Structure.of(graph).events) if v not in fed]


def _python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def _least(found: Sequence[_Cost]) -> _Cost:
    return _Cost(*(min(getattr(one, f.name) for one in found) for f in fields(_Cost)))


def _export(sizes: Sizes, path: str) -> None:
    import torch

    ids = torch.zeros(sizes.batch, sizes.length, dtype=torch.int64)
    program = torch.onnx.export(reference(sizes), (ids,), dynamo=True, verbose=False)
    assert program is not None
    program.save(path, external_data=False)


def _whole_process(command: Sequence[str]) -> _Cost:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    # Installed packages are compiled; a checkout would be compiled again in every process.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    clock, before = time.perf_counter(), os.times()
    child = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    peak = 0
    while child.poll() is None:
        peak = max(peak, _peak_of(child.pid))
        time.sleep(0.02)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    wall, after = time.perf_counter() - clock, os.times()
    cpu = after.children_user + after.children_system
    return _Cost(wall, cpu - before.children_user - before.children_system, peak)


def _peak_of(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return 1024 * next((int(s.split()[1]) for s in lines if s.startswith("VmHWM")), 0)


if __name__ == "__main__":
    main()
