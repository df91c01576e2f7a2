"""The names of TensorRT's Python API, read from its bindings without TensorRT.

`tensorrt-cu13-bindings` holds the compiled bindings and none of the libraries that they call. To
import them, empty libraries of the same names are written here: ELF files that define the few
functions whose addresses are looked up at import. Nothing can be called; what classes have can be
listed. Run in a process of its own: python -m tests.tensorrt_names
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tempfile
from importlib import import_module
from importlib.machinery import ExtensionFileLoader
from importlib.metadata import PackageNotFoundError, files
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

LIBRARIES = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
Names = dict[str, dict[str, str]]
"""By class: what it has, and the documentation of each; functions of the module under ""."""

_HEADER, _PROGRAM, _SYMBOL, _WORD = 64, 56, 24, 8
_SHARED, _X86_64, _LOADED, _DYNAMIC, _GLOBAL_FUNCTION = 3, 62, 1, 2, 0x12
_DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SYMENT, _DT_SONAME = 4, 5, 6, 10, 11, 14
"""Source: elf.h."""


def empty_library(functions: tuple[str, ...] = FUNCTIONS, name: str = "") -> bytes:
    """Return a shared library for x86-64 Linux whose functions exist, and must not be called.

    Once it is loaded, it is found by its name.
    """
    strings = b"\0" + b"".join(part.encode() + b"\0" for part in (*functions, name))
    symbols, at = b"\0" * _SYMBOL, 1
    for function in functions:
        symbols += struct.pack("<IBBHQQ", at, _GLOBAL_FUNCTION, 0, 1, _HEADER, 0)
        at += len(function) + 1
    count = len(functions) + 1
    chain = [0, *range(2, count), 0][:count]  # one bucket: each symbol leads to the next
    table = struct.pack(f"<{3 + count}I", 1, count, 1, *chain)
    parts = [part + b"\0" * (-len(part) % _WORD) for part in (table, symbols, strings)]
    starts = [_HEADER + 2 * _PROGRAM]
    for part in parts:
        starts.append(starts[-1] + len(part))
    tags = (
        *(_DT_HASH, starts[0], _DT_SYMTAB, starts[1], _DT_STRTAB, starts[2]),
        *(_DT_STRSZ, len(strings), _DT_SYMENT, _SYMBOL, _DT_SONAME, at, 0, 0),
    )
    dynamic = struct.pack(f"<{len(tags)}Q", *tags)
    end = starts[3] + len(dynamic)
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    sizes = (0, _HEADER, _PROGRAM, 2, _HEADER, 0, 0)
    head = struct.pack("<16sHHIQQQIHHHHHH", identity, _SHARED, _X86_64, 1, 0, _HEADER, 0, *sizes)
    where = (starts[3],) * 3 + (len(dynamic),) * 2
    programs = struct.pack("<IIQQQQQQ", _LOADED, 6, 0, 0, 0, end, end, 4096)
    programs += struct.pack("<IIQQQQQQ", _DYNAMIC, 6, *where, _WORD)
    return head + programs + b"".join(parts) + dynamic


def installed_bindings() -> Path | None:
    """Return the compiled bindings of full TensorRT, if they are installed."""
    try:
        listed = files("tensorrt-cu13-bindings") or []
    except PackageNotFoundError:
        return None
    found = [file for file in listed if file.name == "tensorrt.so"]
    return Path(str(found[0].locate())) if found else None


def read_names(bindings: Path) -> Names:
    """Return the names of bindings, read in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for library in LIBRARIES:
            (Path(folder) / library).write_bytes(empty_library())
        path = os.pathsep.join(filter(None, (folder, os.environ.get("LD_LIBRARY_PATH"))))
        return _child(str(bindings), {"LD_LIBRARY_PATH": path})


def read_rtx_names() -> Names:
    """Return the names of TensorRT for RTX, whose libraries are installed with it."""
    return _child("tensorrt_rtx", {})


def _child(what: str, environment: dict[str, str]) -> Names:
    done = subprocess.run(
        [sys.executable, "-m", "tests.tensorrt_names", what],
        cwd=Path(__file__).parents[1],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names: Names = json.loads(done.stdout)
    return names


def _import(what: str) -> ModuleType:
    if not what.endswith(".so"):
        return import_module(what)
    sys.setdlopenflags(os.RTLD_LAZY)
    spec = spec_from_loader("tensorrt", ExtensionFileLoader("tensorrt", what))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> int:
    """Print the names of the module or file that is the argument."""
    module = _import(sys.argv[1])
    names = {
        name: {part: str(getattr(cls, part, None).__doc__) for part in dir(cls)}
        for name, cls in vars(module).items()
        if isinstance(cls, type)
    }
    sys.stdout.write(json.dumps(names))
    return 0


if __name__ == "__main__":
    sys.exit(main())
