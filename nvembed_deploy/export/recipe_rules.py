"""This file owns which values of a recipe do not go together."""

from __future__ import annotations

from typing import Any

from nvembed_deploy.export.formats import SCHEMES, Activations, Code, Kernels, Rounding
from nvembed_deploy.spec import PoolerForm

_INT4_OPSET, _CPU_OPSET, _FP8_ATTENTION_OPSET = 21, 23, 23
_QUANTIZED_KEYS = {
    "activations",
    "per_token",
    "rotate",
    "rounding",
    "keep",
    "keep_share",
    "fp8_rank",
    "fp8_attention",
    "calibration",
    "calibration_texts",
    "calibration_tokens",
    "device",
    "ranges",
    "cache",
    "seed",
}


def settle(clean: dict[str, Any]) -> list[str]:
    """Move a scheme out of `precision`; return what does not go together, in words.

    Args:
        clean: the values given, by their key in a recipe, each right in itself. `scheme` is added
            where `precision` quantises, and `rounding` where ranges settle it.
    """
    scheme = clean.get("precision")
    if not isinstance(scheme, str) or scheme not in SCHEMES:
        only = sorted(_QUANTIZED_KEYS & set(clean))
        return [f"{', '.join(only)} without a precision of {list(SCHEMES)}"] if only else []
    clean |= {"precision": SCHEMES[scheme].precision, "scheme": scheme}
    mistakes = []
    if clean.get("pooler") is PoolerForm.FAITHFUL:
        mistakes.append(f"precision {scheme} with the faithful pooler, which is for audits")
    if SCHEMES[scheme].kernels is Kernels.CPU:
        mistakes += _contradictions_of_cpu(scheme, clean)
    if SCHEMES[scheme].linear.code is Code.INT4 and clean.get("opset", _INT4_OPSET) < _INT4_OPSET:
        mistakes.append(f"precision {scheme} with opset {clean['opset']}: INT4 needs opset 23")
    if clean.get("fp8_attention"):
        mistakes += _contradictions_of_attention(scheme, clean)
    if clean.get("ranges"):
        mistakes += _contradictions_of_ranges(clean)
    if clean.get("fp8_rank"):
        mistakes += _contradictions_of_rank(scheme, clean)
    return mistakes + _contradictions_of_inputs(scheme, clean) + _contradictions_of_texts(clean)


def _contradictions_of_inputs(scheme: str, clean: dict[str, Any]) -> list[str]:
    """One range for all tokens is found on texts, or is in `ranges`."""
    mistakes, is_named = [], "per_token" in clean
    if is_named and SCHEMES[scheme].linear.activations is not Activations.ROW:
        mistakes.append(f"per_token with precision {scheme}, which leaves inputs as they are")
    if is_named and "activations" in clean:
        mistakes.append("per_token with activations, which says the same of all linears")
    if clean.get("ranges") or clean.get("rounding") is not Rounding.NEAREST:
        return mistakes
    if is_named:
        mistakes.append(_uncalibrated("per_token"))
    if clean.get("activations") is Activations.STATIC:
        mistakes.append(_uncalibrated("static activations"))
    return mistakes


def _contradictions_of_texts(clean: dict[str, Any]) -> list[str]:
    """Where no texts are seen, a file of them, a device or a cache is of no use.

    How many texts and tokens may be said: recipes do, and `--rounding nearest` beats them.
    """
    if clean.get("rounding") is not Rounding.NEAREST:
        return []
    mistakes = [_uncalibrated("cache")] if "cache" in clean else []
    if clean.get("keep_share"):
        return mistakes
    mistakes += [_uncalibrated("device")] if "device" in clean else []
    if "calibration" in clean and not clean.get("ranges"):
        mistakes.append("calibration with rounding 'nearest', which reads no texts")
    return mistakes


def _contradictions_of_attention(scheme: str, clean: dict[str, Any]) -> list[str]:
    mistakes = _without_fp8("fp8_attention", scheme)
    if clean.get("opset", _FP8_ATTENTION_OPSET) != _FP8_ATTENTION_OPSET:
        mistakes.append(f"fp8_attention with opset {clean['opset']}: it needs opset 23")
    if clean.get("rounding") is Rounding.NEAREST and not clean.get("ranges"):
        mistakes.append(_uncalibrated("fp8_attention"))
    return mistakes


def _contradictions_of_rank(scheme: str, clean: dict[str, Any]) -> list[str]:
    mistakes = _without_fp8("fp8_rank", scheme)
    if clean.get("rounding") is Rounding.NEAREST:
        mistakes.append(_uncalibrated("fp8_rank"))
    if clean.get("activations") not in (None, Activations.ROW):
        mistakes.append("fp8_rank with activations that have no range per token")
    return mistakes


def _without_fp8(what: str, scheme: str) -> list[str]:
    is_fp8 = SCHEMES[scheme].linear.code is Code.FP8
    return [] if is_fp8 else [f"{what} with precision {scheme}: it needs fp8"]


def _uncalibrated(what: str) -> str:
    return f"{what} without calibration (rounding is 'nearest')"


def _contradictions_of_ranges(clean: dict[str, Any]) -> list[str]:
    """Ranges that are there need no texts: rounding is nearest."""
    texts = sorted({"calibration", "calibration_texts", "calibration_tokens"} & set(clean))
    mistakes = [f"ranges with {', '.join(texts)}"] if texts else []
    if "per_token" in clean:
        mistakes.append("ranges with per_token, which they know")
    if clean.get("keep_share"):
        mistakes.append("ranges with keep_share, which is measured on texts (name them in keep)")
    if clean.setdefault("rounding", Rounding.NEAREST) is Rounding.COMPENSATED:
        mistakes.append("ranges with rounding 'compensated', which finds its own")
    return mistakes


def _contradictions_of_cpu(scheme: str, clean: dict[str, Any]) -> list[str]:
    mistakes = []
    if clean.get("opset", _CPU_OPSET) != _CPU_OPSET:
        mistakes.append(f"precision {scheme} with opset {clean['opset']}: it needs {_CPU_OPSET}")
    if clean.get("engine") is not None:
        mistakes.append(f"precision {scheme} with an engine: it is for ONNX Runtime on the CPU")
    return mistakes
