"""Tests of nvembed_deploy/parity/__main__.py: one question, four exit codes, a report."""

from __future__ import annotations

import json
import shutil
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path

import mteb
import pytest

from nvembed_deploy.artifact import hash_file, read_manifest, record_engine
from nvembed_deploy.errors import ArtifactError
from nvembed_deploy.filelock import wait_for
from nvembed_deploy.parity.__main__ import main
from nvembed_deploy.parity.basis import identity_of
from nvembed_deploy.parity.report import record
from nvembed_deploy.parity.versions import COMPUTING, MEASURING, versions
from nvembed_deploy.runtimes import load_encoder
from tests.parity.small import write_suite
from tests.test_engine_record import RECORD

ROOT = Path(__file__).parents[2]
Run = Callable[..., int]


@pytest.fixture
def artifact(tiny_artifact: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_artifact, tmp_path / "artifact")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    suite = write_suite(tmp_path / "suite", ("retrieval", "sts"))

    def parity(artifact: Path, *words: object) -> int:
        return main(
            [str(w) for w in (artifact, "--suite", suite, "--cache", tmp_path / "cache", *words)]
        )

    return parity


def test_an_artifact_of_the_checkpoint_may_replace_it(
    run: Run, artifact: Path, tiny_assembled: Path, tmp_path: Path, capsys
) -> None:
    with pytest.raises(ArtifactError, match="no verdict"):
        load_encoder(artifact, "onnx", require_parity=True)
    assert run(artifact, "--reference", tiny_assembled, "--out", tmp_path / "report") == 0
    assert "yes: it may replace" in capsys.readouterr().out
    with load_encoder(artifact, "onnx", require_parity=True) as encoder:
        assert encoder.encode("the cat").shape == (64,)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["passed"] is True
    assert report["reference"]["sha256"] == report["basis"]["reference"]["sha256"]
    assert {task["name"] for task in report["tasks"]} == {"small_retrieval", "small_sts"}
    assert all(task["interval"] for task in report["tasks"])
    assert report["candidate"]["sha256"]["model.onnx"]
    assert report["environment"].items() >= versions(COMPUTING + MEASURING).items()
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Yes: it may replace the reference" in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_recorded_verdict_says_against_what_and_on_what(
    run: Run, artifact: Path, tiny_assembled: Path, tmp_path: Path
) -> None:
    assert run(artifact, "--reference", tiny_assembled) == 0
    manifest = read_manifest(artifact)
    assert manifest.parity is not None
    found = manifest.parity["reference"]
    assert found == {
        "name": tiny_assembled.name,
        "kind": "checkpoint",
        "sha256": manifest.source["sha256"],
    }
    assert manifest.parity["suite"]["name"] == "suite"
    first = manifest.parity["suite"]["sha256"]
    assert str(tmp_path) not in json.dumps(manifest.parity)
    with (tmp_path / "suite" / "small_sts" / "pairs.jsonl").open("a") as file:
        file.write('{"sentence1": "a cat", "sentence2": "a mat", "score": 1}\n')
    assert run(artifact, "--reference", tiny_assembled) == 0
    changed = read_manifest(artifact).parity
    assert changed is not None
    assert changed["suite"]["sha256"] != first


def test_a_quantised_reference_is_never_recorded(
    run: Run, artifact: Path, tmp_path: Path, capsys
) -> None:
    quantised = shutil.copytree(artifact, tmp_path / "quantised")
    described = json.loads((quantised / "manifest.json").read_text())
    described["linears"] = {"int8": 14, "fp32": 1}
    (quantised / "manifest.json").write_text(json.dumps(described))
    assert run(artifact, "--reference", quantised, "--dry-run") == 2
    assert "the reference is quantised itself (linears: 14 int8" in capsys.readouterr().err
    assert run(artifact, "--reference", quantised, "--no-record", "--out", tmp_path / "out") == 0
    assert "what it lost is not in this" in " ".join(capsys.readouterr().out.split())
    assert "Note: the reference is quantised" in (tmp_path / "out" / "report.html").read_text()
    assert read_manifest(artifact).parity is None


def test_another_model_may_not(
    run: Run, artifact: Path, tiny_checkpoint: Path, tmp_path: Path, capsys
) -> None:
    from nvembed_deploy.model.assemble import Parts, assemble_checkpoint
    from tests import factories

    base = factories.write_base(tmp_path / "base")
    parts = Parts(base, pooler_spec=factories.TINY.pooler, name="fresh")
    assemble_checkpoint(parts, tmp_path / "other")
    assert (
        run(artifact, "--reference", tmp_path / "other", "--out", tmp_path / "report", "--trace")
        == 1
    )
    out, err = capsys.readouterr()
    assert "no: it may not replace" in out
    assert "mean cosine" in err
    assert "fix: all texts differ" in err
    page = (tmp_path / "report" / "report.html").read_text()
    assert "No: it may not replace it" in page
    assert "States after each layer" in page
    with pytest.raises(ArtifactError, match="a failed verdict"):
        load_encoder(artifact, "onnx", require_parity=True)


def test_nothing_is_computed_twice(
    run: Run, artifact: Path, tiny_assembled: Path, tmp_path: Path, capsys
) -> None:
    words = ("--reference", tiny_assembled, "--json", "--no-record")
    assert run(artifact, *words) == 0
    first = json.loads(capsys.readouterr().out)
    sizes = {p: p.stat().st_size for p in (tmp_path / "cache").rglob("*.bin")}
    assert run(artifact, *words) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert {p: p.stat().st_size for p in (tmp_path / "cache").rglob("*.bin")} == sizes
    assert len(sizes) == 4


def test_scores_alone_need_no_reference(run: Run, tiny_assembled: Path, capsys) -> None:
    assert run(tiny_assembled, "--scores", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tasks"]["small_retrieval"]["metric"] == "ndcg_at_10"
    scores = [task["score"] for task in found["tasks"].values()]
    assert found["average"] == pytest.approx(sum(scores) / 2, abs=1e-6)


def test_a_dry_run_says_what_and_computes_nothing(
    run: Run, artifact: Path, tiny_assembled: Path, tmp_path: Path, capsys
) -> None:
    assert run(artifact, "--reference", tiny_assembled, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "small_sts" in out
    assert "74 texts" in out
    assert "instruction: do retrieval" in out
    assert not (tmp_path / "cache").exists()


def test_a_dry_run_refuses_what_the_run_would(
    run: Run, artifact: Path, tiny_assembled: Path, tmp_path: Path, capsys
) -> None:
    path = tmp_path / "suite" / "small_retrieval" / "corpus.jsonl"
    path.write_text(path.read_text() + '{"_id": "d3", "text": "a cat"}\n')
    assert run(artifact, "--reference", tiny_assembled, "--dry-run") == 2
    assert "line 15: _id is 'd3', as on line 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "no --reference was given"),
        (("--reference", "gone"), "gone does not exist"),
        (("--scores", "--suite", "gone"), "suite gone is no folder"),
        (("--scores", "--task", "nothing"), "has no task nothing"),
        (("--scores", "--trace"), "--trace is of a comparison"),
        (("--scores", "--out", "report"), "--out is of a comparison"),
        (("--published", "NV-Embed-v2", "--reference", "."), "--published adds lines to the table"),
        (("--scores", "--published", "NV-Embed-v1", "--json"), "--published adds lines"),
        (("--scores", "--dry-run", "--mteb", "NoSuchTask"), "no task or benchmark 'NoSuchTask'"),
    ],
)
def test_wrong_input_is_two_lines(
    run: Run, artifact: Path, capsys, words: tuple[str, ...], problem: str
) -> None:
    assert run(artifact, *words) == 2
    err = capsys.readouterr().err
    assert problem in err
    assert err.count("\n") == 2


@pytest.mark.parametrize("lying", ["report", "report/here"])
def test_a_report_that_could_not_be_written_is_refused_first(
    run: Run, artifact: Path, tmp_path: Path, capsys, lying: str
) -> None:
    (tmp_path / "report").write_text("of something else")
    assert run(artifact, "--reference", artifact, "--out", tmp_path / lying) == 2
    assert f"cannot be made: {tmp_path / 'report'} is no folder" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_a_margin_of_nothing_has_a_report(run: Run, artifact: Path, tmp_path: Path) -> None:
    words = ("--reference", artifact, "--margin", "0", "--out", tmp_path / "new" / "report")
    assert run(artifact, *words) == 0
    assert "<circle" in (tmp_path / "new" / "report" / "report.html").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ("--seed", "-1"),
        ("--seed", "1.5"),
        ("--margin", "nan"),
        ("--margin", "-1"),
        ("--margin", "inf"),
        ("--margin", "1.1"),
        ("--margin", "little"),
    ],
    ids=" ".join,
)
def test_a_number_that_cannot_be_used_is_refused_at_once(
    run: Run, artifact: Path, capsys, words: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(artifact, "--scores", *words)
    assert caught.value.code == 2
    assert f"argument {words[0]}: got {words[1]!r}, expected" in capsys.readouterr().err


def test_a_task_of_no_suite_is_refused(artifact: Path, capsys) -> None:
    assert main([str(artifact), "--scores", "--task", "STS12", "--mteb", "STS12"]) == 2
    assert "--task names tasks of a suite" in capsys.readouterr().err


def test_a_suite_of_one_query_shows_nothing(
    run: Run, artifact: Path, tiny_assembled: Path, tmp_path: Path, capsys
) -> None:
    qrels = tmp_path / "suite" / "small_retrieval" / "qrels.tsv"
    qrels.write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\n")
    assert run(artifact, "--reference", tiny_assembled) == 1
    err = capsys.readouterr().err
    assert "(1 queries; too few to show anything, 20 are needed)" in err
    assert "fix: tasks of at least 20 queries" in err
    with pytest.raises(ArtifactError, match="a failed verdict"):
        load_encoder(artifact, "onnx", require_parity=True)


def test_widths_that_differ_are_refused(run: Run, artifact: Path, tmp_path: Path, capsys) -> None:
    from dataclasses import replace

    from nvembed_deploy.model.assemble import Parts, assemble_checkpoint
    from tests import factories

    spec = replace(factories.TINY, backbone=replace(factories.TINY.backbone, hidden_size=32))
    base = factories.write_base(tmp_path / "base", spec)
    assemble_checkpoint(Parts(base, pooler_spec=spec.pooler, name="narrow"), tmp_path / "narrow")
    assert run(artifact, "--reference", tmp_path / "narrow") == 2
    assert "embeddings have 64 numbers, the reference's 32" in capsys.readouterr().err


def test_without_mteb_the_extra_is_named(
    run: Run, artifact: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nvembed_deploy.parity.__main__.find_spec", lambda _: None)
    assert run(artifact, "--scores") == 3
    assert "pip install 'nvembed-deploy[parity]'" in capsys.readouterr().err


def test_a_trace_needs_onnx_from_the_same_extra(
    run: Run, artifact: Path, tiny_assembled: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nvembed_deploy.parity.__main__.find_spec", lambda n: n != "onnx" or None)
    assert run(artifact, "--reference", tiny_assembled, "--dry-run") == 0
    assert run(artifact, "--reference", tiny_assembled, "--dry-run", "--trace") == 3
    err = capsys.readouterr().err
    assert "the parity check needs onnx\nfix: pip install 'nvembed-deploy[parity]'" in err
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [need.partition(">")[0] for need in extras["optional-dependencies"]["parity"]]
    assert "onnx" in names


def test_a_trace_that_fails_does_so_before_anything_is_measured(
    run: Run, artifact: Path, tiny_assembled: Path, tmp_path: Path, capsys
) -> None:
    from nvembed_deploy.model.assemble import Parts, assemble_checkpoint
    from tests import factories

    base = factories.write_base(tmp_path / "base", factories.with_layers(factories.TINY, 2))
    assemble_checkpoint(Parts(base, pooler_spec=factories.TINY.pooler), tmp_path / "short")
    assert run(artifact, "--reference", tmp_path / "short", "--trace") == 2
    assert "has 3 layers" in capsys.readouterr().err
    described = json.loads((artifact / "manifest.json").read_text())
    (artifact / "manifest.json").write_text(json.dumps(described | {"precision": "bf16"}))
    assert run(artifact, "--reference", tiny_assembled, "--trace", "--dry-run") == 2
    assert "is bf16: --trace" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_a_reference_in_16_bit_is_asked_for_and_said(
    run: Run, artifact: Path, tiny_assembled: Path, tmp_path: Path, capsys
) -> None:
    words = ("--reference", tiny_assembled, "--device", "cpu", "--out", tmp_path / "report")
    report = tmp_path / "report" / "report.json"
    assert run(artifact, *words) == 0
    found = json.loads(report.read_text())
    assert (found["reference"]["runtime"], found["reference"]["dtype"]) == ("reference", "fp32")
    assert found["candidate"]["dtype"] is None
    assert found["basis"]["notes"] == []
    assert run(artifact, *words, "--reference-dtype", "bf16") == 1  # fp32's bounds, bf16's rounding
    assert "the reference was computed in bf16" in " ".join(capsys.readouterr().out.split())
    assert json.loads(report.read_text())["reference"]["dtype"] == "bf16"
    page = report.with_suffix(".html").read_text()
    assert "runtime reference on cpu in bf16" in page
    assert len(list((tmp_path / "cache").iterdir())) == 3
    assert run(artifact, "--reference", artifact, "--reference-dtype", "bf16") == 2
    assert "nothing here runs as it was trained" in capsys.readouterr().err


def test_an_artifact_may_be_compared_with_itself(run: Run, artifact: Path) -> None:
    assert run(artifact, "--reference", artifact) == 0


def test_a_score_that_is_not_defined_is_null_in_json(
    run: Run, artifact: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mteb.results.TaskResult, "get_score", lambda _: float("nan"))
    assert run(artifact, "--scores", "--json") == 0
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["average"] is None
    assert run(artifact, "--reference", artifact, "--out", tmp_path / "report") == 1
    err = capsys.readouterr().err
    assert "small_sts: cosine_spearman is not defined: artifact nan, reference nan" in err
    assert "fix: a score needs truth that differs" in err
    for path in (tmp_path / "report" / "report.json", artifact / "manifest.json"):
        assert json.loads(path.read_text(), parse_constant=pytest.fail)
    parity = read_manifest(artifact).parity
    assert parity is not None
    assert parity["tasks"]["small_sts"]["candidate"] is None
    assert "<circle" not in (tmp_path / "report" / "report.html").read_text()


def change(artifact: Path) -> None:
    """Make another artifact of one: as whole, with other files."""
    tokenizer, path = artifact / "tokenizer.json", artifact / "manifest.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    manifest = json.loads(path.read_text())
    found = {"bytes": tokenizer.stat().st_size, "sha256": hash_file(tokenizer)}
    manifest["files"]["tokenizer.json"] = found
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("which", ["artifact", "reference"])
def test_no_verdict_is_written_on_what_was_replaced_meanwhile(
    run: Run, artifact: Path, capsys, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    reference = shutil.copytree(artifact, artifact.with_name("reference"))
    replaced, report = artifact.with_name(which), artifact.with_name("report")
    evaluate = mteb.evaluate

    def change_and_evaluate(*words: object, **named: object) -> object:
        change(replaced)
        return evaluate(*words, **named)

    monkeypatch.setattr(mteb, "evaluate", change_and_evaluate)
    assert run(artifact, "--reference", reference, "--out", report) == 2
    err = capsys.readouterr().err
    assert f"{replaced} was replaced while it was measured: tokenizer.json differ" in err
    assert read_manifest(artifact).parity is None
    assert not report.exists()


def test_an_engine_that_was_compiled_meanwhile_is_not_lost(artifact: Path) -> None:
    measured = identity_of(artifact)
    (artifact / "engines").mkdir()
    (artifact / "engines" / "new.plan").write_bytes(b"plan")
    with (artifact / "engines" / ".lock").open("w") as lock:  # as `compile` holds it
        assert wait_for(lock.fileno())
        thread = threading.Thread(target=record, args=(artifact, {"passed": True}, measured))
        thread.start()
        thread.join(0.3)
        assert read_manifest(artifact).parity is None
        record_engine(artifact, "engines/new.plan", RECORD, "ab" * 32)
    thread.join(30)
    manifest = read_manifest(artifact)
    assert manifest.parity == {"passed": True}
    assert "engines/new.plan" in manifest.engines


def test_a_verdict_of_another_artifact_is_not_recorded(artifact: Path) -> None:
    measured = identity_of(artifact) | {"model.onnx": "of an export that was overwritten"}
    with pytest.raises(ArtifactError, match=r"was replaced .*: model.onnx differ"):
        record(artifact, {"passed": True}, measured)
    assert read_manifest(artifact).parity is None
