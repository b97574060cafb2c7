"""MovieLens as GroupLens publishes it: ml-100k, ml-1m (and 10m), and the CSV files since 2015.

The ratings are for research; the licence forbids to pass them on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from kgrank.errors import DataError, Fault
from kgrank.kg.delimited import read_text
from kgrank.kg.reading import RawTable

_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
# From the README of ml-1m.
_AGES = {
    **{"1": "Under 18", "18": "18-24", "25": "25-34", "35": "35-44", "45": "45-49"},
    **{"50": "50-55", "56": "56+"},
}
_OCCUPATIONS = (
    *("other", "academic/educator", "artist", "clerical/admin", "college/grad student"),
    *("customer service", "doctor/health care", "executive/managerial", "farmer", "homemaker"),
    *("K-12 student", "lawyer", "programmer", "retired", "sales/marketing", "scientist"),
    *("self-employed", "technician/engineer", "tradesman/craftsman", "unemployed", "writer"),
)


def read(source: Path) -> dict[str, RawTable]:
    """Events (`rating`, with its value), items (`title`, `year`, `genre`) and users.

    Users have `age`, `gender` and `occupation` where they are published (ml-100k, ml-1m).

    Raises:
        DataError: none of the editions is there, or a file is missing or broken.
    """
    readers = {"u.data": _ml_100k, "ratings.dat": _ml_1m, "ratings.csv": _ml_csv}
    for file, reader in readers.items():
        if (source / file).is_file():
            return reader(source)
    found = f"none of {', '.join(readers)}"
    mend = "Name the folder that holds the unpacked files."
    allowed = "MovieLens as published"
    raise DataError([Fault(str(source), None, None, found, allowed, mend)])


def _ml_100k(source: Path) -> dict[str, RawTable]:
    names = ("user_id", "item_id", "value", "timestamp")
    events = read_text(source / "u.data", delimiter="\t", header=names)
    columns = ("item_id", "title", "released", "video", "url", *_GENRES)
    films = read_text(source / "u.item", delimiter="|", header=columns, encoding="latin-1")
    flags = films[list(_GENRES[1:])] == "1"
    genre = [
        "|".join(name for name, is_set in zip(_GENRES[1:], row, strict=True) if is_set)
        for row in flags.to_numpy()
    ]
    users = read_text(
        source / "u.user",
        delimiter="|",
        header=("user_id", "age", "gender", "occupation", "zip_code"),
    )
    return {
        "events": _ratings(events, "u.data"),
        "items": _films(films, pd.Series(genre, index=films.index, dtype="str"), "u.item"),
        "users": RawTable(users.drop(columns="zip_code"), "u.user"),
    }


def _ml_1m(source: Path) -> dict[str, RawTable]:
    names = ("user_id", "item_id", "value", "timestamp")
    events = read_text(source / "ratings.dat", delimiter="::", header=names)
    films = read_text(
        source / "movies.dat",
        delimiter="::",
        header=("item_id", "title", "genre"),
        encoding="latin-1",
    )
    tables = {
        "events": _ratings(events, "ratings.dat"),
        "items": _films(films, films["genre"], "movies.dat"),
    }
    if (source / "users.dat").is_file():  # ml-10m has none
        columns = ("user_id", "gender", "age", "occupation", "zip_code")
        users = read_text(source / "users.dat", delimiter="::", header=columns)
        occupations = {str(code): name for code, name in enumerate(_OCCUPATIONS)}
        users = users.assign(
            age=users["age"].map(lambda code: _AGES.get(code, code)),
            occupation=users["occupation"].map(lambda code: occupations.get(code, code)),
        )
        tables["users"] = RawTable(users.drop(columns="zip_code"), "users.dat")
    return tables


def _ml_csv(source: Path) -> dict[str, RawTable]:
    names = {"userId": "user_id", "movieId": "item_id", "rating": "value", "genres": "genre"}
    events = read_text(source / "ratings.csv", quoted=True).rename(columns=names)
    films = read_text(source / "movies.csv", quoted=True).rename(columns=names)
    for frame, file, column in (
        (events, "ratings.csv", "timestamp"),
        (films, "movies.csv", "item_id"),
        (films, "movies.csv", "title"),
        (films, "movies.csv", "genre"),
    ):
        if column not in frame:
            found, mend = (
                f"the columns {', '.join(map(str, frame))}",
                "Put the published file there.",
            )
            raise DataError([Fault(file, None, column, found, "MovieLens' columns", mend)])
    genre = films["genre"].where(films["genre"] != "(no genres listed)", "")
    return {
        "events": _ratings(events, "ratings.csv"),
        "items": _films(films, genre, "movies.csv"),
    }


def _ratings(events: pd.DataFrame, file: str) -> RawTable:
    return RawTable(events.assign(event="rating"), file)


def _films(films: pd.DataFrame, genre: pd.Series[Any], file: str) -> RawTable:
    """`Toy Story (1995)` as the title `Toy Story` of the year 1995."""
    parts = films["title"].str.extract(r"^(.*?)\s*\((\d{4})[^()]*\)\s*$")
    items = {
        "item_id": films["item_id"],
        "title": parts[0].fillna(films["title"].str.strip()),
        "year": parts[1].fillna(""),
        "genre": genre,
    }
    return RawTable(pd.DataFrame(items), file)
