"""The training loop: from a config to a trained model, on one process or many."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import fnmatch
import logging
import math
import signal
from collections.abc import Iterator
from typing import Any, Self

import torch
import torch.distributed as dist
import yaml
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from torchdpt import optim
from torchdpt.classes import Classes
from torchdpt.config import DPTConfig
from torchdpt.data import Batch, Mixture, batches, open_dataset
from torchdpt.data.mixing import random_numbers
from torchdpt.files import write_atomically
from torchdpt.image import ImageProcessor
from torchdpt.model import DPTModel
from torchdpt.tally import gather, rank_and_size
from torchdpt.training import checkpoints
from torchdpt.training.config import TrainConfig
from torchdpt.training.distributed import device_of, processes
from torchdpt.training.log import Pace, RunLog, progress_bar
from torchdpt.training.objective import Objective, Terms
from torchdpt.training.optimizer import learning_rate_factor, make_optimizer
from torchdpt.training.start import (
    check_batch,
    check_crop,
    check_names,
    check_same,
    check_unused,
    classes_of,
    make_processor,
    network_input,
    starting_model,
)
from torchdpt.training.validation import Validation

_log = logging.getLogger("torchdpt")


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What came out of a run.

    Attributes:
        model: The trained network, in eval mode: the average of its parameters if the config has `ema`.
        step: Steps that were made.
        finished: Whether these are all; False if a signal ended the run, which goes on when it is started again.
        validation: The last headline numbers, by the names of the data sets.
    """

    model: DPTModel
    step: int
    finished: bool
    validation: dict[str, float]


def fit(config: TrainConfig, *, allow_changes: bool = False, progress: bool = False) -> TrainResult:
    """Train as a config says, or go on with a run whose folder is there.

    Under `torchrun` every process calls this, and they share each batch.

    Args:
        config: The settings.
        allow_changes: Whether a run may go on with other settings than it began with.
        progress: Whether a bar on stderr shows step, loss, images per second and the time that is left.

    Raises:
        ValueError: if data, network and losses do not fit each other, a label is out of range, or the folder holds a
            run with other settings or one that is going on.
        OSError: if a checkpoint cannot be written.
        FloatingPointError: if `max_bad_steps` steps in a row have no finite loss and gradient, or no target.
    """
    with processes(config.device), checkpoints.alone_in(config.out):
        return Trainer(config, allow_changes=allow_changes).fit(progress=progress)


class Trainer:
    """A run: its model, optimiser and place in the data; `fit` is all that most programs need.

    Args:
        config: The settings.
        allow_changes: See `fit`.

    Raises:
        ValueError: see `fit`.
    """

    def __init__(self, config: TrainConfig, *, allow_changes: bool = False) -> None:
        self.config = config
        self.rank, self.world_size = rank_and_size()
        self.device = device_of(config.device)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        if config.batch_size % (self.world_size * config.accumulate):
            raise ValueError(
                f"batch_size {config.batch_size} must be a multiple of {self.world_size} processes x "
                f"{config.accumulate} parts (accumulate)"
            )
        check_batch(config, self.world_size)

        self.datasets = [open_dataset(data.type, **data.options) for data in config.train]
        check_names("train", [dataset.name for dataset in self.datasets])
        lengths = [len(dataset) for dataset in self.datasets]
        weights = [data.weight for data in config.train]
        self.mixture = Mixture(lengths, weights, batch_size=config.batch_size, seed=config.seed)
        self.total_steps = config.total_steps(sum(lengths))

        found = checkpoints.newest(config.out / "checkpoints")
        if found is None:
            check_unused(config, allow_changes)
        torch.manual_seed(config.seed)
        if found is None:
            self.model = starting_model(config, self.datasets, self.device)
        else:
            check_same(config, found["config"], allow_changes)
            if found["lengths"] != lengths and not allow_changes:
                raise ValueError(
                    f"{config.out} holds a run on data sets of {found['lengths']} samples, and now they have "
                    f"{lengths}, of which its steps would draw others. Set another out=, or go on by --allow-changes "
                    "(allow_changes=True)"
                )
            self.model = DPTModel(DPTConfig.from_json(found["network"]), device=self.device)
            self.model.processor = ImageProcessor(**found["processor"])
            self.model.classes = None if found["classes"] is None else Classes.from_json(found["classes"])
        self.model.processor = make_processor(config, self.model)
        check_crop(config, self.model)
        if self.model.config.num_classes:
            self.model.classes = classes_of(self.datasets, self.model.config.num_classes) or self.model.classes
        self.model.activation_checkpointing = config.activation_checkpointing
        self.objective = Objective(config.loss, self.model.config)
        self.optimizer = make_optimizer(self.model, config.optimizer)

        self.lengths = lengths
        # What changes from step to step, and is saved.
        self.step = 0
        self.bad_steps = 0
        self.data_weights = torch.tensor(self.mixture.weights)  # of the data sets' gradients, for Pareto mixing
        self.averaged = None if config.ema is None else copy.deepcopy(self.model).requires_grad_(False)
        self.best: float | None = None
        self.headlines: dict[str, float] = {}
        if found is not None:
            self.restore(found)

        self.model.train()
        self.validations = [Validation(data, self.model) for data in config.validation]
        check_names("validation", [validation.name for validation in self.validations])
        self.network: nn.Module = self.model
        if self.world_size > 1:
            self.model.synchronize_batch_norm()
            self.network = DistributedDataParallel(self.model, broadcast_buffers=False)
        if config.compile:
            self.network = torch.compile(self.network, dynamic=False)  # type: ignore[assignment]
        self.log: RunLog | None = None  # of the first process
        self._left_out: set[str] = set()  # errors of samples that were reported
        self._signal = 0  # that this process got
        self._stop = 0  # the signal on which all processes agree

    # --- the loop ---

    def fit(self, *, progress: bool = False) -> TrainResult:
        """Train to the end, or until a signal."""
        config = self.config
        if self.rank == 0:
            config.out.mkdir(parents=True, exist_ok=True)
            write_atomically(config.out / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False).encode())
            self.log = RunLog(config.out, self.step)
        if self.step:
            _log.info("%s: going on after step %d of %d", config.out, self.step, self.total_steps)
        stream = batches(
            self.datasets,
            self.mixture,
            config.augmentation,
            range(self.step, self.total_steps),
            rank=self.rank,
            world_size=self.world_size,
            workers=config.workers,
            pin_memory=self.device.type == "cuda",
        )
        with (
            contextlib.closing(stream),
            self._signals(),
            progress_bar(self.step, self.total_steps, enabled=progress and self.rank == 0) as show,
        ):
            if self.step == 0:
                self.validate()
            pace = Pace()
            while self.step < self.total_steps and not self._stop:
                batch = next(stream)
                pace.loaded()
                loss, norm = self.train_step(batch)
                pace.stepped()
                show(loss, config.batch_size * pace.rate)
                last = self.step == self.total_steps
                if self.step % config.log_every == 0 or last:
                    self._record(loss, norm, pace)
                if last or (config.validate_every and self.step % config.validate_every == 0):
                    self.validate()
                if last or self._stop or (config.save_every and self.step % config.save_every == 0):
                    self.save()
                pace.skip()
        finished = self.step >= self.total_steps
        if self.rank == 0:
            if finished:
                self.result_model.save_pretrained(config.out / "final")
                if self.bad_steps:
                    _log.warning("the last %d of %d steps were skipped", self.bad_steps, self.total_steps)
            else:
                name = signal.Signals(self._stop).name
                _log.warning("%s at step %d: saved; the same command goes on from there", name, self.step)
            assert self.log is not None
            self.log.close()
        return TrainResult(self.result_model.eval(), self.step, finished, self.headlines)

    def train_step(self, batch: Batch) -> tuple[float, float]:
        """One step of the optimiser on this process's part of a batch.

        Returns:
            The loss of the whole batch, NaN if it has no target, and the length of the gradient before clipping.

        Raises:
            FloatingPointError: see `fit`.
            ValueError: if a label is out of range.
        """
        for error in batch.errors:
            if error not in self._left_out:
                self._left_out.add(error)
                _log.warning("left out: %s", error)
        # The same on all processes: by what sums are divided, and whether one of them was told to stop.
        counts = self.objective.counts(batch)
        totals = torch.zeros(len(self.datasets), 2, dtype=torch.float64).index_add_(0, batch.datasets, counts)
        shared = self._sum(torch.cat([totals.flatten(), torch.tensor([float(self._signal != 0)])]))
        if shared[-1]:
            self._stop = self._signal or signal.SIGTERM
        totals = shared[:-1].view_as(totals)
        seed = random_numbers(self.config.seed, self.step, 2**32 + self.rank).integers(2**63)
        torch.manual_seed(int(seed))  # of dropout

        parts = self._parts(batch.to(self.device))
        if self.config.mixing.method == "pareto" and self.step % self.config.mixing.every == 0:
            self._weigh_data_sets(parts, totals)
        factors = self._factors(batch.datasets, totals)
        buffers = [buffer.clone() for buffer in self.model.buffers()]  # of batch normalisation
        loss = torch.zeros((), device=self.device)
        not_finite: list[str] = []
        self.optimizer.zero_grad(set_to_none=True)
        for part, rows in parts:
            with self._without_exchange(last=rows.stop == len(batch)):
                terms = self._terms(part)
                part_loss = (terms.losses * factors[rows].to(terms.losses)).sum()
                (part_loss * self.world_size).backward()  # type: ignore[no-untyped-call]  # processes are averaged
            loss += part_loss.detach()
            not_finite += [name for name, good in zip(part.names, terms.finite.tolist(), strict=True) if not good]
        limit = math.inf if self.config.optimizer.clip_norm is None else self.config.optimizer.clip_norm
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit).item()
        total_loss = self._sum(loss.double().cpu()).item()

        if math.isfinite(norm) and math.isfinite(total_loss) and totals.sum() > 0:
            self.bad_steps = 0
            rate = learning_rate_factor(self.config.optimizer, self.step, self.total_steps)
            for group in self.optimizer.param_groups:
                group["lr"] = group["base_lr"] * rate
            self.optimizer.step()
            self._average()
        else:
            self._restore_buffers(buffers)
            self._count_bad_step(batch, not_finite, empty=not totals.sum() > 0)
            if not totals.sum() > 0:  # nothing was measured
                total_loss = math.nan
        self.step += 1
        return total_loss, norm

    def validate(self) -> dict[str, float]:
        """Measure on the validation data sets; the model that is best on the first one is saved in `best/`."""
        for validation in self.validations:
            result = validation.run(self.result_model)
            self.headlines[validation.name] = result.headline
            if self.log is not None:
                values = {"headline": result.headline, **result.metrics, **result.counts}
                self.log.record(f"validation/{validation.name}", self.step, values)
                if self.config.panels:
                    rows = validation.pictures(self.result_model, self.config.panels)
                    self.log.picture(validation.name, self.step, rows)
            _log.info("step %d, %s: %s %.4f", self.step, validation.name, result.protocol.headline, result.headline)
            for failure in result.failures:
                _log.warning("%s: sample %d left out: %s", validation.name, failure["index"], failure["error"])
        self.model.train()
        if self.validations:
            first = self.validations[0]
            headline = self.headlines[first.name]
            if math.isfinite(headline) and (self.best is None or first.is_better(headline, self.best)):
                self.best = headline
                if self.rank == 0:
                    self.result_model.save_pretrained(self.config.out / "best")
        return self.headlines

    # --- the parts of a step ---

    def _parts(self, batch: Batch) -> list[tuple[Batch, slice]]:
        size = math.ceil(len(batch) / self.config.accumulate)
        rows = [slice(start, min(start + size, len(batch))) for start in range(0, len(batch), size)]
        return [(batch[part], part) for part in rows]

    def _terms(self, part: Batch) -> Terms:
        mixed = self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=mixed):
            output = self.network(network_input(part.images, self.model.processor))
        return self.objective(output, part)

    def _factors(self, datasets: Tensor, totals: Tensor) -> Tensor:
        """[B, 2]: with which the losses of a sample count."""
        if self.config.mixing.method == "naive":
            return (1 / totals.sum(0)).nan_to_num(posinf=0).expand(len(datasets), 2)
        present = totals.sum(1) > 0
        weights = torch.where(present, self.data_weights, 0)
        if not weights.any():  # of data sets that were weighed when others were there, too
            weights = present.double()
        return (weights[:, None] / weights.sum() / totals).nan_to_num(0, 0, 0)[datasets]

    def _weigh_data_sets(self, parts: list[tuple[Batch, slice]], totals: Tensor) -> None:
        """Pareto mixing: the weights of the data sets of this batch, from a pass of its own over it."""
        patterns = self.config.mixing.parameters
        named = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        parameters = [p for n, p in named if not patterns or any(fnmatch.fnmatch(n, pattern) for pattern in patterns)]
        if not parameters:
            raise ValueError(f"mixing.parameters: no parameter of the network matches {', '.join(patterns)}")
        present = (totals.sum(1) > 0).nonzero().flatten().tolist()
        if not present:  # the step is skipped
            return
        sums = [[torch.zeros_like(p) for p in parameters] for _ in present]
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        network, self.network = self.network, self.model  # gradients are added up here, not by DDP
        for part, _ in parts:
            losses = self._terms(part).losses
            for dataset, total in zip(present, sums, strict=True):
                rows = (part.datasets == dataset)[:, None]
                factors = (rows / totals[dataset].to(self.device)).nan_to_num(0, 0, 0).to(losses)
                gradients = torch.autograd.grad((losses * factors).sum(), parameters, retain_graph=True)
                torch._foreach_add_(total, gradients)
        self.network = network
        self._restore_buffers(buffers)
        if self.world_size > 1:
            for total in sums:
                for gradient in total:
                    dist.all_reduce(gradient)
        gram = optim.gram(sums).cpu()
        if gram.isfinite().all():  # or else the step is skipped
            self.data_weights[present] = optim.min_norm(gram) * len(present) / len(self.datasets)

    def _restore_buffers(self, values: list[Tensor]) -> None:
        for buffer, value in zip(self.model.buffers(), values, strict=True):
            buffer.copy_(value)

    @torch.no_grad()
    def _average(self) -> None:
        if self.averaged is not None and self.config.ema is not None:
            decay = min(self.config.ema, (1 + self.step) / (10 + self.step))  # young averages forget faster
            torch._foreach_lerp_([*self.averaged.parameters()], [*self.model.parameters()], 1 - decay)
            for average, buffer in zip(self.averaged.buffers(), self.model.buffers(), strict=True):
                average.copy_(buffer)

    def _count_bad_step(self, batch: Batch, not_finite: list[str], *, empty: bool) -> None:
        self.bad_steps += 1
        gathered = gather(batch.names if empty else not_finite, None)
        names = [name for names in gathered for name in names] or ["the gradient alone; the losses are finite"]
        what = "no usable target" if empty else "not finite"
        _log.warning("step %d skipped, %s: %s", self.step, what, ", ".join(names))
        if self.bad_steps >= self.config.max_bad_steps:
            raise FloatingPointError(
                f"{self.bad_steps} steps in a row were skipped, the last one at step {self.step} because of {what}: "
                f"{', '.join(names)}. Look at these samples (torchdpt data check), lower the learning rate or set "
                "optimizer.clip_norm; checkpoints from before are in " + str(self.config.out / "checkpoints")
            )

    def _without_exchange(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients of a part of a batch are exchanged with those of the last part."""
        if isinstance(self.network, DistributedDataParallel) and not last:
            return self.network.no_sync()
        return contextlib.nullcontext()

    def _sum(self, values: Tensor) -> Tensor:
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    # --- state ---

    @property
    def result_model(self) -> DPTModel:
        """The model that is validated and saved."""
        return self.model if self.averaged is None else self.averaged

    def state(self) -> dict[str, Any]:
        """All that a run needs to go on."""
        return {
            "config": self.config.to_dict(),
            "network": self.model.config.replace(batch_norm_group="").to_json(),
            "processor": dataclasses.asdict(self.model.processor),
            "classes": None if self.model.classes is None else self.model.classes.to_json(),
            "lengths": self.lengths,
            "step": self.step,
            "bad_steps": self.bad_steps,
            "model": self.model.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "optimizer": {
                name: self.optimizer.state[p] for name, p in self.model.named_parameters() if p in self.optimizer.state
            },
            "data_weights": self.data_weights,
            "best": self.best,
            "headlines": self.headlines,
        }

    def restore(self, state: dict[str, Any]) -> Self:
        """Take over a state."""
        self.model.load_state_dict(state["model"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"] or state["model"])
        if state["config"]["optimizer"]["name"] == self.config.optimizer.name:
            names = {parameter: name for name, parameter in self.model.named_parameters()}
            order = [names[parameter] for group in self.optimizer.param_groups for parameter in group["params"]]
            moments = {i: state["optimizer"][name] for i, name in enumerate(order) if name in state["optimizer"]}
            # Learning rates and the like are those of the config.
            self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        self.step, self.bad_steps = state["step"], state["bad_steps"]
        self.best, self.headlines = state["best"], state["headlines"]
        if len(state["data_weights"]) == len(self.datasets):
            self.data_weights = state["data_weights"]
        return self

    def save(self) -> None:
        """Write a checkpoint."""
        if self.rank == 0:
            checkpoints.save(self.config.out / "checkpoints", self.step, self.state(), keep=self.config.keep)
        if self.world_size > 1:
            dist.barrier()

    def _record(self, loss: float, norm: float, pace: Pace) -> None:
        if self.log is not None:
            rates = {f"lr_{group['name']}": group["lr"] for group in self.optimizer.param_groups if group["shown"]}
            values = {"loss": loss, "gradient_norm": norm, **rates, "bad_steps": self.bad_steps}
            values |= {"images_per_second": self.config.batch_size * pace.rate, "data_share": pace.data_share}
            if self.config.mixing.method == "pareto":
                names = (dataset.name for dataset in self.datasets)
                values |= {f"weight_{n}": w for n, w in zip(names, self.data_weights.tolist(), strict=True)}
            self.log.record("train", self.step, values)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the run after the step, with a checkpoint; a second SIGINT ends it at once."""

        def stop(number: int, _: object) -> None:
            self._signal = number
            signal.signal(signal.SIGINT, signal.default_int_handler)

        try:
            earlier = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread, which alone gets signals
            earlier = {}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)
