"""One training: a Trainer with its callbacks, from the model as given or from a checkpoint."""

from __future__ import annotations

import contextlib
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from onnxprune._utils.interruption import keeps, keeps_no_more
from onnxprune._utils.progress import Progress
from onnxprune.errors import OnnxPruneError
from onnxprune.training._callbacks import MovingAverage, Recorder
from onnxprune.training._datasets import Loaders
from onnxprune.training._guards import NullStream
from onnxprune.training._learner import Diverged, Learner
from onnxprune.training.checkpoints import LAST, AtomicCheckpointIO, Checkpoints, best_name, load_state, make_folder

_PRECISION = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
_SEARCH = 100  # steps of the learning-rate range test


class TrainingSession:
    """One training: a Trainer with its callbacks, from the model as given or from a checkpoint."""

    def __init__(
        self, learner: Learner, loaders: Loaders, accelerator: str, folder: Path | None, run: Mapping[str, Any],
        progress: Progress | None,
    ) -> None:  # fmt: skip
        self.learner, self.loaders, self.folder = learner, loaders, folder
        self.settings = learner.settings
        self.recorder = Recorder(progress)
        self.diverged: Diverged | None = None
        self.logs = Path(self.settings.log_dir) if self.settings.log_dir else folder
        s = self.settings
        callbacks: list[Any] = [self.recorder]
        if s.ema is not None:
            callbacks.append(MovingAverage(s.ema))
        if s.patience is not None:
            monitor, mode = ("val_top1", "max") if learner.labelled else ("val_loss", "min")
            judge = learner.aside.judge
            if judge is not None:
                monitor, mode = "val_metric", "max" if judge.task.metric.higher_is_better else "min"
            callbacks.append(
                EarlyStopping(
                    monitor, patience=s.patience, mode=mode, check_finite=False, check_on_train_epoch_end=False
                )
            )
        if folder is not None:
            callbacks.append(Checkpoints(folder, self.recorder, run))
        self.common: dict[str, Any] = {
            "accelerator": accelerator,
            "devices": s.devices,
            "num_nodes": s.num_nodes,
            "strategy": "ddp" if s.world > 1 else "auto",
            "precision": _PRECISION[s.precision],
            "gradient_clip_val": s.clip,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "inference_mode": False,  # tensors of inference mode cannot be used in training later
        }
        self.callbacks = callbacks

    def run(self, saved: dict[str, Any] | None, notify: Callable[[str], None]) -> None:
        """Train the remaining epochs."""
        net, epochs = self.learner.net, self.settings.epochs
        for folder in filter(None, (self.folder, self.logs)):
            make_folder(folder)
        if saved is not None:
            self._restore(saved)
            if len(self.recorder.history) > epochs or self.recorder.stopped is not None:
                return
            notify(f"resuming after epoch {len(self.recorder.history) - 1} of {epochs}")
        elif self.settings.lr == "auto":
            self.learner.lr = self._found_lr()
            notify(f"learning rate {self.learner.lr:.3g}, by a range test")
        trainer = self._trainer(
            callbacks=self.callbacks,
            max_epochs=epochs,
            logger=self._loggers(),
            enable_checkpointing=self.folder is not None,
            default_root_dir=str(self.folder or tempfile.gettempdir()),
            log_every_n_steps=max(1, min(50, self.loaders.steps)),
        )
        net.train()
        keeps(self, self._kept)
        try:
            if saved is None:
                trainer.validate(self.learner, datamodule=self.loaders, verbose=False)
                trainer.fit(self.learner, datamodule=self.loaders)
            else:
                assert self.folder is not None
                trainer.fit(self.learner, datamodule=self.loaders, ckpt_path=str(self.folder / LAST), weights_only=True)
        except Diverged as err:
            self.diverged = err
        except (KeyError, TypeError, AttributeError, ValueError, IndexError, RuntimeError) as err:
            # The first step uses nearly all of a saved state; what Lightning counts with is used until the epoch ends.
            if saved is None or (self.recorder.began and not _is_of_lightning(err)):
                raise
            raise self._damaged(err) from err
        finally:
            keeps_no_more(self)

    def _damaged(self, err: Exception) -> OnnxPruneError:
        what = f"the checkpoint is damaged ({type(err).__name__})"
        return OnnxPruneError(what, where=str(self.folder), fix="start anew with --restart")

    def _kept(self) -> str:
        """Return what a stopped run leaves for the next one."""
        done = len(self.recorder.history) - 1
        if self.folder is None or done < 1:
            return ""
        return f"{done} of {self.settings.epochs} epochs in {str(self.folder)!r}"

    def _restore(self, saved: dict[str, Any]) -> None:
        """Restore history and best weights of a resumed run."""
        assert self.folder is not None
        try:
            self.recorder.load_state_dict(saved["recorder"])
            self.learner.lr = float(saved["lr"])
        except (KeyError, TypeError, ValueError) as err:
            raise self._damaged(err) from err
        if self.recorder.best:
            self.recorder.best_weights = load_state(self.folder / best_name(self.recorder.best))
        # With a moving average this is the average, which was validated.
        prefix = "net."
        self.recorder.last_weights = {
            k.removeprefix(prefix): v for k, v in saved["state_dict"].items() if k.startswith(prefix)
        }
        method = self.learner.aside.method
        if method is not None and saved["method"] is not None:
            method.load_state_dict(saved["method"])

    def _trainer(self, **options: Any) -> Any:
        try:
            return pl.Trainer(**self.common, **options, plugins=[AtomicCheckpointIO()])
        except MisconfigurationException as err:
            raise OnnxPruneError(
                f"Lightning cannot train like this: {str(err).splitlines()[0]}", fix="check --device and --devices"
            ) from err

    def _loggers(self) -> Any:
        if self.logs is None:
            return False
        try:
            return [CSVLogger(self.logs, name="csv"), TensorBoardLogger(self.logs, name="tensorboard")]
        except ModuleNotFoundError as err:
            raise OnnxPruneError("the logs need tensorboard", fix="pip install 'onnxprune[train]'") from err

    def _found_lr(self) -> float:
        """Return a learning rate by Smith's range test (2017, as in the D-Score paper): where the loss falls fastest.

        Lightning raises the rate exponentially over the steps and smooths the loss; the slope is taken per decade.
        """
        learner = self.learner
        with tempfile.TemporaryDirectory(prefix="onnxprune-") as temporary:
            trainer = self._trainer(
                max_epochs=-1, logger=False, enable_checkpointing=False,
                default_root_dir=str(self.folder or temporary), check_val_every_n_epoch=10**9,
            )  # fmt: skip
            learner.searching = True
            learner.net.train()
            try:
                # Lightning draws its own progress bar during the search.
                with contextlib.redirect_stderr(NullStream()):
                    found = Tuner(trainer).lr_find(
                        learner, datamodule=self.loaders, min_lr=1e-6, max_lr=1.0, num_training=_SEARCH,
                        update_attr=False,
                    )  # fmt: skip
            finally:
                learner.searching = False
        lr = steepest(found.results["lr"], found.results["loss"]) if found is not None else None
        if lr is None:
            raise OnnxPruneError(
                "the range test found no learning rate: the loss never falls", fix="give a number: --lr"
            )
        return lr


def steepest(lrs: list[float], losses: list[float]) -> float | None:
    """Return the learning rate at which a smoothed loss falls fastest per decade; None if it never falls.

    The first ten points, with little history to smooth, and the last, after the loss exploded, do not count.
    """
    loss, rate = np.asarray(losses[10:-1], np.float64), np.log10(np.asarray(lrs[10 : len(losses) - 1], np.float64))
    finite = np.isfinite(loss)
    if finite.sum() < 3 or loss[finite].min() > 0.999 * loss[finite][0]:
        return None
    slope = np.gradient(loss[finite], rate[finite])
    place = int(np.argmin(slope))
    return float(10 ** rate[finite][place])


def _is_of_lightning(err: BaseException) -> bool:
    """Return whether an exception was raised by a line of Lightning, not by what it calls."""
    *_, (frame, _line) = traceback.walk_tb(err.__traceback__)
    return str(frame.f_globals.get("__name__", "")).startswith("lightning.")
