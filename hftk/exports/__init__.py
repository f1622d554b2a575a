"""Whole models in the formats of other programs: GGUF (llama.cpp) and ONNX (onnxruntime)."""
