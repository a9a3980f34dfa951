"""The zoo page's tool writes the page and notices an old one."""

from tools import make_model_zoo


def test_it_writes_the_page_and_checks_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_model_zoo, "REPO", tmp_path)
    assert make_model_zoo.main(["--check"]) == 1
    assert "out of date" in capsys.readouterr().err
    assert make_model_zoo.main([]) == 0
    assert make_model_zoo.main(["--check"]) == 0
    assert "| 39.6 | 59.5 | 43.0 | 67.9 |" in (tmp_path / "MODEL_ZOO.md").read_text()
