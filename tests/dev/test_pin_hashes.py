"""requirements.txt: every version of requirements.in, each with hashes."""

import sys

import pytest
from conftest import REPO

sys.path.insert(0, str(REPO / "dev" / "env"))
import pin_hashes

HASH = "    --hash=sha256:" + 64 * "0" + "\n"


def test_the_pins_of_this_checkout_are_hashed(capsys):
    assert pin_hashes.main(["--check"]) == 0


@pytest.mark.parametrize(
    ("hashed", "problem"),
    [
        ("a-b==1 \\\n" + HASH, "lacks c==2 of requirements.in"),
        ("a-b==1 \\\n" + HASH + "c==2\n", "no hash: c==2"),
        ("a-b==1 \\\n" + HASH + "c==3 \\\n" + HASH, "lacks c==2"),
    ],
)
def test_a_pin_without_a_hash_is_named(hashed, problem):
    with pytest.raises(pin_hashes.PinError, match=problem):
        pin_hashes.check_pins(hashed, "A_b==1  # why\nc==2; python_version < '3.11'\n")


def test_without_uv_one_line_says_what_is_needed(monkeypatch, capsys):
    monkeypatch.delenv("UV", raising=False)
    monkeypatch.setenv("PATH", "")
    assert pin_hashes.main([]) == 1
    assert capsys.readouterr().err == "error: uv is needed: pip install uv, or UV=PATH\n"
