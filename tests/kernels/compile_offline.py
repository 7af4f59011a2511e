"""Compiles the kernels for sm_90 without a GPU and prints what ptxas says, as JSON lines; run as a script.

python compile_offline.py vilt meter ...
"""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pumer.kernels import average, compaction, cues, flash, gelu, match, select
from pumer.kernels.layout import layout

POINTERS = {
    "lengths_ptr": "*i64", "following_ptr": "*i64", "table_ptr": "*i32", "slots_ptr": "*i32", "code_ptr": "*i32",
    "work_ptr": "*fp32", "size_ptr": "*fp32", "weight_ptr": "*fp32", "weight_sum_ptr": "*fp32", "new_size_ptr": "*fp32",
}  # fmt: skip
UNALIGNED = {
    "T", "V", "M", "N", "Q", "H", "K", "Kt", "split", "splits", "first_slots", "skipped", "rows", "text_parts",
    "text_programs", "head_programs",
}  # fmt: skip

ONES = ("T", "V", "N", "K", "Kt", "split", "splits", "first_slots", "rows", "text_parts", "text_programs", "skipped")
"""Integers that are 1 somewhere: Triton makes them compile-time constants, and other types of what depends on them."""

VARIANTS = {
    "ones": dict.fromkeys(ONES, 1) | {"HAS_BIAS": False, "WEIGHTED": True, "PROPORTIONAL": False},
    "pruned": {"MERGE": False, "MERGE_TEXT": False},
    "text": {"MERGE": False, "PRUNE": False},
}

NAMES = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}
SHAPES = {  # streams, T, V, H, Dh
    "vilt": (1, 32, 145, 12, 64),
    "meter": (2, 32, 577, 12, 64),
    "meter-40": (1, 40, 577, 12, 64),
    "long": (1, 40, 1024, 12, 64),
    "longest": (1, 40, 2900, 12, 64),
    "whole": (1, 32, 145, 12, 64),
    "wide-heads": (1, 32, 145, 8, 96),
    "thin-heads": (1, 17, 30, 4, 24),
    "small": (2, 9, 20, 2, 16),
    "attention": (1, 32, 145, 12, 64),
    "attention-128": (1, 32, 145, 12, 128),
}


def ptxas():
    """The wheel's, which may lack its execute bit."""
    found = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    copy = Path(tempfile.mkdtemp()) / "ptxas"
    shutil.copy(found, copy)
    copy.chmod(0o755)
    return str(copy)


def code_bytes(cubin):
    """Bytes of machine code in an ELF file: at batch 1 a kernel waits for its own code to be fetched."""
    (table,), (size, count) = struct.unpack_from("<Q", cubin, 0x28), struct.unpack_from("<HH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    return sum(length for _, kind, flags, _, _, length in sections if kind == 1 and flags & 4)


def build(kernel, constants, warps, stages, types):
    """Registers, spills and shared memory of one kernel."""
    signature, attributes = {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        signature[name] = types.get(name) or POINTERS.get(name) or ("i32" if not name.endswith("_ptr") else None)
        if name not in UNALIGNED:
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": warps, "num_stages": stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(compiled.asm["ptx"])
        file.flush()
        command = [os.environ["TRITON_PTXAS_PATH"], "-v", "--gpu-name=sm_90a", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "registers": int(re.search(r"Used (\d+) registers", said)[1]),
        "spilled": int(re.search(r"(\d+) bytes spill stores", said)[1]),
        "shared": compiled.metadata.shared,
        "warps": warps,
        "code": code_bytes(compiled.asm["cubin"]),
        "wide": len(re.findall(r"ld\.global[.\w:]*\.v4", compiled.asm["ptx"])),
        "mma": len(re.findall(r"mma", compiled.asm["ptx"])),
    }


def kernels(name, dtype):
    """``(kernel, constants, warps, stages, types)`` of one shape."""
    streams, T, V, H, Dh = SHAPES[name]
    whole, bf16 = name == "whole", dtype != torch.float32
    M, D = (T + V if streams == 1 else V), H * Dh
    text, image = (0, T + V) if whole else (T, V)
    prune, merge_text = not whole, not whole
    shape = layout(text, image, Dh, H * cues.text_rows(text)[1] if prune else 0, 32, merge_text, True, prune)
    states = {n: NAMES[dtype] for n in ("q_ptr", "k_ptr", "text_ptr", "bias_ptr")}
    values, warps = cues.constants(H, Dh, text, M, dtype.itemsize, prune, prune, merge_text, True)
    if name.startswith("attention"):
        states = {n: NAMES[dtype] for n in ("q_ptr", "k_ptr", "v_ptr", "bias_ptr", "y_ptr")} | {"scale": "fp32"}
        for cut in flash.CONFIGURATIONS if Dh == 64 else (flash.default(64, M), flash.default(128, M)):
            values = {"DH": Dh, "BM": cut.queries, "BN": cut.keys, "HAS_BIAS": True}
            yield flash.attention_kernel, values, cut.warps, cut.stages, states
        return
    yield cues.cues_kernel, values, warps, 2 if bf16 else 1, states
    values, warps = match.constants(shape, Dh, prune, True, whole)
    yield match.match_kernel, values, warps, 2 if Dh <= 64 else 1, {}
    values, warps = select.constants(shape, prune, merge_text, True, whole)
    yield select.select_kernel, values, warps, 3, {}
    values, warps = average.constants(T + V, D)
    outer = ("first_ptr", "second_ptr", "y_first_ptr", "y_second_ptr", "bias_first_ptr", "bias_second_ptr")
    outer += ("g_first_ptr", "g_second_ptr", "out_first_ptr", "out_second_ptr")
    states = {n: NAMES[dtype] for n in outer}
    more = {"TWO": streams == 2, "WEIGHTED": False, "PROPORTIONAL": True}
    yield average.apply_kernel, values | more, warps, 3, states
    yield average.apply_backward_kernel, {"BD": values["BD"], "TWO": streams == 2}, warps, 3, states
    values, warps = compaction.constants(T, D)
    states = {n: NAMES[dtype] for n in ("x_ptr", "y_ptr", "g_ptr", "out_ptr")}
    states |= {"mask_ptr": "*u8", "image_mask_ptr": "*u8", "lengths_ptr": "*i64"}
    yield compaction.compact_kernel, values | {"BV": compaction.PATCHES, "COUNT": True}, warps, 3, states
    yield compaction.compact_backward_kernel, values, warps, 3, states
    yield gelu.quick_gelu_kernel, {"BLOCK": gelu.BLOCK}, 4, 3, states


if __name__ == "__main__":
    os.environ["TRITON_PTXAS_PATH"] = ptxas()
    for wanted in sys.argv[1:]:
        name, _, kind = wanted.partition(":")
        dtype = torch.float32 if kind == "fp32" else torch.bfloat16
        for kernel, values, *rest in kernels(name, dtype):
            values |= {n: value for n, value in VARIANTS.get(kind, {}).items() if n in kernel.arg_names}
            print(
                json.dumps({"shape": wanted, "kernel": kernel.fn.__name__, **build(kernel, values, *rest)}), flush=True
            )
