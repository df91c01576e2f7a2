"""This file owns `nvembed-deploy assemble`: parts on the command line to a checkpoint folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from shlex import quote

from nvembed_deploy import cli
from nvembed_deploy.errors import CheckpointError, RecipeError
from nvembed_deploy.spec import PoolerSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    default = PoolerSpec()
    parser.description = "Make a checkpoint folder of a base decoder, an adapter and a pooler."
    parser.add_argument("base", type=Path, help="Mistral/Llama-family folder, or a .gguf file")
    parser.add_argument("out", type=Path, help="checkpoint folder to write")
    parser.add_argument("--adapter", type=Path, help="PEFT LoRA folder")
    parser.add_argument("--pooler", type=Path, help="trained pooler.safetensors (default: fresh)")
    sizes = parser.add_argument_group(
        "the pooler's sizes", "default: those of a trained one, else:"
    )
    sizes.add_argument("--latents", type=cli.positive, help=str(default.num_latents))
    sizes.add_argument("--heads", type=cli.positive, help=str(default.num_heads))
    sizes.add_argument("--head-width", type=cli.positive, help="the base's hidden size")
    sizes.add_argument("--feed-width", type=cli.positive, help="4 x the base's hidden size")
    parser.add_argument("--name", help="model name (default: the folder's)")
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="NAME=PREFIX",
        help="a named literal prefix for encode(prompt_name=...); \\n is a line break",
    )
    parser.add_argument("--seed", type=int, default=0, help="of a fresh pooler (%(default)s)")
    parser.add_argument("--copy-base", action="store_true", help="copy the base into the folder")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing checkpoint")
    cli.add_traceback(parser)
    parser.set_defaults(command=assemble)


def assemble(args: argparse.Namespace) -> None:
    """Run the command."""
    from nvembed_deploy.checkpoint import open_base
    from nvembed_deploy.model.assemble import Parts, assemble_checkpoint

    hidden = open_base(args.base)[0].backbone.hidden_size
    parts = Parts(
        base=args.base,
        adapter=args.adapter,
        pooler=args.pooler,
        pooler_spec=_pooler_spec(args, hidden),
        name=_name(args.name),
        prompts=cli.prompts(args.prompt),
    )
    spec = assemble_checkpoint(
        parts, args.out, copy_base=args.copy_base, overwrite=args.overwrite, seed=args.seed
    )
    sizes = spec.pooler
    pooler = " with a fresh pooler (nearly the plain mean; train it)"
    if args.pooler:
        pooler = f", {sizes.num_latents} latents, {sizes.num_heads} heads of {sizes.head_width}"
    cli.say(
        f"wrote {args.out}: {spec.name}, {spec.backbone.num_layers} layers, hidden "
        f"{spec.backbone.hidden_size}{pooler}\n"
        f"next: nvembed-deploy export {quote(str(args.out))} ARTIFACT"
    )


def _pooler_spec(args: argparse.Namespace, hidden: int) -> PoolerSpec:
    """Return the sizes that were given, else those of the pooler's file, else NV-Embed's.

    Raises:
        CheckpointError: the pooler is of another hidden size.
        RecipeError: the file has other sizes, or does not show all that is not given.
    """
    from nvembed_deploy.model.assemble import PoolerSizes, read_pooler_sizes

    shown = read_pooler_sizes(args.pooler) if args.pooler else PoolerSizes()
    if shown.hidden_size not in {None, hidden}:
        raise CheckpointError(
            f"{args.pooler} has hidden size {shown.hidden_size}, the base {args.base} has {hidden}",
            "give the base that the pooler was trained on",
        )
    for option, given, found in (
        ("--latents", args.latents, shown.num_latents),
        ("--feed-width", args.feed_width, shown.feed_width),
    ):
        if given and found and given != found:
            raise RecipeError(
                f"{option} is {given}, but {args.pooler} has {found}",
                f"leave {option} out, or give the pooler that has this size",
            )
    heads, head_width = _heads(args, hidden, shown.inner_width)
    return PoolerSpec(
        num_latents=args.latents or shown.num_latents or PoolerSpec().num_latents,
        num_heads=heads,
        head_width=head_width,
        feed_width=args.feed_width or shown.feed_width or 4 * hidden,
    )


def _heads(args: argparse.Namespace, hidden: int, inner: int | None) -> tuple[int, int]:
    """Return heads and head width; `inner`, if the pooler's file shows it, is their product."""
    given = f"--heads {args.heads}" if args.heads else ""
    given += f" --head-width {args.head_width}" if args.head_width else ""
    heads, head_width = args.heads or PoolerSpec().num_heads, args.head_width or hidden
    if inner is None or heads * head_width == inner:
        return heads, head_width
    if not given:
        raise RecipeError(
            f"{args.pooler} does not show how many heads it has, only that heads times head width "
            f"is {inner}",
            "give --heads or --head-width as it was trained: its recipe, or the checkpoint.json "
            "beside it, says them",
        )
    if not args.heads:
        heads = inner // head_width
    elif not args.head_width:
        head_width = inner // heads
    if heads * head_width != inner:
        raise RecipeError(
            f"{given.strip()} does not fit {args.pooler}: heads times head width is {inner} there",
            f"correct --heads or --head-width, so that their product is {inner}",
        )
    return heads, head_width


def _name(name: str | None) -> str | None:
    if name is not None and not name.isprintable():
        raise RecipeError(
            f"--name {name!r} is not one line of printable text", "write it in one line"
        )
    return name
