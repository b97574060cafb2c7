"""The one configuration: a kgrank.toml, composed of the sections that live beside their readers."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kgrank.encoders.compression import CompressSettings
from kgrank.encoders.finetuning import FinetuneSettings
from kgrank.encoders.images import ImageSettings
from kgrank.encoders.pretraining import PretrainSettings
from kgrank.encoders.text import TextSettings
from kgrank.encoders.tfidf import TfidfSettings
from kgrank.errors import ROW, ConfigError
from kgrank.fusion.settings import FitSettings, TaskSettings
from kgrank.kg.bolt import is_server
from kgrank.kg.building import GraphSettings
from kgrank.kg.server_tables import Neo4jSettings, read_server_tables
from kgrank.kg.splits import SplitSettings
from kgrank.kg.tables import Tables, TablesSettings, read_tables
from kgrank.settings import (
    LearnSettings,
    RulesSettings,
    Section,
    WordingSettings,
    check_columns,
)
from kgrank.spaces import TuneSettings

_NOTHING: Mapping[str, Sequence[str]] = MappingProxyType({})


class Config(Section):
    """Every setting of a model; a section that is left out has its defaults.

    Attributes:
        tables: where each table lies, relative to the kgrank.toml.
        neo4j: a graph server that is read in the tables' place.
        split: which part of time is valid and test, where the events do not say.
        kg: which attributes become relations of the graph, and what learns on it.
        text: which text of a product is read, and by what encoder.
        tfidf: how words become features.
        image: which picture of a product is seen, and by what model.
        fit: how the model is fitted.
        tasks: which kinds of events are clicks, purchases and ratings.
        learn: how its learned parts are trained.
        wording: a shop's own words for its relations.
        pretrain: how a text encoder learns the shop's language, by `kgrank pretrain`.
        finetune: how it learns what people chose, by `kgrank finetune`.
        compress: how a text encoder is made smaller, by `kgrank compress`.
        tune: which settings are searched, by `kgrank tune`.
        rules: where the shop's rules lie.
    """

    tables: TablesSettings = TablesSettings()
    neo4j: Neo4jSettings = Neo4jSettings()
    split: SplitSettings = SplitSettings()
    kg: GraphSettings = GraphSettings()
    text: TextSettings = TextSettings()
    tfidf: TfidfSettings = TfidfSettings()
    image: ImageSettings = ImageSettings()
    fit: FitSettings = FitSettings()
    tasks: TaskSettings = TaskSettings()
    learn: LearnSettings = LearnSettings()
    wording: WordingSettings = WordingSettings()
    pretrain: PretrainSettings = PretrainSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    compress: CompressSettings = CompressSettings()
    tune: TuneSettings = TuneSettings()
    rules: RulesSettings = RulesSettings()


def read_config(source: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a kgrank.toml, with single settings set anew.

    Args:
        source: a kgrank.toml, or a folder that may hold one; None, or a folder without one, gives
            the defaults, and the address of a graph server the defaults with that server.
        overrides: `section.key=value` each, the value as TOML writes it. A value that is no TOML
            and begins with no quote or bracket is text: `text.model=minilm`. The last one wins.

    Raises:
        ConfigError: there is no such file; it is no TOML; an override is not of this form; a
            section, a key or a value is unknown or not allowed. The file has to be sound without
            the overrides.
    """
    values: dict[str, Any] = {}
    if source is not None and is_server(str(source)):
        path, values = None, {"neo4j": {"uri": str(source)}}
    elif path := _toml(source):
        values = _read(path)
    config = Config.from_dict(values, str(path))
    if not overrides:
        return config
    for override in overrides:
        section, key, value = _override(override)
        values.setdefault(section, {})[key] = value
    return Config.from_dict(values, "--set")


def sound_config(source: str | Path) -> tuple[Config | None, list[str]]:
    """What is sound of a configuration, and what is wrong with the rest.

    Args:
        source: as of `read_config`.

    Returns:
        The configuration with the defaults in place of settings at fault; None where it cannot be
        told from it where the tables lie. And a line for each fault.

    Raises:
        ConfigError: there is no such file, or the address of a server is at fault.
    """
    if is_server(str(source)):
        return read_config(source), []
    path = _toml(source)
    try:
        values = _read(path) if path else {}
    except ConfigError as error:
        return None, [str(error)]
    sound: dict[str, Any] = {}
    faults: list[str] = []
    located = True
    for name, section in values.items():
        found = _faults({name: section}, path)
        if not found:
            sound[name] = section
        elif name in Config.model_fields and isinstance(section, Mapping):
            sound[name] = {k: v for k, v in section.items() if not _faults({name: {k: v}}, path)}
        located &= not found or name not in ("tables", "neo4j")
        faults += found
    return Config.from_dict(sound, str(path)) if located else None, faults


def _faults(values: Mapping[str, Any], path: Path | None) -> list[str]:
    try:
        Config.from_dict(values, str(path))
    except ConfigError as error:
        return str(error).split("\n")
    return []


def read_source(
    source: str | Path, config: Config, event_columns: Mapping[str, Sequence[str]] = _NOTHING
) -> Tables:
    """The tables that `source` holds, or that the graph server of `[neo4j]` is read as.

    Args:
        source: a folder of tables, a kgrank.toml, or the address of a graph server.
        config: what `read_config` made of it.
        event_columns: setting → the further columns of events that it names, such as a review. They
            are kept, and with them `kgrank.errors.ROW`, where there are any settings.

    Raises:
        DataError, ConfigError: as `read_tables`; or such a column is not there.
        StoreError: the server cannot be reached or refuses.
    """
    columns = [*chain.from_iterable(event_columns.values()), ROW] if event_columns else []
    if config.neo4j.uri is not None:
        tables = read_server_tables(config.neo4j, columns)
    else:
        tables = read_tables(source, config.tables, columns)
    there = [column for column in tables.events if column != ROW]
    for setting, names in event_columns.items():
        check_columns(setting, names, "events", [*there, *tables.unread])
    return tables


def _toml(source: str | Path | None) -> Path | None:
    """The file to read, if there is one."""
    if source is None:
        return None
    if not str(source):
        mend = "Name it; '.' is the working folder"
        allowed = "a kgrank.toml, or a folder that may hold one"
        raise ConfigError(f"found an empty name; allowed: {allowed}. {mend}.")
    path = Path(source)
    if path.is_dir():
        path /= "kgrank.toml"
        return path if path.is_file() else None
    if path.is_file() and path.suffix == ".toml":
        return path
    found = "a file of another kind" if path.exists() else "nothing of this name"
    allowed = "a kgrank.toml, or a folder that may hold one"
    raise ConfigError(f"{path}: found {found}; allowed: {allowed}. Correct the path.")


def _read(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
        return tomllib.loads(data.decode("utf-8"))
    except OSError as error:
        found, mend = error.strerror, "Make the file readable."
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found, mend = f"bytes that are not UTF-8 (at line {line})", "Save the file as UTF-8."
    except tomllib.TOMLDecodeError as error:
        found, mend = str(error), "Correct the line."
    raise ConfigError(f"{path}: found {found}; allowed: TOML in UTF-8. {mend}")


def _override(text: str) -> tuple[str, str, Any]:
    """Section, key and value of a `section.key=value`."""
    name, equals, value = (part.strip() for part in text.partition("="))
    section, dot, key = name.partition(".")
    if not (equals and dot and section and key and value):
        example = "such as fit.neighbors=50"
        raise ConfigError(f"--set: found {text!r}; allowed: section.key=value, {example}.")
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError as error:
        if value[0] in "\"'[{":
            mend = "Close what is open; a shell may need quotes around it all."
            raise ConfigError(f"--set {text}: found {error}; allowed: TOML. {mend}") from None
        return section, key, value
    return section, key, parsed["value"] if len(parsed) == 1 else value
