"""Versions of the ONNX format that a file has and ONNX Runtime does not take, said plainly."""

from __future__ import annotations

import re

import onnx

__all__ = ["OLDEST", "opset_of", "refusal"]

OLDEST = 7
"""The oldest opset that ONNX Runtime promises to run."""
_CONVERT = "onnx.version_converter.convert_version(model, {})"


def opset_of(proto: onnx.ModelProto) -> int:
    """The version of the standard operators that a file was written for."""
    return max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)


def refusal(message: str, proto: onnx.ModelProto, version: str) -> str | None:
    """What is wrong with a file's versions and what to do, if that is why no session was made.

    Args:
        message: ONNX Runtime's.
        version: of ONNX Runtime.
    """
    opset = opset_of(proto)
    too_new = re.search(r"support for domain ai\.onnx is till opset (\d+)", message)
    if too_new:
        return (
            f"the ONNX file is written for opset {opset}; ONNX Runtime {version} takes opsets up "
            f"to {too_new[1]}.\n  Fix: export with opset_version={too_new[1]}, or "
            f"{_CONVERT.format(too_new[1])}, or a newer onnxruntime"
        )
    new_format = re.search(r"max supported IR version: (\d+)", message)
    if new_format:
        return (
            f"the ONNX file has IR version {proto.ir_version}; ONNX Runtime {version} takes "
            f"versions up to {new_format[1]}.\n  Fix: a newer onnxruntime, or "
            f"model.ir_version = {new_format[1]} if the file uses nothing that is newer"
        )
    if 0 < opset < OLDEST and "Could not find an implementation for" in message:
        operator = message.partition("implementation for")[2].split("(")[0].strip()
        return (
            f"the ONNX file is written for opset {opset}, in which ONNX Runtime {version} has no "
            f"{operator}; it promises opsets from {OLDEST} on.\n"
            f"  Fix: {_CONVERT.format(13)}, and check again"
        )
    return None
