"""What the pages point at exists."""

import re

import pytest
from conftest import REPO

PAGES = sorted([*REPO.glob("*.md"), *REPO.glob("docs/*.md"), *REPO.glob("datasets/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))
def test_every_relative_link_and_picture_exists(page):
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\((?!https?://)([^)#\s]+)", prose)
    assert [t for t in targets if not (page.parent / t).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))
def test_every_config_named_exists(page):
    names = set(re.findall(r"configs/[\w./-]+\.yaml", page.read_text()))
    assert [name for name in sorted(names) if not (REPO / name).is_file()] == []


def test_the_readme_has_no_blank_left_to_fill():
    assert re.findall(r"@[A-Z]+@", (REPO / "README.md").read_text()) == []
