"""The command line: exit status, one JSON object on stdout, nothing half-written."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner, Result

from kgrank.data import sample_shop
from kgrank.errors import DataError
from kgrank.kg.tables import read_tables
from kgrank.serving import printing
from kgrank.serving.cli import app
from kgrank.serving.printing import print_table, progress_on_stderr
from kgrank.serving.recommender import Recommender


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def answer(*words: object) -> Any:
    """What a verb prints with --json."""
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_long_stage_is_told_of_soon_and_every_minute_where_no_terminal_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(printing.time, "monotonic", lambda: clock[-1])
    with progress_on_stderr() as progress:
        for now, done in ((1000.0, 0), (1009.0, 1), (1010.0, 2), (1069.0, 3), (1071.0, 4)):
            clock.append(now)
            progress(f"trials: best {done / 10}", done, 9)
        progress("writing", 0, 1)
    assert capsys.readouterr().err.splitlines() == [
        "trials …",
        "trials: best 0.2, 2 of 9 done",
        "trials: best 0.4, 4 of 9 done",
        "writing …",
    ]


def test_validate_counts_the_rows_of_a_sound_shop() -> None:
    found = answer("validate", sample_shop())
    assert found["faults"] == []
    assert found["tables"]["items"] == 299


def test_every_fault_is_told_and_nothing_is_left_behind(tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "events.csv").write_text("user_id,item_id,timestamp\na,x,-5\n,x,soon\n")
    told = run("validate", shop, "--json")
    assert told.exit_code == 1
    places = {(f["file"], f["row"], f["column"]) for f in json.loads(told.stdout)["faults"]}
    assert places == {
        ("events.csv", 1, "timestamp"),
        ("events.csv", 2, "timestamp"),
        ("events.csv", 2, "user_id"),
    }
    trained = run("train", shop, "--out", tmp_path / "models")
    assert trained.exit_code == 1
    assert "events.csv, row 2, column 'user_id'" in trained.stderr
    assert not (tmp_path / "models").exists()
    if not torch.cuda.is_available():  # told first, since reading may take long
        nowhere = run("train", shop, "--out", tmp_path / "models", "--device", "cuda")
        assert nowhere.exit_code == 1
        assert "found device 'cuda'" in nowhere.stderr


def test_train_evaluate_and_an_unknown_setting(tiny_shop: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    settings = ("--set", "text.model=none")
    assert run("train", tiny_shop, "--out", models, *settings).exit_code == 0
    assert (models / "current").is_file()
    figures = answer("evaluate", models, "--protocol", "next")
    assert {"protocol", "split", "users", "queries", "metrics", "slices", "baselines"} <= set(
        figures
    )
    assert {"recall@10", "ndcg@10", "recall@20", "ndcg@20", "mrr", "coverage@10"} == set(
        figures["metrics"]
    )
    assert {"popularity", "ease"} <= set(figures["baselines"])
    wrong = run("train", tiny_shop, "--out", tmp_path / "other", "--set", "fit.neighbours=5")
    assert wrong.exit_code == 1
    assert "Is 'neighbors' meant?" in wrong.stderr
    wrong = run("train", tiny_shop, "--out", tmp_path / "other", "--track", "tensorbord:runs")
    assert wrong.exit_code == 1
    assert "allowed: tensorboard:DIR, mlflow[:URI] and wandb[:PROJECT]" in wrong.stderr
    assert not (tmp_path / "other").exists()


def test_an_explanation_adds_up_in_every_format(shop_models: Path) -> None:
    asked = ("explain", shop_models, "--user", "u-ada", "--item", "tarn-bottle")
    why = answer(*asked, "--format", "json")
    assert why["bias"] + sum(why["contributions"].values()) == pytest.approx(why["score"], rel=1e-4)
    assert why["paths"][0]["nodes"][0] == {"id": "u-ada", "type": "user", "name": "u-ada"}
    assert set(why["remainder"]) == set(why["contributions"])
    assert why["paths"][0]["cypher"].startswith("MATCH p = (:User {id: 'u-ada'})-[:`purchase`]->")
    assert why["text"][:40] in run(*asked).stdout
    assert run(*asked, "--format", "svg").stdout.lstrip().startswith("<svg")
    assert "<html" in run(*asked, "--format", "html").stdout


def test_reasons_are_measured_and_written(shop_models: Path, tmp_path: Path) -> None:
    found = answer("evaluate", shop_models, "--explanations", "--sample", 3)
    assert found["users"] == 3
    assert {"drop", "drop_beyond_user", "covered", "stability", "lir", "sep", "etd"} <= set(found)
    shown = run("evaluate", shop_models, "--explanations", "--sample", 3).stdout
    assert "drop_beyond_user" in shown
    users = tmp_path / "users.txt"
    users.write_text("u-ada\n")
    out = tmp_path / "lists"
    answer("rank", shop_models, "--out", out, "-n", 2, "--users", users, "--explain", "--paths", 1)
    rows = pd.read_parquet(out / "part-00000.parquet")
    assert rows["text"].str.len().min() > 10
    assert [len(json.loads(paths)) for paths in rows["paths"]] == [1, 1]


def test_similar_and_profile(shop_models: Path) -> None:
    alike = answer("similar", shop_models, "--item", "brook-bottle", "-n", 3)["similar"]
    assert [row["rank"] for row in alike] == [1, 2, 3]
    items = read_tables(sample_shop()).items.set_index("item_id")
    found = items.loc[[row["item_id"] for row in alike]]
    assert set(found["category"]) == {"Water bottles"}
    assert items.loc["brook-bottle", "brand"] in set(found["brand"])
    assert answer("profile", shop_models, "--user", "u-ada")["events"] == {"purchase": 3}


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("frobnicate",), 2),
        (("explain", "MODELS", "--user", "u-ada"), 2),
        (("explain", "MODELS", "--user", "nobody", "--item", "tarn-bottle"), 1),
        (("evaluate", "NOWHERE"), 1),
    ],
)
def test_exit_status(words: tuple[str, ...], status: int, shop_models: Path) -> None:
    """2 for wrong usage, 1 for a fault in data or model."""
    named = [str(shop_models) if word == "MODELS" else word for word in words]
    result = run(*named)
    assert result.exit_code == status
    assert "Traceback" not in result.stderr


def test_rank_writes_every_user_once_and_names_an_unknown_one(
    shop_models: Path, tmp_path: Path
) -> None:
    users = tmp_path / "users.txt"
    users.write_text("u-ada\n0001\nnobody\n")
    refused = run("rank", shop_models, "--out", tmp_path / "a", "--users", users)
    assert refused.exit_code == 1
    assert "nobody" in refused.stderr
    assert not (tmp_path / "a").exists()
    told = answer(
        "rank", shop_models, "--out", tmp_path / "b", "-n", 5, "--users", users, "--unknown", "skip"
    )
    assert told["skipped_users"] == 1
    lists = pd.concat(map(pd.read_parquet, sorted((tmp_path / "b").glob("part-*.parquet"))))
    assert list(lists.columns) == ["user_id", "item_id", "score", "rank"]
    assert lists.groupby("user_id")["rank"].apply(list).to_dict() == {
        "0001": [1, 2, 3, 4, 5],
        "u-ada": [1, 2, 3, 4, 5],
    }
    again = run("rank", shop_models, "--out", tmp_path / "b", "--users", users)
    assert again.exit_code == 1


def test_the_installed_command_says_its_version() -> None:
    command = [sys.executable, "-c", "from kgrank.serving.cli import main; main()", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("kgrank 0.")


@pytest.mark.parametrize("words", [("train",), ("validate",), ("graph", "export"), ("tune",)])
def test_help_says_brackets_as_they_are(words: tuple[str, ...]) -> None:
    shown = run(*words, "--help")
    assert shown.exit_code == 0, shown.exception
    assert "neo4j://[user@]host[:port][/database]" in "".join(re.split(r"[\s│]+", shown.output))


def test_every_verb_has_help() -> None:
    verbs: dict[str, Any] = getattr(get_command(app), "commands")  # noqa: B009
    assert "train" in verbs
    for name, verb in verbs.items():
        for more in ("", *getattr(verb, "commands", ())):
            shown = run(name, *more.split(), "--help")
            assert shown.exit_code == 0, (name, more, shown.exception)


def test_help_is_quick_to_load() -> None:
    """No verb's imports are paid for by another."""
    code = "import sys, kgrank.serving.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "pandas", "numpy", "pydantic", "jinja2"}.isdisjoint(done.stdout.split())


def test_stdout_holds_one_json_object_and_stderr_the_rest(
    shop_models: Path, tmp_path: Path
) -> None:
    """In a process of its own, where a library's warning would be seen."""
    command = [sys.executable, "-c", "from kgrank.serving.cli import main; main()", "rank"]
    words = [str(shop_models), "--out", str(tmp_path / "lists"), "-n", "1", "--json"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["complete"] is True
    assert done.stdout.count("\n") == 1
    assert done.stderr == "ranking …\n"


def test_faults_are_objects_in_json_and_lines_on_stderr(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\na,x,-5\n,x,5\n")
    told = run("train", tmp_path, "--out", tmp_path / "models", "--json")
    assert told.exit_code == 1
    error = json.loads(told.stdout)["error"]
    assert error["kind"] == "DataError"
    keys = {"file", "row", "column", "found", "allowed", "mend"}
    assert all(keys <= set(fault) for fault in error["faults"])
    assert len(error["faults"]) == len(told.stderr.splitlines()) == 2


def test_an_interrupted_job_says_so_and_leaves_whole_parts_only(
    shop_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **options: object) -> pd.DataFrame:
        raise KeyboardInterrupt

    monkeypatch.setattr(Recommender, "recommend", interrupted)
    told = run("rank", shop_models, "--out", tmp_path / "lists", "--json")
    assert told.exit_code == 130
    assert (told.stdout, "Interrupted" in told.stderr) == ("", True)
    left = sorted(path.name for path in (tmp_path / "lists").iterdir())
    assert left == ["manifest.json"]
    monkeypatch.undo()
    assert answer("rank", shop_models, "--out", tmp_path / "lists", "--resume")["complete"] is True


def test_a_bug_is_shown_and_not_dressed_up(
    shop_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Recommender, "profile", broken)
    assert isinstance(run("profile", shop_models, "--user", "u-ada").exception, ZeroDivisionError)


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """No markup, no picture names, and nothing that a terminal would obey."""
    print_table(("title",), [("[bold]Lamp[/bold] :lamp: \x1b[2J",)])
    assert "[bold]Lamp[/bold] :lamp: \ufffd[2J" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ("import", "netflix", "here", "there"),
        ("explain", "MODELS", "--user", "u", "--item", "i", "--format", "svg", "--json"),
        ("rank", "MODELS", "--out", "lists", "-n", "0"),
        ("rank", "MODELS", "--out", "lists", "--users", "no-such-file"),
        ("evaluate", "MODELS", "--graph", "false"),
        ("evaluate", "MODELS", "--explanations", "--task", "click"),
        ("explain", "MODELS", "--user", "u", "--why-not", "i", "--task", "click"),
    ],
)
def test_wrong_usage_is_status_2(words: tuple[str, ...]) -> None:
    told = run(*words)
    assert (told.exit_code, told.stdout) == (2, "")


def test_import_writes_tables_that_can_be_trained(tmp_path: Path) -> None:
    source = tmp_path / "kgat"
    source.mkdir()
    (source / "train.txt").write_text("0 0 1 2\n1 1 2 0\n")
    (source / "test.txt").write_text("0 3\n1 3\n")
    (source / "kg_final.txt").write_text("0 0 4\n1 0 4\n2 1 5\n")
    told = answer("import", "kgat", source, tmp_path / "shop")
    assert (told["tables"]["events"], told["tables"]["triples"]) == (8, 3)
    assert answer("validate", tmp_path / "shop")["tables"]["events"] == 8
    sets = ("--set", "text.model=none", "--set", "kg.encoder=none")
    trained = answer("train", tmp_path / "shop", "--out", tmp_path / "models", *sets)
    assert trained["rows"] == {"train": 4, "valid": 2}  # the last train row of each
    assert answer("evaluate", tmp_path / "models")["queries"] == 2
    assert run("import", "kgat", source, tmp_path / "shop").exit_code == 1


def shop_of(folder: Path, rows: list[tuple[object, ...]], **files: str) -> Path:
    """A shop of events `user, item, event, timestamp`, with further files (`items_csv`)."""
    folder.mkdir()
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "event", "timestamp"])
    events.to_csv(folder / "events.csv", index=False)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


EVERY_DAY = [
    (f"u{user}", f"i{(user + 2 * day) % 7}", "view", 1.7e9 + 86_400 * day)
    for user in range(8)
    for day in range(12)
]
ITEMS = "item_id,title,brand,price\n" + "".join(f"i{n},Thing {n},acme,{n}\n" for n in range(7))


@pytest.mark.parametrize(
    ("rows", "files", "where", "said"),
    [
        (
            EVERY_DAY,
            {"entities_csv": "entity_id,name,type\nx,X,place\ny,Y,user\n"},
            ("entities.csv", 2, "type"),
            None,
        ),
        (
            EVERY_DAY,
            {"items_csv": ITEMS.replace("brand", "item")},
            ("items.csv", None, "item"),
            None,
        ),
        ([(*row[:3], 1.7e9) for row in EVERY_DAY], {}, ("events", None, "timestamp"), None),
        (
            [(*row[:2], "not_interested", row[3]) for row in EVERY_DAY],
            {},
            None,
            "found no train events",
        ),
        ([(f"u{n}", "i", "view", 1.7e9 + n) for n in range(50)], {}, None, "found no valid events"),
        (EVERY_DAY, {"kgrank_toml": "[kg]\nbins = {nope = 4}"}, None, "column 'nope'"),
        (EVERY_DAY, {"kgrank_toml": "[kg]\nbins = {brand = 4}"}, None, "'brand' of items"),
        (EVERY_DAY, {"kgrank_toml": '[kg]\nignore = ["nope"]'}, None, "column 'nope'"),
        (
            EVERY_DAY,
            {"kgrank_toml": '[text]\nfields = ["nope"]'},
            None,
            "text.fields: found 'nope'",
        ),
        (
            EVERY_DAY,
            {"kgrank_toml": '[image]\nmodel = "vit"\ncolumn = "nope"'},
            None,
            "image.column: found 'nope'",
        ),
        (EVERY_DAY, {"kgrank_toml": "[fit]\nnope = 1"}, None, "found 'nope' = 1 in [fit]"),
        (EVERY_DAY, {"kgrank_toml": "[fit\n"}, None, "allowed: TOML in UTF-8"),
    ],
)
def test_validate_tells_what_train_refuses(
    tmp_path: Path,
    rows: list[tuple[object, ...]],
    files: dict[str, str],
    where: tuple[str, int | None, str] | None,
    said: str | None,
) -> None:
    shop = shop_of(tmp_path / "shop", rows, **{"items_csv": ITEMS, **files})
    if rows[0][1] == "i":
        (shop / "items.csv").unlink()
    told = run("validate", shop, "--json")
    assert told.exit_code == 1
    found = json.loads(told.stdout)
    places = [(fault["file"], fault["row"], fault["column"]) for fault in found["faults"]]
    assert places == ([where] if where else [])
    assert len(found["refused"]) == (1 if said else 0)
    sets = ["--set", "text.model=none", "--set", "kg.encoder=none"]
    trained = run("train", shop, "--out", tmp_path / "models", *sets)
    assert trained.exit_code == 1
    if said:
        assert said in found["refused"][0]
    if "[image]" not in files.get("kgrank_toml", ""):  # train looks for the model first
        for line in [*found["refused"], *(fault["found"] for fault in found["faults"])]:
            assert line in trained.stderr
    assert run("validate", shop).stdout.count("\n") == 1


def test_validate_tells_faults_of_the_tables_beside_those_of_settings(tmp_path: Path) -> None:
    rows = [(*EVERY_DAY[0][:3], "soon"), *EVERY_DAY[1:]]
    toml = '[fit]\nnope = 1\n[kgg]\na = 1\n[tables]\nitems = "things.csv"\n'
    shop = shop_of(tmp_path / "shop", rows, things_csv=ITEMS + "i1,again,b,1\n", kgrank_toml=toml)
    found = json.loads(run("validate", shop, "--json").stdout)
    assert [(f["file"], f["row"]) for f in found["faults"]] == [
        ("events.csv", 1),
        ("things.csv", 8),
    ]
    assert [line.split(" ", 1)[1][:12] for line in found["refused"]] == [
        "found 'nope'",
        "found 'kgg' ",
    ]
    assert found["tables"] == {}
    (shop / "kgrank.toml").write_text(
        '[kg]\nbins = {a = 4}\nignore = ["b"]\n[text]\nfields = ["c", "title"]\n'
        '[pretrain]\nfields = ["d"]\nevent_fields = ["e"]\n'
    )
    events = pd.DataFrame(EVERY_DAY, columns=["user_id", "item_id", "event", "timestamp"])
    events.assign(timestamp=5).to_csv(shop / "events.csv", index=False)
    found = json.loads(run("validate", shop, "--json").stdout)
    assert [fault["column"] for fault in found["faults"]] == ["timestamp"]
    assert [re.findall("found '(.)'|column '(.)'", line)[0] for line in found["refused"]] == [
        *(("c", ""), ("d", ""), ("e", ""), ("", "a"), ("", "b"))
    ]
    assert found["tables"]["events"] == len(EVERY_DAY)


def test_an_empty_name_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shop_of(tmp_path / "shop", EVERY_DAY))
    with pytest.raises(DataError, match=r"found an empty name; .* '\.' is the working folder"):
        read_tables("")
    assert len(read_tables(".").events) == len(EVERY_DAY)
    for verb in ("validate", "train"):
        told = run(verb, "")
        assert told.exit_code == 1
        assert "found an empty name" in told.stderr
