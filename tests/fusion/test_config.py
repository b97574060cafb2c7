"""One file, one command line: what may stand there, and what is said of the rest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kgrank.config import Config, read_config, sound_config
from kgrank.errors import ConfigError
from kgrank.kg.tables import TablesSettings

EVERY_SECTION = """
[tables]
events = "data/events.parquet"

[split]
test = 0.2
valid = 0

[kg]
bins = { price = 10 }
ignore = ["image", "sku"]

[text]
model = "none"
fields = ["title", "description"]

[tfidf]
ngrams = 1

[fit]
refit = false
neighbors = 50
"""


def toml(folder: Path, text: str) -> Path:
    path = folder / "kgrank.toml"
    path.write_text(text, "utf-8")
    return path


def message(source: Path | None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_config(source, overrides)
    return str(caught.value)


def test_each_section_of_a_file_reaches_its_settings(tmp_path):
    config = read_config(toml(tmp_path, EVERY_SECTION))
    assert config.tables == TablesSettings(events=Path("data/events.parquet"))
    assert (config.split.test, config.split.valid) == (0.2, 0.0)
    assert config.kg.bins == {"price": 10}
    assert config.kg.ignore == ("image", "sku")
    assert config.text.model is None
    assert config.text.fields == ("title", "description")
    assert config.text.max_tokens == Config().text.max_tokens
    assert config.tfidf.ngrams == 1
    assert (config.fit.refit, config.fit.neighbors) == (False, 50)


def test_a_folder_is_read_through_its_file_and_without_one_has_the_defaults(tmp_path):
    assert read_config(tmp_path) == read_config(None) == Config()
    path = toml(tmp_path, "[fit]\nseed = 7\n")
    assert read_config(tmp_path) == read_config(str(path))
    assert read_config(tmp_path).fit.seed == 7


def test_a_config_survives_json(tmp_path):
    config = read_config(toml(tmp_path, EVERY_SECTION))
    stored = json.loads(json.dumps(config.as_dict(), allow_nan=False))
    assert stored["tables"]["events"] == "data/events.parquet"
    assert Config.from_dict(stored, "manifest.json") == config


def test_from_dict_says_where_an_unknown_setting_stands():
    stored = Config().as_dict()
    stored["fit"]["speed"] = 3
    with pytest.raises(ConfigError, match=r"^manifest\.json: found 'speed' = 3 in \[fit\]; "):
        Config.from_dict(stored, "manifest.json")


def test_overrides_win_over_the_file_and_the_last_over_the_first(tmp_path):
    path = toml(tmp_path, "[fit]\nseed = 7\nneighbors = 50\n")
    config = read_config(path, ["fit.seed=8", "fit.seed = 9", "split.test=0"])
    assert (config.fit.seed, config.fit.neighbors, config.split.test) == (9, 50, 0.0)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("text.model=minilm", "minilm"),
        ("text.model='minilm'", "minilm"),
        ("text.model=models/my encoder", "models/my encoder"),
        ("text.model=a=b", "a=b"),
        ("text.model=none", None),
        ('text.fields=["title", "brand"]', ("title", "brand")),
        ("kg.bins={price = 10}", {"price": 10}),
        ("fit.refit=false", False),
        ("tables.items=shop.csv", Path("shop.csv")),
    ],
)
def test_a_value_is_toml_and_a_bare_word_is_text(override, expected):
    section, _, key = override.partition("=")[0].partition(".")
    assert getattr(getattr(read_config(None, [override]), section), key) == expected


def test_two_overrides_are_judged_together(tmp_path):
    """0.6 + 0.5 would be too much, but the second override makes room: 0.6 + 0.2 = 0.8 < 1."""
    path = toml(tmp_path, "[split]\nvalid = 0.5\n")
    assert read_config(path, ["split.test=0.6", "split.valid=0.2"]).split.test == 0.6
    text = message(path, "split.test=0.6")
    assert text.startswith("--set: split: found test + valid = 0.6 + 0.5; allowed: below 1")


def test_an_unknown_key_is_told_with_the_nearest_and_all_that_are_known(tmp_path):
    path = toml(tmp_path, "[fit]\nneighbours = 5\n")
    known = ", ".join(type(Config().fit).model_fields)
    said = f"found 'neighbours' = 5 in [fit]; allowed: {known}. Is 'neighbors' meant?"
    assert message(path) == f"{path}: {said}"
    assert message(None, "fit.neighbours=5") == f"--set: {said}"


def test_an_unknown_section_is_told_with_the_nearest_and_all_that_are_known(tmp_path):
    path = toml(tmp_path, "[tfidff]\nngrams = 1\n")
    known = ", ".join(Config.model_fields)
    said = f"""found 'tfidff' = {{"ngrams": 1}}; allowed: {known}. Is 'tfidf' meant?"""
    assert message(path) == f"{path}: {said}"
    assert message(None, "tfidff.ngrams=1") == f"--set: {said}"
    assert "Remove it, or correct its name." in message(None, "zzz.q=1")


def test_a_password_is_never_shown(tmp_path):
    for text in ('[neo4j]\npassword = "hush"\n', '[neo4jj]\nPassword = "hush"\n'):
        told = message(toml(tmp_path, text))
        assert "hush" not in told
        assert "comes from the environment: KGRANK_NEO4J_PASSWORD." in told


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("fit.neighbors=0", "fit.neighbors: found 0; allowed: greater than or equal to 1."),
        ("fit.neighbors=1.5", "fit.neighbors: found 1.5; allowed: a valid integer."),
        ('fit.neighbors="50"', "fit.neighbors: found '50'; allowed: a valid integer."),
        ("fit.neighbors=true", "fit.neighbors: found true; allowed: a valid integer."),
        ("fit.neighbors=1\nseed=2", r"fit.neighbors: found '1\nseed=2'; allowed: a valid integer."),
        ("fit.refit=1", "fit.refit: found 1; allowed: a valid boolean."),
        ("fit.refit=yes", "fit.refit: found 'yes'; allowed: a valid boolean."),
        ("fit.protocol=usr", "fit.protocol: found 'usr'; allowed: 'auto', 'later' or 'user'."),
        ("split.test=nan", "split.test: found NaN; allowed: "),
        ("text.fields=title", "text.fields: found 'title'; allowed: "),
        ("kg.bins={price = 1}", "kg.bins.price: found 1; allowed: greater than or equal to 2."),
    ],
)
def test_a_value_out_of_type_or_range_is_told_with_what_is_allowed(override, said):
    assert message(None, override).startswith(f"--set: {said}")


def test_every_fault_of_a_file_is_told_at_once(tmp_path):
    path = toml(tmp_path, "fit = 3\n[split]\ntest = 2\n[text]\nmodle = 'minilm'\n")
    lines = message(path).splitlines()
    assert lines == [
        f"{path}: split.test: found 2; allowed: less than 1. Correct it.",
        f"{path}: found 'modle' = 'minilm' in [text]; allowed: model, fields, device, max_tokens, "
        "shrinkage. Is 'model' meant?",
        f"{path}: fit: found 3; allowed: a section. Correct it.",
    ]


def test_what_is_sound_of_a_file_at_fault_holds(tmp_path):
    """So that tables are judged by what their shop means, not by defaults."""
    path = tmp_path / "kgrank.toml"
    path.write_text('[kg]\nignore = ["sku"]\ndimm = 3\n[fit]\nneighbors = 7\n[kgg]\na = 1\n')
    config, faults = sound_config(path)
    assert (config.kg.ignore, config.fit.neighbors) == (("sku",), 7)
    assert [fault.partition("; ")[0] for fault in faults] == [
        f"{path}: found 'dimm' = 3 in [kg]",
        f"{path}: found 'kgg' = {{\"a\": 1}}",
    ]
    path.write_text('[tables]\nitem = "things.csv"\n')
    assert sound_config(path)[0] is None


def test_broken_toml_is_told_with_its_line(tmp_path):
    path = toml(tmp_path, "[fit]\nseed = 1\nrefit = yes\n")
    assert message(path).startswith(f"{path}: found ")
    assert "line 3" in message(path)
    path.write_bytes(b"[text]\nmodel = 'caf\xe9'\n")
    assert message(path).startswith(f"{path}: found bytes that are not UTF-8 (at line 2)")


def test_a_source_that_is_no_config_is_refused(tmp_path):
    absent = tmp_path / "absent.toml"
    assert message(absent).startswith(f"{absent}: found nothing of this name; allowed: ")
    other = tmp_path / "events.csv"
    other.touch()
    assert message(other).startswith(f"{other}: found a file of another kind; allowed: ")


@pytest.mark.parametrize("override", ["seed", "seed=1", "fit.seed", "fit.seed=", ".seed=1", ""])
def test_an_override_of_another_form_is_refused(override):
    assert message(None, override).startswith(
        f"--set: found {override!r}; allowed: section.key=value"
    )


def test_an_open_bracket_is_no_text():
    assert message(None, 'text.fields=["title"').startswith('--set text.fields=["title": found ')


def test_reading_a_config_loads_no_heavy_library():
    heavy = "{'torch', 'transformers', 'sklearn', 'torch_geometric', 'pandera', 'networkx'}"
    code = f"import sys, kgrank.config; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
