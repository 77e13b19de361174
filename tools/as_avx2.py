"""Run a command as on an x86 CPU with AVX2, but without AVX-512 and VNNI.

    python tools/as_avx2.py python -m pytest tests/pipeline/test_quantized_models.py

numpy, OpenBLAS, PyTorch and oneDNN have environment variables for this; onnxruntime asks the CPU itself. The command
therefore gets a copy of it, in .avx2/, whose `cpuid` instructions trap into a handler that hides those features. This
needs Linux, gcc and objdump.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent.parent / ".avx2"
CPUID, TRAP = b"\x0f\xa2", b"\x0f\x0b"  # both of two bytes; UD2 raises SIGILL
HANDLER = r"""
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

/* Bits of leaf 7 that stand for AVX-512, VNNI and AMX. */
static const uint32_t B = 0xDC230000, C = 0x00005842, D = 0x03C0010C, A1 = 0x00800030, D1 = 0x00080430;

static void handle(int number, siginfo_t *info, void *context) {
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *at = (const unsigned char *)r[REG_RIP];
    uint32_t a, b, c, d, leaf = (uint32_t)r[REG_RAX], sub = (uint32_t)r[REG_RCX];
    if (at[0] != 0x0f || at[1] != 0x0b) {
        signal(SIGILL, SIG_DFL);
        return;
    }
    __cpuid_count(leaf, sub, a, b, c, d);
    if (leaf == 7 && sub == 0) { b &= ~B; c &= ~C; d &= ~D; }
    if (leaf == 7 && sub == 1) { a &= ~A1; d &= ~D1; }
    r[REG_RAX] = a; r[REG_RBX] = b; r[REG_RCX] = c; r[REG_RDX] = d;
    r[REG_RIP] += 2;
}

typedef int (*Sigaction)(int, const struct sigaction *, struct sigaction *);

/* Nobody replaces the handler, as Python's faulthandler would. */
int sigaction(int number, const struct sigaction *new, struct sigaction *old) {
    if (number == SIGILL && new) return 0;
    return ((Sigaction)dlsym(RTLD_NEXT, "sigaction"))(number, new, old);
}

__attribute__((constructor)) static void install(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    ((Sigaction)dlsym(RTLD_NEXT, "sigaction"))(SIGILL, &action, 0);
}
"""


def build() -> None:
    """Write the copy of onnxruntime and the handler, once for each version."""
    spec = importlib.util.find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent
    if (FOLDER / "source").exists() and (FOLDER / "source").read_text() == _version(source):
        return
    shutil.rmtree(FOLDER, ignore_errors=True)
    shutil.copytree(source, FOLDER / "onnxruntime")
    (library,) = (FOLDER / "onnxruntime" / "capi").glob("onnxruntime_pybind11_state*.so")
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", "-j", ".text", library], check=True, capture_output=True, text=True
    ).stdout
    code = bytearray(library.read_bytes())
    for address in re.findall(r"^ *([0-9a-f]+):\tcpuid", listing, re.MULTILINE):
        place = int(address, 16)  # .text has the same offset in the file and in memory
        assert code[place : place + 2] == CPUID
        code[place : place + 2] = TRAP
    library.write_bytes(code)
    (FOLDER / "handler.c").write_text(HANDLER)
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O2", "-o", FOLDER / "handler.so", FOLDER / "handler.c", "-ldl"], check=True
    )
    (FOLDER / "source").write_text(_version(source))


def _version(source: Path) -> str:
    return f"{HANDLER}{source} {next((source / 'capi').glob('onnxruntime_pybind11_state*.so')).stat()}"


def environment() -> dict[str, str]:
    """Return the variables that limit every library to AVX2."""
    found = [str(f) for f in np.show_config(mode="dicts").get("SIMD Extensions", {}).get("found", [])]
    return {
        **os.environ,
        "LD_PRELOAD": str(FOLDER / "handler.so"),
        "PYTHONPATH": os.pathsep.join([str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "NPY_DISABLE_CPU_FEATURES": " ".join(f for f in found if f.startswith(("AVX512", "X86_V4"))),
        "OPENBLAS_CORETYPE": "Haswell",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }


def main() -> None:
    """Replace this process by the command."""
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    build()
    os.execvpe(sys.argv[1], sys.argv[1:], environment())


if __name__ == "__main__":
    main()
