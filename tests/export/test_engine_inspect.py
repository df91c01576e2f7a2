"""Tests of nvembed_deploy/export/engine_inspect.py: counting in bytes that look like a plan."""

from __future__ import annotations

from pathlib import Path

from nvembed_deploy.engine_record import EngineFacts
from nvembed_deploy.export.engine_inspect import read_layers, read_plan

TENSOR = b'  tensor={ alignment=128 dims={ 8 8 } name="%s" region=r strides={ 8 1 } type=%s }\n'
PRODUCT = b'  fully_connected={ name="p" output={"o" } input={"%s" "%s" "alpha" } stream=0 }\n'
CALL = b"  function={ name=%s fqn=%s_0x1 args={ } }\n"


def plan(tmp_path: Path, *lines: bytes) -> Path:
    path = tmp_path / "x.plan"
    path.write_bytes(b"vtrt" + bytes(range(256)) * 300 + b"".join(lines) + b"\xff" * 1000)
    return path


def test_products_are_counted_by_the_type_of_their_weights(tmp_path: Path) -> None:
    path = plan(
        tmp_path,
        TENSOR % (b"w_dconst", b"fp8_e4m3"),
        TENSOR % (b"x", b"half"),
        TENSOR % (b"y", b"bf16"),
        PRODUCT % (b"x", b"w_dconst"),
        PRODUCT % (b"w_dconst", b"x"),
        PRODUCT % (b"y", b"y"),
        PRODUCT % (b"unheard", b"of"),
        CALL % (b"_gemm_mha_v2", b"_gemm_mha_v2"),
        CALL % (b"__myl_MulAdd", b"__myl_MulAdd"),
    )
    linears = {"bf16": 1, "fp8": 2, "unknown": 1}
    assert read_plan(path) == EngineFacts(fused_attention=1, linears=linears, kernels=6)


def test_a_weight_that_is_dequantised_on_its_way_counts_as_stored(tmp_path: Path) -> None:
    path = plan(
        tmp_path,
        TENSOR % (b"w_dconst", b"int4"),
        TENSOR % (b"x", b"half"),
        TENSOR % (b"long", b"int64"),
        b'  cast={ name="c" output={"b" } input={"a" } stream=0 }\n',
        b'  mul={ name="int4_block_dq" output={"a" } input={"w_dconst" "scale" } stream=0 }\n',
        b'  cast={ name="c" output={"x" } input={"long" } stream=0 }\n',
        PRODUCT % (b"x", b"b"),
        PRODUCT % (b"x", b"x"),
    )
    assert read_plan(path).linears == {"fp16": 1, "int4": 1}


def test_bytes_without_a_program_count_nothing(tmp_path: Path) -> None:
    path = plan(tmp_path, b"fully_connected={ name=", b"tensor={ ", b"function={ name=")
    assert read_plan(path) == EngineFacts(fused_attention=0, linears={}, kernels=0)


def test_the_inspectors_layers_are_counted() -> None:
    names = ["_gemm_mha_v2_myl0_7", "__myl_Add", "_gemv_mha_v1"]
    assert read_layers(names) == EngineFacts(fused_attention=2, linears={}, kernels=3)
