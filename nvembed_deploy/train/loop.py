"""This file owns a training run: data, steps, saving, resuming.

One process or many (`torchrun`): all draw the same batch, each embeds its share of the
rows, gradients are summed, and the result is one process's.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from nvembed_deploy.errors import GateError
from nvembed_deploy.train.batch import TrainBatch, make_batch
from nvembed_deploy.train.gradcache import Budget, backward, embedder
from nvembed_deploy.train.interrupt import deferred_interrupt
from nvembed_deploy.train.journal import Journal, StepRecord, View, draw_curves, open_view, read_log
from nvembed_deploy.train.learner import Learner, autocast, open_learner
from nvembed_deploy.train.leaving import leave_group
from nvembed_deploy.train.loss import allowed_passages, info_nce
from nvembed_deploy.train.mixture import Blend, Mixture
from nvembed_deploy.train.recipe import OptimizerSection, TrainRecipe
from nvembed_deploy.train.run_data import check_unchanged, open_sources, stamps_of, tell_alone
from nvembed_deploy.train.run_folder import check_claim, check_paths, claim, held, written
from nvembed_deploy.train.saved import (
    Progressing,
    copy_checkpoint,
    load_step,
    save_step,
    saved_steps,
    snapshot,
)
from nvembed_deploy.train.shard import shard
from nvembed_deploy.train.sources import Source
from nvembed_deploy.train.tracking import check_tracker, start_tracker

_MOST_NAN = 10
_LAST_LOSSES = 50
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class RunReport:
    """What a finished run did. `loss` is the mean of the last `loss_steps` that were taken."""

    checkpoint: Path
    steps: int
    loss: float
    loss_steps: int
    tokens: int
    truncated: int
    skipped: int
    seconds: float
    processes: int


def train(recipe: TrainRecipe, *, resume: bool = False, overwrite: bool = False) -> RunReport:
    """Run a recipe to its end and write `out/checkpoint`.

    Args:
        recipe: all choices.
        resume: go on from the newest saved step, or begin if there is none.
        overwrite: remove a run that is there, once all that this one needs is open.

    Raises:
        RecipeError: `out` holds a run and neither was asked for, or another process writes it, or
            resuming another recipe.
        CheckpointError, InputError: the model or the data cannot be used.
        GateError: a loss or its gradient is not finite, and the recipe says to stop.
        MissingPackageError: the tracker is not installed.
    """
    check_tracker(recipe.run.tracker)
    check_paths(recipe)
    accelerator = Accelerator(
        log_with=None if recipe.run.tracker == "none" else recipe.run.tracker,
        project_dir=str(recipe.run.out),
        cpu=not torch.cuda.is_available(),
    )
    is_main: bool = accelerator.is_main_process
    with held(recipe.run.out) if is_main else nullcontext():
        with accelerator.main_process_first():
            if is_main:
                check_claim(recipe, resume=resume, overwrite=overwrite)
            sources = open_sources(recipe)
        run = _Run(recipe, accelerator, sources)
        run.restore(resume=resume and not overwrite)
        accelerator.wait_for_everyone()
        earlier = written(recipe.run.out) if overwrite and is_main else []
        start_tracker(accelerator, recipe, run.step)
        if is_main:
            claim(recipe, sources, earlier)
            tell_alone(recipe, sources)
        return run.finish()


def rate_at(step: int, section: OptimizerSection) -> float:
    """Return the factor of the learning rate at a step (from 0): up over the warm-up, down to 0."""
    if step < section.warmup_steps:
        return (step + 1) / section.warmup_steps
    return (section.steps - step) / (section.steps - section.warmup_steps)


class _Run:
    """One run in one process."""

    def __init__(
        self, recipe: TrainRecipe, accelerator: Accelerator, sources: list[Source]
    ) -> None:
        torch.manual_seed(recipe.run.seed)
        self.recipe = recipe
        self.accelerator = accelerator
        self.dtype = _DTYPES[recipe.run.precision]
        self.device = accelerator.device
        self.is_sharded = recipe.run.shard and accelerator.num_processes > 1
        learner, self.tokenizer = open_learner(
            recipe, self.dtype, self.device, is_sharded=self.is_sharded
        )
        if self.is_sharded:
            shard(learner, self.device)
        section = recipe.optimizer
        pooler_rate = section.pooler_learning_rate or section.learning_rate
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            learner.groups(section.learning_rate, pooler_rate),
            betas=section.betas,
            weight_decay=section.weight_decay,
        )
        self.learner: Learner = learner
        weights = tuple(s.weight for s in recipe.data)
        one_source = recipe.batch.mix == "one-source"
        blend = Blend(weights, recipe.loss.hard_negatives, one_source)
        self.sources = sources
        self.mixture = Mixture(sources, blend, recipe.run.seed)
        self.embed = embedder(learner, self.tokenizer.spec.pad_id, self.device)
        self.step, self.skipped, self.unfinite = 0, 0, 0

    def restore(self, *, resume: bool) -> None:
        """Go back to the newest saved step if asked to; one of other data is refused."""
        saved = saved_steps(self.recipe.run.out)
        if resume and saved:
            state = self._state()
            load_step(state, saved[-1])
            check_unchanged(state.extra["sources"], self.sources, state.step)
            self.step, self.skipped = state.step, state.extra["skipped"]
            self.mixture.load_state_dict(state.extra["mixture"])

    def finish(self) -> RunReport:
        """Take the remaining steps and write the checkpoint."""
        run, steps = self.recipe.run, self.recipe.optimizer.steps
        is_main: bool = self.accelerator.is_main_process
        journal = Journal(run.out, self.step) if is_main else None
        view_every = run.log_every if is_main else 0
        alone: bool = self.accelerator.num_processes == 1
        asking, viewing = deferred_interrupt(alone=alone), open_view(steps, self.step, view_every)
        with asking as is_asked, viewing as view:
            while self.step < steps:
                record = self._step()
                self._tell(record, journal, view)
                stops = is_asked()
                if stops or self.step % run.save_every == 0 or self.step == steps:
                    self._save()
                if stops and self.step < steps:
                    break
        if self.step < steps:
            said = f"step {self.step} is saved: --resume goes on from it"
            print(said, file=sys.stderr)  # noqa: T201 - the terminal view
            raise KeyboardInterrupt
        self._write_checkpoint()
        leave_group(self.accelerator)
        return self._report()

    def _step(self) -> StepRecord:
        started = time.perf_counter()
        torch.manual_seed(self._seed_of_step())
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * rate_at(self.step, self.recipe.optimizer)
        examples = self.mixture.draw(self.recipe.batch.queries)
        batch = make_batch(examples, self.tokenizer, self.recipe.text)
        loss = self._backward(batch)
        norm = self._clip() if math.isfinite(loss) else math.nan
        if math.isfinite(norm):
            self.optimizer.step()
            self.unfinite = 0
        else:
            self._leave_out(loss, norm)
        self.optimizer.zero_grad()
        self.step += 1
        return StepRecord(
            step=self.step,
            loss=loss,
            gradient_norm=norm,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            tokens=sum(len(row.ids) for row in batch.rows),
            truncated=batch.truncated,
            seconds=time.perf_counter() - started,
        )

    def _seed_of_step(self) -> int:
        """Return a seed for dropout that resuming needs no memory of."""
        world: int = self.accelerator.num_processes
        rank: int = self.accelerator.process_index
        return (self.recipe.run.seed << 32) + self.step * world + rank

    def _backward(self, batch: TrainBatch) -> float:
        section, queries = self.recipe.loss, batch.num_queries
        allowed_QP = allowed_passages(
            torch.from_numpy(batch.owner_P),
            torch.from_numpy(batch.keep_QP),
            in_batch=section.in_batch_negatives,
        ).to(self.device)

        def loss_of(embedding_ND: torch.Tensor) -> torch.Tensor:
            query_QD, passage_PD = embedding_ND[:queries], embedding_ND[queries:]
            return info_nce(query_QD, passage_PD, allowed_QP, section.temperature)

        budget = Budget(self.recipe.batch.chunk_tokens, self.recipe.batch.live_tokens)
        with autocast(self.device, self.dtype):
            return backward(batch.rows, self.embed, loss_of, budget)

    def _sum_gradients(self) -> None:
        """Add up the processes' gradients; a sharded learner has done so in its backward pass."""
        if self.accelerator.num_processes > 1 and not self.is_sharded:
            for parameter in self.learner.trained().values():
                assert parameter.grad is not None
                torch.distributed.all_reduce(parameter.grad)

    def _clip(self) -> float:
        """Sum and clip the gradients; return their norm before that."""
        self._sum_gradients()
        trained = list(self.learner.trained().values())
        norm = torch.nn.utils.clip_grad_norm_(trained, self.recipe.optimizer.max_grad_norm)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def _leave_out(self, loss: float, norm: float) -> None:
        self.skipped += 1
        self.unfinite += 1
        skips = self.recipe.run.on_nan == "skip"
        if skips and self.unfinite < _MOST_NAN:
            return
        found = f"gradient's norm is {norm}" if math.isfinite(loss) else f"loss is {loss}"
        again = f", the {self.unfinite}th time in a row" if skips else ""
        fix = "lower the learning rates, raise the temperature or the warm-up, or train in fp32, "
        fix += "and begin again: --overwrite"
        fix += "" if skips else "; or leave such steps out: --resume --set run.on_nan=skip"
        raise GateError(f"step {self.step + 1}: the {found}{again}", fix)

    def _tell(self, record: StepRecord, journal: Journal | None, view: View) -> None:
        if journal is None:
            return
        journal.add(record)
        view.show(record)
        if self.recipe.run.tracker != "none":
            values = dataclasses.asdict(record)
            self.accelerator.log(values, step=values.pop("step"))

    def _save(self) -> None:
        contents = snapshot(self._state())
        if self.accelerator.is_main_process:
            save_step(self.learner, contents, self.recipe.run.out, self.recipe.run.keep)
            draw_curves(self.recipe.run.out)
        self.accelerator.wait_for_everyone()

    def _write_checkpoint(self) -> None:
        if self.accelerator.is_main_process:
            copy_checkpoint(self.learner.parts, self.recipe.run.out)
        self.accelerator.wait_for_everyone()

    def _state(self) -> Progressing:
        extra = {
            "mixture": self.mixture.state_dict(),
            "skipped": self.skipped,
            "sources": stamps_of(self.sources),
        }
        return Progressing(self.learner, self.optimizer, self.step, extra)

    def _report(self) -> RunReport:
        records = read_log(self.recipe.run.out)
        last = [r.loss for r in records if r.is_finite][-_LAST_LOSSES:]
        return RunReport(
            checkpoint=self.recipe.run.out / "checkpoint",
            steps=self.step,
            loss=sum(last) / len(last) if last else math.nan,
            loss_steps=len(last),
            tokens=sum(r.tokens for r in records),
            truncated=sum(r.truncated for r in records),
            skipped=self.skipped,
            seconds=sum(r.seconds for r in records),
            processes=self.accelerator.num_processes,
        )
