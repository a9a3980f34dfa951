"""The loader of training images: what is told when one of its workers is killed."""

import multiprocessing
import time

import pytest

from rs_d2.data.train_loader import with_deaths_told
from rs_d2.utils.launch import reason_of


@pytest.mark.parametrize("error", [ConnectionResetError(), EOFError(), FileNotFoundError()])
def test_a_death_that_looks_like_a_broken_connection_is_told(error):
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()

    def images():
        yield "image"
        worker.kill()
        raise error

    loaded = with_deaths_told(images())
    assert next(loaded) == "image"
    with pytest.raises(RuntimeError, match=f"{worker.pid}") as told:
        next(loaded)
    assert reason_of(told.value).startswith("a data-loader worker died")
    worker.join()


def test_an_error_of_a_living_worker_stays_what_it_is():
    def images():
        yield from ()
        raise FileNotFoundError("x.png")

    with pytest.raises(FileNotFoundError, match=r"x\.png"):
        next(with_deaths_told(images()))
