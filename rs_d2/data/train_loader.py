"""Batches of training images, in an order that a resumed run goes on in.

Which images a batch holds follows from the seed and its number alone, and so does what an image's
augmentation draws. To start at any batch, no image of those before it is loaded.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from multiprocessing.connection import wait
from typing import Any

from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from rs_d2.data.federated import image_counts
from rs_d2.utils.errors import UserError
from rs_d2.utils.random_state import seeded
from rs_d2.utils.stopping import STOP_SIGNALS

_ATTEMPTS = 100  # other images that are tried in place of one that the mapper does without


class TrainLoader:
    """Endless batches of this process, each a list of what the mapper makes of an image.

    Args:
        dataset_dicts: [N] Detectron2 dicts.
        mapper: makes the model's input of such a dict; None does without the image, and another is
            drawn in its place.
        make_sampler: from a seed, the endless order of the indices in this process.
        batch_size: images of a batch in this process.
        seed: the same in all processes.
        process: rank of this process and number of all.
        num_workers: processes that load images; 0: this one does.
        group_by_shape: only images that are all wider than high, or all not, share a batch.

    Attributes:
        num_images: N.
        seed: see above; a resumed run sets that of its beginning.
        first_batch: number of the batch that iteration begins with.
    """

    def __init__(
        self,
        dataset_dicts: Sequence[dict[str, Any]],
        mapper: Callable[[dict[str, Any]], Any],
        make_sampler: Callable[[int], Iterable[int]],
        batch_size: int,
        *,
        seed: int,
        process: tuple[int, int] = (0, 1),
        num_workers: int = 0,
        group_by_shape: bool = True,
    ) -> None:
        from detectron2.data import DatasetFromList

        self._wide = [
            group_by_shape and each.get("width", 0) > each.get("height", 0)
            for each in dataset_dicts
        ]
        self._images = DatasetFromList(dataset_dicts, copy=False)  # unpickled anew at every access
        self._mapper, self._make_sampler = mapper, make_sampler
        self._batch_size, self._process, self._num_workers = batch_size, process, num_workers
        self.num_images = len(dataset_dicts)
        self.seed, self.first_batch = seed, 0

    def image_counts(self, num_classes: int) -> Tensor:
        """Number of images with each class, [K]; every image is looked at."""
        return image_counts(self._images, num_classes)

    def __iter__(self) -> Iterator[list[Any]]:
        """The batches from ``first_batch`` on; nothing is loaded before the first is asked for."""
        plan = batches_of(self._make_sampler(self.seed), self._wide, self._batch_size)
        images = DataLoader(
            _MappedImages(self._images, self._mapper, self.seed, self._process),
            batch_size=None,
            sampler=_Order(chain.from_iterable(islice(plan, self.first_batch, None))),
            num_workers=self._num_workers,
            collate_fn=_unchanged,
            worker_init_fn=_leave_signals_to_the_trainer,
            generator=Generator(),  # else it would draw from the model's random numbers
        )
        loaded = with_deaths_told(iter(images))
        while True:
            yield list(islice(loaded, self._batch_size))


def batches_of(
    indices: Iterable[int], wide: Sequence[bool], batch_size: int
) -> Iterator[list[tuple[int, int]]]:
    """Batches of (position in ``indices``, index) of images that are all wide, or all not.

    A batch comes as soon as it is full, as from Detectron2's ``AspectRatioGroupedDataset``.
    """
    groups: tuple[list, list] = [], []
    for position, index in enumerate(indices):
        group = groups[wide[index]]
        group.append((position, index))
        if len(group) == batch_size:
            yield group[:]
            group.clear()


def with_deaths_told(loaded: Iterator[Any]) -> Iterator[Any]:
    """What the iterator of a ``DataLoader`` gives.

    A worker that is killed while it hands an image over looks like a broken connection: torch,
    which names deaths otherwise, may not have heard of this one yet.

    Raises:
        RuntimeError: A worker has died; in torch's words.
    """
    workers = multiprocessing.active_children()
    while True:
        try:
            item = next(loaded)
        except StopIteration:
            return
        except (OSError, EOFError) as error:
            ended = wait([worker.sentinel for worker in workers], timeout=1)
            dead = [str(worker.pid) for worker in workers if worker.sentinel in ended]
            if not dead:
                raise
            raise RuntimeError(
                f"DataLoader worker (pid(s) {', '.join(dead)}) exited unexpectedly"
            ) from error
        yield item


class _MappedImages(Dataset):
    """By (position, index), an image whose augmentation draws as its position says."""

    def __init__(self, images: Any, mapper: Callable, seed: int, process: tuple[int, int]) -> None:
        self._images, self._mapper, self._seed = images, mapper, seed
        self._rank, self._world_size = process

    def __getitem__(self, item: tuple[int, int]) -> Any:
        position, index = item
        # the position among the images of all processes: no two draw the same
        with seeded(self._seed, position * self._world_size + self._rank):
            for _ in range(_ATTEMPTS):
                mapped = self._mapper(self._images[index])
                if mapped is not None:
                    return mapped
                index = random.randrange(len(self._images))
        raise UserError(f"DATASETS.TRAIN: none of {_ATTEMPTS} images in a row could be used")


class _Order(Sampler):
    def __init__(self, items: Iterable[tuple[int, int]]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._items)


def _unchanged(image: Any) -> Any:
    return image


def _leave_signals_to_the_trainer(_worker: int) -> None:
    """A batch system signals every process of a job; the trainer still needs its workers then.

    The trainer itself ends them by SIGTERM, too, so who sent it makes the difference.
    """
    if not hasattr(signal, "sigwaitinfo"):  # not on every system
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)

    def watch() -> None:
        while True:
            sent = signal.sigwaitinfo(STOP_SIGNALS)
            if sent.si_signo == signal.SIGTERM and sent.si_pid == os.getppid():
                os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
