"""Progress for people: a bar with time left on a terminal, elsewhere a line every ten per cent."""

from __future__ import annotations

import io
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from typing import Any, TextIO

from detectron2.engine import HookBase
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from rs_d2.data.train_loader import with_deaths_told
from rs_d2.utils.stopping import stop_if_asked
from rs_d2.utils.terminal import is_live

_LOGGERS = ("detectron2", "fvcore", "rs_d2")


@contextmanager
def console_above_bars() -> Iterator[None]:
    """Let log lines and plain prints scroll above the bars instead of cutting through them."""
    if not is_live():
        yield
        return
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    with logging_redirect_tqdm(loggers), redirect_stdout(_AboveBars(sys.stdout)):
        yield


class TrainingProgress(HookBase):
    """Show how far the training is, its loss and the time left; for the first process only."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._began = 0.0
        self._reported = 0

    def before_train(self) -> None:
        """Open the bar at the iteration that training (re)starts from."""
        trainer = self.trainer
        self._began = time.perf_counter()
        self._reported = _tenths(trainer.start_iter, trainer.max_iter)
        if is_live():
            self._bar = tqdm(
                total=trainer.max_iter,
                initial=trainer.start_iter,
                desc="training",
                unit="it",
                dynamic_ncols=True,
            )

    def after_step(self) -> None:
        """Move the bar, or log a line when another tenth of the iterations is done."""
        done = self.trainer.iter + 1
        # none yet where the first iterations had to be skipped
        loss, _ = self.trainer.storage.latest().get("total_loss", (float("nan"), 0))
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            self._bar.update()
        elif _tenths(done, self.trainer.max_iter) > self._reported:
            self._reported = _tenths(done, self.trainer.max_iter)
            logging.getLogger(__name__).info(self._line(done, loss))

    def after_train(self) -> None:
        """Close the bar before the final evaluation opens its own."""
        if self._bar is not None:
            self._bar.close()

    def _line(self, done: int, loss: float) -> str:
        total = self.trainer.max_iter
        seconds = (time.perf_counter() - self._began) / (done - self.trainer.start_iter)
        left = timedelta(seconds=round(seconds * (total - done)))
        return (
            f"training {done}/{total} ({100 * done // total} %)  loss {loss:.3f}"
            f"  {seconds:.2f} s/it  time left {left}"
        )


class LoaderWithBar:
    """A data loader of known length that draws a bar while it is read, if a person is watching."""

    def __init__(self, loader: Any, label: str) -> None:
        """Wrap a loader.

        Args:
            loader: anything with a length that can be iterated over.
            label: what stands before the bar.
        """
        self._loader = loader
        self._label = label

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        loaded = with_deaths_told(iter(self._loader))
        if is_live():
            size = len(self._loader)
            loaded = tqdm(loaded, self._label, size, unit="im", leave=False, dynamic_ncols=True)
        for batch in loaded:
            stop_if_asked()  # an evaluation may take longer than a batch system waits
            yield batch


class _AboveBars(io.TextIOBase):
    """Writes whole lines above the bars."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._line = ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            tqdm.write(line, file=self._stream)
        return len(text)


def _tenths(done: int, total: int) -> int:
    return 10 * done // max(total, 1)
