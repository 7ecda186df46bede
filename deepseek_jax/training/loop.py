"""Training from settings to a finished run directory, resumed wherever it was left. Floor 5."""

import contextlib
import os
import pathlib
import signal
from typing import Any, NamedTuple

import jax
from rich import console as rich_console

from deepseek_jax.core.run_spec import RunSpec
from deepseek_jax.data import batches, tokenizers
from deepseek_jax.data.text_data import TextData
from deepseek_jax.parallel import placement
from deepseek_jax.training import (
    checkpoint,
    finite,
    heldout,
    hosts,
    interrupt,
    metrics,
    optimizer,
    parameter_groups,
    programs,
    progress,
    starting,
    step,
    sums,
    workdir,
)


class Outcome(NamedTuple):
    """How a call of `train` ended.

    Attributes:
      step: steps that the run has made, all saved.
      trained: steps made by this call; 0 when the run had been finished before.
      stopped_by: the signal that this process got and that ended it early, or None. Of several
        processes only those that got it name it; the others stopped with them, and have None
        with a `step` before the last one too.
    """

    step: int
    trained: int
    stopped_by: signal.Signals | None


def train(
    run_spec: RunSpec,
    run_directory: str | os.PathLike[str],
    *,
    flops_per_token: float | None,
    console: rich_console.Console,
    data: TextData | None = None,
) -> Outcome:
    """Trains to `train.num_steps`, from the newest checkpoint in the directory if it has one.

    On the CPU a run that is killed and resumed, however often, ends with the same bits and the
    same lines of metrics (but for the time) as one that never stopped, given the same versions
    and number of devices.

    Args:
      run_spec: all settings.
      run_directory: where everything is written; see `workdir`, `checkpoint` and `metrics`.
      flops_per_token: of a forward and backward pass, for the share of the devices' peak;
        None shows it as unknown.
      console: for the progress.
      data: the text that the settings name, where several runs share one reading of it; None
        reads it.

    Returns:
      How it ended. After SIGTERM or SIGINT the step in progress is finished and saved.

    Raises:
      ValueError: the settings, the corpus or the checkpoint are not those of this directory, or
        the run of `train.start_from` does not fit.
      FileNotFoundError: a file or run that the settings name is missing.
      CheckpointDamagedError: the newest checkpoint is damaged.
      NonFiniteError: a loss or gradient is not finite.
    """
    with (
        workdir.claimed(run_directory, run_spec) as directory,
        interrupt.Interrupt() as asked,
        contextlib.ExitStack() as stack,
    ):
        data = workdir.load_data(directory, run_spec, given=data)
        workdir.check_processes(run_spec, data)
        tokenizers.check_vocabulary(data.tokenizer, model_vocab_size=run_spec.model.vocab_size)
        run = _Run(run_spec, directory, data, stack, flops_per_token, console, asked)
        if run.step == run_spec.train.num_steps:
            console.print(
                f"{directory}: already finished: {run.step} steps, nothing to train",
                soft_wrap=True,
            )
            return Outcome(run.step, 0, None)
        workdir.begin(directory, run_spec, data, step=run.step, started_from=run.started_from)
        first = run.step
        run.go_on()
        return Outcome(run.step, run.step - first, asked.requested)


class _Running(NamedTuple):
    """What a step that was started will report, and what `hosts.Stop` asked beside it."""

    metrics: step.StepMetrics
    asked: jax.Array | None


class _Run:
    """The parts of a run in progress, each restored to where the last checkpoint left it."""

    def __init__(
        self,
        run_spec: RunSpec,
        directory: pathlib.Path,
        data: TextData,
        stack: contextlib.ExitStack,
        flops_per_token: float | None,
        console: rich_console.Console,
        asked: interrupt.Interrupt,
    ) -> None:
        """Builds everything, restores what was saved, compiles nothing yet."""
        spec = run_spec.train
        self._spec, self._directory = spec, directory
        self._layout = layout = hosts.layout_for(run_spec)
        compiled = programs.make(
            run_spec.model,
            run_spec.optimizer,
            num_steps=spec.num_steps,
            num_microbatches=spec.num_microbatches,
            sequence_length=run_spec.data.sequence_length,
            layout=layout,
        )
        self._train_step = compiled.train_step
        self._measure = heldout.make_measure(
            compiled.total_nats,
            data,
            num_rows=spec.eval_rows,
            batch_size=spec.microbatch_size,
            layout=layout,
        )
        self._learning_rate = optimizer.learning_rate(
            run_spec.optimizer, peak=run_spec.optimizer.learning_rate, num_steps=spec.num_steps
        )
        self._part = placement.local_part(layout, num_rows=spec.batch_size)
        self._batches = batches.TrainBatches(
            data.train, batch_size=spec.batch_size, seed=run_spec.seed, part=self._part
        )
        self._peak_rate = _peak_rate(flops_per_token, num_devices=layout.mesh.size)
        self._checkpoints = checkpoint.Checkpoints(
            directory / "checkpoints", keep=spec.keep_checkpoints
        )
        stack.callback(self._checkpoints.close)

        self._names = [
            parameter_groups.parameter_name(path)
            for path, _ in jax.tree_util.tree_leaves_with_path(compiled.abstract.params)
        ]
        restored = self._checkpoints.restore(compiled.abstract, step=spec.restore_step)
        self.started_from: dict[str, Any] | None = None
        if restored is None:
            seconds = 0.0
            self._sums = sums.RunningSums()
            key = jax.random.key(run_spec.seed)
            if spec.start_from is None:
                self._state = compiled.initial(key)
            else:
                given = starting.read(
                    spec.start_from, compiled.abstract, data.tokenizer, directory=directory
                )
                self.started_from = {"path": spec.start_from, "step": given.step}
                self._state = compiled.adopted(given.params, given.balance, key)
        else:
            self._state = restored.state
            self._sums = sums.from_json(restored.progress["sums"])
            self._batches.set_state(restored.progress["data"])
            seconds = restored.progress["seconds"]
        self.step = int(self._state.step)
        self._saved_step = self.step
        self._throughput = progress.Throughput(seconds=seconds)
        self._lines = None
        if hosts.is_first():
            self._lines = metrics.RunLines(directory, last_step=self.step)
            stack.callback(self._lines.close)
        self._running: _Running | None = None
        self._stop = hosts.Stop(layout, lambda: asked.requested is not None)
        self._progress = progress.Progress(
            first_step=self.step, num_steps=spec.num_steps, console=console
        )
        if layout.mesh.size < len(jax.devices()):
            devices = f"{layout.mesh.size} of {len(jax.devices())} devices"
            self._progress.say(f"using {devices}; config.mesh can take more")

    def go_on(self) -> None:
        """Trains until the last step or until a signal asks to stop; everything is saved."""
        spec = self._spec
        if self.step:
            self._progress.say(f"{self._directory}: going on from step {self.step}")
        elif self.started_from is not None:
            path, taken = self.started_from["path"], self.started_from["step"]
            self._progress.say(f"starting from {path}, step {taken}")
        profile_end = None if spec.profile_at is None else spec.profile_at + spec.profile_steps
        with self._progress, contextlib.ExitStack() as profile:
            while self.step < spec.num_steps and not self._stop.is_agreed():
                if self.step == spec.profile_at and hosts.is_first():
                    self._look_at_running()
                    trace = jax.profiler.trace(str(self._directory / "profile"))
                    profile.enter_context(trace)
                batch = placement.put_rows(
                    self._layout, next(self._batches), self._part, num_rows=spec.batch_size
                )
                asked = self._stop.ask()
                with jax.transfer_guard("disallow"):
                    self._state, metrics_of_step = self._train_step(self._state, batch)
                # The step before is looked at while this one runs.
                self._look_at_running()
                self.step += 1
                self._running = _Running(metrics_of_step, asked)
                if self.step == profile_end:
                    self._look_at_running()
                    profile.close()
                self._do_what_is_due()
            self._look_at_running()
            self._save()
            self._checkpoints.wait()
            if self._stop.is_agreed():
                where = f"saved in {self._directory}" if self.step else "nothing to save yet"
                self._progress.say(f"stopped at step {self.step}, {where}")

    def _look_at_running(self) -> None:
        """Waits for the metrics of the last step that was started, checks and sums them."""
        if self._running is None:
            return
        (fetched, asked), self._running = jax.device_get(self._running), None
        self._stop.hear(asked)
        finite.check(fetched, step=self.step, parameter_names=self._names)
        self._sums = sums.add(self._sums, fetched)
        self._throughput.count(int(fetched.num_targets))
        self._progress.step(self.step)

    def _do_what_is_due(self) -> None:
        """Logs, measures and saves, in this order, what this step calls for."""
        if self._is_due(self._spec.log_every):
            self._look_at_running()
            self._log()
        if self._is_due(self._spec.eval_every):
            self._look_at_running()
            measured = self._measure(self._state)
            finite.check_heldout(measured, step=self.step)
            self._write(measured)
            self._throughput.restart()
        if self._is_due(self._spec.checkpoint_every):
            self._look_at_running()
            self._save()

    def _is_due(self, interval: int) -> bool:
        return self.step % interval == 0 or self.step == self._spec.num_steps

    def _log(self) -> None:
        """Writes the line of the steps since the last one, and the load of their experts."""
        load = sums.load(self._sums)
        if load is not None and self._lines is not None:
            self._lines.write_load({"step": self.step, "load": load})
        rate = self._throughput.rate()
        self._write(
            {
                **sums.line(self._sums),
                "learning_rate": float(self._learning_rate(self.step - 1)),
                "tokens_per_second": rate,
                "share_of_peak": _ratio(rate, self._peak_rate),
                "seconds": self._throughput.seconds(),
            }
        )
        self._sums = sums.emptied(self._sums)
        self._throughput.restart()

    def _write(self, values: dict[str, Any]) -> None:
        record = {"step": self.step, **values}
        if self._lines is not None:
            self._lines.write(record)
        self._progress.log(record)

    def _save(self) -> None:
        """Saves this step, once; the lines up to it are on disk before."""
        if self._saved_step == self.step:
            return
        if self._lines is not None:
            self._lines.sync()
        self._checkpoints.save(
            self._state,
            {
                "sums": sums.to_json(self._sums),
                "data": self._batches.get_state(),
                "seconds": self._throughput.seconds(),
            },
        )
        self._saved_step = self.step


def _peak_rate(flops_per_token: float | None, *, num_devices: int) -> float | None:
    """Tokens a second that the peak of all devices allows; None where it isn't known."""
    peak = progress.peak_flops(jax.devices()[0].device_kind)
    return _ratio(None if peak is None else num_devices * peak, flops_per_token)


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or whole is None else part / whole
