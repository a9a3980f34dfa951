"""Where a process stands among others, from torchrun's environment or from arguments."""

import pytest

from rs_d2.utils.errors import UserError
from rs_d2.utils.place import (
    Place,
    check_arguments,
    check_machines,
    meeting_point,
    place_from_environment,
)

SECOND_OF_FOUR = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "first",
    "MASTER_PORT": "29500",
}


def test_torchrun_says_which_process_this_is():
    place = place_from_environment(SECOND_OF_FOUR)
    assert place == Place(3, 4, 1, 2, "env://")
    assert (place.machine, place.num_machines, str(place)) == (1, 2, "rank 3 of 4")
    elastic = {"TORCHELASTIC_RESTART_COUNT": "1", "TORCHELASTIC_MAX_RESTARTS": "1"}
    again = place_from_environment({**SECOND_OF_FOUR, **elastic})
    assert (again.restarts, again.may_restart) == (1, False)
    first = place_from_environment({**SECOND_OF_FOUR, "TORCHELASTIC_MAX_RESTARTS": "1"})
    assert (first.restarts, first.may_restart) == (0, True)


@pytest.mark.parametrize(
    "environment",
    [{}, {"RANK": "1"}, {"LOCAL_RANK": "0"}, {"WORLD_SIZE": ""}, {"WORLD_SIZE": "1", "RANK": "0"}],
)
def test_without_the_number_of_processes_there_is_one(environment):
    assert place_from_environment(environment) is None


def test_torchrun_with_one_process_needs_no_local_number():
    environment = {**SECOND_OF_FOUR, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    del environment["LOCAL_WORLD_SIZE"]
    assert place_from_environment(environment) == Place(0, 1, 0, 1, "env://")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"RANK": ""}, "WORLD_SIZE is 4 but RANK is not set: start with torchrun"),
        ({"LOCAL_RANK": "", "MASTER_PORT": ""}, "but LOCAL_RANK, MASTER_PORT is not set"),
        ({"LOCAL_WORLD_SIZE": ""}, "LOCAL_WORLD_SIZE, .* is not set"),
        ({"RANK": "-1"}, "RANK: '-1' is not a number of at least 0"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: 'two' is not a number"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT: 'http' is not a number"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT: 99999 is no port"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT: 0 is no port"),
        ({"RANK": "4"}, "RANK 4 of WORLD_SIZE 4, .*: a rank must be below"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK 2 of LOCAL_WORLD_SIZE 2: a rank must be below"),
        ({"LOCAL_WORLD_SIZE": "3"}, "every machine must have as many processes"),
        ({"RANK": "2"}, "with ranks in a row"),
        ({"LOCAL_WORLD_SIZE": "0"}, "a rank must be below"),
    ],
)
def test_an_environment_that_cannot_be_is_one_line(change, line):
    with pytest.raises(UserError, match=line):
        place_from_environment({**SECOND_OF_FOUR, **change})


def test_arguments_may_repeat_the_environment_but_not_contradict_it():
    place = place_from_environment(SECOND_OF_FOUR)
    check_arguments(place, None, None, None, None)
    check_arguments(place, 2, 2, 1, "auto")
    for arguments, line in (
        ((4, None, None, None), "--num-gpus 4 contradicts the environment .* says 2"),
        ((None, 1, None, None), "--num-machines 1 contradicts the environment .* says 2"),
        ((None, None, 0, None), "--machine-rank 0 contradicts the environment .* says 1"),
        ((None, None, None, "tcp://first:1"), "--dist-url: the environment"),
    ):
        with pytest.raises(UserError, match=line):
            check_arguments(place, *arguments)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((1, 1, None), "--machine-rank 1 must be below --num-machines 1"),
        ((1, -1, None), "--machine-rank -1 must be below --num-machines 1"),
        ((2, 0, None), "--num-machines above 1 needs --dist-url"),
        ((2, 0, "auto"), "--num-machines above 1 needs --dist-url"),
        ((2, None, "tcp://localhost:1"), "--num-machines above 1 needs --machine-rank"),
        ((2, 2, "tcp://localhost:1"), "--machine-rank 2 must be below --num-machines 2"),
        ((1, None, "first:29500"), "--dist-url: 'first:29500' is not tcp://HOST:PORT"),
        ((2, 0, "localhost"), "--dist-url: 'localhost' is not tcp://HOST:PORT"),
        ((2, 0, "tcp://localhost"), "--dist-url: 'tcp://localhost' is not tcp://HOST:PORT"),
        ((2, 0, "tcp://localhost:99999"), "'tcp://localhost:99999' is not tcp://HOST:PORT"),
        ((2, 0, "tcp://localhost:0"), "'tcp://localhost:0' is not tcp://HOST:PORT"),
        ((2, 0, "http://localhost:80"), "'http://localhost:80' is not tcp://HOST:PORT"),
        ((2, 0, "tcp://no-such-host.invalid:80"), "no address for 'no-such-host.invalid'"),
    ],
)
def test_arguments_that_would_wait_for_ever_are_one_line(arguments, line):
    with pytest.raises(UserError, match=line):
        check_machines(*arguments)


def test_where_processes_meet():
    check_machines(1, None, None)
    check_machines(1, 0, "auto")
    assert meeting_point("tcp://localhost:29500") == ("localhost", 29500)
    assert meeting_point("tcp://[::1]:7/") == ("::1", 7)
