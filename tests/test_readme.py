"""The README says what runs."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its asserts hold, and it saves a bundle where it says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    [example] = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert (tmp_path / "models" / "current").is_file()
    lists = names["lists"]
    assert list(lists.columns) == ["user_id", "item_id", "score", "rank"]  # type: ignore[attr-defined]
    assert lists.groupby("user_id").size().to_dict() == {"u-ada": 10, "0001": 10}  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_its_two_commands_are_in_the_makefile(command: str) -> None:
    """A newcomer's commands exist."""
    assert command in README.read_text("utf-8")
    target = command.split()[1]
    makefile = (README.parent / "Makefile").read_text("utf-8")
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_its_links_lead_somewhere() -> None:
    """Every relative link names a file or folder of the repository."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text("utf-8"))
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []
