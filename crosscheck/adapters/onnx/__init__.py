"""ONNX models in ONNX Runtime; `adapter` is the way in."""
