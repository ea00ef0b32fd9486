#!/usr/bin/env python3
"""A LLaMA of 7B's shape under llama.cpp: tokens a second.

    python decode_llama.py FOLDER LAYERS THREADS PROMPT STEPS NUMBERS

NUMBERS is q8_0, q6_k or q4_k.

Needs llama-cpp-python, gguf and numpy. The model (random weights) is written to FOLDER once.
"""
import os
import sys
import time

import gguf
import llama_cpp
import numpy as np
from llama_cpp import Llama

DIM, HIDDEN, HEADS, VOCABULARY = 4096, 11008, 32, 32000


def write(path, layers):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(DIM)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_rope_dimension_count(DIM // HEADS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("llama")
    bytes_ = [f"<0x{b:02X}>".encode() for b in range(256)]
    writer.add_token_list([b"<unk>", b"<s>", b"</s>"] + bytes_ + [f"w{i}".encode() for i in range(VOCABULARY - 259)])
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (VOCABULARY - 259))
    random = np.random.default_rng(7)

    def matrix(out, width):
        weights = (random.random((out, width), np.float32) - 0.5) / np.sqrt(width)
        return gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0)

    shapes = {"attn_q": (DIM, DIM), "attn_k": (DIM, DIM), "attn_v": (DIM, DIM), "attn_output": (DIM, DIM),
              "ffn_gate": (HIDDEN, DIM), "ffn_up": (HIDDEN, DIM), "ffn_down": (DIM, HIDDEN)}
    same = {name: matrix(*shape) for name, shape in shapes.items()}
    for name in ("token_embd", "output"):
        writer.add_tensor(f"{name}.weight", matrix(VOCABULARY, DIM), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output_norm.weight", np.ones(DIM, np.float32))
    for layer in range(layers):
        for name, weights in same.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", weights, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(DIM, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def coarser(source, path, numbers):
    """The same model in blocks of 256, every matrix in the same type."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = {"q6_k": llama_cpp.LLAMA_FTYPE_MOSTLY_Q6_K, "q4_k": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_S}[numbers]
    params.allow_requantize = params.pure = True
    failed = llama_cpp.llama_model_quantize(source.encode(), path.encode(), params)
    if failed:
        sys.exit(f"llama.cpp could not write {path}")


def main():
    folder, (layers, threads, prompt, steps), numbers = sys.argv[1], map(int, sys.argv[2:6]), sys.argv[6]
    path = os.path.join(folder, f"llama-{layers}.gguf")
    if not os.path.exists(path):
        write(path + ".part", layers)
        os.rename(path + ".part", path)
    if numbers != "q8_0":
        source, path = path, os.path.join(folder, f"llama-{layers}.{numbers}.gguf")
        if not os.path.exists(path):
            coarser(source, path + ".part", numbers)
            os.rename(path + ".part", path)
    model = Llama(path, n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)
    model.eval([3 + i * 97 % 31000 for i in range(prompt)])
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        model.eval([5])
        times.append(time.perf_counter() - start)
    print(f"tokens/s {1 / sorted(times)[len(times) // 2]:.4f}")


if __name__ == "__main__":
    main()
