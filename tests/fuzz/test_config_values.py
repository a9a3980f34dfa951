"""Whatever stands in a yaml or on the command line gives a config or one line."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("detectron2")

from rs_d2.config.check import check_config
from rs_d2.config.load import config_from_text, load_config
from rs_d2.config.yaml_files import read_config_file
from rs_d2.engine.solver import check_batch
from rs_d2.utils.errors import UserError


def all_keys(tree, prefix=""):
    for name, value in tree.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from all_keys(value, f"{prefix}{name}.")


KEYS = st.one_of(
    st.sampled_from(sorted(all_keys(load_config("", [])[0]))),
    st.text(string.ascii_uppercase + "._", max_size=12),
)
WORDS = st.one_of(
    st.text(max_size=8),
    st.text("0123456789.,()[]{}'\"-+eE_x ", max_size=12),
    st.sampled_from(["None", "True", "()", "(1,)", "[[1]]", "{}", "1e999", "nan", "-1", "0"]),
    st.integers().map(str),
    st.floats().map(str),
)


def told_in_one_line(error):
    text = " ".join(str(error).splitlines())
    assert text.strip()
    assert len(text) < 2000


@given(st.lists(st.tuples(KEYS, WORDS), min_size=1, max_size=2))
def test_pairs_on_the_command_line(pairs):
    try:
        cfg, _ = load_config("", [word for pair in pairs for word in pair])
        check_config(cfg)
        check_batch(cfg, 1)
    except UserError as error:
        told_in_one_line(error)


TEXTS = st.one_of(
    st.text(max_size=30),
    st.text("ab:-[]{}!&*?|>'\"%@`#, \n\t0123456789~<=", max_size=30),
    st.lists(
        st.sampled_from(
            [
                *("SOLVER:", "  MAX_ITER: ", "MODEL: ", "_BASE_: ", "[", "]", "{", "}", "\n", "- "),
                *(
                    "&a ",
                    "*a",
                    "<<: ",
                    "!!python/tuple ",
                    "!!int ",
                    "!!binary ",
                    "!!set ",
                    "!!omap ",
                ),
                *(
                    "!!timestamp ",
                    "2020-13-01",
                    "0x",
                    "1_0",
                    "1:60",
                    ".inf",
                    "? ",
                    ": ",
                    "|",
                    "---\n",
                ),
                *("VERSION: ", "1", "2", "x", "!!float ", "~", "'", '"', "%YAML 9.9\n", "!!merge "),
            ]
        ),
        max_size=12,
    ).map("".join),
)


@given(TEXTS)
def test_texts_of_yaml(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        read_config_file(str(path))  # most texts are no config, which costs less than a whole one
        load_config(str(path), [])
        config_from_text(text, "x.pth")
    except UserError as error:
        told_in_one_line(error)
