"""This file owns the tables on the terminal."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from nvembed_deploy import cli
from nvembed_deploy.bench.ratios import Verdict
from nvembed_deploy.bench.report import MixNumbers, Report, SideNumbers, short
from nvembed_deploy.bench.scaling import BATCH_TOKENS, Scaling

_GOOD, _FAR = 0.9999, 0.99


def print_report(report: Report, console: Console) -> None:
    """Print one table for each mix and one for starts and memory."""
    for mix in report.mixes:
        console.print(_mix_table(mix, report.shortage(mix)))
        console.print()
    console.print(_start_table(report))
    if report.scaling:
        console.print()
        _print_scaling(report.scaling, console)
    for problem in report.faults.values():
        console.print(f"[red]Left out when it failed:[/] {escape(problem)}")
    machine = report.machine
    console.print(
        f"[dim]{machine['processor']}, {machine['cores']} cores, load {machine['load'][0]:g} before"
        f" the run; {report.date}\ncompare rows of one table: they were measured in turns[/]"
    )


def print_verdicts(verdicts: list[Verdict], console: Console) -> None:
    """Print each ratio beside its floor."""
    table = _table("[bold]ratios[/]: how many times better", ("of", "now", "floor", "when set", ""))
    for verdict in verdicts:
        floor, got = verdict.floor, verdict.got
        answer = "[green]ok[/]" if verdict.passed else "[red]below[/]"
        table.add_row(
            escape(f"{floor.ours} than {floor.against}"),
            escape(f"{floor.measure} {floor.mix}".strip()),
            _seen("{:.2f}".format, got),
            f"{floor.value:.2f}",
            f"{floor.measured:.2f}",
            "[dim]not measured[/]" if got is None else answer,
        )
    console.print()
    console.print(table)


def _print_scaling(scaling: Scaling, console: Console) -> None:
    for title, curve in (
        (f"tokens/s by batch of texts of {BATCH_TOKENS} tokens", scaling.batch),
        ("tokens/s of one text by its tokens", scaling.length),
        ("tokens/s by corpus", scaling.corpus),
    ):
        places = [str(point.at) for point in next(iter(curve.values()))]
        table = _table(f"[bold]{title}[/]", tuple(places))
        for name, points in curve.items():
            table.add_row(escape(name), *(f"{point.tokens_per_second:,.0f}" for point in points))
        console.print(table)
        console.print()
    for name, ratio in scaling.mixed.items():
        verdict = "[yellow]a cliff[/]" if name in scaling.cliffs else "[green]no cliff[/]"
        console.print(
            f"{escape(name)}: mixed lengths cost {ratio:.3f} of each length alone: {verdict}"
        )


def _table(title: str, columns: tuple[str, ...]) -> Table:
    wide_enough = Text.from_markup(title).cell_len
    table = Table(
        title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), min_width=wide_enough
    )
    table.add_column("", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _mix_table(mix: MixNumbers, shortage: str) -> Table:
    singles = min(int(side.latency_ms["count"]) for side in mix.sides.values())
    table = _table(
        f"[bold]{escape(mix.name)}[/]: {mix.texts} texts{shortage} of {mix.shortest} to "
        f"{mix.longest} tokens; latency of {singles} texts alone",
        ("tokens/s", "", "texts/s", "p50 ms", "p95", "p99", "of peak", "tokenise", "cosine"),
    )
    fastest = max(side.tokens_per_second for side in mix.sides.values())
    for name, side in mix.sides.items():
        bold = side.tokens_per_second == fastest
        table.add_row(
            f"[bold]{escape(name)}[/]" if bold else escape(name),
            f"{side.tokens_per_second:,.0f}",
            _relative(side),
            short(side.texts_per_second),
            *(short(side.latency_ms[p]) for p in ("p50", "p95", "p99")),
            _seen("{:.1%}".format, side.utilisation)
            + (f" {side.ceiling_dtype}" if side.ceiling_dtype else ""),
            _seen("{:.1%}".format, side.tokenize_share),
            cosine_text(side),
        )
    return table


def _relative(side: SideNumbers) -> str:
    return f"[dim]x {1 / side.speedup:.2f}[/]"


def _seen(words: Callable[[float], str], value: float | None) -> str:
    return "-" if value is None else words(value)


def cosine_text(side: SideNumbers) -> str:
    """Return the lowest cosine, coloured by how far the rows are from the first side's."""
    tone = "green" if side.cosine_min >= _GOOD else "yellow" if side.cosine_min >= _FAR else "red"
    return f"[{tone}]{side.cosine_min:.6f}[/]"


def _start_table(report: Report) -> Table:
    columns = ("load s", "cold start s", "peak memory", "GPU", "runs on")
    table = _table("[bold]start and memory[/]", columns)
    for name, side in report.sides.items():
        facts = side.facts
        place = [str(facts[k]) for k in ("runtime", "dtype", "device") if facts.get(k)]
        table.add_row(
            escape(name),
            _seen("{:.2f}".format, side.load_seconds),
            _seen("{:.2f}".format, side.cold_start_seconds),
            _seen(cli.human_bytes, side.peak_bytes),
            _seen(cli.human_bytes, side.gpu_bytes),
            " ".join(place),
        )
    return table
