"""This file owns `nvembed-deploy assemble`: parts on the command line to a checkpoint folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from nvembed_deploy import cli
from nvembed_deploy.errors import RecipeError
from nvembed_deploy.spec import PoolerSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    default = PoolerSpec()
    parser.description = "Make a checkpoint folder of a base decoder, an adapter and a pooler."
    parser.add_argument("base", type=Path, help="Mistral/Llama-family folder, or a .gguf file")
    parser.add_argument("out", type=Path, help="checkpoint folder to write")
    parser.add_argument("--adapter", type=Path, help="PEFT LoRA folder")
    parser.add_argument("--pooler", type=Path, help="trained pooler.safetensors (default: fresh)")
    parser.add_argument(
        "--latents", type=cli.positive, default=default.num_latents, help="%(default)s"
    )
    parser.add_argument("--heads", type=cli.positive, default=default.num_heads, help="%(default)s")
    parser.add_argument("--head-width", type=cli.positive, help="default: the base's hidden size")
    parser.add_argument(
        "--feed-width", type=cli.positive, help="default: 4 x the base's hidden size"
    )
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
        pooler_spec=PoolerSpec(
            num_latents=args.latents,
            num_heads=args.heads,
            head_width=args.head_width or hidden,
            feed_width=args.feed_width or 4 * hidden,
        ),
        name=args.name,
        prompts=_prompts(args.prompt),
    )
    spec = assemble_checkpoint(
        parts, args.out, copy_base=args.copy_base, overwrite=args.overwrite, seed=args.seed
    )
    trained = "" if args.pooler else " with a fresh pooler (nearly the plain mean; train it)"
    cli.say(
        f"wrote {args.out}: {spec.name}, {spec.backbone.num_layers} layers, hidden "
        f"{spec.backbone.hidden_size}{trained}\nnext: nvembed-deploy export {args.out} ARTIFACT"
    )


def _prompts(pairs: list[str]) -> dict[str, str]:
    prompts = {}
    for pair in pairs:
        name, separator, prefix = pair.partition("=")
        if not separator:
            raise RecipeError(f"--prompt {pair!r} has no '='", "write --prompt query='Instruct: '")
        prompts[name] = prefix.replace("\\n", "\n")
    return prompts
