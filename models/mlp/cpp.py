"""The multilayer perceptron in C++ (`trace.cpp`): build it, and run it from file to file.

python -m models.mlp.cpp    inputs, the reference's trace and the C++ program's in ./out, compared
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("trace.cpp")


def compiler() -> str | None:
    """The C++ compiler: ``$CXX``, ``c++``, ``g++`` or ``clang++``; None where there is none."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def build(folder: Path) -> Path:
    """Compile the program into ``folder``; gives its path."""
    program = folder / "mlp_trace"
    found = compiler()
    if found is None:
        raise RuntimeError("no C++ compiler: install g++ or clang++, or set CXX")
    # A fused multiply-add rounds once where two operations round twice: honest, but not the same.
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra"]
    subprocess.run([found, *flags, str(SOURCE), "-o", str(program)], check=True)
    return program


def run(program: Path, inputs: Path, trace: Path, *defect: str) -> Path:
    """Run the program on an inputs file; ``defect`` is an option such as ``--norm-eps 1e-6``."""
    subprocess.run([str(program), str(inputs), str(trace), *defect], check=True)
    return trace


def main() -> None:
    import crosscheck
    from models.mlp.pair import inputs, reference

    out = Path("out")
    out.mkdir(exist_ok=True)
    model = reference()
    crosscheck.save_inputs(
        out / "inputs.safetensors",
        inputs(0),
        cotangents={"output": "float32[5,10]"},
        parameters=model,
    )
    crosscheck.record(model, inputs(0)).save(out / "reference.safetensors")
    trace = run(build(out), out / "inputs.safetensors", out / "cpp.safetensors")
    print(crosscheck.check(out / "reference.safetensors", trace))


if __name__ == "__main__":
    main()
